"""DG-Net's loss weights at an iteration, and the clock of its warm-up."""

from dataclasses import dataclass

from dgnet_core.dgnet.config import DGNetConfig, LossConfig, RecipeConfig
from dgnet_core.learning.schedule import Clock, decay, ramp


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The ramped loss weights at one iteration; all exactly 0 before their warm-up ends."""

    appearance_code: float
    """Eq. 4."""
    structure_code: float
    """Eq. 5."""
    cycle: float
    """The release's cycle term."""
    prim: float
    """Eq. 8: lambda_prim."""
    fine: float
    """Eq. 9: lambda_fine on generated images."""
    fine_real: float
    """Cross-entropy of f_fine on real images; lags `fine` by one iteration, as in the release."""


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


def settings(config: DGNetConfig, iteration: int) -> dict[str, float]:
    """Ramped loss weights and learning rates at a 0-based iteration."""
    ramped = weights(config.loss, config.recipe, iteration)
    rate = decay(config.optim.milestones, config.optim.decay, iteration)
    return {
        **{f"weight/{name}": value for name, value in vars(ramped).items()},
        "lr/appearance": config.optim.appearance_lr * rate,
        "lr/generator": config.optim.generator_lr * rate,
        "lr/discriminator": config.optim.discriminator_lr * rate,
    }
