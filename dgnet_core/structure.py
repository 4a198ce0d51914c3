"""The structure encoder E_s: gray images to structure codes (paper, section 3.1; layer table in its supplement)."""

import torch
from torch import Tensor, nn

from dgnet_core.blocks import ConvBlock, ResidualBlock, kaiming_
from dgnet_core.config import NetworkConfig


def to_gray(x: Tensor) -> Tensor:
    """Channel mean (N, 1, H, W) of normalised images x (N, 3, H, W): no colour reaches the structure code."""
    return x.mean(dim=1, keepdim=True)


class StructureEncoder(nn.Module):
    """E_s: four convolutions, residual blocks, then context at several dilations (ASPP)."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        width = config.structure_width
        channels = 4 * width
        self.stem = nn.Sequential(
            ConvBlock(1, width, 3, stride=2, norm="instance"),
            ConvBlock(width, 2 * width, 3, norm="instance"),
            ConvBlock(2 * width, 2 * width, 3, norm="instance"),
            ConvBlock(2 * width, channels, 3, stride=2, norm="instance"),
        )
        self.blocks = nn.Sequential(*(ResidualBlock(channels, "instance") for _ in range(config.residual_blocks)))
        branch = channels // 2
        self.point = ConvBlock(channels, branch, 1, norm="instance", activate=False)
        self.dilated = nn.ModuleList(
            nn.Sequential(
                ConvBlock(channels, branch, 1, norm="instance"),
                ConvBlock(branch, branch, 3, dilation=dilation, norm="instance", activate=False),
            )
            for dilation in config.aspp_dilations
        )
        self.fuse = ConvBlock(4 * branch, config.structure_channels, 1, norm="instance", activate=False)
        kaiming_(self)

    def forward(self, gray: Tensor) -> Tensor:
        """Structure code (N, 8 * width, H / 4, W / 4) of gray images (N, 1, H, W)."""
        x = self.blocks(self.stem(gray))
        return self.fuse(torch.cat([self.point(x), *(branch(x) for branch in self.dilated)], dim=1))
