"""The one source of randomness: Philox 4x32-10, the same numbers on any device and any rank.

A counter-based generator has no state: a number is a function of (seed, purpose, iteration, place, index). So a resumed
run needs no saved generator, an image's draws do not depend on how many ranks share the batch, and a CUDA graph can
replay them with the iteration as an input (Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3, SC 2011).
"""

import zlib
from collections.abc import Mapping
from functools import cache

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10


def philox(counters: Tensor, seed: int) -> Tensor:
    """Philox 4x32-10 of counters (4, N), int64 in [0, 2^32): four random words each, in the same shape.

    Args:
        counters: rows c0 to c3.
        seed: the key, in [0, 2^64); its lower word is k0.
    """
    multipliers, keys = _constants(seed, counters.device)
    even, odd = counters[::2], counters[1::2]
    for key in keys:
        # int64 products wrap around, which leaves the bits of the unsigned ones; odd words keep bits above their own.
        product = (even * multipliers).flip(0)
        even, odd = ((product >> 32) ^ odd ^ key) & _WORD, product
    return torch.stack([even, odd & _WORD], dim=1).flatten(0, 1)


@cache
def _constants(seed: int, device: torch.device) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Multipliers (2, 1) and the key (2, 1) of every round: made once, for a tensor made of numbers stalls a GPU."""
    keys = [
        [(word + step * turn) & _WORD for word, step in zip((seed & _WORD, seed >> 32), _KEY_STEPS, strict=True)]
        for turn in range(_ROUNDS)
    ]
    multipliers = torch.tensor(_MULTIPLIERS, device=device)[:, None]
    return multipliers, torch.tensor(keys, device=device)[:, :, None].unbind()


def purpose_word(purpose: str) -> int:
    """The word of a counter that keeps the streams of different purposes apart."""
    return zlib.crc32(purpose.encode())


def words(
    seed: int, purpose: str, iteration: int | Tensor, places: range, count: int, device: torch.device | str
) -> Tensor:
    """Random words (len(places), count), int64 in [0, 2^32).

    Args:
        seed: the run's.
        purpose: what they are for; each has streams of its own.
        iteration: 0-based; a tensor where a CUDA graph replays the draws.
        places: of the images in the global batch.
        count: words an image.
        device: where they are made.
    """
    return _words(seed, {purpose: count}, iteration, places, device)[:, :count]


def _words(
    seed: int, counts: Mapping[str, int], iteration: int | Tensor, places: range, device: torch.device | str
) -> Tensor:
    """Words (len(places), W) of all purposes side by side, each rounded up to a multiple of 4."""
    streams = _streams(tuple(counts.items()), torch.device(device))
    shape = (len(places), streams.shape[1])
    counters = torch.empty((4, *shape), dtype=torch.int64, device=device)
    counters[::3] = streams[:, None]
    counters[1] = torch.arange(places.start, places.stop, places.step, device=device)[:, None]
    counters[2] = iteration
    return philox(counters.flatten(1), seed).view(4, *shape).permute(1, 2, 0).flatten(1)


@cache
def _streams(counts: tuple[tuple[str, int], ...], device: torch.device) -> Tensor:
    """Rows c0 and c3 (2, blocks) of the counters of so many words for each purpose."""
    blocks = [(block, purpose_word(purpose)) for purpose, count in counts for block in range(-(-count // 4))]
    return torch.tensor(blocks, device=device).T.contiguous()


def uniform(
    seed: int, purpose: str, iteration: int | Tensor, places: range, count: int, device: torch.device | str
) -> Tensor:
    """Uniform draws (len(places), count) in [0, 1), float32 with 24 random bits; arguments as for `words`."""
    return uniforms(seed, {purpose: count}, iteration, places, device)[purpose]


def uniforms(
    seed: int, counts: Mapping[str, int], iteration: int | Tensor, places: range, device: torch.device | str
) -> dict[str, Tensor]:
    """What `uniform` draws for each purpose, by one pass of the generator."""
    drawn = (_words(seed, counts, iteration, places, device) >> 8).float() * 2.0**-24
    parts = drawn.split([-(-count // 4) * 4 for count in counts.values()], dim=1)
    return {purpose: part[:, :count] for (purpose, count), part in zip(counts.items(), parts, strict=True)}


def permutation(seed: int, purpose: str, index: int, length: int) -> Tensor:
    """A random order (length,) int64 of `range(length)`, on the CPU."""
    high, low = words(seed, purpose, index, range(length), 2, "cpu").unbind(1)
    return torch.argsort((high << 31) ^ low, stable=True)  # 63 bits: no ties to speak of
