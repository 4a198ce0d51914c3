"""The ResNet trunk and the re-id head that teacher and appearance encoder share, with ImageNet weights."""

from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_core.networks.batch_norm import GroupedBatchNorm
from dgnet_core.networks.config import TrunkConfig


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

    def __init__(self, config: TrunkConfig, last_stride: int):
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


class DescriptorNetwork(nn.Module):
    """A network whose bottleneck outputs re-identify people; what ranking extracts with."""

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f_prim and f_fine (N, bottleneck) of normalised images (N, 3, H, W); f_fine is (N, 0) where there is none."""
        raise NotImplementedError


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


_PUBLISHED = {  # by layers
    (3, 4, 6, 3): "ResNet50_Weights.IMAGENET1K_V1",  # what the release starts from
    (3, 4, 23, 3): "ResNet101_Weights.IMAGENET1K_V1",
    (3, 8, 36, 3): "ResNet152_Weights.IMAGENET1K_V1",
}


def load_imagenet(trunk: nn.Module, config: TrunkConfig) -> None:
    """Load the ImageNet weights that `config.pretrained` names into a ResNet trunk; "none" leaves it as it is.

    Raises:
        FileNotFoundError: `pretrained` is a path without a file.
        ValueError: the file's tensors are not those of this trunk, or none are published for its size.
        RuntimeError: the download failed.
    """
    source = config.pretrained
    if source == "none":
        return
    if source == "imagenet":
        published = _PUBLISHED.get(config.appearance_layers) if config.appearance_width == 64 else None
        if published is None:
            sizes = ", ".join(str(layers) for layers in _PUBLISHED)
            raise ValueError(
                f"network.pretrained = 'imagenet': published for appearance_layers {sizes} of width 64 only;"
                " set network.pretrained to 'none' or to a file"
            )
        from torchvision.models import get_weight  # takes seconds, and resumed runs do not need it

        weights = get_weight(published)
        try:
            tensors = weights.get_state_dict(progress=False, check_hash=True)
        except (URLError, OSError) as error:
            raise RuntimeError(
                f"the ImageNet weights could not be downloaded ({error}). Set network.pretrained to the path of a"
                f" torchvision file fetched elsewhere ({Path(weights.url).name}), or to 'none' for random weights"
            ) from error
    else:
        if not Path(source).is_file():
            raise FileNotFoundError(f"network.pretrained = {source!r}: no such file")
        tensors = torch.load(source, map_location="cpu", weights_only=True)
    tensors = {name: value for name, value in tensors.items() if not name.startswith("fc.")}
    for name, value in trunk.state_dict().items():  # files of old PyTorch versions lack this counter
        if name.endswith("num_batches_tracked"):
            tensors.setdefault(name, value)
    try:
        trunk.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"network.pretrained = {source!r}: not the weights of this ResNet ({error})") from error
