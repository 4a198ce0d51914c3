"""PG2-GAN's networks: two U-Nets and a DCGAN discriminator. Images are in [-1, 1]."""

import itertools

import torch
from torch import Tensor, nn

from dgnet_core.learning.joints import JOINTS
from dgnet_core.networks.gan import UNet, conv
from dgnet_core.pg2gan.config import PG2GANConfig

POSE_CHANNELS = len(JOINTS)
REFINER_LEVELS = 3


def coarse_generator(config: PG2GANConfig) -> UNet:
    """G1: an image (B, 3, H, W) of the source image and 18 pose channels, (B, 21, H, W)."""
    shrunk = 2 ** (config.levels - 1)
    bottom = config.network.height // shrunk, config.network.width // shrunk
    return UNet(3 + POSE_CHANNELS, config.width, config.levels, code=config.code, bottom=bottom)


def refiner(config: PG2GANConfig) -> UNet:
    """G2: the difference (B, 3, H, W) that refines G1's image, of that image and the source, (B, 6, H, W)."""
    return UNet(6, config.width, min(REFINER_LEVELS, config.levels))


class Discriminator(nn.Module):
    """DCGAN's: 5x5 convolutions that halve the image down to a height of 8, and one logit."""

    def __init__(self, config: PG2GANConfig):
        super().__init__()
        inputs = 3 if config.discriminator == "triplet" else 6
        halvings = config.levels - 1
        widths = [config.discriminator_width * min(2**level, 8) for level in range(halvings)]
        layers = [conv(inputs, widths[0], 5, 2, act="leaky")]
        layers += [conv(before, after, 5, 2, norm="batch", act="leaky") for before, after in itertools.pairwise(widths)]
        self.layers = nn.Sequential(*layers)
        area = (config.network.height >> halvings) * (config.network.width >> halvings)
        self.logit = nn.Linear(area * widths[-1], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, 1) of images (B, 3, H, W), or of pairs of them (B, 6, H, W)."""
        return self.logit(self.layers(x).flatten(1))


@torch.no_grad()
def initialise(*generators: nn.Module, discriminator: nn.Module) -> None:
    """Xavier weights in the generators, uniform ones of deviation 0.02 in the discriminator, zero biases."""
    for network in (*generators, discriminator):
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                if network is discriminator:
                    nn.init.uniform_(layer.weight, -0.02 * 3**0.5, 0.02 * 3**0.5)
                else:
                    nn.init.xavier_uniform_(layer.weight)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def networks(config: PG2GANConfig) -> dict[str, nn.Module]:
    """All networks, initialised."""
    coarse, fine, discriminator = coarse_generator(config), refiner(config), Discriminator(config)
    initialise(coarse, fine, discriminator=discriminator)
    return {"coarse": coarse, "refiner": fine, "discriminator": discriminator}
