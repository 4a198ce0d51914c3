"""Tiny batches for the compared generators, and the sizes of networks without their weights."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dgnet_core.learning.augment import training_batch
from dgnet_core.learning.batches import Batch, Position
from dgnet_core.learning.config import MethodConfig

SIZES = ((128, 64), (256, 128))


def cost(network: nn.Module, *shapes: Sequence[int]) -> tuple[float, float]:
    """Million parameters, and GMAC of one image, of inputs of these shapes."""
    inputs = [torch.empty(1, *shape, device="meta") for shape in shapes]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta").eval()(*inputs)
    return sum(p.numel() for p in network.parameters()) / 1e6, counter.get_total_flops() / 2e9


def upright(height: int, width: int, count: int) -> torch.Tensor:
    """Joints (count, 18, 3) of people who stand in the image."""
    down = torch.tensor([10, 20, 22, 35, 47, 22, 35, 47, 52, 72, 92, 52, 72, 92, 8, 8, 9, 9]) / 100 * height
    across = torch.tensor([50, 50, 38, 32, 30, 62, 68, 70, 42, 41, 40, 58, 59, 60, 47, 53, 43, 57]) / 100 * width
    joints = torch.stack([across, down, torch.full((18,), 2.0)], dim=1).repeat(count, 1, 1)
    joints[..., :2] += torch.rand(count, 18, 2) * height / 50
    return joints


def posed_batch(config: MethodConfig, sets: int, iteration: int, *, posed: bool = True) -> Batch:
    """A batch of random pictures of an iteration, with joints."""
    height, width, images = config.network.height, config.network.width, config.batch_size
    with torch.random.fork_rng():
        torch.manual_seed(iteration)
        pixels = torch.randint(0, 256, (sets, images, 3, height, width), dtype=torch.uint8)
        joints = upright(height, width, sets * images).unflatten(0, (sets, images))
    labels = torch.arange(images).remainder(config.num_classes).repeat(2 if sets > 2 else 1, 1)
    position = Position(seed=config.seed, iteration=iteration)
    return training_batch(pixels, labels, position, config, joints if posed else None)
