"""DG-Net's networks: appearance encoder, structure encoder, decoder, discriminator (paper, section 3.1)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_core.networks.blocks import ConvBlock, ResidualBlock, kaiming_
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.networks.resnet import DescriptorNetwork, GeM, Head, ResNetTrunk

PARTS = 4
"""Horizontal stripes of the appearance code."""


class AppearanceEncoder(DescriptorNetwork):
    """E_a: images to appearance codes, and codes to the features f_prim and f_fine (paper, section 3.1)."""

    def __init__(self, config: NetworkConfig, num_classes: int):
        super().__init__()
        self.trunk = ResNetTrunk(config, last_stride=1)
        channels = config.appearance_channels
        self.gem = GeM() if config.pooling == "gem" else None
        sizes, init = (channels, config.bottleneck, num_classes), config.release_bottleneck
        self.prim = Head(*sizes, config.prim_dropout, config.neck, release_bottleneck=init)
        self.fine = Head(*sizes, config.fine_dropout, config.neck, release_bottleneck=init)

    def forward(self, x: Tensor, groups: int = 1, track: bool = False) -> Tensor:
        """Appearance code (N, C, 4) of images x (N, 3, H, W): the maximum, or GeM, over each of four stripes."""
        maps = self.trunk(x, groups, track)
        return F.adaptive_max_pool2d(maps, (PARTS, 1)).squeeze(3) if self.gem is None else self.gem(maps, PARTS)

    def pool(self, code: Tensor) -> Tensor:
        """The vector (N, C) that feeds the heads: the maximum, or GeM, over the parts of a code (N, C, 4)."""
        return pool_code(code) if self.gem is None else self.gem.merge(code)

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f_prim and f_fine (N, bottleneck) of normalised images (N, 3, H, W)."""
        pooled = self.pool(self(x)).to(self.prim.norm.weight.dtype)  # a trunk may have less precision than its heads
        return self.prim(pooled), self.fine(pooled)


def pool_code(code: Tensor) -> Tensor:
    """The maximum (N, C) over the parts of an appearance code (N, C, 4)."""
    return torch.amax(code, dim=2)


def to_gray(x: Tensor, negative: Tensor | None = None) -> Tensor:
    """Channel mean (N, 1, H, W) of normalised images x (N, 3, H, W): no colour reaches the structure code.

    Args:
        x: the images.
        negative: which of them (N, bool) become their negative, -gray; None: none.
    """
    gray = x.mean(dim=1, keepdim=True)
    return gray if negative is None else torch.where(negative[:, None, None, None], -gray, gray)


def local_contrast(gray: Tensor) -> Tensor:
    """What stands out from its surroundings in gray images (N, 1, H, W): odd, and the same for any lighting.

    Each pixel less the mean of 3 x 3, in units of the deviation that such differences have within 9 x 9. A tenth of the
    deviation of normalised images is added to that unit, so that flat regions show little of their noise.
    """
    difference = gray - _box_mean(gray, 3)
    # Flat surroundings would have a gradient of 0 times infinity.
    return difference / ((_box_mean(difference.square(), 9) + 1e-12).sqrt() + 0.1)


def _box_mean(x: Tensor, size: int) -> Tensor:
    """The mean of size x size pixels around each of x (N, 1, H, W), whose border is repeated outwards."""
    return F.avg_pool2d(F.pad(x, (size // 2,) * 4, mode="replicate"), size, stride=1)


class StructureEncoder(nn.Module):
    """E_s: four convolutions, residual blocks, then context at several dilations (ASPP)."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.reads_contrast = config.structure_input == "contrast"
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
        x = self.blocks(self.stem(local_contrast(gray) if self.reads_contrast else gray))
        return self.fuse(torch.cat([self.point(x), *(branch(x) for branch in self.dilated)], dim=1))


def mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    """From a quarter of the appearance code to the AdaIN scales (or biases) of one residual block."""
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.LeakyReLU(0.2),
        nn.Linear(hidden, hidden), nn.LeakyReLU(0.2),
        nn.Linear(hidden, outputs),
    )  # fmt: skip


def together(networks: Sequence[nn.Module], x: Tensor) -> Tensor:
    """Outputs (M, N, O) of M networks that `mlp` made, each of its own inputs x[m] (N, I), by one product a layer."""
    for layers in zip(*(network.children() for network in networks), strict=True):
        first = layers[0]
        if isinstance(first, nn.Linear):
            weights = torch.stack([layer.weight for layer in layers])
            x = torch.baddbmm(torch.stack([layer.bias for layer in layers])[:, None], x, weights.mT)
        else:
            x = first(x)
    return x


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
        if config.adain_start == "identity":
            for start, networks in ((1.0, self.scales), (0.0, self.biases)):
                for network in networks:
                    *_, last = network.children()
                    assert isinstance(last, nn.Linear)
                    nn.init.constant_(last.bias, start)
                    last.weight.data.mul_(0.1)

    def forward(self, structure: Tensor, appearance: Tensor) -> Tensor:
        """Images (N, 3, H, W) of structure codes (N, C_s, H / 4, W / 4) and appearance codes (N, C_a, 4)."""
        x = structure
        quarters = appearance.flatten(1).unflatten(1, (PARTS, -1)).transpose(0, 1)  # the release's: of the channels
        styles = together([*self.scales, *self.biases], torch.cat([quarters, quarters]))
        for style, block in zip(styles.unflatten(0, (2, PARTS)).unbind(1), self.blocks, strict=True):
            x = block(x, (style[0], style[1]))
        return self.refine(self.up2(self.up1(x)))


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
