"""Ramps and decays that several methods share."""

from collections.abc import Sequence

from dgnet_core.learning.config import Warmup


def ramp(warmup: Warmup, maximum: float, iteration: int) -> float:
    """A weight that is 0 up to `warmup.start`, then grows by `warmup.slope` an iteration up to its maximum."""
    return min(maximum, warmup.slope * max(0, iteration - warmup.start))


def decay(milestones: Sequence[int], factor: float, iteration: int) -> float:
    """`factor` to the power of the milestones that are passed; they count from 1, as the release's schedulers do."""
    return factor ** sum(iteration + 1 >= milestone for milestone in milestones)
