"""PG2-GAN's configuration and its presets."""

from dataclasses import dataclass, field, replace
from typing import Literal, Self

from dgnet_core.checks import check, check_choices, check_positive, check_weight
from dgnet_core.learning.config import AugmentConfig, MethodConfig
from dgnet_core.networks.config import ImageSize

Judged = Literal["triplet", "pair"]


@dataclass(frozen=True, kw_only=True)
class PG2GANConfig(MethodConfig):
    """One run of PG2-GAN; the defaults are those of its paper on Market-1501."""

    iterations: int = 36_000
    """Length of both stages."""
    batch_size: int = 16
    """Pairs of one identity in a batch, over all ranks."""
    stage1: int = 22_000
    """Iterations that train G1 alone; then G1 is frozen, and G2 and the discriminator are trained."""
    network: ImageSize = field(default_factory=lambda: ImageSize(height=128, width=64))
    """Height and width of the images."""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(pad=0, erase=0.0))
    """Augmentation: mirror images with their joints, source and target independently; the release mirrors whole
    pairs."""
    width: int = 128
    """Channels of the first level of G1 and G2; level i has i times as many."""
    code: int = 64
    """Values that all of G1's structure passes through."""
    discriminator_width: int = 64
    """Channels after the first convolution of the discriminator."""
    discriminator: Judged = "triplet"
    """What it sees: single images, the source and the output as fakes (triplet, as released), or the source joined with
    the target or the output (pair, the paper)."""
    radius: float = 4.0
    """Radius of a joint's disc, and of the mask around limbs, pixels at a height of 128."""
    image: float = 10.0
    """Weight of L1 and masked L1 in stage 2."""
    lr: float = 2e-5
    """Adam's rate, of all three networks."""
    betas: tuple[float, float] = (0.5, 0.999)
    """Adam's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, discriminator=Judged)
        remedy = f"from 1, for G2 refines what G1 has learned, to iterations = {self.iterations}"
        check(1 <= self.stage1 <= self.iterations, self, "stage1", remedy)
        check_positive(self, "width", "code", "discriminator_width", "radius", "lr")
        check_weight(self, "image")
        for name in ("height", "width"):
            size, factor = getattr(self.network, name), 2 ** (self.levels - 1)
            remedy = f"{self.levels} levels halve it {self.levels - 1} times: a multiple of {factor}"
            check(size % factor == 0, self.network, name, remedy)

    @property
    def levels(self) -> int:
        """Levels of G1: 5 at a height of 128, where the deepest is 8 x 4."""
        return max(2, self.network.height.bit_length() - 3)

    @property
    def later_stages(self) -> tuple[int, ...]:
        """Where stage 2 begins."""
        return (self.stage1,)

    def rescaled(self, iterations: int) -> Self:
        """The same run at another length: the first stage keeps its share of it."""
        stage1 = round(self.stage1 * iterations / self.iterations)
        return replace(self, iterations=iterations, stage1=max(1, min(stage1, iterations)))


def paper(num_classes: int, **overrides: object) -> PG2GANConfig:
    """PG2-GAN as published: 128 x 64, 22,000 iterations of G1 and 14,000 of G2, batch 16."""
    return replace(PG2GANConfig(num_classes=num_classes), **overrides)


def laptop(num_classes: int, *, iterations: int = 1_200, **overrides: object) -> PG2GANConfig:
    """PG2-GAN for two CPU cores: 64 x 32 pictures, an eighth of the channels, 25 times the rate."""
    network = ImageSize(height=64, width=32)
    preset = paper(num_classes, network=network, width=16, code=32, discriminator_width=16, lr=5e-4)
    return replace(preset.rescaled(iterations), **overrides)
