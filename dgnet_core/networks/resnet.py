"""The ResNet trunk and the re-id head that teacher and appearance encoder share, with ImageNet weights."""

from collections.abc import Mapping
from pathlib import Path
from urllib.error import URLError

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_core.networks.batch_norm import GroupedBatchNorm, Seen, move_running
from dgnet_core.networks.config import Neck, TrunkConfig


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

    def forward(self, x: Tensor, groups: int, track: bool | Seen) -> Tensor:
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
        seen: Seen = []
        tracked = seen if track else False
        x = F.relu(self.bn1(self.conv1(x), groups, tracked))
        x = F.max_pool2d(x, 3, stride=2, padding=1)
        for stage in range(4):
            for block in self.get_submodule(f"layer{stage + 1}").children():
                x = block(x, groups, tracked)
        move_running(seen)
        return x


class GeM(nn.Module):
    """Generalised mean with a learned exponent p: mean(x^p)^(1/p) (Radenovic et al., arXiv 1711.02512, Eq. 3)."""

    def __init__(self, exponent: float = 3.0):
        super().__init__()
        self.exponent = nn.Parameter(torch.tensor([exponent]))

    def forward(self, x: Tensor, parts: int = 1) -> Tensor:
        """Vectors (N, C, parts) of the horizontal stripes of feature maps x (N, C, h, w), in full precision."""
        with torch.autocast(x.device.type, enabled=False):
            powers = x.to(self.exponent.dtype).clamp(min=1e-6).pow(self.exponent)
            return F.adaptive_avg_pool2d(powers, (parts, 1)).squeeze(3).pow(1 / self.exponent)

    def merge(self, stripes: Tensor) -> Tensor:
        """The vector (N, C) of whole maps from those of stripes (N, C, parts), all of one height."""
        return stripes.pow(self.exponent).mean(dim=2).pow(1 / self.exponent)


class DescriptorNetwork(nn.Module):
    """A network whose bottleneck outputs re-identify people; what ranking extracts with."""

    unscaled_fine: bool = False
    """Whether f_fine keeps its length when it is extracted: the mean of an image's and its mirror image's."""

    def describe(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """f_prim and f_fine (N, bottleneck) of normalised images (N, 3, H, W); f_fine is (N, 0) where there is none."""
        raise NotImplementedError


class Head(nn.Module):
    """A re-id head: linear bottleneck, BatchNorm, dropout, classifier; see `NetworkConfig.neck`."""

    def __init__(
        self,
        inputs: int,
        bottleneck: int,
        num_classes: int,
        dropout: float,
        neck: Neck = "release",
        *,
        release_bottleneck: bool = False,
    ):
        """Random weights.

        Args:
            inputs: width of pooled vectors.
            bottleneck: width of the feature; 0: that of pooled vectors, without a linear layer.
            num_classes: K.
            dropout: probability.
            neck: where metric losses compare.
            release_bottleneck: as in NetworkConfig.
        """
        super().__init__()
        self.dropout = dropout
        self.neck = neck
        self.reduce = nn.Linear(inputs, bottleneck) if bottleneck else None
        width, shifted = bottleneck or inputs, neck == "release"
        self.norm = GroupedBatchNorm(width, shift=shifted)
        self.classifier = nn.Linear(width, num_classes, bias=shifted)
        if self.reduce is not None:
            nn.init.kaiming_normal_(self.reduce.weight, mode="fan_out" if release_bottleneck else "fan_in")
            nn.init.zeros_(self.reduce.bias)
        if not release_bottleneck:
            nn.init.normal_(self.norm.weight, 1.0, 0.02)
        nn.init.normal_(self.classifier.weight, std=0.001)
        if shifted:
            nn.init.zeros_(self.classifier.bias)

    def both_sides(self, x: Tensor, groups: int = 1, track: bool = False) -> tuple[Tensor, Tensor]:
        """What metric losses compare, and the feature, (N, bottleneck) each, of pooled vectors x (N, inputs)."""
        before = x if self.reduce is None else self.reduce(x)
        feature = self.norm(before, groups, track)
        return (before if self.neck == "bnneck" else feature), feature

    def forward(self, x: Tensor, groups: int = 1, track: bool = False) -> Tensor:
        """Feature (N, bottleneck) of pooled vectors x (N, inputs); what retrieval compares."""
        return self.both_sides(x, groups, track)[1]

    def logits(self, feature: Tensor, noise: Tensor | None = None) -> Tensor:
        """Class logits (N, K) of a feature.

        Args:
            feature: (N, bottleneck), as `forward` returns it.
            noise: uniform draws of the feature's shape that decide what is dropped; None: no dropout.
        """
        if noise is not None:
            feature = feature * ((noise >= self.dropout) / (1 - self.dropout)).to(feature.dtype)
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
        tensors = _file(source)
    _copy(tensors, trunk, source)


def _file(source: str) -> Mapping[str, Tensor]:
    """The tensors of a ResNet in a torch file: by torchvision's names, or of MoCo's query encoder by its own.

    The ResNets that LUPerson publishes have torchvision's; what its training saves has MoCo's (arXiv 2012.03753).
    """
    refusal = f"network.pretrained = {source!r}: "
    if not Path(source).is_file():
        raise FileNotFoundError(f"{refusal}no such file")
    try:
        content = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:  # PyTorch meets foreign bytes with almost any exception
        raise ValueError(f"{refusal}no file of tensors that can be read safely ({error}): fetch it again") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{refusal}tensors by their names are needed, or such under the key 'state_dict'")
    query = {name.removeprefix(_MOCO): value for name, value in content.items() if name.startswith(_MOCO)}
    return query or content


_MOCO = "module.encoder_q."


@torch.no_grad()
def _copy(tensors: Mapping[str, Tensor], trunk: nn.Module, source: str) -> None:
    """Copy tensors into a trunk, all or none; classifiers and projections, `fc.`, are left out.

    Raises:
        ValueError: names a tensor that is missing, foreign or of another shape.
    """
    refusal = f"network.pretrained = {source!r}: not the weights of this ResNet, "
    ours = trunk.state_dict()
    foreign = sorted(name for name in tensors if name not in ours and not name.startswith("fc."))
    # Files of old PyTorch versions lack this counter.
    missing = sorted(name for name in ours if name not in tensors and not name.endswith("num_batches_tracked"))
    for names, what in ((missing, "it lacks tensor"), (foreign, "it has the foreign tensor")):
        if names:
            raise ValueError(f"{refusal}{what} {names[0]!r} ({len(names)} such)")
    common = {name: value for name, value in ours.items() if name in tensors}
    for name, value in common.items():
        if value.shape != tensors[name].shape:
            shapes = f"{tuple(tensors[name].shape)}, not {tuple(value.shape)}"
            raise ValueError(
                f"{refusal}tensor {name!r} has shape {shapes}: correct network.appearance_layers and width"
            )
    for name, value in common.items():
        value.copy_(tensors[name])
