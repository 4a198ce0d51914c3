"""Runs of tables on a Ray cluster, or on this machine as one."""

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.experiment import Trial as TuneTrial

from dgnet_platform.compute.placement import Placement
from dgnet_platform.search.trial import Trial

TUNE = "tune"
"""In a report's folder: what Ray Tune leaves."""
RETRIES = 2
"""How often a run starts again from its newest checkpoint when its process dies."""


class RayMachines:
    """Trains runs as Ray Tune's trials. All that is known of them is in their folders, so nothing of Tune's is kept."""

    def __init__(self, placement: Placement, folder: Path):
        """Use the cluster that this process has joined.

        Args:
            placement: how many runs at once, and what each has.
            folder: Tune writes below it; all machines must see it.
        """
        self.placement, self._folder = placement, folder / TUNE

    def train(self, folders: Sequence[Path], sharing: bool, over: Callable[[Path], None]) -> None:
        """Train the runs in some folders, and tell of each that is over; `sharing` as for `run_trial`."""
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        for name in ("ray.tune", "ray.train"):
            logging.getLogger(name).setLevel(logging.CRITICAL)  # what went wrong is in the runs' folders
        shutil.rmtree(self._folder, ignore_errors=True)
        given = {"judge": None, "sharing": sharing, "gpus": self.placement.gpus}
        tune.Tuner(
            tune.with_resources(Trial, self.placement.resources),
            param_space={"folder": tune.grid_search(list(map(str, folders))), **given},
            tune_config=tune.TuneConfig(max_concurrent_trials=self.placement.concurrent, reuse_actors=True),
            run_config=tune.RunConfig(
                name="runs",
                storage_path=str(self._folder),
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
                callbacks=[_Ending(over)],
            ),
        ).fit()

    def do(self, work: Callable[..., None], tasks: Sequence[tuple[Any, ...]]) -> None:
        """Call a function with each of some arguments, each on as much of the cluster as a run has."""
        remote = ray.remote(num_cpus=self.placement.cpus, num_gpus=self.placement.gpus)(work)
        ray.get([remote.remote(*task) for task in tasks])


class _Ending(tune.Callback):
    """Tells of each run that is over, was stopped, or died more often than it may."""

    def __init__(self, over: Callable[[Path], None]):
        self._over = over

    def on_trial_complete(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002
        """Tune's word for the first two."""
        self._over(Path(trial.config["folder"]))

    def on_trial_error(self, iteration: int, trials: list[TuneTrial], trial: TuneTrial, **info: Any) -> None:  # noqa: ARG002
        """Tune's word for the last."""
        self._over(Path(trial.config["folder"]))

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes its callbacks down, and never reads them
