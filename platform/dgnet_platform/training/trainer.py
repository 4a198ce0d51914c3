"""How training is launched: the only place that knows Ray Train's configuration."""

import logging
import os
from collections.abc import Sequence

import torch
from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer

from dgnet_platform.runs.run import Run
from dgnet_platform.training.loop import Judge
from dgnet_platform.training.worker import train_loop

_WAIT_FOR_LOST_WORKERS = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
"""For an elastic run: after a node is lost Ray first waits so many seconds for as many workers as before."""


def build_trainer(
    run: Run, *, judge: Judge | None = None, callbacks: Sequence[UserCallback] = (), gpu_share: float = 1.0
) -> TorchTrainer:
    """Ray Train's trainer of a run; `fit()` trains from wherever the run is.

    Ray's own folder holds nothing that a run needs. It starts failed workers again, and the loop resumes from the run's
    newest whole checkpoint: Ray would forget one that was written just before a crash.

    Args:
        run: its record must be saved.
        judge: asked at the iterations of `evaluate_also` whether the run has to stop; it travels to the workers.
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
        train_loop_config={"folder": str(run.folder), "judge": judge},
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


def cause(error: Exception) -> str:
    """The first worker's own error, in its words."""
    failures = getattr(error, "worker_failures", None) or {}
    first: BaseException = next(iter(failures.values()), error)
    text = str(getattr(first, "cause", None) or first).strip()
    return text.splitlines()[-1] if text else type(first).__name__
