"""How training is launched: the only place that knows Ray's configuration."""

import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import ray
import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from dgnet_platform.experiment import ExperimentError
from dgnet_platform.machines import alive, check_locks, cluster_config, is_local, nodes
from dgnet_platform.run import Run
from dgnet_platform.worker import train_loop

_SETTINGS = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a report waits for the next check
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # otherwise prints appear twice
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # how newer versions of Ray treat workers without a GPU
}
_WAIT_FOR_LOST_WORKERS = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
"""For an elastic run: after a node is lost Ray first waits so many seconds for as many workers as before."""


def build_trainer(run: Run, callbacks: Sequence[UserCallback] = (), gpu_share: float = 1.0) -> TorchTrainer:
    """Ray Train's trainer of a run; `fit()` trains from wherever the run is.

    Ray's own folder holds nothing that a run needs. It starts failed workers again, and the loop goes on from the run's
    newest whole checkpoint: Ray would forget one that was written just before a crash.

    Args:
        run: its record must be saved.
        callbacks: called with what the loop reports; not without workers.
        gpu_share: GPUs of each worker of a run on GPUs; less than 1: several workers on one, which NCCL cannot do.
    """
    logging.getLogger("ray.train").setLevel(logging.WARNING)  # otherwise each report is printed
    experiment = run.experiment
    fewest, most = experiment.fewest_workers, experiment.most_workers
    if experiment.elastic:
        os.environ.setdefault(*_WAIT_FOR_LOST_WORKERS)
    return TorchTrainer(
        train_loop,
        train_loop_config={"folder": str(run.folder)},
        torch_config=TorchConfig(backend="gloo") if experiment.gpus and gpu_share < 1 else None,
        scaling_config=ScalingConfig(
            num_workers=(fewest, most) if experiment.elastic else most,
            use_gpu=experiment.gpus or (most == 0 and torch.cuda.is_available()),
            resources_per_worker={"CPU": 1, "GPU": gpu_share} if experiment.gpus and gpu_share != 1 else None,
            elastic_resize_monitor_interval_s=10,
        ),
        run_config=RunConfig(
            name=run.name,
            storage_path=str(run.folder / "ray"),
            failure_config=FailureConfig(max_failures=experiment.max_failures),
            logging_config=LoggingConfig(log_level="WARNING"),
            callbacks=list(callbacks),
        ),
    )


def connect() -> None:
    """Start Ray on this machine, or join the cluster that this job runs on.

    Raises:
        ExperimentError: its machines were set up from other locks than this job's.
    """
    os.environ.update({name: value for name, value in _SETTINGS.items() if name not in os.environ})
    if ray.is_initialized():
        return
    environment = {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)} if is_local() else {}
    address = "local" if is_local() else None  # left to itself Ray tries, for ever, to join one that was just killed
    ray.init(address, logging_level=logging.WARNING, log_to_driver=False, runtime_env={"env_vars": environment})
    check_locks(alive())


@dataclass(frozen=True, kw_only=True)
class Room:
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


def room_for(workers: int, gpus: bool) -> Room:
    """Compare what so many workers need with what the cluster has now."""
    resource = "GPU" if gpus else "CPU"
    return Room(
        resource=resource,
        needed=workers,
        there=ray.cluster_resources().get(resource, 0),
        free=ray.available_resources().get(resource, 0),
    )


def check_room(asked: str, room: Room) -> None:
    """Refuse what can never start.

    Args:
        asked: the value of --workers.
        room: what the workers need at least.

    Raises:
        ExperimentError: this machine is the whole cluster, or its autoscaler has nothing to add, and it is too small.
    """
    most = sum(node.gpus if room.resource == "GPU" else node.cpus for node in nodes())
    if most >= room.needed:
        return
    if is_local():
        raise ExperimentError(f"--workers {asked}: {room}; ask for fewer, or run on a cluster")
    if cluster_config():
        raise ExperimentError(
            f"--workers {asked}: {room}, and can have {most:g}: ask for fewer, or raise max_workers or the instance"
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


def cause(error: Exception) -> str:
    """The first worker's own error, in its words."""
    failures = getattr(error, "worker_failures", None) or {}
    first: BaseException = next(iter(failures.values()), error)
    text = str(getattr(first, "cause", None) or first).strip()
    return text.splitlines()[-1] if text else type(first).__name__
