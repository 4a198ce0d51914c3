"""Settings that every method has: warm-up, augmentation, precision."""

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, Self

from dgnet_core.checks import check, check_choices, check_milestones, check_positive, check_weight
from dgnet_core.networks.config import ImageSize

GanType = Literal["lsgan", "nsgan"]
Precision = Literal["float32", "bfloat16", "float64"]
BatchNormKind = Literal["synchronised", "local", "local_any_size"]
OptimizerKind = Literal["sgd", "adam", "adamw"]
Partners = Literal["uniform", "rare_camera", "rare_pose"]
LEAST_LOCAL = 4
"""Images on every rank that local BatchNorm needs: two normalised values are +1 and -1, whatever they were."""


@dataclass(frozen=True, kw_only=True)
class Warmup:
    """When a group of weights leaves zero and how fast it grows (paper, section 3.3: 30K iterations, then 4K)."""

    start: int = 30_000
    """The last iteration at which the weights are still exactly 0."""
    slope: float = 0.0005
    """Growth per iteration; a weight of maximum m is at its maximum m / slope iterations after `start`."""

    def __post_init__(self) -> None:
        check(self.start >= 0, self, "start", "an iteration, >= 0")
        remedy = "must be positive and finite: an infinite slope is a ramp of zero length, 0 never leaves zero"
        check(self.slope > 0 and math.isfinite(self.slope), self, "slope", remedy)

    def rescaled(self, factor: float) -> Self:
        """The warm-up of a run that is `factor` times as long."""
        return replace(self, start=round(factor * self.start), slope=self.slope / factor)

    def end(self, maximum: float) -> int:
        """First iteration at which a weight of this maximum has stopped growing."""
        return self.start + math.ceil(maximum / self.slope)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of the training images (release)."""

    flip: float = 0.5
    """Probability of a horizontal flip."""
    pad: int = 10
    """Edge padding in pixels before the random crop back to the image size; 0: no crop."""
    erase: float = 0.5
    """Probability of random erasing, on the copies that feed the identity losses only."""
    erase_area: tuple[float, float] = (0.02, 0.4)
    """Erased share of the image, from and to."""
    erase_aspect: tuple[float, float] = (0.3, 3.3)
    """Height to width of the erased rectangle, from and to."""

    def __post_init__(self) -> None:
        for name in ("flip", "erase"):
            check(0 <= getattr(self, name) <= 1, self, name, "a probability in [0, 1]")
        check(self.pad >= 0, self, "pad", "pixels, >= 0")
        low, high = self.erase_area
        check(0 < low <= high < 1, self, "erase_area", "(from, to) with 0 < from <= to < 1")
        low, high = self.erase_aspect
        check(0 < low <= high < math.inf, self, "erase_aspect", "(from, to) with 0 < from <= to")


@dataclass(frozen=True, kw_only=True)
class MetricConfig:
    """Metric losses on the real images' features, before the neck where there is a BNNeck; off by default.

    A teacher has one of each beside its identity loss. DG-Net's count twice, and the identity losses of its four
    batches four times in sum: a weight of 1 is there half as much beside identity.
    """

    triplet: float = 0.0
    """Weight of the triplet loss with hard batch mining and soft margin (Hermans et al., arXiv 1703.07737); 1 in BoT
    (arXiv 1903.07071) and AGW (arXiv 2001.04193)."""
    circle: float = 0.0
    """Weight of circle loss on pairs (Sun et al., arXiv 2002.10857, Eq. 6); 1 in its paper."""
    circle_margin: float = 0.25
    """m of circle loss: pairs should be more similar than 1 - m, or less than m."""
    circle_scale: float = 128.0
    """gamma of circle loss, in its paper's runs on people."""

    def __post_init__(self) -> None:
        check_weight(self, "triplet", "circle")
        check_positive(self, "circle_scale")
        check(0 <= self.circle_margin < 1, self, "circle_margin", "a cosine in [0, 1)")

    @property
    def acts(self) -> bool:
        """Whether any of them is part of the loss."""
        return self.triplet > 0 or self.circle > 0


@dataclass(frozen=True, kw_only=True)
class StepConfig:
    """How the step is computed; none of it changes what is learned beyond rounding."""

    precision: Precision = "float32"
    """float32; bfloat16: networks in autocast, losses, statistics of norms and gradient penalty in float32; float64."""
    channels_last: bool = True
    """Keep images as N x H x W x C in memory."""
    compile: bool = False
    """Compile the networks with torch.compile (a minute or more at the first iterations)."""
    graph: bool = False
    """Capture DG-Net's step in a CUDA graph for each of its phases, and replay it: one launch an iteration. For batches
    so small that launching takes longer than computing; on one CUDA device."""

    def __post_init__(self) -> None:
        check_choices(self, precision=Precision)


@dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """What every method's configuration has: the network's sizes, and which images an iteration sees."""

    num_classes: int
    """Identities in the training set (Market-1501: 751)."""
    seed: int = 0
    """Every draw of the run is a function of this, the iteration and the position in the batch."""
    iterations: int = 100_000
    """Length of the run."""
    batch_size: int = 8
    """Images in a batch, over all ranks."""
    instances: int = 1
    """K of identity-balanced batches: a batch has batch_size / K identities with K pictures each (K = 4 in BoT, arXiv
    1903.07071); 1: all pictures in shuffled order."""
    partners: Partners = "uniform"
    """How batch b is drawn, whose images give structures to batch a: uniform, as batch a; rare_camera, each image with
    a chance inverse to the number of training images of its camera; rare_pose, of its camera and facing (front, back or
    side), which needs key points. Batch b's real images are drawn likewise, from the first iteration on."""
    network: ImageSize = field(default_factory=ImageSize)
    """Sizes of images and networks."""
    batch_norm: BatchNormKind = "synchronised"
    """synchronised: statistics of the whole batch, over all ranks, so that their number does not matter; local: each
    rank's own images, at least 4, as the release has it on several GPUs; local_any_size: the same with fewer."""
    precise_batches: int = 0
    """Training batches from which BatchNorm's statistics are estimated anew before each evaluation (Wu and Johnson,
    "Rethinking Batch in BatchNorm", 2021); 0: those that training leaves, which wander. Training never sees them."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation."""
    step: StepConfig = field(default_factory=StepConfig)
    """Precision and memory format."""

    def __post_init__(self) -> None:
        check(self.num_classes >= 2, self, "num_classes", "re-id needs at least 2 identities")
        check(0 <= self.seed < 2**63, self, "seed", "an integer in [0, 2^63)")
        check(self.iterations >= 1, self, "iterations", "at least 1")
        check(self.batch_size >= 2, self, "batch_size", "BatchNorm needs a batch of at least 2")
        check(self.precise_batches >= 0, self, "precise_batches", "batches, >= 0")
        fits = self.instances >= 1 and self.batch_size % self.instances == 0
        check(fits, self, "instances", f"a divisor of batch_size = {self.batch_size}")
        check_choices(self, batch_norm=BatchNormKind, partners=Partners)

    @property
    def needs_teacher(self) -> bool:
        """Whether a run starts from a trained teacher, or asks it for labels."""
        return False

    @property
    def later_stages(self) -> tuple[int, ...]:
        """The 0-based iterations at which stages after the first begin."""
        return ()

    def portable(self) -> Self:
        """The same run without what ties its step to a device: its networks can be built anywhere."""
        return replace(self, step=replace(self.step, compile=False, graph=False))

    def rescaled(self, iterations: int) -> Self:
        """The same run at another length: warm-ups, ramps and milestones keep their share of it.

        Raises:
            ValueError: the length is not at least 1.
        """
        return replace(self, iterations=iterations)


@dataclass(frozen=True, kw_only=True)
class DescriptorConfig(MethodConfig):
    """What methods have beside that learn a descriptor of people by their identities."""

    metric: MetricConfig = field(default_factory=MetricConfig)
    """Metric losses, beside cross-entropy."""
    ema: float = 0.0
    """Decay of the moving average of the weights that describe, by which a run is evaluated and used (mean teacher,
    arXiv 1703.01780, whose decay is 0.999); 0: the weights themselves. Training does not depend on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check(0 <= self.ema < 1, self, "ema", "a decay in [0, 1)")


class Rates(Protocol):
    """How the learning rates of re-id networks rise and fall: fields of TeacherConfig, and of DG-Net's OptimConfig."""

    @property
    def optimizer(self) -> OptimizerKind: ...  # noqa: D102
    @property
    def momentum(self) -> float: ...  # noqa: D102
    @property
    def warmup_iterations(self) -> int: ...  # noqa: D102
    @property
    def milestones(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def decay(self) -> float: ...  # noqa: D102
    @property
    def cosine_end(self) -> int | None: ...  # noqa: D102


def check_rates(section: Rates) -> None:
    """Refuse optimisers and schedules that cannot be."""
    check_choices(section, optimizer=OptimizerKind)
    check_milestones(section)
    adam = section.optimizer != "sgd"
    check(not adam or section.momentum < 1, section, "momentum", "as Adam's first beta, a number in [0, 1)")
    start, end = section.warmup_iterations, section.cosine_end
    check(start >= 0, section, "warmup_iterations", "iterations, >= 0")
    check(end is None or end > start, section, "cosine_end", f"an iteration after warmup_iterations = {start}")


def rescaled_lengths(section: Rates, factor: float) -> dict[str, Any]:
    """Fields of a schedule of a run that is `factor` times as long."""
    start, end = round(factor * section.warmup_iterations), section.cosine_end
    return {
        "warmup_iterations": start,
        "milestones": rescaled_milestones(section.milestones, factor),
        "cosine_end": None if end is None else max(start + 1, round(factor * end)),
    }


def rescaled_milestones(milestones: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """Milestones of a run that is `factor` times as long."""
    return tuple(sorted({max(1, round(factor * milestone)) for milestone in milestones}))
