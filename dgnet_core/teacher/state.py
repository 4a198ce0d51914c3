"""The teacher's training state."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from dgnet_core.learning.steps import (
    load_optimizer,
    to_device,
    trunk_and_heads,
)
from dgnet_core.networks.resnet import load_imagenet
from dgnet_core.teacher.config import TeacherConfig
from dgnet_core.teacher.networks import Teacher


@dataclass
class TeacherState:
    """Everything that changes from one iteration of the teacher to the next; used as TrainState is."""

    teacher: Teacher
    optimizer: torch.optim.SGD
    fault: Tensor
    """(2) int64: first iteration with a loss or gradient that was not finite, and which (see health); -1: none."""
    iteration: int = 0
    """Iterations done."""

    @classmethod
    def build(cls, config: TeacherConfig, device: torch.device | str = "cpu", *, pretrained: bool = True) -> Self:
        """The state before iteration 0: a pure function of the configuration.

        Args:
            config: the run.
            device: where the network lives.
            pretrained: load what `config.network.pretrained` names; False when a checkpoint will be loaded anyway.

        Raises:
            ValueError, FileNotFoundError, RuntimeError: the ImageNet weights are not to be had (see load_imagenet).
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            teacher = Teacher(config.network, config.num_classes, config.dropout)
        if pretrained:
            load_imagenet(teacher.trunk, config.network)
        to_device(teacher, config.step, device)
        optimizer = trunk_and_heads(
            teacher.trunk,
            [teacher.head],
            lr=config.lr,
            head_lr_factor=config.head_lr_factor,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        return cls(teacher=teacher, optimizer=optimizer, fault=torch.full((2,), -1, device=device))

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The trained network by its name."""
        return {"teacher": self.teacher}

    @property
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The optimiser by its name."""
        return {"optimizer": self.optimizer}

    @property
    def device(self) -> torch.device:
        """Where the network lives."""
        return self.fault.device

    def state_dict(self) -> dict[str, Any]:
        """Tensors, numbers and containers only, so `torch.load(weights_only=True)` reads it back."""
        return {
            "iteration": self.iteration,
            "networks": {"teacher": self.teacher.state_dict()},
            "optimizers": {"optimizer": self.optimizer.state_dict()},
        }

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ValueError: keys are missing or unknown, or tensors are of other shapes.
        """
        if set(saved) != {"iteration", "networks", "optimizers"}:
            raise ValueError(f"not a teacher's training state: its keys are {sorted(saved)}")
        try:
            self.teacher.load_state_dict(saved["networks"]["teacher"])
            load_optimizer(self.optimizer, saved["optimizers"]["optimizer"])
        except (KeyError, RuntimeError) as error:
            raise ValueError(f"the training state is of another configuration: {error}") from error
        self.iteration = saved["iteration"]
