"""Iterations captured in CUDA graphs: one launch an iteration, where a step of a small batch waits for thousands.

Control flow is fixed within a phase (`schedule.Iteration.phase`), so that each phase and batch shape has a graph of its
own. What changes from one replay to the next are tensors that stay where they are: the batch, the ramped weights, the
iteration's number, the learning rates, and the state itself (PyTorch, CUDA Graphs, "whole-network capture").
"""

from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from dgnet_core.dgnet.schedule import Iteration, Weights
from dgnet_core.learning.batches import Batch
from dgnet_core.learning.config import StepConfig

Iterate = Callable[[Batch, Iteration], dict[str, Tensor]]
"""Computes an iteration of a state and changes it in place; returns scalars."""

EAGER = 2
"""Iterations of each phase that run as usual first: they make the optimisers' memory, and libraries choose kernels."""


def check_graph(step: StepConfig, device: torch.device | str) -> None:
    """Raise a ValueError where a step is to be captured and cannot be."""
    if step.graph and torch.device(device).type != "cuda":
        raise ValueError(
            f"step.graph = True: only a CUDA device replays graphs, and this run is on {device};"
            " set step.graph to False"
        )


@dataclass(kw_only=True, eq=False)
class _Captured:
    """One phase and batch shape."""

    graph: torch.cuda.CUDAGraph
    batch: Batch
    """Where replays read their batch."""
    iteration: Iteration
    """Where replays read weights and number."""
    names: tuple[str, ...]
    values: Tensor
    """(len(names)) what the iteration returns."""


class Graphs:
    """The captured iterations of one state; they read and write its tensors where these lay at capture."""

    def __init__(self) -> None:
        self._captured: dict[Hashable, _Captured] = {}
        self._seen: Counter[Hashable] = Counter()
        self._pool = None

    def clear(self) -> None:
        """Forget all graphs: the state's tensors are elsewhere now."""
        self._captured.clear()
        self._seen.clear()

    def run(self, iterate: Iterate, batch: Batch, iteration: Iteration) -> dict[str, Tensor]:
        """One iteration: as usual at first, then captured, from then on replayed.

        Args:
            iterate: what to capture; it waits for the device nowhere, and takes learning rates from tensors.
            batch: on the state's device, as are its labels.
            iteration: with numbers, not tensors.
        """
        erased = None if batch.erased is None else tuple(batch.erased.shape)
        place = (batch.position.seed, batch.position.first, batch.position.total)
        key = (iteration.phase, tuple(batch.images.shape), erased, place)
        if key not in self._captured:
            self._seen[key] += 1
            if self._seen[key] <= EAGER:
                return _beside(iterate, batch, iteration)
            self._captured[key] = self._capture(iterate, batch, iteration)
        captured = self._captured[key]
        copy_batch(captured.batch, batch)
        copy_iteration(captured.iteration, iteration)
        captured.graph.replay()
        return dict(zip(captured.names, captured.values.clone().unbind(), strict=True))

    def _capture(self, iterate: Iterate, batch: Batch, iteration: Iteration) -> _Captured:
        """Record an iteration without computing it."""
        batch, iteration = own_batch(batch), as_tensors(iteration, batch.images)
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()  # graphs replay one at a time: they may share their memory
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            metrics = iterate(batch, iteration)
            values = torch.stack(list(metrics.values()))
        return _Captured(graph=graph, batch=batch, iteration=iteration, names=tuple(metrics), values=values)


def _beside(iterate: Iterate, batch: Batch, iteration: Iteration) -> dict[str, Tensor]:
    """An iteration on a stream of its own, as PyTorch asks of those before a capture."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        metrics = iterate(batch, iteration)
    torch.cuda.current_stream().wait_stream(stream)
    return metrics


# ------------------------------------------------------------------------------------------------------------
# What replays read


def own_batch(batch: Batch) -> Batch:
    """A batch in memory of its own, for `copy_batch` to fill."""
    erased = None if batch.erased is None else batch.erased.clone()
    return replace(batch, images=batch.images.clone(), erased=erased, labels=batch.labels.clone())


def copy_batch(to: Batch, batch: Batch) -> None:
    """Fill a batch in place."""
    to.images.copy_(batch.images, non_blocking=True)
    to.labels.copy_(batch.labels, non_blocking=True)
    if to.erased is not None and batch.erased is not None:
        to.erased.copy_(batch.erased, non_blocking=True)


def as_tensors(iteration: Iteration, like: Tensor) -> Iteration:
    """An iteration whose number and weights are tensors, for `copy_iteration` to fill; they are on `like`'s device."""
    ramped = {field.name: like.new_zeros(()) for field in fields(Weights)}
    number = like.new_zeros((), dtype=torch.int64)
    tensors = replace(iteration, number=number, ramped=Weights(**ramped), share=like.new_zeros(()))
    copy_iteration(tensors, iteration)
    return tensors


def copy_iteration(to: Iteration, iteration: Iteration) -> None:
    """Fill an iteration's tensors in place, by launches that carry the numbers with them."""
    assert isinstance(to.number, Tensor)
    assert isinstance(to.share, Tensor)
    to.number.fill_(iteration.number)
    to.share.fill_(iteration.share)
    for name, value in vars(iteration.ramped).items():
        getattr(to.ramped, name).fill_(value)
