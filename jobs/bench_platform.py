#!/usr/bin/env python
"""What the platform costs a run: `uv run jobs/bench_platform.py`.

DG-Net at laptop size on drawn people, in turns by a bare loop of `train_step` and by the platform's own: the same
batches, and the platform's checks, its journal, and the process that carries that to MLflow. Both train one state on.
A round is as many steps each way, the one first that was last before; the overhead is the median over the rounds of
(time with the platform - time bare) / time bare, on the clock and of the processor, which others on the machine disturb
less. Nothing is evaluated. A checkpoint is timed by itself: what it costs a step is a matter of --checkpoint-every.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any, cast
from unittest.mock import patch

import numpy as np
import psutil
import torch
import tyro
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from rich.console import Console
from rich.table import Table

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import train_step
from dgnet_core.learning.augment import training_batch
from dgnet_core.learning.batches import PairSampler, Position
from dgnet_core.learning.memory import keep_freed_memory
from dgnet_core.teacher.networks import Teacher
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.images import ImageSet
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store
from dgnet_platform.runs.experiment import identity_of
from dgnet_platform.runs.presets import dgnet_experiment
from dgnet_platform.runs.run import Run
from dgnet_platform.runs.tracking_uri import default_uri
from dgnet_platform.tracking import client as tracking
from dgnet_platform.tracking.shipping import Shipper
from dgnet_platform.training import loop
from dgnet_platform.training.learner import Learner
from dgnet_platform.training.loop import _save, run_loop
from dgnet_platform.training.validation import Validator

NEVER = 1_000_000_000
"""Iterations between what is not measured here."""


def run_in(folder: Path) -> tuple[Run, Learner, Validator]:
    """A run on drawn people, tracked by a database beside it, with what its loop needs."""
    prepare(PrepareConfig(dataset="people", size="tiny", out=folder / "people"))
    store = Store.open(folder / "people")
    experiment = dgnet_experiment("laptop", len(store.info.classes), store.count("train"), NEVER)
    experiment = replace(experiment, evaluate_every=NEVER, checkpoint_every=NEVER)
    uri = default_uri(str(folder))
    connected, experiment_id = tracking.open_experiment(uri, "bench")
    run = Run(
        folder=folder / "run",
        experiment=experiment,
        identity=identity_of(experiment, dataset="people", fingerprint="", teacher=None, origin=None).values(),
        tracking_uri=uri,
        mlflow_experiment=experiment_id,
        mlflow_run=connected.create_run(experiment_id).info.run_id,
        evaluated_at_end=False,
        keeps_all=True,
    )
    run.folder.mkdir()
    run.save()
    network = experiment.model.network
    images = ImageSet.load(store, "train", height=network.height, width=network.width)
    teacher = Teacher(network, experiment.model.num_classes)
    learner = Learner(experiment.model, images, torch.device("cpu"), teacher)
    validator = Validator(config=experiment.model, group="val", query=images, gallery=images, people=None)
    return run, learner, validator


def now() -> np.ndarray:
    """Seconds: on the clock, of this process's processor time, and of that of the processes it started."""
    children = [child.cpu_times() for child in psutil.Process().children()]
    return np.array([time.perf_counter(), time.process_time(), sum(times.user + times.system for times in children)])


def bare(learner: Learner, images: ImageSet, steps: int) -> np.ndarray:
    """What so many steps take as one would write them by hand."""
    state, config = learner.state, learner.config
    sampler = PairSampler(images.labels, config.batch_size, config.seed)
    start = now()
    for _ in range(steps):
        rows = sampler.batch_at(state.iteration)
        position = Position(seed=config.seed, iteration=state.iteration)
        batch = training_batch(images.images[rows], images.labels[rows[:2]], position, config)
        train_step(cast(TrainState, state), batch, cast(DGNetConfig, config))
    return now() - start


def platform(run: Run, learner: Learner, validator: Validator, steps: int) -> tuple[np.ndarray, float]:
    """What so many steps of the platform's loop take, and the seconds of the checkpoint after them."""
    ends: list[np.ndarray] = []
    save = _save

    def timed_save(*arguments: Any) -> None:
        ends.append(now())
        save(*arguments)
        ends.append(now())

    start = now()
    with patch.object(loop, "_save", timed_save):
        run_loop(replace(run, until=learner.state.iteration + steps), learner, validator, report=lambda _: None)
    time.sleep(3)  # the last lines are carried away
    clock, own, _ = ends[0] - start
    return np.array([clock, own, now()[2] - start[2]]), ends[1][0] - ends[0][0]


def main(steps: int = 50, rounds: int = 8) -> None:
    """Measure and print a table.

    Args:
        steps: Steps each way in a round.
        rounds: How often both ways take their turns.
    """
    keep_freed_memory()
    plain: list[np.ndarray] = []
    ours: list[np.ndarray] = []
    saves: list[float] = []

    def measure() -> None:
        with tempfile.TemporaryDirectory() as temporary:
            run, learner, validator = run_in(Path(temporary))
            shipper = Shipper.start(run.folder)
            bare(learner, validator.query, 10)
            time.sleep(15)  # the shipper has started
            for number in range(2 * rounds):
                if number % 4 in (0, 3):
                    plain.append(bare(learner, validator.query, steps))
                else:
                    taken, save = platform(run, learner, validator, steps)
                    ours.append(taken)
                    saves.append(save)
            shipper.finish()

    TorchTrainer(measure, scaling_config=ScalingConfig(num_workers=0)).fit()  # in this process
    over = np.median(np.stack(ours) / np.stack(plain)[:, [0, 1, 1]], axis=0)  # shipping by the loop's processor time
    step = np.median(plain, axis=0)[0] / steps
    table = Table(
        title=f"{rounds} x {steps} steps of {1000 * step:.0f} ms, PyTorch with {torch.get_num_threads()} threads"
    )
    table.add_column("more than a bare loop takes")
    table.add_column("", justify="right")
    table.add_row("on the clock", f"{over[0] - 1:.2%}")
    table.add_row("processor time of the loop", f"{over[1] - 1:.2%}")
    table.add_row("processor time of the process that ships to MLflow", f"{over[2]:.2%}")
    table.add_row("a checkpoint every 1,000 iterations", f"{median(saves) / 1000 / step:.2%}")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
