"""The decoder G: a structure code rendered in an appearance (paper, section 3.1; layer table in its supplement)."""

from torch import Tensor, nn

from dgnet_core.appearance import PARTS
from dgnet_core.blocks import ConvBlock, ResidualBlock, kaiming_
from dgnet_core.config import NetworkConfig


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """From a quarter of the appearance code to the AdaIN scales (or biases) of one residual block."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.LeakyReLU(0.2),
        nn.Linear(hidden, hidden), nn.LeakyReLU(0.2),
        nn.Linear(hidden, outputs),
    )  # fmt: skip


class Decoder(nn.Module):
    """G: four AdaIN residual blocks, each driven by a quarter of the appearance code, then upsampling to the image."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        channels = config.structure_channels
        sizes = (config.appearance_channels, config.adain_width, 2 * channels)
        self.scales = nn.ModuleList(mlp(*sizes) for _ in range(PARTS))
        self.biases = nn.ModuleList(mlp(*sizes) for _ in range(PARTS))
        self.blocks = nn.ModuleList(ResidualBlock(channels, "adain") for _ in range(PARTS))
        self.up1 = ConvBlock(channels, channels // 2, 5, norm="layer", upsample=True)
        self.up2 = ConvBlock(channels // 2, channels // 4, 5, norm="layer", upsample=True)
        self.refine = nn.Sequential(
            ConvBlock(channels // 4, channels // 4, 3),
            ConvBlock(channels // 4, channels // 4, 3),
            ConvBlock(channels // 4, 3, 1, activate=False),
        )
        kaiming_(self)

    def forward(self, structure: Tensor, appearance: Tensor) -> Tensor:
        """Images (N, 3, H, W) of structure codes (N, C_s, H / 4, W / 4) and appearance codes (N, C_a, 4)."""
        x = structure
        quarters = appearance.flatten(1).chunk(PARTS, dim=1)  # the release's split: a quarter of the channels each
        for code, scale, bias, block in zip(quarters, self.scales, self.biases, self.blocks, strict=True):
            x = block(x, (scale(code), bias(code)))
        return self.refine(self.up2(self.up1(x)))
