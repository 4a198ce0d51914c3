"""BatchNorm's statistics estimated anew from a fixed number of batches, for as long as a network is evaluated."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dgnet_core.networks.batch_norm import GroupedBatchNorm


class _Sums:
    """Sums of the means and unbiased variances of the batches that came to a layer."""

    def __init__(self, layer: GroupedBatchNorm):
        self.layer = layer
        self.batches = 0
        self.mean = torch.zeros_like(layer.running_mean, dtype=torch.float64)
        self.var = torch.zeros_like(self.mean)

    def __call__(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        x: Tensor = inputs[0]
        var, mean = torch.var_mean(x.double(), dim=(0, *range(2, x.ndim)))
        self.batches += 1
        self.mean += mean
        self.var += var


@contextmanager
def reestimated(network: nn.Module, forward: Callable[[Tensor], object], batches: Iterable[Tensor]) -> Iterator[None]:
    """Within this context, BatchNorm's running statistics are means over batches, each normalised by its own.

    Running averages of momentum 0.1 remember ten batches and wander with them (Wu and Johnson, "Rethinking Batch in
    BatchNorm", 2021). Afterwards the network is as it was, in every bit.

    Args:
        network: whose layers of GroupedBatchNorm are meant.
        forward: passes a batch through it, without dropout.
        batches: images (B, 3, H, W), the same ones at each evaluation; none: statistics stay as they are.
    """
    layers = [module for module in network.modules() if isinstance(module, GroupedBatchNorm)]
    kept = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    modes = [(module, module.training) for module in network.modules()]
    sums = [_Sums(layer) for layer in layers]
    hooks = [layer.register_forward_pre_hook(found) for layer, found in zip(layers, sums, strict=True)]
    try:
        network.train()
        try:
            with torch.no_grad():
                for batch in batches:
                    forward(batch)
        finally:
            for hook in hooks:
                hook.remove()
            for module, training in modes:
                module.training = training
        for found in sums:
            if found.batches:
                found.layer.running_mean.copy_(found.mean / found.batches)
                found.layer.running_var.copy_(found.var / found.batches)
        yield
    finally:
        for layer, buffers in zip(layers, kept, strict=True):
            for name, buffer in layer.named_buffers():
                buffer.copy_(buffers[name])
