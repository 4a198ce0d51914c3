"""Settings that every method has: warm-up, augmentation, precision."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from dgnet_core.checks import check, check_choices
from dgnet_core.networks.config import ImageSize

GanType = Literal["lsgan", "nsgan"]
Precision = Literal["float32", "bfloat16", "float64"]
BatchNormKind = Literal["synchronised", "local", "local_any_size"]
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
class StepConfig:
    """How the step is computed; none of it changes what is learned beyond rounding."""

    precision: Precision = "float32"
    """float32; bfloat16: networks in autocast, losses, statistics of norms and gradient penalty in float32; float64."""
    channels_last: bool = True
    """Keep images as N x H x W x C in memory."""
    compile: bool = False
    """Compile the networks with torch.compile (a minute or more at the first iterations)."""

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
    network: ImageSize = field(default_factory=ImageSize)
    """Sizes of images and networks."""
    batch_norm: BatchNormKind = "synchronised"
    """synchronised: statistics of the whole batch, over all ranks, so that their number does not matter; local: each
    rank's own images, at least 4, as the release has it on several GPUs; local_any_size: the same with fewer."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Augmentation."""
    step: StepConfig = field(default_factory=StepConfig)
    """Precision and memory format."""

    def __post_init__(self) -> None:
        check(self.num_classes >= 2, self, "num_classes", "re-id needs at least 2 identities")
        check(0 <= self.seed < 2**63, self, "seed", "an integer in [0, 2^63)")
        check(self.iterations >= 1, self, "iterations", "at least 1")
        check(self.batch_size >= 2, self, "batch_size", "BatchNorm needs a batch of at least 2")
        check_choices(self, batch_norm=BatchNormKind)

    @property
    def needs_teacher(self) -> bool:
        """Whether a run starts from a trained teacher, or asks it for labels."""
        return False

    def rescaled(self, iterations: int) -> Self:
        """The same run at another length: warm-ups, ramps and milestones keep their share of it.

        Raises:
            ValueError: the length is not at least 1.
        """
        return replace(self, iterations=iterations)


def rescaled_milestones(milestones: tuple[int, ...], factor: float) -> tuple[int, ...]:
    """Milestones of a run that is `factor` times as long."""
    return tuple(sorted({max(1, round(factor * milestone)) for milestone in milestones}))
