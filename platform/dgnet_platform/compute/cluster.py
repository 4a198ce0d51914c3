"""The machines of a cluster: joining it, which there are or could be, what fits on them, whether they match."""

import hashlib
import importlib
import logging
import os
import shlex
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.exceptions
import yaml

from dgnet_platform.compute.placement import Node
from dgnet_platform.errors import ExperimentError

LOCK, LABEL = Path(__file__).parents[3] / "uv.lock", "dgnet-lock"
"""This job's lock; the label by which cluster.yaml has each machine tell which one it was set up from."""
PATIENCE = 60.0
"""Seconds to wait for machines that a cluster always has."""
FIRST_WORKER = 180.0
"""Seconds within which a worker that needs nothing answers, also on a busy machine."""
ADDRESS_PATIENCE = 20.0
"""Seconds within which the cluster that RAY_ADDRESS names accepts a connection."""
HTTP2_SETTINGS = 4
"""The kind of frame that either side of HTTP/2 begins with (RFC 9113, section 6.5)."""
_CONFIG = Path("~/ray_bootstrap_config.yaml")
"""Where `ray up` leaves its file on the head."""
_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a report waits for the next check
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise prints appear twice
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # how newer versions of Ray treat workers without a GPU
}


def is_local() -> bool:
    """Whether `ray.init` starts, or has started, a cluster of its own."""
    return (os.environ.get("RAY_ADDRESS") or "local") == "local"


def join_ray() -> None:
    """Start Ray on this machine, or join the cluster that this job runs on; its workers can start.

    Raises:
        ExperimentError: Ray cannot start here, no cluster answers at RAY_ADDRESS, no worker starts, or machines were
            set up from other locks than this job's.
    """
    os.environ.update({name: value for name, value in _SETTINGS.items() if name not in os.environ})
    if ray.is_initialized():
        return
    environment: dict[str, Any] = {}
    if is_local():
        # otherwise each start warns that a token protects the cluster
        logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)
        environment = {
            "env_vars": {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            "py_executable": shlex.quote(sys.executable),  # Ray hands it to a shell as it is
        }
    else:
        check_address(os.environ["RAY_ADDRESS"])
    address = "local" if is_local() else None  # left to itself Ray tries, for ever, to join one that was just killed
    dashboard = False if is_local() else None  # ours show progress themselves; it would take 1 GB of memory
    try:
        joined = ray.init(
            address,
            include_dashboard=dashboard,
            logging_level=logging.WARNING,
            log_to_driver=False,
            runtime_env=environment,
        )
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        raise ExperimentError(cannot_start(error)) from error
    session: str = joined.address_info["session_dir"]  # pyright: ignore[reportAttributeAccessIssue]
    check_first_worker(Path(session) / "logs")
    check_locks(alive())


def check_address(address: str, patience: float = ADDRESS_PATIENCE) -> None:
    """Refuse a cluster that is gone: Ray itself would try to join it for ever.

    Args:
        address: RAY_ADDRESS; `auto` is Ray's to find.
        patience: seconds in which it has to accept a connection.

    Raises:
        ExperimentError: nothing listens there, something else does, or it is no cluster's address.
    """
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdigit()) or "/" in host:
        raise ExperimentError(
            f"RAY_ADDRESS={address} is no address of a cluster such as 10.0.0.1:6379: unset it to start Ray on this"
            " machine, or use `ray job submit` to run on the cluster behind a dashboard's http:// address"
        )
    give_up = time.monotonic() + patience
    while True:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), timeout=5) as connection:
                if os.environ.get("RAY_USE_TLS") == "1" or _speaks_http2(connection):
                    return
            raise ExperimentError(
                f"what listens at RAY_ADDRESS={address} is no cluster: unset it to start Ray on this machine, or name a"
                " cluster that runs"
            )
        except (OSError, OverflowError) as error:
            if time.monotonic() > give_up:
                raise ExperimentError(
                    f"no cluster answers at RAY_ADDRESS={address} ({error}): unset it to start Ray on this machine, or"
                    " name a cluster that runs"
                ) from error
            time.sleep(1)


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether a server answers with settings of HTTP/2, as Ray's, which speak gRPC, do."""
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, HTTP2_SETTINGS, 0, 0, 0, 0, 0]))
    header = connection.recv(9, socket.MSG_WAITALL)
    return header[3:4] == bytes([HTTP2_SETTINGS])


def cannot_start(error: Exception) -> str:
    """Why Ray did not start, or was not joined, and what to do, from what `ray.init` raised."""
    first = str(error).strip().partition("\n")[0]
    what = "start on this machine" if is_local() else f"join the cluster at RAY_ADDRESS={os.environ['RAY_ADDRESS']}"
    if "AF_UNIX" in first:
        remedy = "RAY_TMPDIR has to name a folder with a shorter path, such as /tmp"
    elif isinstance(error, OSError) and error.filename and _keeps_token(Path(error.filename)):
        remedy = "HOME has to name a folder that can be written, or RAY_AUTH_TOKEN_PATH a file in one"
    elif isinstance(error, OSError) and error.filename:
        remedy = "RAY_TMPDIR has to name a folder that can be written, and is yours"
    elif is_local():
        remedy = "Ray's own logs, in ray/session_latest/logs below RAY_TMPDIR, TMPDIR or /tmp, may say more"
    else:
        remedy = "unset it to start Ray on this machine, or name a cluster that runs"
    return f"Ray cannot {what} ({first}): {remedy}"


def _keeps_token(path: Path) -> bool:
    """Whether Ray uses a path for its token: its folder in HOME, or HOME itself where that cannot be made."""
    home = Path.home()
    return path == home or path.is_relative_to(home / ".ray")


@ray.remote(num_cpus=0)
def _answer() -> None:
    """Done by any worker that starts and finds this package."""
    importlib.import_module("dgnet_platform.compute.cluster")


def check_first_worker(logs: Path, patience: float = FIRST_WORKER) -> None:
    """Have one worker start: those that never can look like workers that wait for a CPU.

    Args:
        logs: Ray's own, if they are on this machine.
        patience: seconds in which it has to answer.

    Raises:
        ExperimentError: it did not, with the last that Ray's log says.
    """
    try:
        ray.get(_answer.remote(), timeout=patience)
    except ray.exceptions.RayError as error:
        log, said = logs / "raylet.err", str(error)
        if isinstance(error, ray.exceptions.GetTimeoutError) and log.exists():
            said = log.read_text(errors="replace").strip() or said
        reason = said.strip().splitlines()[-1]
        raise ExperimentError(
            f"Ray is there, but its workers cannot start ({reason}): is {sys.executable} on all machines, with this"
            f" project's packages? Ray's own logs are in {logs}"
        ) from error


def alive() -> list[dict[str, Any]]:
    """What Ray knows of each machine that is there."""
    return [machine for machine in ray.nodes() if machine["Alive"]]


def cluster_config() -> dict[str, Any]:
    """What `ray up` was given, on a head that it started: jobs run there. Elsewhere nothing."""
    try:
        return {} if is_local() else yaml.safe_load(_CONFIG.expanduser().read_text(encoding="utf-8"))
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
        lock: the job's uv.lock; without one no machine is.

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


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """What workers need of a resource, and what there is."""

    resource: str
    needed: int
    there: float
    free: float

    def __str__(self) -> str:
        return (
            f"{self.needed} workers need {self.needed} {self.resource}s; this cluster has {self.there:g},"
            f" {self.free:g} of them free"
        )


def capacity_for(workers: int, gpus: bool) -> Capacity:
    """Compare what so many workers need with what the cluster has now."""
    resource = "GPU" if gpus else "CPU"
    return Capacity(
        resource=resource,
        needed=workers,
        there=ray.cluster_resources().get(resource, 0),
        free=ray.available_resources().get(resource, 0),
    )


def check_capacity(asked: str, capacity: Capacity) -> None:
    """Refuse what can never start.

    Args:
        asked: the value of --workers.
        capacity: what the workers need at least.

    Raises:
        ExperimentError: this machine is the whole cluster, or its autoscaler has nothing to add, and it is too small.
    """
    most = sum(node.gpus if capacity.resource == "GPU" else node.cpus for node in nodes())
    if most >= capacity.needed:
        return
    if is_local():
        raise ExperimentError(f"--workers {asked}: {capacity}; ask for fewer, or run on a cluster")
    if cluster_config():
        raise ExperimentError(
            f"--workers {asked}: {capacity}, and can have {most:g}: ask for fewer, or raise max_workers or the instance"
            " type in the cluster's file, and `ray up` again"
        )


def check_tracking(uri: str) -> None:
    """Refuse a database in a file where workers may run on another machine than this one.

    Raises:
        ExperimentError: names the remedy.
    """
    machines = len(nodes())
    if machines > 1 and uri.startswith("sqlite:"):
        raise ExperimentError(
            f"--tracking-uri {uri} is a file, and this cluster has {machines} machines: start a server"
            " (platform/cluster/mlflow_server.py start --host 127.0.0.1 node) and name the URI that it prints"
        )


def _seen() -> int:
    """How many machines Ray knows, also of those that died."""
    return len({machine["NodeManagerAddress"] for machine in ray.nodes()})


def _node(resources: Mapping[str, float]) -> Node:
    return Node(cpus=resources.get("CPU", 0), gpus=resources.get("GPU", 0))
