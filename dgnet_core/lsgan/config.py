"""LSGAN's configuration and its presets."""

from dataclasses import dataclass, field, replace
from typing import Self

from dgnet_core.checks import check, check_milestones, check_positive, check_weight
from dgnet_core.learning.config import AugmentConfig, MethodConfig, rescaled_milestones
from dgnet_core.networks.config import ImageSize


@dataclass(frozen=True, kw_only=True)
class LSGANConfig(MethodConfig):
    """One run of LSGAN; the defaults are those that DG-Net's Table 2 compares with, on Market-1501."""

    iterations: int = 10_106
    """Length of the run (100 epochs)."""
    batch_size: int = 128
    """Images in a batch, over all ranks."""
    network: ImageSize = field(default_factory=lambda: ImageSize(height=128, width=64))
    """Height and width of the images."""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(flip=0.0, pad=0, erase=0.0))
    """Augmentation; there is none."""
    noise: int = 100
    """Normal numbers that an image is drawn from."""
    width: int = 64
    """Channels of the generator's last levels; the first has 8 times as many."""
    discriminator_width: int = 32
    """Channels after the first convolution of the discriminator."""
    gradient_penalty: float = 1e-4
    """Weight of the discriminator's squared gradient at real images."""
    lr: float = 3e-4
    """Adam's rate of the generator."""
    discriminator_lr_factor: float = 2.0
    """The discriminator learns this many times faster."""
    betas: tuple[float, float] = (0.0, 0.999)
    """Adam's."""
    milestones: tuple[int, ...] = (4_042, 8_085)
    """The first iterations (counted from 1) of a lower rate (40 and 80 epochs)."""
    decay: float = 0.5
    """Factor at a milestone."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "noise", "width", "discriminator_width", "lr", "discriminator_lr_factor", "decay")
        check_weight(self, "gradient_penalty")
        check_milestones(self)
        for name in ("height", "width"):
            size = getattr(self.network, name)
            check(size % 32 == 0, self.network, name, "five levels double it: a multiple of 32")

    def rescaled(self, iterations: int) -> Self:
        """The same run at another length: milestones keep their share of it."""
        milestones = rescaled_milestones(self.milestones, iterations / self.iterations)
        return replace(super().rescaled(iterations), milestones=milestones)


def paper(num_classes: int, images: int, **overrides: object) -> LSGANConfig:
    """LSGAN as compared in DG-Net's Table 2: 128 x 64, batch 128, 100 epochs, half the rate from each 40th.

    Args:
        num_classes: identities in the training set.
        images: pictures in the training set, which make an epoch.
        overrides: fields to replace.
    """
    preset = LSGANConfig(num_classes=num_classes)
    return replace(preset.rescaled(max(1, round(100 * images / preset.batch_size))), **overrides)


def laptop(num_classes: int, *, iterations: int = 1_500, **overrides: object) -> LSGANConfig:
    """LSGAN for two CPU cores: 64 x 32 pictures, a quarter of the channels, batch 32."""
    preset = LSGANConfig(
        num_classes=num_classes,
        network=ImageSize(height=64, width=32),
        batch_size=32,
        width=16,
        discriminator_width=8,
        lr=2e-3,  # first weights of 0.02 are small for so few channels: at the paper's rate they hardly grow in time
    )
    return replace(preset.rescaled(iterations), **overrides)
