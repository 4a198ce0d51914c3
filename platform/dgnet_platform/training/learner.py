"""What a run trains: DG-Net or its teacher, each with the data that its next iteration sees."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from dgnet_core.dgnet import schedule
from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import train_step
from dgnet_core.learning.augment import training_batch
from dgnet_core.learning.batches import PairSampler, Position, share
from dgnet_core.learning.schedule import decay
from dgnet_core.teacher.config import TeacherConfig
from dgnet_core.teacher.networks import Teacher
from dgnet_core.teacher.state import TeacherState
from dgnet_core.teacher.step import teacher_rate, teacher_step
from dgnet_platform.data.images import ImageSet
from dgnet_platform.runs.checkpoint import State, build
from dgnet_platform.runs.experiment import ModelConfig
from dgnet_platform.training.collectives import average_gradients, average_statistics, ranks


class Learner(Protocol):
    """One rank's part in training a model."""

    @property
    def state(self) -> State:
        """What is trained; the same on every rank after every iteration."""
        ...

    @property
    def config(self) -> ModelConfig:
        """The model and its recipe."""
        ...

    @property
    def share(self) -> float:
        """This rank's part of the global batch, in (0, 1]."""
        ...

    @property
    def images_a_step(self) -> int:
        """Pictures that an iteration trains on, over all ranks."""
        ...

    def step(self) -> dict[str, Tensor]:
        """One iteration: its metrics on this rank's part of the batch, on the device."""
        ...

    def settings(self, iteration: int) -> dict[str, float]:
        """Loss weights and learning rates at a 0-based iteration."""
        ...


class _Batches:
    """This rank's part of every iteration's batch, from pictures on any device."""

    def __init__(self, config: ModelConfig, images: ImageSet, device: torch.device):
        rank, world_size = ranks()
        self.config = config
        self.images = images.to(device) if device.type != "cpu" and images.fits(device) else images
        self.device = device
        self.places = share(config.batch_size, rank, world_size)
        self.sampler = PairSampler(images.labels, config.batch_size, config.seed)
        self.labels = images.labels

    @property
    def share(self) -> float:
        return len(self.places) / self.config.batch_size

    def at(self, iteration: int, streams: int):
        """The batch of an iteration: the first `streams` of batch a, b and the positives of both."""
        rows = self.sampler.batch_at(iteration, self.places)[:streams]
        pixels = self.images.images[rows.to(self.images.images.device)].to(self.device, non_blocking=True)
        config = self.config
        position = Position(seed=config.seed, iteration=iteration, first=self.places.start, total=config.batch_size)
        return training_batch(pixels, self.labels[rows[:2]], position, config)


class DGNetLearner:
    """Trains DG-Net."""

    def __init__(self, config: DGNetConfig, images: ImageSet, device: torch.device, teacher: Teacher | None):
        """Build the state before iteration 0; errors as in `TrainState.build` and `sampling.share`."""
        self._batches = _Batches(config, images, device)
        self.config = config
        self.share = self._batches.share
        self.images_a_step = 4 * config.batch_size
        state = build(config, device, teacher=teacher)
        assert isinstance(state, TrainState)
        self.state = state

    def step(self) -> dict[str, Tensor]:
        """One iteration; raises FloatingPointError on the CPU when a loss or gradient is not finite."""
        batch = self._batches.at(self.state.iteration, streams=4)
        return train_step(self.state, batch, self.config, reduce_grads=self._reduce)

    def settings(self, iteration: int) -> dict[str, float]:
        """Loss weights and learning rates at a 0-based iteration."""
        config = self.config
        ramped = schedule.weights(config.loss, config.recipe, iteration)
        rate = decay(config.optim.milestones, config.optim.decay, iteration)
        return {
            **{f"weight/{name}": value for name, value in vars(ramped).items()},
            "lr/appearance": config.optim.appearance_lr * rate,
            "lr/generator": config.optim.generator_lr * rate,
            "lr/discriminator": config.optim.discriminator_lr * rate,
        }

    def _reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        average_gradients(parameters, self.share)


class TeacherLearner:
    """Trains the re-id baseline."""

    def __init__(self, config: TeacherConfig, images: ImageSet, device: torch.device):
        """Build the state before iteration 0; errors as in `TeacherState.build` and `sampling.share`."""
        self._batches = _Batches(config, images, device)
        self.config = config
        self.share = self._batches.share
        self.images_a_step = config.batch_size
        state = build(config, device)
        assert isinstance(state, TeacherState)
        self.state = state

    def step(self) -> dict[str, Tensor]:
        """One iteration; raises FloatingPointError on the CPU when a loss or gradient is not finite."""
        batch = self._batches.at(self.state.iteration, streams=1)
        return teacher_step(self.state, batch, self.config, reduce_grads=self._reduce)

    def settings(self, iteration: int) -> dict[str, float]:
        """The learning rate at a 0-based iteration."""
        return {"lr/trunk": teacher_rate(self.config, iteration)}

    def _reduce(self, parameters: Sequence[nn.Parameter]) -> None:
        average_gradients(parameters, self.share)


def advance(learner: Learner) -> dict[str, Tensor]:
    """One iteration, after which all ranks hold the same state."""
    metrics = learner.step()
    average_statistics(learner.state, learner.share)
    return metrics
