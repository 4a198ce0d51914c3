"""Ramps and decays that several methods share."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dgnet_core.learning.config import Rates, Warmup


def ramp(warmup: Warmup, maximum: float, iteration: int) -> float:
    """A weight that is 0 up to `warmup.start`, then grows by `warmup.slope` an iteration up to its maximum."""
    return min(maximum, warmup.slope * max(0, iteration - warmup.start))


def decay(milestones: Sequence[int], factor: float, iteration: int) -> float:
    """`factor` to the power of the milestones that are passed; they count from 1, as the release's schedulers do."""
    return factor ** sum(iteration + 1 >= milestone for milestone in milestones)


def rise(iterations: int, iteration: int) -> float:
    """Factor of a learning rate that rises from a tenth to 1 in a straight line, in so many iterations; 0: it is 1."""
    return 0.1 + 0.9 * (min(1.0, iteration / iterations) if iterations else 1.0)


def fall(rates: Rates, iteration: int) -> float:
    """Factor of learning rates that fall: at milestones, or along half a cosine from the warm-up's end to 0."""
    if rates.cosine_end is None:
        return decay(rates.milestones, rates.decay, iteration)
    start = rates.warmup_iterations
    passed = min(max(iteration - start, 0) / (rates.cosine_end - start), 1.0)
    return 0.5 * (1 + math.cos(math.pi * passed))


@dataclass(frozen=True, kw_only=True)
class Clock:
    """When the ramped weights of a run grow."""

    start: int
    """The last iteration at which they are still 0."""
    end: int
    """The first iteration at which all of them have stopped growing."""

    def phase(self, done: int) -> str:
        """Where a run with so many iterations done stands, in words."""
        if done <= self.start:
            return f"before warm-up (until {self.start:,})"
        return "ramp" if done < self.end else "full weights"
