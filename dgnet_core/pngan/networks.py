"""PN-GAN's networks: a residual generator and an unconditional patch discriminator. Images are in [-1, 1]."""

from torch import nn

from dgnet_core.learning.joints import JOINTS
from dgnet_core.networks.gan import Residual, conv, patch_discriminator
from dgnet_core.pngan.config import PNGANConfig

POSE_CHANNELS = {"sticks": 3, "heatmaps": len(JOINTS)}


def generator(config: PNGANConfig) -> nn.Sequential:
    """An image (B, 3, H, W) of the source image and the target's pose, (B, 3 + pose channels, H, W)."""
    width = config.width
    blocks = [
        Residual(4 * width, norm="instance", ends="outside") for _ in range(config.residual_blocks)
    ]  # ReLU after each sum (release)
    return nn.Sequential(
        conv(3 + POSE_CHANNELS[config.pose], width, 7, norm="instance", reflect=True),
        conv(width, 2 * width, 3, 2, norm="instance"),
        conv(2 * width, 4 * width, 3, 2, norm="instance"),
        *blocks,
        conv(4 * width, 2 * width, 3, 2, norm="instance", transposed=True),
        conv(2 * width, width, 3, 2, norm="instance", transposed=True),
        conv(width, 3, 7, act="none", reflect=True),
        nn.Tanh(),
    )


def discriminator(config: PNGANConfig) -> nn.Sequential:
    """Scores (B, 1, h, w) of images (B, 3, H, W): 26 x 10 patches of 256 x 128."""
    return patch_discriminator(3, config.discriminator_width, norm="instance", last_pad=0)
