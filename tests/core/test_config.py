"""Configuration: nonsense is refused by name, presets scale."""

import math

import pytest

from dgnet_core.dgnet.config import DGNetConfig, LossConfig, OptimConfig, RecipeConfig, WatchConfig, laptop, paper
from dgnet_core.learning.config import AugmentConfig, StepConfig, Warmup
from dgnet_core.networks.config import NetworkConfig


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NetworkConfig(height=250), r"height = 250: the decoder restores multiples of 4 only: 248 or 252"),
        (lambda: NetworkConfig(width=36), r"width = 36: aspp_dilations \(3, 6, 9\).* need at least 40"),
        (lambda: NetworkConfig(discriminator_scales=0), "discriminator_scales = 0: must be positive"),
        (lambda: NetworkConfig(prim_dropout=1.0), "prim_dropout = 1.0"),
        (lambda: NetworkConfig(appearance_layers=(1, 0, 1, 1)), "appearance_layers"),
        (lambda: Warmup(slope=math.inf), "slope = inf: .* a ramp of zero length"),
        (lambda: Warmup(slope=0), "slope = 0"),
        (lambda: Warmup(start=-1), "start = -1"),
        (lambda: LossConfig(image=-1), "LossConfig.image = -1: a weight is a finite number >= 0"),
        (lambda: LossConfig(alpha=math.nan), "alpha = nan"),
        (lambda: RecipeConfig(gan="wgan"), "gan = 'wgan': choose one of lsgan, nsgan"),  # pyright: ignore[reportArgumentType]
        (lambda: RecipeConfig(reencode_probability=2), "reencode_probability = 2"),
        (lambda: OptimConfig(milestones=(5, 3)), "milestones"),
        (lambda: OptimConfig(clip_norm=0), "clip_norm = 0"),
        (lambda: OptimConfig(adam_betas=(0.5, 1.0)), "adam_betas"),
        (lambda: AugmentConfig(erase_area=(0.5, 0.2)), "erase_area"),
        (lambda: AugmentConfig(pad=-1), "pad = -1"),
        (lambda: StepConfig(precision="float16"), "precision = 'float16': choose one of"),  # pyright: ignore[reportArgumentType]
        (lambda: WatchConfig(factor=1), "factor = 1"),
        (lambda: DGNetConfig(num_classes=1), "num_classes = 1"),
        (lambda: DGNetConfig(num_classes=2, batch_size=1), "batch_size = 1: BatchNorm"),
        (lambda: DGNetConfig(num_classes=2, seed=-1), "seed = -1"),
    ],
)
def test_nonsense_is_refused_by_name(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_adam_accepts_betas_given_as_whole_numbers() -> None:
    assert OptimConfig(adam_betas=(0, 0.999)).adam_betas == (0.0, 0.999)
    assert isinstance(OptimConfig(adam_betas=(0, 0.999)).adam_betas[0], float)


def test_presets_scale_their_schedule() -> None:
    assert paper(751).loss.teacher_warmup == Warmup(start=30_000, slope=0.0005)
    config = laptop(40, iterations=1_000)
    assert config.loss.teacher_warmup.start == 300
    assert config.loss.teacher_warmup.end(config.loss.prim) == 340
    assert config.optim.milestones == (800, 950)
    assert laptop(40, iterations=1).optim.milestones == (1,)
