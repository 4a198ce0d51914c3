"""The multi-scale patch discriminator D (paper, section 3.1; layer table in its supplement)."""

import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_core.blocks import ConvBlock, ResidualBlock
from dgnet_core.config import NetworkConfig


class PatchDiscriminator(nn.Module):
    """One scale: real or generated, for every patch of the image."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        width = config.discriminator_width
        self.layers = nn.Sequential(
            ConvBlock(3, width, 1),
            ConvBlock(width, width, 3),
            ConvBlock(width, width, 3, stride=2),
            ConvBlock(width, width, 3),
            ConvBlock(width, 2 * width, 3, stride=2),
            *(ResidualBlock(2 * width, "none") for _ in range(config.residual_blocks)),
            nn.Conv2d(2 * width, 1, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Scores (N, 1, H / 4, W / 4) of images x (N, 3, H, W)."""
        return self.layers(x)


class Discriminator(nn.Module):
    """D: a patch discriminator for each of several image scales."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.scales = nn.ModuleList(PatchDiscriminator(config) for _ in range(config.discriminator_scales))
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.02)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Scores (N, 1, h, w) at every scale of images x (N, 3, H, W), each scale half as large as the one before."""
        scores = []
        for scale in self.scales:
            scores.append(scale(x))
            x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
        return scores
