"""ImageNet initialisation of the ResNets."""

from pathlib import Path
from urllib.error import URLError

import torch
from torch import nn

from dgnet_core.config import NetworkConfig

_PUBLISHED = {  # by layers
    (3, 4, 6, 3): "ResNet50_Weights.IMAGENET1K_V1",  # what the release starts from
    (3, 4, 23, 3): "ResNet101_Weights.IMAGENET1K_V1",
    (3, 8, 36, 3): "ResNet152_Weights.IMAGENET1K_V1",
}


def load_imagenet(trunk: nn.Module, config: NetworkConfig) -> None:
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
        from torchvision.models import get_weight  # takes seconds, and runs that go on do not need it

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
