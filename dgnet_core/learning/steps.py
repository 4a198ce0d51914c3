"""What every training step is made of: rates, clipping, descents, dropout by position, placing on a device."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dgnet_core.learning.batches import Position
from dgnet_core.learning.config import StepConfig
from dgnet_core.learning.precision import dtype_of, layout_of
from dgnet_core.networks.resnet import Head


def to_device(network: nn.Module, step: StepConfig, device: torch.device | str) -> None:
    """Put a network on the device, in the precision and memory format of the step, and compile it if asked to."""
    network.to(device, dtype_of(step)).to(memory_format=layout_of(step))
    if step.compile:
        # The step descends twice through one pass of the appearance encoder, which donated buffers forbid.
        functorch_config.donated_buffer = False
        network.compile()


def trunk_and_heads(
    trunk: nn.Module, heads: Iterable[nn.Module], *, lr: float, head_lr_factor: float, momentum: float,
    weight_decay: float,
) -> torch.optim.SGD:  # fmt: skip
    """Nesterov SGD with rate `lr` on a re-id trunk and `head_lr_factor` times as much on its heads."""
    head_parameters = [parameter for head in heads for parameter in head.parameters()]
    return torch.optim.SGD(
        [
            {"params": trunk.parameters(), "factor": 1.0},
            {"params": head_parameters, "factor": head_lr_factor, "lr": head_lr_factor * lr},
        ],
        lr=lr,
        momentum=momentum,
        nesterov=momentum > 0,
        weight_decay=weight_decay,
        fused=True,
    )


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Take over what an optimiser remembered of each parameter; its settings stay those it was built with.

    Moments get their parameter's memory layout: fused optimisers go through both in the order of the memory.

    Raises:
        KeyError, ValueError: `saved` is not of such an optimiser.
    """
    groups = zip(optimizer.state_dict()["param_groups"], saved["param_groups"], strict=True)
    groups = [{**group, "params": before["params"]} for group, before in groups]
    optimizer.load_state_dict({**saved, "param_groups": groups})
    for parameter, memory in optimizer.state.items():
        for name, value in memory.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                memory[name] = torch.empty_like(parameter).copy_(value)


ReduceGrads = Callable[[list[nn.Parameter]], None]
"""Replaces each parameter's gradient by its average over all ranks, weighted by their numbers of images."""


def keep_local(parameters: list[nn.Parameter]) -> None:
    """Leave the gradients as they are: training on one device."""


def descend(
    terms: Iterable[tuple[float, Tensor]],
    *,
    inputs: Sequence[Tensor],
    carried: tuple[Tensor, Tensor | None] | None = None,
    retain_graph: bool = False,
) -> None:
    """Accumulate the gradients of the weighted terms in `inputs`, and in nothing else.

    Args:
        terms: weight and scalar; those of weight 0 or without a graph (L_code1 of detached codes) are left out.
        inputs: the only leaves to reach.
        carried: a tensor and the gradient that has arrived at it from elsewhere, if any has.
        retain_graph: the graph will be descended again.
    """
    roots: list[Tensor] = [weight * term for weight, term in terms if weight > 0 and term.requires_grad]
    gradients: list[Tensor | None] = [None] * len(roots)
    if carried is not None and carried[1] is not None:
        roots.append(carried[0])
        gradients.append(carried[1])
    if roots:
        torch.autograd.backward(roots, gradients, inputs=inputs, retain_graph=retain_graph)


def dropped_logits(head: Head, feature: Tensor, groups: int, position: Position, purpose: str) -> Tensor:
    """Logits (groups * B, K) of a head's feature, with this position's dropout."""
    if head.dropout == 0:
        return head.logits(feature)
    width = feature.shape[1]
    noise = position.uniform(purpose, (len(feature) // groups, groups, width), feature.device)
    return head.logits(feature, noise.transpose(0, 1).flatten(0, 1))


def clip(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """L2 norm of the gradients; they are scaled down to `limit` if there is one."""
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit is not None:
        clip_grads_with_norm_(parameters, limit, norm)
    return norm


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to `rate` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
