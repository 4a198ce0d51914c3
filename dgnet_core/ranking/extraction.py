"""Trained networks put to use: eval mode for a while, and the features of a set of pictures."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from dgnet_core.learning.augment import normalise
from dgnet_core.networks.modes import evaluating
from dgnet_core.networks.resnet import DescriptorNetwork
from dgnet_core.ranking.features import Features, mirror_average

BATCH_SIZE = 64
"""Pictures that go through a network at once, unless told otherwise."""


def extract(
    network: DescriptorNetwork,
    pixels: Tensor,
    person_ids: Tensor,
    camera_ids: Tensor,
    *,
    height: int,
    width: int,
    batch_size: int = BATCH_SIZE,
    precision: Literal["float32", "bfloat16"] = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """What retrieval compares: bottleneck outputs of pictures and their mirror images, averaged.

    Args:
        network: the appearance encoder gives f_prim and f_fine; the teacher, a baseline with one head, gives
            its feature as the primary half and a fine half of width 0.
        pixels: (N, 3, h, w), uint8, on any device; only a batch at a time goes to the network's.
        person_ids: (N,) int64.
        camera_ids: (N,) int64.
        height: what the network was trained on, in pixels; pictures of another size are resized.
        width: the same.
        batch_size: pictures a batch; the mirror images come on top.
        precision: bfloat16 runs the network in autocast; the features are float32 in any case.
        progress: called after each batch with the number of pictures done and the number there are.

    Returns:
        Features on the network's device, each half of unit length.

    Raises:
        ValueError: pixels of another type or shape, or features that are not finite.
    """
    if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != 3:
        raise ValueError(f"pixels are {pixels.dtype} of shape {tuple(pixels.shape)}: uint8 (N, 3, h, w) is needed")
    device = next(network.parameters()).device
    halves: list[tuple[Tensor, Tensor]] = []
    with evaluating(network):
        for batch in pixels.split(batch_size):
            halves.append(extract_batch(network, batch.to(device), height=height, width=width, precision=precision))
            if progress is not None:
                progress(min(len(halves) * batch_size, len(pixels)), len(pixels))
    prim, fine = (torch.cat(half) for half in zip(*halves, strict=True))
    return Features(prim=prim, fine=fine, person_ids=person_ids.to(device), camera_ids=camera_ids.to(device))


def extract_batch(
    network: DescriptorNetwork,
    pixels: Tensor,
    *,
    height: int,
    width: int,
    precision: Literal["float32", "bfloat16"] = "float32",
) -> tuple[Tensor, Tensor]:
    """Both halves (N, bottleneck) of one batch, as `extract` has them, unchecked: nothing waits for a GPU.

    An unscaled fine half is not of unit length.

    Args:
        network: in eval mode; see `evaluating`.
        pixels: (N, 3, h, w), uint8, on the network's device.
        height: what the network was trained on, in pixels; pictures of another size are resized.
        width: the same.
        precision: as in `extract`.
    """
    weight = next(network.parameters())
    x = normalise(pixels, height, width).to(weight.dtype)
    with torch.autocast(weight.device.type, torch.bfloat16, enabled=precision == "bfloat16"):
        prim, fine = (half.unflatten(0, (2, -1)) for half in network.describe(torch.cat([x, x.flip(3)])))
    return mirror_average(*prim), fine.float().mean(dim=0) if network.unscaled_fine else mirror_average(*fine)
