"""The smallest DG-Nets that are still ones: for tests that need a step in milliseconds."""

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_core.dgnet.config import DGNetConfig, LossConfig, laptop
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import train_step
from dgnet_core.learning.augment import training_batch
from dgnet_core.learning.batches import Batch, PairSampler, Position, share
from dgnet_core.learning.config import AugmentConfig, StepConfig, Warmup
from dgnet_core.learning.state import State
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.teacher.config import TeacherConfig
from dgnet_core.teacher.networks import Teacher

CLASSES = 5
START = 3
"""Warm-up start of the tiny configuration."""
RAMPED = START + 3
"""An iteration at which all terms have their weights."""
E_A, E_S, G, D = "appearance_encoder", "structure_encoder", "decoder", "discriminator"


def tiny_config(**overrides) -> DGNetConfig:
    warmup = Warmup(start=START, slope=0.5)
    fields = {
        "num_classes": CLASSES,
        "batch_size": 4,
        "iterations": 12,
        "network": NetworkConfig(
            height=24, width=12, appearance_layers=(1, 1, 1, 1), appearance_width=4, bottleneck=16, pretrained="none",
            structure_width=2, aspp_dilations=(1, 1, 1), residual_blocks=1, adain_width=8, discriminator_width=4,
            discriminator_scales=2,
        ),
        "loss": LossConfig(code_warmup=warmup, teacher_warmup=warmup),
        "augment": AugmentConfig(pad=1),
        "step": StepConfig(precision="float64"),
    }  # fmt: skip
    return DGNetConfig(**(fields | overrides))


def small_config(num_classes: int) -> DGNetConfig:
    """The laptop preset with networks for 32 x 16 pixels: for tests that need what a preset has."""
    config = laptop(num_classes)
    network = replace(
        config.network, height=32, width=16, aspp_dilations=(1, 1, 2), appearance_width=4, bottleneck=8,
        structure_width=4, adain_width=8, discriminator_width=4,
        adain_start="release",  # so that appearances show before anything is learned
    )  # fmt: skip
    return replace(config, network=network, trunk_from_teacher=False)


def tiny_teacher(config: DGNetConfig) -> Teacher:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Teacher(config.network, config.num_classes)


def tiny_state(config: DGNetConfig, iteration: int = 0) -> TrainState:
    state = TrainState.build(config, teacher=tiny_teacher(config))
    state.iteration = iteration
    return state


def tiny_pictures(config: DGNetConfig, count: int = 23) -> tuple[Tensor, Tensor]:
    """Pixels (count, 3, H, W) and labels (count) of a training set; every identity has at least one image."""
    generator = torch.Generator().manual_seed(7)
    blocks = torch.randint(256, (count, 3, 4, 2), dtype=torch.uint8, generator=generator)
    pixels = F.interpolate(blocks, (config.network.height, config.network.width))
    return pixels, torch.arange(count) % config.num_classes


def tiny_batch(config: DGNetConfig, iteration: int, rank: int = 0, world_size: int = 1) -> Batch:
    pixels, labels = tiny_pictures(config)
    places = share(config.batch_size, rank, world_size)
    rows = PairSampler(labels, config.batch_size, config.seed, config.instances).batch_at(iteration, places)
    position = Position(seed=config.seed, iteration=iteration, first=places.start, total=config.batch_size)
    return training_batch(pixels[rows], labels[rows[:2]], position, config)


def run(state: TrainState, config: DGNetConfig, until: int) -> list[dict[str, Tensor]]:
    """Train until an iteration; the metrics of each."""
    return [train_step(state, tiny_batch(config, t), config) for t in range(state.iteration, until)]


def flat(state: State) -> dict[str, Tensor]:
    """Every tensor of a state by a path, for comparing two states bit for bit."""
    found: dict[str, Tensor] = {}

    def walk(path: str, value) -> None:
        if isinstance(value, Tensor):
            found[path] = value.clone()
        elif isinstance(value, dict):
            for key, child in value.items():
                walk(f"{path}/{key}", child)
        elif isinstance(value, list | tuple):
            for place, child in enumerate(value):
                walk(f"{path}/{place}", child)
        else:
            found[path] = torch.tensor(float("nan") if value is None else value)

    walk("", state.state_dict())
    return found


def assert_same(first: State, second: State) -> None:
    """Both states are equal in every bit."""
    a, b = flat(first), flat(second)
    assert a.keys() == b.keys()
    for path, value in a.items():
        assert torch.equal(value, b[path]) or (value.isnan() & b[path].isnan()).all(), path


def tiny_teacher_config(**overrides) -> TeacherConfig:
    small = tiny_config()
    fields = {
        "num_classes": CLASSES, "batch_size": 6, "iterations": 12, "warmup_iterations": 2, "milestones": (6,),
        "network": small.network, "augment": small.augment, "step": small.step,
    }  # fmt: skip
    return TeacherConfig(**(fields | overrides))


def teacher_batch(config: TeacherConfig, iteration: int, rank: int = 0, world_size: int = 1) -> Batch:
    pixels, labels = tiny_pictures(tiny_config())
    places = share(config.batch_size, rank, world_size)
    rows = PairSampler(labels, config.batch_size, config.seed, config.instances).batch_at(iteration, places)[:1]
    position = Position(seed=config.seed, iteration=iteration, first=places.start, total=config.batch_size)
    return training_batch(pixels[rows], labels[rows], position, config)
