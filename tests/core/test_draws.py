"""The generator against its published vectors; its streams are uniform and independent; positions decide."""

import math

import pytest
import torch

from dgnet_core.learning.batches import Position
from dgnet_core.learning.draws import permutation, philox, uniform, uniforms, words


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # Random123's kat_vectors, philox4x32 10
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_published_vectors(counter, key, expected):
    seed = key[0] | key[1] << 32
    assert tuple(philox(torch.tensor(counter)[:, None], seed)[:, 0].tolist()) == expected


def chi_square(counts: torch.Tensor, expected: float) -> float:
    """As a normal deviate (Wilson-Hilferty), so that one bound serves for any number of cells."""
    free = counts.numel() - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return ((statistic / free) ** (1 / 3) - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free))


BOUND = 4.5  # a sound generator exceeds it once in 300,000 such tests


@pytest.mark.parametrize("axis", ["index", "place", "iteration", "purpose", "seed"])
def test_draws_are_uniform_and_neighbours_independent(axis):
    """Pairs of draws that differ in one coordinate by one fill the unit square evenly."""
    cells, n = 16, 4096

    def drawn(step: int) -> torch.Tensor:
        at = {name: step if name == axis else 0 for name in ("index", "place", "iteration", "purpose", "seed")}
        places = range(at["place"], 64 + at["place"])
        values = uniform(7 + at["seed"], f"p{at['purpose']}", 11 + at["iteration"], places, n + 1, "cpu")
        return values[:, at["index"] : n + at["index"]].flatten()

    first, second = (drawn(step) * cells for step in (0, 1))
    assert chi_square(torch.bincount(first.long(), minlength=cells).double(), len(first) / cells) < BOUND
    pairs = torch.bincount(first.long() * cells + second.long(), minlength=cells**2).double()
    assert chi_square(pairs, len(first) / cells**2) < BOUND


def test_every_bit_is_used():
    drawn = words(3, "bits", 0, range(100), 1000, "cpu")
    shares = ((drawn[..., None] >> torch.arange(32)) & 1).double().mean(dim=(0, 1))
    assert (shares - 0.5).abs().max() < 5 * 0.5 / math.sqrt(drawn.numel())
    assert uniform(3, "bits", 0, range(100), 1000, "cpu").min() >= 0
    assert uniform(3, "bits", 0, range(100), 1000, "cpu").max() < 1


def test_an_images_draws_are_its_places_own():
    whole = Position(seed=1, iteration=5).uniform("a", (8, 3, 2), "cpu")
    for first, count in ((0, 3), (3, 5), (7, 1)):
        part = Position(seed=1, iteration=5, first=first, total=8).uniform("a", (count, 3, 2), "cpu")
        assert torch.equal(part, whole[first : first + count])
    assert torch.equal(uniform(1, "a", 5, range(8), 4, "cpu"), whole.flatten(1)[:, :4])  # more draws, same beginning


def test_the_iteration_may_be_a_tensor():
    assert torch.equal(uniform(1, "a", torch.tensor(9), range(4), 5, "cpu"), uniform(1, "a", 9, range(4), 5, "cpu"))


def test_permutations():
    order = permutation(0, "shuffle a", 3, 1000)
    assert torch.equal(order.sort().values, torch.arange(1000))
    assert not torch.equal(order, permutation(0, "shuffle a", 4, 1000))
    assert not torch.equal(order, permutation(0, "shuffle b", 3, 1000))
    assert (order == torch.arange(1000)).sum() < 8  # one is expected


@pytest.mark.gpu
@pytest.mark.parametrize("iteration", [9, 2**31 + 9])
def test_the_cpu_and_cuda_draw_the_same(iteration: int):
    seed, places, counts = 2**63 - 1, range(3, 11), {"augment": 44, "negative": 2, "dropout": 513}
    on_cpu, on_cuda = (uniforms(seed, counts, iteration, places, device) for device in ("cpu", "cuda"))
    for purpose, count in counts.items():
        assert torch.equal(on_cpu[purpose], on_cuda[purpose].cpu()), purpose
        for draw in (uniform, words):
            drawn = [draw(seed, purpose, iteration, places, count, device) for device in ("cpu", "cuda")]
            assert drawn[1].is_cuda
            assert torch.equal(drawn[0], drawn[1].cpu()), purpose
    replayed = uniform(seed, "augment", torch.tensor(iteration, device="cuda"), places, 44, "cuda")
    assert torch.equal(on_cpu["augment"], replayed.cpu())
