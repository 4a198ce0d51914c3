"""The appearance encoder E_a: a ResNet whose max-pooled parts are the appearance code, and two re-id heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_core.blocks import GroupedBatchNorm
from dgnet_core.config import NetworkConfig

PARTS = 4
"""Horizontal stripes of the appearance code."""


class Bottleneck(nn.Module):
    """ResNet bottleneck block; tensor names are torchvision's."""

    def __init__(self, inputs: int, width: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = GroupedBatchNorm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = GroupedBatchNorm(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = GroupedBatchNorm(4 * width)
        self.downsample = None
        if stride != 1 or inputs != 4 * width:
            conv = nn.Conv2d(inputs, 4 * width, 1, stride=stride, bias=False)
            self.downsample = nn.ModuleList([conv, GroupedBatchNorm(4 * width)])

    def forward(self, x: Tensor, groups: int, track: bool) -> Tensor:
        """Map x (groups * B, inputs, H, W); see GroupedBatchNorm for `groups` and `track`."""
        out = F.relu(self.bn1(self.conv1(x), groups, track))
        out = F.relu(self.bn2(self.conv2(out), groups, track))
        out = self.bn3(self.conv3(out), groups, track)
        if self.downsample is not None:
            conv, norm = self.downsample
            x = norm(conv(x), groups, track)
        return F.relu(out + x)


class ResNetTrunk(nn.Module):
    """ResNet without its pooling and classifier; tensor names are torchvision's, so ImageNet weights load."""

    def __init__(self, config: NetworkConfig, last_stride: int):
        super().__init__()
        width = config.appearance_width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = GroupedBatchNorm(width)
        inputs = width
        for stage, blocks in enumerate(config.appearance_layers):
            stride = (1, 2, 2, last_stride)[stage]
            stage_width = width * 2**stage
            layers = []
            for block in range(blocks):
                layers.append(Bottleneck(inputs, stage_width, stride if block == 0 else 1))
                inputs = 4 * stage_width
            self.add_module(f"layer{stage + 1}", nn.ModuleList(layers))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, groups: int = 1, track: bool = False) -> Tensor:
        """Feature map (N, 32 * width, h, w) of images x (N, 3, H, W), N = groups * B.

        h = H / 32 and w = W / 32, twice that where the last stride is 1; see GroupedBatchNorm for `groups`, `track`.
        """
        x = F.relu(self.bn1(self.conv1(x), groups, track))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(4):
            for block in self.get_submodule(f"layer{stage + 1}").children():
                x = block(x, groups, track)
        return x


class Head(nn.Module):
    """A re-id head: linear bottleneck, BatchNorm, dropout, classifier."""

    def __init__(self, inputs: int, bottleneck: int, num_classes: int, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.reduce = nn.Linear(inputs, bottleneck)
        self.norm = GroupedBatchNorm(bottleneck)
        self.classifier = nn.Linear(bottleneck, num_classes)
        nn.init.kaiming_normal_(self.reduce.weight)
        nn.init.zeros_(self.reduce.bias)
        nn.init.normal_(self.norm.weight, 1.0, 0.02)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor, groups: int = 1, track: bool = False) -> Tensor:
        """Feature (N, bottleneck) of pooled vectors x (N, inputs); what retrieval compares."""
        return self.norm(self.reduce(x), groups, track)

    def logits(self, feature: Tensor, noise: Tensor | None = None) -> Tensor:
        """Class logits (N, K) of a feature.

        Args:
            feature: (N, bottleneck), as `forward` returns it.
            noise: uniform draws of the feature's shape that decide what is dropped; None: no dropout.
        """
        if noise is not None:
            feature = feature * (noise >= self.dropout) / (1 - self.dropout)
        return self.classifier(feature)


class AppearanceEncoder(nn.Module):
    """E_a: images to appearance codes, and codes to the features f_prim and f_fine (paper, section 3.1)."""

    def __init__(self, config: NetworkConfig, num_classes: int):
        super().__init__()
        self.trunk = ResNetTrunk(config, last_stride=1)
        channels = config.appearance_channels
        self.prim = Head(channels, config.bottleneck, num_classes, config.prim_dropout)
        self.fine = Head(channels, config.bottleneck, num_classes, config.fine_dropout)

    def forward(self, x: Tensor, groups: int = 1, track: bool = False) -> Tensor:
        """Appearance code (N, C, 4) of images x (N, 3, H, W): the maximum over each of four stripes."""
        return F.adaptive_max_pool2d(self.trunk(x, groups, track), (PARTS, 1)).squeeze(3)


def pool_code(code: Tensor) -> Tensor:
    """The vector (N, C) that feeds the heads: the maximum over the parts of an appearance code (N, C, 4)."""
    return torch.amax(code, dim=2)
