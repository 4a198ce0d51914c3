"""Training the teacher: the usual re-id baseline, one cross-entropy on the original images."""

from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from dgnet_core import losses, schedule
from dgnet_core.config import TeacherConfig
from dgnet_core.health import record_fault
from dgnet_core.pretrained import load_imagenet
from dgnet_core.sampling import Batch
from dgnet_core.state import layout_of, load_optimizer, place, trunk_and_heads
from dgnet_core.step import ReduceGrads, check_batch, clip, dropped_logits, exact, keep_local, set_rate
from dgnet_core.teacher import Teacher


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
        place(teacher, config.step, device)
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


def teacher_step(
    state: TeacherState, batch: Batch, config: TeacherConfig, *, reduce_grads: ReduceGrads = keep_local
) -> dict[str, Tensor]:
    """Advance `state` by one iteration. Non-finite numbers are met as in `step.train_step`.

    Args:
        state: changed in place.
        batch: what this rank trains on, (1, B) images; `batch.position.iteration` must be the state's.
        config: the configuration that `state` was built from.
        reduce_grads: averages gradients over ranks, so that training follows the mean loss of all ranks' batches.

    Returns:
        Scalars on the state's device, without a graph: the loss "L_id" in nats, "accuracy", the share of the batch that
        is recognised in spite of dropout and erasing, and "grad_teacher", the L2 norm of the gradient before clipping.

    Raises:
        ValueError: the batch or the state does not fit the configuration; the state is unchanged.
        FloatingPointError: the loss or the gradient is not finite (CPU only).
    """
    teacher, head = state.teacher, state.teacher.head
    check_batch(batch, config, head.classifier.out_features, state.iteration, state.device, sets=1, labelled=1)
    images = (batch.images if batch.erased is None else batch.erased)[0].contiguous(
        memory_format=layout_of(config.step)
    )
    labels = batch.labels[0].to(state.device, non_blocking=True)

    with torch.autocast(state.device.type, torch.bfloat16, enabled=config.step.precision == "bfloat16"):
        feature = exact(teacher(images, track=True))
    logits = dropped_logits(head, feature, 1, batch.position, "dropout teacher")
    loss = losses.identity(logits, labels, config.label_smoothing)
    state.optimizer.zero_grad()
    loss.backward()

    parameters = list(teacher.parameters())
    reduce_grads(parameters)
    gradient = clip(parameters, config.clip_norm)
    set_rate(state.optimizer, schedule.teacher_rate(config, state.iteration))
    state.optimizer.step()
    accuracy = (logits.detach().argmax(dim=1) == labels).to(loss.dtype).mean()
    metrics = {"L_id": loss.detach(), "accuracy": accuracy, "grad_teacher": gradient}
    record_fault(state, metrics)
    state.iteration += 1
    return metrics
