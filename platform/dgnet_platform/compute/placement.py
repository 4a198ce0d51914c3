"""How many trials of a search run at once, and what each one has: a pure function of the cluster."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from dgnet_platform.errors import ExperimentError


@dataclass(frozen=True, kw_only=True)
class Node:
    """A machine of the cluster."""

    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where trials run."""

    concurrent: int
    """Trials at once."""
    cpus: int
    """CPUs of a trial, or of each of its workers."""
    gpus: float
    """GPUs of a trial, or of each of its workers."""
    workers: int
    """Workers of a trial beside its own process; 0: that process trains."""

    @property
    def resources(self) -> dict[str, float]:
        """What Tune reserves for a trial's own process.

        One that only waits for its workers holds none of what these need, or the trials would block each other for
        ever; and none at all is refused.
        """
        if self.workers:
            return {"node:__internal_head__": 0.001}
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


def place_trials(nodes: Sequence[Node], *, workers: int, gpus: float, concurrent: int) -> Placement:
    """Place as many trials as fit, at most `concurrent`, such that all that are started can run.

    Args:
        nodes: the cluster's.
        workers: of a trial; 0 or 1: its own process trains.
        gpus: of a trial, over all its workers.
        concurrent: trials at once; 0: as many as fit; on CPUs alone one a node, which takes them all.

    Raises:
        ExperimentError: not even one fits.
    """
    needs = f"a trial of {max(1, workers)} {'worker' if workers < 2 else 'workers'}" + (
        f" on {gpus:g} GPUs" * (gpus > 0)
    )
    if workers < 2 and gpus > 1:
        raise ExperimentError(f"{needs}: one worker trains on one GPU: ask for as many workers, or for one GPU")
    share = gpus / max(1, workers)
    if share > 1 and share != math.floor(share):
        raise ExperimentError(f"{needs}: each has {share:g} GPUs: whole ones, or a part of one, such as 0.5")
    there = ", ".join(f"{node.cpus:g} CPUs and {node.gpus:g} GPUs" for node in nodes) or "nothing"
    if workers > 1:
        fit = sum(_bundles(node, share) for node in nodes) // workers
        placed = Placement(concurrent=_fewest(fit, concurrent), cpus=1, gpus=share, workers=workers)
    elif gpus:
        slots = [_bundles(node, gpus) for node in nodes]
        fit = sum(slots)
        cpus = min((math.floor(node.cpus / n) for node, n in zip(nodes, slots, strict=True) if n), default=1)
        placed = Placement(concurrent=_fewest(fit, concurrent), cpus=cpus, gpus=gpus, workers=0)
    else:
        usable = [node for node in nodes if node.cpus >= 1]
        each = math.ceil(concurrent / len(usable)) if usable and concurrent else 1
        each = min([each, *(math.floor(node.cpus) for node in usable)])
        fit = each * len(usable)
        cpus = min((math.floor(node.cpus / each) for node in usable), default=1)
        placed = Placement(concurrent=_fewest(fit, concurrent), cpus=cpus, gpus=0, workers=0)
    if not fit:
        raise ExperimentError(
            f"{needs} never fits this cluster, whose machines have {there}: ask for fewer workers or"
            " GPUs, or run on a larger cluster"
        )
    return placed


def _bundles(node: Node, gpus: float) -> int:
    """How often one CPU and so many GPUs fit on a node; a worker's GPUs are all of one machine."""
    fit = math.floor(node.cpus)
    if not gpus:
        return fit
    by_gpu = math.floor(node.gpus) * math.floor(1 / gpus + 1e-9) if gpus < 1 else math.floor(node.gpus / gpus)
    return min(fit, by_gpu)


def _fewest(fit: int, concurrent: int) -> int:
    return min(fit, concurrent) if concurrent else fit
