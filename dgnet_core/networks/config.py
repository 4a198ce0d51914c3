"""Sizes of the networks."""

from dataclasses import dataclass
from typing import Literal

from dgnet_core.checks import check, check_choices, check_positive

Pooling = Literal["release", "gem"]
Neck = Literal["release", "bnneck"]
StructureInput = Literal["gray", "contrast"]
AdaINStart = Literal["release", "identity"]


@dataclass(frozen=True, kw_only=True)
class ImageSize:
    """Size of the images; all that every method's networks have."""

    height: int = 256
    """Image height in pixels."""
    width: int = 128
    """Image width in pixels."""

    def __post_init__(self) -> None:
        check_positive(self, "height", "width")


@dataclass(frozen=True, kw_only=True)
class TrunkConfig(ImageSize):
    """Sizes of a ResNet trunk, and what it starts from."""

    appearance_layers: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Bottleneck blocks per stage of the appearance encoder and the teacher; (3, 4, 6, 3) is ResNet-50."""
    appearance_width: int = 64
    """Channels after the first convolution; the appearance code has 32 x as many (2048)."""
    pretrained: str = "imagenet"
    """What the appearance encoder's ResNet starts from: "imagenet" (downloaded by torchvision into TORCH_HOME), the
    path of a torch file with tensors of torchvision's names, such as those of ResNet-50s that were trained on people
    (LUPerson, arXiv 2012.03753), or with MoCo's names of them, or "none"."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "appearance_width")
        check(min(self.appearance_layers) > 0, self, "appearance_layers", "every entry must be at least 1")

    @property
    def appearance_channels(self) -> int:
        """Channels of the appearance code (2048 in the paper)."""
        return 32 * self.appearance_width


@dataclass(frozen=True, kw_only=True)
class NetworkConfig(TrunkConfig):
    """Sizes of DG-Net's networks; the defaults are the paper's (its section 3.1 and supplement)."""

    bottleneck: int = 512
    """Width of f_prim and of f_fine. 0, for a teacher with neck bnneck: no linear layer, BoT's head (arXiv
    1903.07071)."""
    pooling: Pooling = "release"
    """How feature maps become vectors: release, the encoder's maxima and the teacher's mean; gem, for both, the
    generalised mean with a learned exponent that starts at 3 (Radenovic et al., arXiv 1711.02512; in AGW, arXiv
    2001.04193)."""
    neck: Neck = "release"
    """release: metric losses, if any, compare the feature that is classified and ranked; bnneck (Luo et al., arXiv
    1903.07071): they compare the one before BatchNorm, which does not shift, and the classifier has no bias."""
    prim_dropout: float = 0.5
    """Dropout before the classifier of the primary feature."""
    fine_dropout: float = 0.75
    """Dropout before the classifier of the fine-grained feature."""
    release_bottleneck: bool = False
    """First weights of the bottlenecks as in the release: Kaiming by fan-out (2048 to 512: twice as large as by
    fan-in), and BatchNorm's weights exactly 1 instead of N(1, 0.02)."""
    structure_width: int = 16
    """Channels after the first convolution of the structure encoder; the structure code has 8 x as many (128)."""
    structure_input: StructureInput = "gray"
    """What the structure encoder reads: the gray picture (paper), or its local contrast, which shows edges but not how
    light a garment is: the decoder must then take lightness, like colour, from the appearance code."""
    aspp_dilations: tuple[int, int, int] = (3, 6, 9)
    """Dilations of the three dilated branches that end the structure encoder."""
    residual_blocks: int = 4
    """Residual blocks in the structure encoder and in each scale of the discriminator."""
    adain_width: int = 512
    """Hidden width of the MLPs that turn the appearance code into AdaIN scales and biases."""
    adain_start: AdaINStart = "release"
    """What the MLPs say before they have learned: release, Kaiming's weights in their last layers too, so that scales
    and biases are random and large; identity, a tenth of these weights about a scale of 1."""
    discriminator_width: int = 32
    """Channels after the first convolution of the discriminator."""
    discriminator_scales: int = 3
    """Image scales the discriminator looks at, each half as large as the one before."""

    def __post_init__(self) -> None:
        super().__post_init__()
        # Reflect padding must stay inside the structure code and the discriminator's smallest feature map.
        smallest = max(4 * (max(self.aspp_dilations) + 1), 2 ** (self.discriminator_scales + 1) + 1)
        for name in ("height", "width"):
            value = getattr(self, name)
            lower, upper = value - value % 4, value + -value % 4
            check(value % 4 == 0, self, name, f"the decoder restores multiples of 4 only: {lower} or {upper}")
            check(
                value >= smallest,
                self,
                name,
                f"aspp_dilations {self.aspp_dilations} and discriminator_scales {self.discriminator_scales} need"
                f" at least {smallest}: use larger images, smaller dilations or fewer scales",
            )
        check_choices(self, pooling=Pooling, neck=Neck, structure_input=StructureInput, adain_start=AdaINStart)
        needed = 0 if self.neck == "bnneck" else 1
        check(self.bottleneck >= needed, self, "bottleneck", f"with neck {self.neck}, at least {needed}")
        check_positive(
            self, "structure_width", "residual_blocks", "adain_width", "discriminator_width",
            "discriminator_scales",
        )  # fmt: skip
        check(min(self.aspp_dilations) > 0, self, "aspp_dilations", "every entry must be at least 1")
        for name in ("prim_dropout", "fine_dropout"):
            check(0 <= getattr(self, name) < 1, self, name, "a probability in [0, 1)")

    @property
    def structure_channels(self) -> int:
        """Channels of the structure code (128 in the paper)."""
        return 8 * self.structure_width


def laptop_network() -> NetworkConfig:
    """Networks for 64 x 32 pictures on two CPU cores."""
    return NetworkConfig(
        height=64,
        width=32,
        appearance_layers=(1, 1, 1, 1),
        appearance_width=16,
        bottleneck=128,
        pretrained="none",
        structure_width=8,
        structure_input="contrast",
        aspp_dilations=(1, 2, 3),
        residual_blocks=2,
        adain_width=64,
        adain_start="identity",
        discriminator_width=12,
        discriminator_scales=2,
    )
