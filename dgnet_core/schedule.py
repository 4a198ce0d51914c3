"""Loss weights and learning rates as pure functions of the iteration (0-based)."""

from dataclasses import dataclass

from dgnet_core.config import LossConfig, OptimConfig, RecipeConfig, TeacherConfig, Warmup


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


def ramp(warmup: Warmup, maximum: float, iteration: int) -> float:
    """A weight that is 0 up to `warmup.start`, then grows by `warmup.slope` an iteration up to its maximum."""
    return min(maximum, warmup.slope * max(0, iteration - warmup.start))


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


def decay(optim: OptimConfig | TeacherConfig, iteration: int) -> float:
    """Factor on every learning rate at an iteration; milestones count from 1, as the release's schedulers do."""
    return optim.decay ** sum(iteration + 1 >= milestone for milestone in optim.milestones)


def teacher_rate(config: TeacherConfig, iteration: int) -> float:
    """Learning rate of the teacher's trunk: from a tenth up in a straight line, then down at the milestones."""
    risen = min(1.0, iteration / config.warmup_iterations) if config.warmup_iterations else 1.0
    return config.lr * (0.1 + 0.9 * risen) * decay(config, iteration)
