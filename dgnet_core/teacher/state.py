"""The teacher's training state."""

from typing import Self, cast

import torch
from torch import nn

from dgnet_core.learning.state import State, average_of, no_fault
from dgnet_core.learning.steps import to_device, trunk_and_heads
from dgnet_core.networks.resnet import load_imagenet
from dgnet_core.teacher.config import TeacherConfig
from dgnet_core.teacher.networks import Teacher


class TeacherState(State):
    """The teacher's state."""

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
            teacher = Teacher(config.network, config.num_classes, config.dropout, config.last_stride)
        if pretrained:
            load_imagenet(teacher.trunk, config.network)
        to_device(teacher, config.step, device)
        optimizer = trunk_and_heads(
            teacher.trunk,
            [teacher.head, *([teacher.pool] if teacher.pool is not None else [])],
            kind=config.optimizer,
            lr=config.lr,
            head_lr_factor=config.head_lr_factor,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )
        averages: dict[str, nn.Module] = {"teacher": average_of(teacher)} if config.ema else {}
        return cls(
            networks={"teacher": teacher},
            optimizers={"optimizer": optimizer},
            averages=averages,
            fault=no_fault(device),
        )

    @property
    def teacher(self) -> Teacher:
        """The trained network."""
        return cast(Teacher, self.networks["teacher"])

    @property
    def describing_teacher(self) -> Teacher:
        """What describes people and labels generated ones: the moving average of the network where there is one."""
        return cast(Teacher, self.describing("teacher"))

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """Of trunk and head."""
        return self.optimizers["optimizer"]
