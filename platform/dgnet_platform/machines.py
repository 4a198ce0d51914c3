"""The machines of a cluster: which there are, which there could be, and whether they have the same packages."""

import hashlib
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import yaml

from dgnet_platform.experiment import ExperimentError
from dgnet_platform.placement import Node

LOCK, LABEL = Path(__file__).parents[2] / "uv.lock", "dgnet-lock"
"""This job's lock; the label by which cluster.yaml has each machine tell which one it was set up from."""
PATIENCE = 60.0
"""Seconds to wait for machines that a cluster always has."""
_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves its file on the head."""


def is_local() -> bool:
    """Whether `ray.init` starts, or has started, a cluster of its own."""
    return os.environ.get("RAY_ADDRESS", "local") == "local"


def alive() -> list[dict[str, Any]]:
    """What Ray knows of each machine that is there."""
    return [machine for machine in ray.nodes() if machine["Alive"]]


def cluster_config() -> dict[str, Any]:
    """What `ray up` was given, on a head that it started: jobs run there. Elsewhere nothing."""
    try:
        return {} if is_local() else yaml.safe_load(_CONFIG.expanduser().read_text())
    except FileNotFoundError:
        return {}


def nodes() -> list[Node]:
    """The cluster's machines, and those that its autoscaler would start.

    Waits, but not for long, for those that it always has: they are not there yet when `ray up` returns. Those that were
    there and died are not waited for.
    """
    config = cluster_config()
    least = 1 + sum(kind.get("min_workers", 0) for kind in config.get("available_node_types", {}).values())
    give_up = time.monotonic() + PATIENCE
    while len(alive()) < least and _seen() < least and time.monotonic() < give_up:
        time.sleep(1)
    return with_offered([_node(machine["Resources"]) for machine in alive()], config)


def with_offered(here: Sequence[Node], config: Mapping[str, Any]) -> list[Node]:
    """Machines, and those that an autoscaler may add to them: the largest.

    Args:
        here: those that are there, the head among them.
        config: `cluster_config`.
    """
    kinds = {name: kind for name, kind in config.get("available_node_types", {}).items() if kind["resources"]}
    kinds.pop(config.get("head_node_type"), None)
    offered = [_node(kind["resources"]) for kind in kinds.values() for _ in range(kind.get("max_workers", 0))]
    offered.sort(key=lambda node: (node.gpus, node.cpus), reverse=True)
    return [*here, *offered[: max(0, 1 + config.get("max_workers", 0) - len(here))]]


def check_locks(machines: Sequence[Mapping[str, Any]], lock: Path = LOCK) -> None:
    """Refuse machines with other packages than the job was locked to; Ray itself refuses another Python or Ray.

    Args:
        machines: `alive`; those that do not say what they have are not judged.
        lock: the job's uv.lock; without one nobody is.

    Raises:
        ExperimentError: names the machines.
    """
    if not lock.exists():
        return
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    others = [machine["NodeManagerAddress"] for machine in machines if machine["Labels"].get(LABEL, digest) != digest]
    if others:
        raise ExperimentError(
            f"{', '.join(others)}: set up from another uv.lock than this job's. Run `ray up` with this repository's"
            " cluster file: it installs the lock on all machines"
        )


def _seen() -> int:
    """How many machines Ray knows, also of those that died."""
    return len({machine["NodeManagerAddress"] for machine in ray.nodes()})


def _node(resources: Mapping[str, float]) -> Node:
    return Node(cpus=resources.get("CPU", 0), gpus=resources.get("GPU", 0))
