"""LSGAN's networks: residual up-sampling from noise, and a residual patch discriminator. Images are in [-1, 1]."""

import itertools

from torch import Tensor, nn

from dgnet_core.lsgan.config import LSGANConfig
from dgnet_core.networks.batch_norm import BatchNorm
from dgnet_core.networks.gan import Residual, conv, normal_

RESIDUAL_SCALE = 0.1
"""Weight of what a residual block adds."""


def _residual(channels: int) -> Residual:
    return Residual(channels, norm="batch", act="leaky", scale=RESIDUAL_SCALE, ends="never")


class Generator(nn.Module):
    """Five doublings of a 32nd of the image, each a transposed convolution and a residual block."""

    def __init__(self, config: LSGANConfig):
        super().__init__()
        self.start = config.network.height // 32, config.network.width // 32
        widths = [factor * config.width for factor in (8, 4, 2, 1, 1, 1)]
        self.first = nn.Sequential(
            nn.ConvTranspose2d(config.noise, widths[0], self.start, bias=False),
            BatchNorm(widths[0]),
            nn.LeakyReLU(0.2),
        )
        levels: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            levels += [
                conv(before, after, 4, 2, act="none", transposed=True, bias=False),
                _residual(after),
                BatchNorm(after),
                nn.LeakyReLU(0.2),
            ]
        self.levels = nn.Sequential(*levels)
        self.last = nn.Sequential(
            conv(widths[-1], widths[-1], 3, act="none", reflect=True, bias=False),
            conv(widths[-1], 3, 3, act="none", reflect=True, bias=False),
            nn.Tanh(),
        )
        normal_(self)

    def forward(self, noise: Tensor) -> Tensor:
        """Images (B, 3, H, W) of noise (B, numbers)."""
        return self.last(self.levels(self.first(noise[:, :, None, None])))


def discriminator(config: LSGANConfig) -> nn.Sequential:
    """Scores (B, 1, H / 16, W / 16) of images (B, 3, H, W)."""
    width = config.discriminator_width
    network = nn.Sequential(
        conv(3, width, 3, 2, act="leaky", bias=False),
        conv(width, width, 3, act="leaky", bias=False),
        _residual(width),
        conv(width, 2 * width, 3, 2, norm="batch", act="leaky", bias=False),
        _residual(2 * width),
        conv(2 * width, 4 * width, 3, 2, norm="batch", act="leaky", bias=False),
        conv(4 * width, 1, 3, 2, act="none", bias=False),
    )
    normal_(network)
    return network
