"""What every training step is made of: rates, clipping, descents, dropout by position, placing on a device."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from dgnet_core.learning import losses
from dgnet_core.learning.batches import Position
from dgnet_core.learning.config import MetricConfig, OptimizerKind, StepConfig
from dgnet_core.learning.precision import dtype_of, layout_of
from dgnet_core.networks.batch_norm import gathered, is_synchronised
from dgnet_core.networks.resnet import Head


def to_device(network: nn.Module, step: StepConfig, device: torch.device | str) -> None:
    """Put a network on the device, in the precision and memory format of the step, and compile it if asked to."""
    network.to(device, dtype_of(step)).to(memory_format=layout_of(step))
    if step.compile:
        # The step descends twice through one pass of the appearance encoder, which donated buffers forbid.
        functorch_config.donated_buffer = False
        network.compile()


def trunk_and_heads(
    trunk: nn.Module,
    heads: Iterable[nn.Module],
    *,
    kind: OptimizerKind = "sgd",
    lr: float | Tensor,
    head_lr_factor: float,
    momentum: float,
    weight_decay: float,
) -> torch.optim.Optimizer:
    """An optimiser with rate `lr` on a re-id trunk and `head_lr_factor` times as much on its heads.

    Args:
        trunk: the ResNet.
        heads: all else that describes.
        kind: SGD with Nesterov momentum, Adam with L2 decay, or AdamW with decoupled decay.
        lr: of the trunk; a tensor where CUDA graphs read it.
        head_lr_factor: of the heads' rate.
        momentum: of SGD; Adam's first beta, the second is 0.999.
        weight_decay: of every parameter.
    """
    head_parameters = [parameter for head in heads for parameter in head.parameters()]
    groups = [
        {"params": trunk.parameters(), "factor": 1.0},
        {"params": head_parameters, "factor": head_lr_factor, "lr": head_lr_factor * lr},
    ]
    if kind == "sgd":
        nesterov = momentum > 0
        return torch.optim.SGD(
            groups, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True
        )
    adam = torch.optim.Adam if kind == "adam" else torch.optim.AdamW
    capturable = isinstance(lr, Tensor)
    return adam(groups, lr=lr, betas=(momentum, 0.999), weight_decay=weight_decay, fused=True, capturable=capturable)


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
    terms: Iterable[tuple[float | Tensor, Tensor]],
    *,
    inputs: Sequence[Tensor],
    carried: tuple[Tensor, Tensor | None] | None = None,
    retain_graph: bool = False,
) -> None:
    """Accumulate the gradients of the weighted terms in `inputs`, and in nothing else.

    Args:
        terms: weight and scalar; those of weight 0 or without a graph (L_code1 of detached codes) are left out. A
            tensor counts, whatever it holds: to look would wait for the device.
        inputs: the only leaves to reach.
        carried: a tensor and the gradient that has arrived at it from elsewhere, if any has.
        retain_graph: the graph will be descended again.
    """
    weighted = [
        (weight, term) for weight, term in terms if term.requires_grad and (isinstance(weight, Tensor) or weight > 0)
    ]
    roots = [term for _, term in weighted]
    gradients = [weight if isinstance(weight, Tensor) else torch.full_like(term, weight) for weight, term in weighted]
    if carried is not None and carried[1] is not None:
        roots.append(carried[0])
        gradients.append(carried[1])
    if not roots:
        return
    earlier = [(leaf, leaf.grad) for leaf in inputs if leaf.grad is not None]
    for leaf, _ in earlier:
        leaf.grad = None
    torch.autograd.backward(roots, gradients, inputs=inputs, retain_graph=retain_graph)
    # Added at once, not leaf by leaf.
    again = [(leaf.grad, before) for leaf, before in earlier if leaf.grad is not None]
    if again:
        torch._foreach_add_([now for now, _ in again], [before for _, before in again])  # pyright: ignore[reportPrivateImportUsage]
    for leaf, before in earlier:
        if leaf.grad is None:
            leaf.grad = before


def fill_missing(parameters: Iterable[nn.Parameter]) -> None:
    """A gradient of 0 where no term has any: weight decay and momentum still act."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)


def dropout_noise(
    passes: Mapping[str, tuple[Head, int]], batch_size: int, position: Position
) -> defaultdict[str, Tensor | None]:
    """What decides which features drop: uniform draws (groups * B, width), by purpose; None where no feature does.

    Args:
        passes: by purpose, the head, and how many batches it sees.
        batch_size: B, this rank's images in each.
        position: where in the run this is.
    """
    dropping = {purpose: (head, groups) for purpose, (head, groups) in passes.items() if head.dropout}
    shapes = {
        purpose: (batch_size, groups, head.classifier.in_features) for purpose, (head, groups) in dropping.items()
    }
    devices = {head.classifier.weight.device for head, _ in dropping.values()}
    draws = position.uniforms(shapes, devices.pop()) if devices else {}
    noise: defaultdict[str, Tensor | None] = defaultdict(lambda: None)
    noise.update({purpose: drawn.transpose(0, 1).flatten(0, 1) for purpose, drawn in draws.items()})
    return noise


def dropped_logits(head: Head, feature: Tensor, groups: int, position: Position, purpose: str) -> Tensor:
    """Logits (groups * B, K) of a head's feature, with this position's dropout."""
    noise = dropout_noise({purpose: (head, groups)}, len(feature) // groups, position)
    return head.logits(feature, noise[purpose])


def metric_terms(
    features: Tensor, labels: Tensor, config: MetricConfig, position: Position
) -> list[tuple[str, float, Tensor]]:
    """Name, weight and value of the metric losses that act, mean over this rank's images.

    Where BatchNorm is synchronised, hard examples and pairs are sought among the images of all ranks: the losses, and
    their gradients, are those of one rank with all images.

    Args:
        features: (S, B, D) of the batches that are compared with each other.
        labels: (S, B) int64 on the features' device.
        config: which losses.
        position: where this rank's images stand in the global batch.
    """
    if not config.acts:
        return []
    S, B = labels.shape
    first, total = 0, B
    if is_synchronised() and position.total is not None:
        first, total = position.first, position.total
        rows = gathered(torch.cat([features, labels[:, :, None].to(features.dtype)], dim=2), first, total)
        features, labels = rows[:, :, :-1], rows[:, :, -1].long()
    anchors = torch.arange(S * total, device=features.device).view(S, total)[:, first : first + B].flatten()
    features, labels = features.flatten(0, 1), labels.flatten()
    terms: list[tuple[str, float, Tensor]] = []
    if config.triplet > 0:
        terms.append(("L_triplet", config.triplet, losses.triplet(features, labels, anchors)))
    if config.circle > 0:
        value = losses.circle(features, labels, anchors, config.circle_margin, config.circle_scale)
        terms.append(("L_circle", config.circle, value))
    return terms


def clip(parameters: list[nn.Parameter], limit: float | None) -> Tensor:
    """L2 norm of the gradients; they are scaled down to `limit` if there is one."""
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if limit is not None:
        clip_grads_with_norm_(parameters, limit, norm)
    return norm


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to `rate` times its factor, in place where a CUDA graph reads it."""
    for group in optimizer.param_groups:
        value = rate * group.get("factor", 1.0)
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(value)
        else:
            group["lr"] = value
