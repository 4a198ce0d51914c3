#!/usr/bin/env python
"""What the platform costs a run: `uv run jobs/bench_platform.py`.

DG-Net at laptop size on drawn people, in turns by a bare loop of `train_step` and by the platform's own: the same
batches, and the platform's checks, its journal, and the process that carries that to MLflow. Both train one state on.
A round is as many steps each way, the one first that was last before; the overhead is the median over the rounds of
(time with the platform - time bare) / time bare. Nothing is evaluated. A checkpoint is timed by itself, because what it
costs a step is a matter of --checkpoint-every.
"""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

import torch
import tyro
from rich.console import Console
from rich.table import Table

from dgnet_core.augment import training_batch
from dgnet_core.memory import keep_freed_memory
from dgnet_core.sampling import PairSampler, Position
from dgnet_core.step import train_step
from dgnet_core.teacher import Teacher
from dgnet_platform import tracking
from dgnet_platform.datasets.images import ImageSet
from dgnet_platform.datasets.prepare import PrepareConfig, prepare
from dgnet_platform.datasets.store import Store
from dgnet_platform.experiment import identity_of
from dgnet_platform.journal import read
from dgnet_platform.learner import DGNetLearner
from dgnet_platform.presets import dgnet_experiment
from dgnet_platform.run import Run
from dgnet_platform.shipping import Shipper
from dgnet_platform.validation import Validator
from dgnet_platform.worker import train

NEVER = 1_000_000_000
"""Iterations between what is not measured here."""


def run_in(folder: Path) -> tuple[Run, DGNetLearner, Validator]:
    """A run on drawn people, tracked by a database beside it, with what its loop needs."""
    prepare(PrepareConfig(dataset="people", size="tiny", out=folder / "people"))
    store = Store.open(folder / "people")
    experiment = dgnet_experiment("laptop", len(store.info.classes), store.count("train"), NEVER)
    experiment = replace(experiment, evaluate_every=NEVER, checkpoint_every=NEVER)
    uri = tracking.default_uri(str(folder))
    connected, experiment_id = tracking.connect(uri, "bench")
    run = Run(
        folder=folder / "run",
        experiment=experiment,
        identity=identity_of(experiment, dataset="people", fingerprint="", teacher=None, origin=None).values(),
        tracking_uri=uri,
        mlflow_experiment=experiment_id,
        mlflow_run=connected.create_run(experiment_id).info.run_id,
        role="prefix",
    )
    run.folder.mkdir()
    run.save()
    network = experiment.model.network
    images = ImageSet.load(store, "train", height=network.height, width=network.width)
    teacher = Teacher(network, experiment.model.num_classes)
    learner = DGNetLearner(experiment.model, images, torch.device("cpu"), teacher)
    validator = Validator(config=experiment.model, prefix="val", query=images, gallery=images, people=None)
    return run, learner, validator


def bare(learner: DGNetLearner, images: ImageSet, steps: int) -> float:
    """Seconds of so many steps as anybody would write them."""
    state, config = learner.state, learner.config
    sampler = PairSampler(images.labels, config.batch_size, config.seed)
    start = time.perf_counter()
    for _ in range(steps):
        rows = sampler.batch_at(state.iteration)
        position = Position(seed=config.seed, iteration=state.iteration)
        batch = training_batch(images.images[rows], images.labels[rows[:2]], position, config)
        train_step(state, batch, config)
    return time.perf_counter() - start


def platform(run: Run, learner: DGNetLearner, validator: Validator, steps: int) -> tuple[float, float]:
    """Seconds of so many steps of the platform's loop, and of the checkpoint after them."""
    start = time.time()
    train(replace(run, until=learner.state.iteration + steps), learner, validator, report=lambda _: None)
    end = time.time()
    last = read(run.folder)[-1].time / 1000
    return last - start, end - last


def main(steps: int = 50, rounds: int = 8) -> None:
    """Measure and print a table.

    Args:
        steps: Steps each way in a round.
        rounds: How often both ways take their turns.
    """
    keep_freed_memory()
    seconds: dict[str, list[float]] = {"bare loop": [], "platform": []}
    checkpoints: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        run, learner, validator = run_in(Path(temporary))
        shipper = Shipper.start(run.folder)
        bare(learner, validator.query, 10)
        time.sleep(15)  # the shipper has started
        for number in range(rounds):
            for way in sorted(seconds, reverse=bool(number % 2)):
                if way == "bare loop":
                    seconds[way].append(bare(learner, validator.query, steps))
                else:
                    time_of_steps, time_of_checkpoint = platform(run, learner, validator, steps)
                    seconds[way].append(time_of_steps)
                    checkpoints.append(time_of_checkpoint)
                    time.sleep(3)  # the last lines are carried away
        shipper.finish()
    table = Table(
        title=f"{rounds} x {steps} steps of DG-Net at laptop size, PyTorch with {torch.get_num_threads()} threads"
    )
    for column in ("", "ms a step", "overhead"):
        table.add_column(column, justify="right" if column else "left")
    for way, times in seconds.items():
        over = median(a / b - 1 for a, b in zip(times, seconds["bare loop"], strict=True))
        table.add_row(way, f"{1000 * median(times) / steps:.1f}", f"{over:.2%}")
    Console().print(table)
    step = median(seconds["bare loop"]) / steps
    save = median(checkpoints)
    Console().print(f"A checkpoint takes {save:.2f} s: {save / 1000 / step:.2%} if there is one every 1,000 iterations")


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
