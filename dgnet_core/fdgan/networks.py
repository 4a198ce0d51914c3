"""FD-GAN's networks: encoder and verifier, generator, discriminators of identity and of pose.

Images are normalised, as the ResNets see them.
"""

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_core.fdgan.config import FDGANConfig
from dgnet_core.learning.augment import from_symmetric
from dgnet_core.learning.joints import JOINTS
from dgnet_core.networks.batch_norm import BatchNorm
from dgnet_core.networks.gan import conv, normal_, patch_discriminator
from dgnet_core.networks.resnet import DescriptorNetwork, ResNetTrunk

POSE_CHANNELS = len(JOINTS)


class Verifier(DescriptorNetwork):
    """A ResNet, and what says of two of its features whether they are of one identity: E or the identity's D."""

    def __init__(self, config: FDGANConfig, outputs: int):
        """`outputs`: 2 logits, different and same, or 1 alone."""
        super().__init__()
        self.trunk = ResNetTrunk(config.network, last_stride=2)
        self.norm = BatchNorm(config.network.appearance_channels)
        self.classifier = nn.Linear(config.network.appearance_channels, outputs)
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, 2048) of images (N, 3, H, W)."""
        return self.trunk(x, track=True).mean(dim=(2, 3))

    def compare(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits (N, outputs) of two features (N, 2048)."""
        return self.classifier(self.norm((first - second).square()))

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The feature (N, 2048) of normalised images (N, 3, H, W), and a fine half of width 0."""
        feature = self(x)
        return feature, feature[:, :0]


@torch.no_grad()
def start_identity_discriminator(discriminator: Verifier, encoder: Verifier) -> None:
    """Give the identity discriminator the encoder's weights; its logit is the one for the same identity."""
    taken = encoder.state_dict()
    for name in ("classifier.weight", "classifier.bias"):
        taken[name] = taken[name][1:]
    discriminator.load_state_dict(taken)


class Generator(nn.Module):
    """An image of a source's feature, a pose and noise; there are no skips, all structure passes the pose's code."""

    def __init__(self, config: FDGANConfig):
        super().__init__()
        self.range, self.dropout = config.range, config.dropout
        bottom = config.network.height // 32, config.network.width // 32
        widths = [factor * config.width for factor in (1, 2, 4, 8, 8)]
        layers: list[nn.Module] = [conv(POSE_CHANNELS, widths[0], 4, 2, act="leaky")]
        for before, after in itertools.pairwise(widths):
            layers.append(conv(before, after, 4, 2, norm="batch", act="leaky", bias=False))
        layers += [nn.Conv2d(widths[-1], config.pose_code, bottom, bias=False), BatchNorm(config.pose_code)]
        self.pose = nn.Sequential(*layers)
        joined = config.network.appearance_channels + config.pose_code + config.noise
        widths = [8 * config.width, *reversed(widths[:-1])]
        self.first = nn.ConvTranspose2d(joined, widths[0], bottom, bias=False)
        self.levels = nn.ModuleList(
            conv(before, after, 4, 2, act="none", transposed=True, bias=False)
            for before, after in itertools.pairwise(widths)
        )
        self.norms = nn.ModuleList(map(BatchNorm, widths))
        self.last = conv(widths[-1], 3, 4, 2, act="none", transposed=True)
        normal_(self)
        for layer in self.modules():
            if isinstance(layer, BatchNorm):
                nn.init.normal_(layer.weight, 1.0, 0.02)
        self.shapes = [
            (width, bottom[0] * 2**level, bottom[1] * 2**level) for level, width in enumerate(widths)
        ]  # of what is dropped out

    def forward(self, feature: Tensor, pose: Tensor, noise: Tensor, dropped: Sequence[Tensor] | None = None) -> Tensor:
        """Images (N, 3, H, W).

        Args:
            feature: of the sources, (N, 2048).
            pose: heat maps of the targets, (N, 18, H, W).
            noise: (N, numbers).
            dropped: uniform draws (N, ...) of `shapes` that decide what is dropped; None: no dropout.
        """
        x = torch.cat([feature, self.pose(pose).flatten(1), noise], dim=1)[:, :, None, None]
        for level, norm in enumerate(self.norms):
            x = norm((self.levels[level - 1] if level else self.first)(F.relu(x)))
            if dropped is not None:
                x = x * (dropped[level] >= self.dropout) / (1 - self.dropout)
        x = self.last(F.relu(x)).tanh()
        return from_symmetric(x) if self.range == "fixed" else x


def pose_discriminator(config: FDGANConfig) -> nn.Sequential:
    """Scores (B, 1, h, w) of heat maps beside an image (B, 18 + 3, H, W): 30 x 14 patches of 256 x 128."""
    network = patch_discriminator(POSE_CHANNELS + 3, config.discriminator_width, norm="batch", last_pad=1)
    normal_(network)
    return network
