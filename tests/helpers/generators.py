"""The methods of the table at their smallest, batches for them, and the sizes of networks without their weights."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from dgnet_core.learning.augment import training_batch
from dgnet_core.learning.batches import Batch, PairSampler, Position, share
from dgnet_core.learning.config import AugmentConfig, MethodConfig
from dgnet_core.methods import Method, method_of
from dgnet_core.networks.config import ImageSize, TrunkConfig
from tests.helpers.tiny import CLASSES, tiny_config, tiny_pictures

SIZES = ((128, 64), (256, 128))


def cost(network: nn.Module, *shapes: Sequence[int]) -> tuple[float, float]:
    """Million parameters, and GMAC of one image, of inputs of these shapes."""
    inputs = [torch.empty(1, *shape, device="meta") for shape in shapes]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network.to("meta").eval()(*inputs)
    return sum(p.numel() for p in network.parameters()) / 1e6, counter.get_total_flops() / 2e9


def upright(height: int, width: int, count: int, seed: int = 0) -> torch.Tensor:
    """Joints (count, 18, 3) of people who stand in the image."""
    down = torch.tensor([10, 20, 22, 35, 47, 22, 35, 47, 52, 72, 92, 52, 72, 92, 8, 8, 9, 9]) / 100 * height
    across = torch.tensor([50, 50, 38, 32, 30, 62, 68, 70, 42, 41, 40, 58, 59, 60, 47, 53, 43, 57]) / 100 * width
    joints = torch.stack([across, down, torch.full((18,), 2.0)], dim=1).repeat(count, 1, 1)
    generator = torch.Generator().manual_seed(seed)  # ranks may be threads, which share PyTorch's own
    joints[..., :2] += torch.rand(count, 18, 2, generator=generator) * height / 50
    return joints


def posed_batch(config: MethodConfig, sets: int, iteration: int, *, posed: bool = True) -> Batch:
    """A batch of random pictures of an iteration, with joints."""
    height, width, images = config.network.height, config.network.width, config.batch_size
    generator = torch.Generator().manual_seed(iteration)
    pixels = torch.randint(0, 256, (sets, images, 3, height, width), dtype=torch.uint8, generator=generator)
    joints = upright(height, width, sets * images, iteration).unflatten(0, (sets, images))
    labels = torch.arange(images).remainder(config.num_classes).repeat(2 if sets > 2 else 1, 1)
    position = Position(seed=config.seed, iteration=iteration)
    return training_batch(pixels, labels, position, config, joints if posed else None)


LENGTH = 9
"""Iterations of a tiny run, with all that scales with a run's length, warm-ups, milestones and stages, inside."""
SMALL: dict[str, dict[str, Any]] = {
    "lsgan": {"network": ImageSize(height=32, width=32), "noise": 6, "width": 2, "discriminator_width": 2},
    "pg2gan": {"network": ImageSize(height=24, width=12), "width": 4, "code": 4, "discriminator_width": 2},
    "pngan": {
        "network": ImageSize(height=64, width=56), "width": 2, "residual_blocks": 1, "discriminator_width": 2,
        "augment": AugmentConfig(pad=1),
    },
    "fdgan": {
        "network": TrunkConfig(
            height=32, width=32, appearance_layers=(1, 1, 1, 1), appearance_width=2, pretrained="none"
        ),
        "width": 2, "pose_code": 4, "noise": 3, "discriminator_width": 2, "crop_aspect": (0.8, 1.25),
    },
}  # fmt: skip
"""The smallest networks of the compared generators."""


def tiny_method(method: Method, **overrides: Any) -> MethodConfig:
    """A method's own defaults at the smallest size and length."""
    small = tiny_config()
    sizes = SMALL.get(method.name, {"network": small.network, "augment": small.augment})
    fields = {"num_classes": CLASSES, "batch_size": 4, "step": small.step, **sizes, **overrides}
    return method.config(**fields).rescaled(LENGTH)


def method_batch(config: MethodConfig, iteration: int, rank: int = 0, world_size: int = 1) -> Batch:
    """What a rank of a run of any method trains on."""
    pixels, labels = tiny_pictures(tiny_config())
    poses = upright(*pixels.shape[2:], count=len(pixels))
    method, places = method_of(config), share(config.batch_size, rank, world_size)
    sets = list(method.sets)
    rows = PairSampler(labels, config.batch_size, config.seed, config.instances).batch_at(
        iteration, places, positives=method.positives
    )
    position = Position(seed=config.seed, iteration=iteration, first=places.start, total=config.batch_size)
    labelled = labels[rows[[index for index in sets if index < 2]]]
    joints = poses[rows[sets]] if method.posed else None
    return training_batch(pixels[rows[sets]], labelled, position, config, joints)
