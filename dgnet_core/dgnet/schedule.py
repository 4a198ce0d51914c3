"""DG-Net's loss weights at an iteration, and the clock of its warm-up."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dgnet_core.dgnet.config import DGNetConfig, LossConfig, OptimConfig, RecipeConfig
from dgnet_core.learning.schedule import Clock, fall, ramp, rise

if TYPE_CHECKING:
    from torch import Tensor  # command lines read schedules before torch is imported


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The ramped loss weights at one iteration; all exactly 0 up to their warm-up start. Tensors where CUDA graphs read
    them."""

    appearance_code: "float | Tensor"
    """Eq. 4."""
    structure_code: "float | Tensor"
    """Eq. 5."""
    cycle: "float | Tensor"
    """The release's cycle term."""
    prim: "float | Tensor"
    """Eq. 8: lambda_prim."""
    fine: "float | Tensor"
    """Eq. 9: lambda_fine on generated images."""
    fine_real: "float | Tensor"
    """Cross-entropy of f_fine on real images; lags `fine` by one iteration, as in the release."""


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """What an iteration is told besides its batch."""

    number: "int | Tensor"
    """0-based; a tensor where a CUDA graph replays it."""
    acts: Weights
    """Ramped weights as numbers: the terms of those above 0 take part."""
    ramped: Weights
    """What these terms weigh."""
    learns: bool
    """Whether the structure encoder learns from reading a generated image back."""
    share: "float | Tensor"
    """Chance of a generated picture to feed; a tensor where a CUDA graph reads it."""
    watched: bool
    """Whether a surge of the identity loss is reported."""

    @property
    def phase(self) -> tuple[bool, ...]:
        """All that the iteration's control flow depends on."""
        return (*(weight > 0 for weight in vars(self.acts).values()), self.learns, self.watched)


def weights(loss: LossConfig, recipe: RecipeConfig, iteration: int) -> Weights:
    """The ramped weights at an iteration (paper, section 3.3; cycle and real fine terms from the release)."""
    prim_now = ramp(loss.teacher_warmup, loss.prim, iteration)
    prim_before = ramp(loss.teacher_warmup, loss.prim, iteration - 1)
    fine = loss.alpha if recipe.feeds_fine else 0.0
    return Weights(
        appearance_code=ramp(loss.code_warmup, loss.appearance_code, iteration),
        structure_code=ramp(loss.code_warmup, loss.structure_code, iteration),
        cycle=ramp(loss.code_warmup, loss.cycle, iteration),
        prim=prim_now if recipe.feeds_prim else 0.0,
        fine=fine * prim_now,
        fine_real=fine * prim_before,
    )


def ramp_end(config: DGNetConfig) -> int:
    """The first iteration at which all ramped weights of a run are at their maxima: its own clock's zero."""
    loss = config.loss
    return max(
        loss.code_warmup.end(max(loss.appearance_code, loss.structure_code, loss.cycle)),
        loss.teacher_warmup.end(loss.prim),
    )


def clock(config: DGNetConfig) -> Clock:
    """When the terms that feed generated images back begin, and when all weights have stopped growing."""
    return Clock(start=config.loss.teacher_warmup.start, end=ramp_end(config))


def features(config: DGNetConfig, done: int) -> dict[str, float]:
    """Descriptors after so many iterations, with the weight of f_fine; without f_fine as long as it learned nothing."""
    if not weights(config.loss, config.recipe, done - 1).fine > 0:
        return {"prim": 0.0}
    return {"prim": 0.0, "fine": math.inf, "both": config.beta}


def settings(config: DGNetConfig, iteration: int) -> dict[str, float]:
    """Ramped loss weights and learning rates at a 0-based iteration."""
    ramped = weights(config.loss, config.recipe, iteration)
    rates = learning_rates(config.optim, iteration)
    return {
        **{f"weight/{name}": value for name, value in vars(ramped).items()},
        **{f"lr/{name}": value for name, value in rates.items()},
        **({"weight/fed_share": fed_share(config, iteration)} if config.feed.selects else {}),
    }


def fed_share(config: DGNetConfig, iteration: int) -> float:
    """Share of the generated pictures that feed: from `share` at the warm-up start to `last_share` at the run's end."""
    feed, start = config.feed, config.loss.teacher_warmup.start
    passed = min(max(iteration - start, 0) / max(config.iterations - start, 1), 1.0)
    return feed.share + passed * (feed.last_share - feed.share)


def learning_rates(optim: OptimConfig, iteration: int) -> dict[str, float]:
    """Learning rates of appearance encoder (its trunk), generator and discriminator at a 0-based iteration."""
    fallen = fall(optim, iteration)
    return {
        "appearance": optim.appearance_lr * rise(optim.warmup_iterations, iteration) * fallen,
        "generator": optim.generator_lr * fallen,
        "discriminator": optim.discriminator_lr * fallen,
    }
