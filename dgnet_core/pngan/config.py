"""PN-GAN's configuration and its presets."""

from dataclasses import dataclass, field, replace
from typing import Literal

from dgnet_core.checks import check, check_choices, check_positive, check_weight
from dgnet_core.learning.config import AugmentConfig, MethodConfig
from dgnet_core.networks.config import ImageSize

PoseInput = Literal["sticks", "heatmaps"]
RealImage = Literal["source", "target"]


@dataclass(frozen=True, kw_only=True)
class PNGANConfig(MethodConfig):
    """One run of PN-GAN; the defaults are those of its release on Market-1501."""

    iterations: int = 185_600
    """Length of the run: as many pairs as 20 epochs of the 296,938 ordered ones of Market-1501."""
    batch_size: int = 32
    """Pairs of one identity in a batch, over all ranks."""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(flip=0.0, pad=0, erase=0.0))
    """Augmentation; the release has none."""
    pose: PoseInput = "sticks"
    """How the generator sees the target's pose: a coloured stick figure (release), or a heat map a joint."""
    real: RealImage = "source"
    """Which image the discriminator takes for a real one: the source (release) or the target."""
    sigma: float = 6.0
    """Deviation of a heat map, pixels at a height of 128."""
    width: int = 64
    """Channels after the first convolution of the generator."""
    residual_blocks: int = 9
    """Of the generator, at a quarter of the size."""
    discriminator_width: int = 64
    """Channels after the first convolution of the discriminator."""
    image: float = 10.0
    """Weight of L1 between the generated image and the target."""
    lr: float = 2e-4
    """Adam's rate in the first half of the run; then it falls in a straight line to 0."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, pose=PoseInput, real=RealImage)
        check_positive(self, "sigma", "width", "residual_blocks", "discriminator_width", "lr")
        check_weight(self, "image")
        smallest = 56  # below, the two unpadded 4x4 convolutions leave no patch
        size = min(self.network.height, self.network.width)
        field_name = "height" if size == self.network.height else "width"
        check(size >= smallest, self.network, field_name, f"the discriminator needs at least {smallest} pixels")
        for name in ("height", "width"):
            remedy = "the generator halves and doubles it twice: a multiple of 4"
            check(getattr(self.network, name) % 4 == 0, self.network, name, remedy)


def paper(num_classes: int, **overrides: object) -> PNGANConfig:
    """PN-GAN as released: 256 x 128, batch 32, as many pairs as 20 epochs of all."""
    return replace(PNGANConfig(num_classes=num_classes), **overrides)


def laptop(num_classes: int, *, iterations: int = 1_500, **overrides: object) -> PNGANConfig:
    """PN-GAN for two CPU cores: 112 x 56 pictures, a quarter of the channels, three residual blocks."""
    network = ImageSize(height=112, width=56)
    preset = paper(
        num_classes, network=network, batch_size=8, width=16, residual_blocks=3, discriminator_width=8, lr=5e-4
    )
    return replace(preset.rescaled(iterations), **overrides)
