"""Each damage to true swaps moves the measures of generated people that it should, and leaves the others."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_core.generation.distances import (
    dssim,
    frechet_distance,
    identity_pairs,
    kernel_distance,
    moments,
)
from dgnet_core.generation.fidelity import swap_fidelity
from dgnet_core.generation.people import identity_ranks, person_fidelity, person_figures
from dgnet_core.learning.augment import normalise, training_batch
from dgnet_core.learning.batches import PairSampler, Position
from dgnet_core.learning.config import StepConfig
from dgnet_core.networks.modes import evaluating
from dgnet_core.ranking.features import mirror_average
from dgnet_core.teacher.config import laptop_teacher
from dgnet_core.teacher.networks import Teacher
from dgnet_core.teacher.state import TeacherState
from dgnet_core.teacher.step import teacher_step
from dgnet_platform.data.people.people import People, Shot

pytestmark = pytest.mark.usefixtures("one_thread")

FEW = slice(24)
"""Pairs that figures of single pictures are taken of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Swaps:
    """144 pictures of 12 people, and the true swaps of as many pairs of them; (144, 3, 128, 64) uint8."""

    real: Tensor
    true: Tensor
    unchanged: Tensor
    """The structures' pictures as they are."""
    silhouette: Tensor
    people: Tensor
    """Whom `real` shows; (144) int64."""
    appearance: Tensor
    structure: Tensor
    damaged: dict[str, Tensor]
    """The true swaps, damaged."""


@pytest.fixture(scope="module")
def swaps() -> Swaps:
    people = People(0)
    shots = [Shot(i, camera, frame) for i in range(1, 13) for camera in (1, 2, 3) for frame in range(4)]
    order = np.random.default_rng(0).permutation(len(shots))
    pairs = [(shots[i], shots[j]) for i, j in zip(order, np.roll(order, 7), strict=True)]

    def stacked(pictures: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()

    def who(shown: list[Shot]) -> Tensor:
        return torch.tensor([shot.identity for shot in shown])

    real = stacked([people.picture(*shot) for shot in shots])
    true = stacked([people.draw(appearance_of=i, structure_of=j) for i, j in pairs])
    silhouette = torch.from_numpy(np.stack([people.silhouette(appearance_of=i, structure_of=j) for i, j in pairs]))
    inside = silhouette[:, None] > 0
    noise = torch.randn(true.shape, generator=torch.Generator().manual_seed(0))

    def blurred(size: int) -> Tensor:
        padded = F.pad(true.float(), (size // 2,) * 4, mode="replicate")
        return F.avg_pool2d(padded, size, stride=1).round().to(torch.uint8)

    def noisy(deviation: float) -> Tensor:
        return (true + deviation * noise).round().clamp(0, 255).to(torch.uint8)

    return Swaps(
        real=real,
        true=true,
        unchanged=real[torch.from_numpy(np.roll(order, 7))],
        silhouette=silhouette,
        people=who(shots),
        appearance=who([i for i, _ in pairs]),
        structure=who([j for _, j in pairs]),
        damaged={
            "none": true,
            "blur": blurred(5),
            "strong blur": blurred(9),
            "noise": noisy(25),
            "strong noise": noisy(50),
            "channels": true[:, [2, 0, 1]].contiguous(),
            "gray": true.float().mean(1, keepdim=True).round().to(torch.uint8).expand(-1, 3, -1, -1).contiguous(),
            "background": torch.where(inside, true, true.flip(0)),
            "no background": torch.where(inside, true, 0),
        },
    )


@pytest.fixture(scope="module")
def teacher(swaps: Swaps) -> Teacher:
    """One that has learned a little of these people: whose clothes and which places."""
    config = laptop_teacher(12, len(swaps.real))
    network = replace(config.network, height=64, width=32, appearance_width=4)
    # In float64, so that every CPU learns the same: rounding of float32 takes another way on each.
    config = replace(config, network=network, step=StepConfig(precision="float64")).rescaled(150)
    state, labels = TeacherState.build(config), swaps.people - 1
    sampler = PairSampler(labels, config.batch_size, 0)
    for iteration in range(150):
        rows = sampler.batch_at(iteration)[:1]
        position = Position(seed=0, iteration=iteration)
        teacher_step(state, training_batch(swaps.real[rows], labels[rows], position, config), config)
    network = state.networks["teacher"]
    assert isinstance(network, Teacher)
    return network


def described(teacher: Teacher, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """Pooled features (N, 128) and descriptors (N, D) of pictures."""
    x = normalise(pixels, 64, 32).double()
    with evaluating(teacher):
        pooled = teacher.pooled(torch.cat([x, x.flip(3)]))
        return pooled[: len(x)], mirror_average(*teacher.head(pooled).chunk(2))


# ------------------------------------------------------------------------------------------------------------
# People without their background


def test_people_without_their_background(swaps: Swaps):
    true, silhouette = swaps.true[FEW], swaps.silhouette[FEW]
    unchanged = person_fidelity(swaps.unchanged[FEW], true, silhouette)
    figures = {
        name: person_figures(person_fidelity(pictures[FEW], true, silhouette), unchanged)
        for name, pictures in swaps.damaged.items()
    }
    colour = {name: (row["upper_colour"] + row["lower_colour"]) / 2 for name, row in figures.items()}
    assert figures["none"] == {
        "person_L1": 0, "person_PSNR": 100, "person_SSIM": pytest.approx(1), "upper_colour": 0, "lower_colour": 0,
        "transfer": 1, "sharpness": 1, "background_L1": 0,
    }  # fmt: skip
    # Blur takes edges and little colour; noise adds gradients and takes none; both keep the clothes' mean colours.
    for blur, noise in (("blur", "noise"), ("strong blur", "strong noise")):
        assert figures[blur]["sharpness"] < 0.5 < 1.1 < figures[noise]["sharpness"]
        assert max(figures[blur]["person_SSIM"], figures[noise]["person_SSIM"]) < 0.9
    for damage in ("blur", "noise"):
        strong = figures[f"strong {damage}"]
        assert strong["person_SSIM"] < figures[damage]["person_SSIM"]
        assert strong["person_PSNR"] < figures[damage]["person_PSNR"]
    assert max(colour["blur"], colour["noise"]) < 4 < 8 < min(colour["channels"], colour["gray"])
    # Colours alone are wrong: as sharp as ever for swapped channels.
    assert figures["channels"]["sharpness"] == pytest.approx(1, abs=1e-9)
    assert figures["channels"]["transfer"] < figures["blur"]["transfer"]
    # Another background moves what is outside, and over the whole picture everything; SSIM's windows see some of it.
    for name in ("background", "no background"):
        wrong = figures[name]
        assert wrong["background_L1"] > 0.1
        assert (wrong["person_L1"], wrong["transfer"], wrong["upper_colour"], wrong["lower_colour"]) == (0, 1, 0, 0)
        assert wrong["sharpness"] == pytest.approx(1)
        assert wrong["person_SSIM"] < 0.95
        whole = swap_fidelity(swaps.damaged[name][FEW], true)
        assert float(whole.l1.mean()) > 0.05
        assert float(whole.ssim.mean()) < wrong["person_SSIM"] - 0.2


def test_doing_nothing_transfers_nothing(swaps: Swaps):
    before, true, silhouette = swaps.unchanged[FEW], swaps.true[FEW], swaps.silhouette[FEW]
    unchanged = person_fidelity(before, true, silhouette)
    figures = person_figures(unchanged, unchanged)
    assert figures["transfer"] == 0
    assert figures["person_L1"] > 0.05
    assert figures["background_L1"] < 0.02  # but for shadows and JPEG, the background is the structure's
    half = ((before.float() + true.float()) / 2).round().to(torch.uint8)
    halfway = person_figures(person_fidelity(half, true, silhouette), unchanged)
    assert halfway["transfer"] == pytest.approx(0.5, abs=0.02)


# ------------------------------------------------------------------------------------------------------------
# Distances, diversity, identity


def test_distances_rank_damage(swaps: Swaps, teacher: Teacher):
    real = described(teacher, swaps.real)[0]
    known = moments(real)
    features = {name: described(teacher, pictures)[0] for name, pictures in swaps.damaged.items()}
    frechet = {name: frechet_distance(known, moments(values)) for name, values in features.items()}
    kernel = {name: kernel_distance(real, values).mean for name, values in features.items()}
    for distance in (frechet, kernel):
        assert distance["none"] < distance["blur"] < distance["strong blur"]
        assert distance["none"] < distance["strong noise"]
        assert distance["no background"] > 10 * max(distance["strong blur"], distance["strong noise"])
    assert frechet["none"] < frechet["channels"]
    # Each has a background of the set still, if not its own: sets differ no more, and no distance tells.
    assert frechet["background"] < frechet["strong blur"]


def test_distances_of_mean_colours_tell_channels_and_gray(swaps: Swaps):
    def features(pixels: Tensor) -> Tensor:
        """Mean colours of 8 x 4 cells (N, 96): they need no learning, and see colour but no detail."""
        return F.adaptive_avg_pool2d(pixels.double() / 255, (8, 4)).flatten(1)

    real = features(swaps.real)
    known = moments(real)
    frechet = {name: frechet_distance(known, moments(features(values))) for name, values in swaps.damaged.items()}
    kernel = {name: kernel_distance(real, features(values)).mean for name, values in swaps.damaged.items()}
    for distance, step in ((frechet, 0.1), (kernel, 0.002)):
        for damage in ("blur", "strong blur", "noise", "strong noise"):
            assert distance[damage] == pytest.approx(distance["none"], abs=step / 4), damage
        assert min(distance["channels"], distance["gray"]) > distance["none"] + step
        assert distance["no background"] > 10 * max(distance["channels"], distance["gray"])


def test_diversity_tells_blur_noise_and_gray(swaps: Swaps):
    pairs = torch.from_numpy(identity_pairs(swaps.appearance.numpy(), 5, 2).reshape(-1, 2))
    diversity = {name: float(dssim(pictures, pairs).mean()) for name, pictures in swaps.damaged.items()}
    assert diversity["strong blur"] < diversity["blur"] < diversity["none"]
    assert diversity["strong noise"] > diversity["noise"] > diversity["none"] + 0.03
    assert diversity["gray"] < 0.5 * diversity["none"]  # two of Lab's channels are constant
    assert diversity["channels"] == pytest.approx(diversity["none"], abs=0.01)


def test_identity_outlasts_damage_and_another_background(swaps: Swaps, teacher: Teacher):
    gallery = described(teacher, swaps.real)[1]
    appearance, structure = {}, {}
    for name, pictures in swaps.damaged.items():
        queries = described(teacher, pictures)[1]
        for ranks, wanted in ((appearance, swaps.appearance), (structure, swaps.structure)):
            ranks[name] = float(identity_ranks(queries, gallery, swaps.people, wanted).double().mean())
    assert appearance["none"] < structure["none"] - 2  # of 12: whose clothes it shows comes first
    for damage in ("blur", "strong blur", "noise", "strong noise", "background"):
        assert appearance[damage] == pytest.approx(appearance["none"], abs=0.5), damage
    assert structure["background"] > structure["none"] + 0.3
    # No picture of the set is black around: a network that has seen none does not know these people.
    assert appearance["no background"] > appearance["none"] + 1
