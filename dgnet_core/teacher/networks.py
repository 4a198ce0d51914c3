"""The teacher: the plain re-id baseline, trained on the original images, that labels generated ones (Eq. 8)."""

import torch
from torch import Tensor

from dgnet_core.networks.config import NetworkConfig
from dgnet_core.networks.resnet import DescriptorNetwork, Head, ResNetTrunk


class Teacher(DescriptorNetwork):
    """ResNet with average pooling and one bottleneck head (the release's baseline)."""

    def __init__(self, config: NetworkConfig, num_classes: int, dropout: float = 0.5):
        """Random weights of the sizes of `config`; `dropout` acts in training only (see baseline.py)."""
        super().__init__()
        self.trunk = ResNetTrunk(config, last_stride=2)
        self.head = Head(config.appearance_channels, config.bottleneck, num_classes, dropout)

    def forward(self, x: Tensor, groups: int = 1, track: bool = False) -> Tensor:
        """Feature (N, bottleneck) of images x (N, 3, H, W); see GroupedBatchNorm for `groups` and `track`."""
        pooled = self.trunk(x, groups, track).mean(dim=(2, 3))
        with torch.autocast(x.device.type, enabled=False):  # the head in full precision, as the encoder's heads
            return self.head(pooled.to(self.head.reduce.weight.dtype), groups, track)

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The feature (N, bottleneck) of normalised images (N, 3, H, W), and a fine half of width 0."""
        feature = self(x)
        return feature, feature.new_empty(len(feature), 0)

    @torch.no_grad()
    def labels(self, x: Tensor, groups: int) -> Tensor:
        """Smooth labels (N, K) of generated images x (N, 3, H, W), N = groups * B.

        Softmax of each image and of its mirror image, averaged; BatchNorm uses the statistics of each batch and
        leaves its running ones alone (release).
        """
        mirrored = torch.cat([x, x.flip(3)])
        features = self(mirrored, 2 * groups)
        with torch.autocast(x.device.type, enabled=False):
            probabilities = self.head.logits(features).softmax(dim=1)
        return probabilities.view(2, len(x), -1).mean(dim=0)
