"""What the ranks of a run do together. Every function is its own identity for a run on one rank."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dgnet_core.learning.state import State

BUCKET_BYTES = 64 * 2**20
"""Gradients travel in pieces of about this size: one buffer for all would double the memory of large networks."""


class RanksDifferError(RuntimeError):
    """Ranks that must hold the same networks do not; the message names one."""


def ranks() -> tuple[int, int]:
    """This rank and the number of ranks."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def average(tensors: Iterable[Tensor], share: float) -> None:
    """Replace each tensor by its mean over the ranks, weighted by their shares.

    Args:
        tensors: the same shapes on every rank; changed in place.
        share: this rank's part of the global batch; the shares of all ranks sum to 1.
    """
    if ranks()[1] == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket]).mul_(share)
        dist.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in bucket])
        for tensor, part in zip(bucket, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def average_gradients(parameters: Sequence[nn.Parameter], share: float) -> None:
    """Gradients of the mean loss over the global batch, from those of each rank's own mean."""
    average([parameter.grad for parameter in parameters if parameter.grad is not None], share)


def sum_over_ranks(sums: Tensor) -> None:
    """Replace a tensor by its sum over the ranks."""
    dist.all_reduce(sums)


def average_statistics(state: State, share: float, *, synchronised: bool) -> None:
    """What follows the ranks' own images, made equal: the state's memory, and local BatchNorm's running statistics."""
    if ranks()[1] == 1:
        return
    statistics = list(state.memory.values())
    if not synchronised:  # else they are equal, and walking through all modules takes milliseconds
        networks = (*state.networks.values(), *state.averages.values())
        buffers = (buffer for network in networks for buffer in network.buffers())
        statistics += [buffer for buffer in buffers if buffer.is_floating_point()]
    average(statistics, share)


def broadcast(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    if ranks()[1] == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def gather(value: Any) -> list[Any]:
    """Every rank's value, in their order."""
    size = ranks()[1]
    values = [value] * size
    if size > 1:
        dist.all_gather_object(values, value)
    return values


def check_same(state: State) -> None:
    """Check that all ranks hold the same networks, by the sums of their tensors.

    Raises:
        RanksDifferError: names the first network that differs.
    """
    if ranks()[1] == 1:
        return
    sums = torch.stack([_sum(network) for network in state.networks.values()])
    least, most = sums.clone(), sums.clone()
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    for name, same in zip(state.networks, (least == most).tolist(), strict=True):
        if not same:
            raise RanksDifferError(
                f"iteration {state.iteration}: {name} differs between ranks; go back to the last checkpoint, and check"
                " that all workers run the same code on the same kind of device"
            )


def _sum(network: nn.Module) -> Tensor:
    """One number that changes when any value of a network does."""
    tensors = [tensor for tensor in (*network.parameters(), *network.buffers()) if tensor.is_floating_point()]
    return torch.stack([tensor.detach().double().abs().sum() for tensor in tensors]).sum()


def _buckets(tensors: Iterable[Tensor]) -> Iterable[list[Tensor]]:
    """Tensors in their order, in groups of one type and about BUCKET_BYTES."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket
