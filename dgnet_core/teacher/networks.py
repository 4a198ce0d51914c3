"""The teacher: the plain re-id baseline, trained on the original images, that labels generated ones (Eq. 8)."""

import torch
from torch import Tensor

from dgnet_core.networks.config import NetworkConfig
from dgnet_core.networks.resnet import DescriptorNetwork, GeM, Head, ResNetTrunk


class Teacher(DescriptorNetwork):
    """ResNet with one re-id head; by default average pooling and a linear bottleneck (the release's baseline)."""

    def __init__(self, config: NetworkConfig, num_classes: int, dropout: float = 0.5, last_stride: int = 2):
        """Random weights of the sizes of `config`; `dropout` acts in training only (see teacher/step.py)."""
        super().__init__()
        self.trunk = ResNetTrunk(config, last_stride)
        self.pool = GeM() if config.pooling == "gem" else None
        sizes, init = (config.appearance_channels, config.bottleneck, num_classes), config.release_bottleneck
        self.head = Head(*sizes, dropout, config.neck, release_bottleneck=init)

    def forward(self, x: Tensor, groups: int = 1, track: bool = False) -> tuple[Tensor, Tensor]:
        """What metric losses compare, and the feature, of images x (N, 3, H, W); see `Head.both_sides`."""
        pooled = self.pooled(x, groups, track)
        with torch.autocast(x.device.type, enabled=False):  # the head in full precision, as the encoder's heads
            return self.head.both_sides(pooled.to(self.head.norm.weight.dtype), groups, track)

    def pooled(self, x: Tensor, groups: int = 1, track: bool = False) -> Tensor:
        """Vectors (N, C) of images x (N, 3, H, W); see GroupedBatchNorm for `groups` and `track`."""
        maps = self.trunk(x, groups, track)
        return maps.mean(dim=(2, 3)) if self.pool is None else self.pool(maps).squeeze(2)

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The feature (N, bottleneck) of normalised images (N, 3, H, W), and a fine half of width 0."""
        _, feature = self(x)
        return feature, feature[:, :0]

    @torch.no_grad()
    def labels(self, x: Tensor, groups: int, noise: Tensor | None = None) -> Tensor:
        """Smooth labels (N, K) of generated images x (N, 3, H, W), N = groups * B.

        Softmax of each image and of its mirror image, averaged; BatchNorm uses the statistics of each batch and
        leaves its running ones alone (release).

        Args:
            x: batches one after the other.
            groups: how many.
            noise: uniform draws (2N, bottleneck) that decide what the head drops of the features of x, then of those of
                the mirror images; None: no dropout.
        """
        mirrored = torch.cat([x, x.flip(3)])
        _, features = self(mirrored, 2 * groups)
        with torch.autocast(x.device.type, enabled=False):
            probabilities = self.head.logits(features, noise).softmax(dim=1)
        return probabilities.view(2, len(x), -1).mean(dim=0)
