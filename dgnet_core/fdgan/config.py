"""FD-GAN's configuration and its presets."""

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from dgnet_core.checks import check, check_choices, check_positive, check_weight
from dgnet_core.learning.config import AugmentConfig, MethodConfig
from dgnet_core.networks.config import TrunkConfig

Range = Literal["fixed", "release"]


@dataclass(frozen=True, kw_only=True)
class FDGANConfig(MethodConfig):
    """One run of FD-GAN; the defaults are those of its release on Market-1501.

    Not as released: colours reach their whole range (`range`), and images are drawn from noise 0.
    """

    iterations: int = 50_500
    """Length of all three stages (100, 100 and 50 epochs of 51,744 pairs)."""
    batch_size: int = 256
    """Pairs of images in a batch, over all ranks: one of one identity to three of two."""
    stage1: int = 20_200
    """Iterations that train the encoder to tell whether two images show one identity."""
    stage2: int = 20_200
    """Iterations that then train the generator and its discriminators, the encoder frozen; the rest train all."""
    network: TrunkConfig = field(default_factory=TrunkConfig)
    """Height and width of the images, and the encoder's ResNet."""
    augment: AugmentConfig = field(default_factory=lambda: AugmentConfig(pad=0, erase=0.75))
    """Augmentation: mirror images; sources are erased in part too."""
    crop_area: tuple[float, float] = (0.64, 1.0)
    """Share of each image that stage 1 sees, from and to, resized to the image's size; (1, 1): all of it."""
    crop_aspect: tuple[float, float] = (2.0, 3.0)
    """Height to width of this part, from and to."""
    range: Range = "fixed"
    """Colours that the generator can reach: all (fixed), or those of ImageNet-normalised values in [-1, 1], which its
    last tanh was given as targets (release)."""
    width: int = 64
    """Channels of the generator's last level but one; its first have 8 times as many."""
    pose_code: int = 128
    """Values that all of the target's structure passes through."""
    noise: int = 256
    """Normal numbers beside the two codes."""
    dropout: float = 0.2
    """In the generator's decoder."""
    discriminator_width: int = 64
    """Channels after the first convolution of the pose discriminator."""
    sigmas: tuple[float, ...] = (2.0, 2.5, 3.0)
    """Deviations of a heat map, one of which is drawn for each target; pixels at a height of 128."""
    image: float = 100.0
    """Weight of L1 between the generated image and the target."""
    same_pose: float = 10.0
    """Weight of L1 between the images of one identity in one pose, drawn from two sources (Eq. 4)."""
    verification: float = 10.0
    """Weight of the encoder's own loss when all is trained."""
    encoder_lr: float = 0.01
    """SGD's rate of the encoder in stage 1; a tenth from 40 % and a hundredth from 80 % of it."""
    generator_lr: float = 1e-4
    """Adam's rate in stage 2; constant in the first half, then in a straight line to 0."""
    identity_lr: float = 1e-5
    """SGD's rate of the identity discriminator in stage 2, with the same course."""
    pose_lr: float = 1e-3
    """The same of the pose discriminator."""
    joint_lr: float = 1e-5
    """Adam's rate of generator and encoder in stage 3, with the same course."""
    joint_discriminator_lr: float = 1e-4
    """SGD's rate of both discriminators in stage 3."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, range=Range)
        check(self.stage1 >= 1, self, "stage1", "at least 1: stage 2 needs the encoder that stage 1 trains")
        remedy = f"from 1 to iterations - stage1 = {self.iterations - self.stage1}"
        check(1 <= self.stage2 <= self.iterations - self.stage1, self, "stage2", remedy)
        check_positive(
            self, "width", "pose_code", "noise", "discriminator_width", "encoder_lr", "generator_lr", "identity_lr",
            "pose_lr", "joint_lr", "joint_discriminator_lr",
        )  # fmt: skip
        check_weight(self, "image", "same_pose", "verification")
        check(0 <= self.dropout < 1, self, "dropout", "a probability in [0, 1)")
        low, high = self.crop_area
        check(0 < low <= high <= 1, self, "crop_area", "(from, to) with 0 < from <= to <= 1")
        low, high = self.crop_aspect
        check(0 < low <= high < math.inf, self, "crop_aspect", "(from, to) with 0 < from <= to")
        check(min(self.sigmas, default=0) > 0, self, "sigmas", "one deviation or more, all positive")
        for name in ("height", "width"):
            size = getattr(self.network, name)
            check(size % 32 == 0, self.network, name, "five levels halve it: a multiple of 32")

    def stage(self, iteration: int) -> tuple[int, float]:
        """The stage, 1 to 3, of a 0-based iteration, and the share of it that is done."""
        lengths = self.stage1, self.stage2, self.iterations - self.stage1 - self.stage2
        for number, length in enumerate(lengths, 1):
            if iteration < length or number == len(lengths):
                return number, iteration / max(length, 1)
            iteration -= length
        raise AssertionError

    @property
    def later_stages(self) -> tuple[int, ...]:
        """Where stages 2 and 3 begin."""
        return self.stage1, self.stage1 + self.stage2

    def rescaled(self, iterations: int) -> Self:
        """The same run at another length: stages keep their share of it.

        Raises:
            ValueError: the length is not at least 2.
        """
        factor = iterations / self.iterations
        stage1 = max(1, round(factor * self.stage1))
        stage2 = max(1, min(round(factor * self.stage2), iterations - stage1))
        return replace(self, iterations=iterations, stage1=stage1, stage2=stage2)


def paper(num_classes: int, **overrides: object) -> FDGANConfig:
    """FD-GAN: ResNet-50, 256 x 128, 256 pairs, three stages of 100, 100 and 50 epochs; FDGANConfig says what differs
    from its release."""
    return replace(FDGANConfig(num_classes=num_classes), **overrides)


def laptop(num_classes: int, *, iterations: int = 1_500, **overrides: object) -> FDGANConfig:
    """FD-GAN for two CPU cores: 64 x 32 pictures, a quarter of the channels, ten times the generator's rates.

    The verifier's step on a pair's own logit grows with its rate and with the inverse of the batch, so both are chosen
    for a batch of eight positive pairs; its sources are neither cropped nor erased.
    """
    network = TrunkConfig(height=64, width=32, appearance_layers=(1, 1, 1, 1), appearance_width=16, pretrained="none")
    preset = paper(
        num_classes, network=network, batch_size=32, width=16, pose_code=64, noise=32, discriminator_width=16,
        encoder_lr=5e-3, generator_lr=1e-3, identity_lr=1e-4, joint_lr=1e-4, augment=AugmentConfig(pad=0, erase=0.0),
        crop_area=(1.0, 1.0),
    )  # fmt: skip
    return replace(preset.rescaled(iterations), **overrides)
