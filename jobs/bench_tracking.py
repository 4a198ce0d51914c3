#!/usr/bin/env python
"""What tracking costs a training loop: `uv run jobs/bench_tracking.py`.

A loop whose steps take 50 ms of one CPU core, in turns bare, with the journal, and with the journal while a shipping
process carries it to MLflow. Each turn does the same number of steps; the overhead is the median over the rounds of
(time with - time bare) / time bare. What the journal adds to the loop's own thread is measured by itself too, because
it is far below what such a comparison can tell.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
import tyro
from rich.console import Console
from rich.table import Table

from dgnet_platform.runs.experiment import identity_of
from dgnet_platform.runs.journal import Journal
from dgnet_platform.runs.presets import teacher_experiment
from dgnet_platform.runs.run import Run
from dgnet_platform.runs.tracking_uri import default_uri
from dgnet_platform.tracking import client as tracking
from dgnet_platform.tracking.shipping import Shipper

METRICS = {f"loss/term_{number}": 0.1 * number for number in range(35)}
"""As many as an iteration of DG-Net has."""


def calibrated(seconds: float) -> Callable[[], float]:
    """A step: as many small products as take one core so long now, whatever else the machine does later."""
    weight = torch.ones(64, 64)

    def work(products: int) -> float:
        start = time.perf_counter()
        for _ in range(products):
            torch.mm(weight, weight)
        return time.perf_counter() - start

    work(1000)
    products = round(20_000 * seconds / work(20_000))
    return partial(work, products)


def run_in(folder: Path) -> Run:
    """A run of its own MLflow store, with nothing but a journal."""
    uri = default_uri(str(folder))
    connected, experiment_id = tracking.open_experiment(uri, "bench")
    experiment = teacher_experiment("laptop", 4, 100)
    run = Run(
        folder=folder,
        experiment=experiment,
        identity=identity_of(experiment, dataset="none", fingerprint="", teacher=None, origin=None).values(),
        tracking_uri=uri,
        mlflow_experiment=experiment_id,
        mlflow_run=connected.create_run(experiment_id).info.run_id,
    )
    run.save()
    return run


def main(steps: int = 200, milliseconds: float = 50.0, rounds: int = 3) -> None:
    """Measure and print a table.

    Args:
        steps: Steps of a turn.
        milliseconds: Length of a step.
        rounds: How often each way takes its turn.
    """
    torch.set_num_threads(1)
    step = calibrated(milliseconds / 1000)
    seconds: dict[str, list[float]] = {"bare": [], "journal": [], "journal and shipping": []}
    own: list[float] = []
    for _ in range(rounds):
        for way, times in seconds.items():
            with tempfile.TemporaryDirectory() as temporary:
                run = run_in(Path(temporary))
                journal = Journal(run.folder, 0)
                shipper = Shipper.start(run.folder) if way == "journal and shipping" else None
                if shipper is not None:
                    time.sleep(15)  # it has started
                start, written = time.perf_counter(), 0.0
                for iteration in range(1, steps + 1):
                    step()
                    before = time.perf_counter()
                    if way != "bare":
                        journal.write(iteration, METRICS)
                    written += time.perf_counter() - before
                times.append(time.perf_counter() - start)
                if way == "journal and shipping":
                    own.append(written / steps)
                journal.close()
                if shipper is not None:
                    shipper.finish()
    table = Table(title=f"{rounds} x {steps} steps of {milliseconds:g} ms, {len(METRICS)} metrics each")
    for column in ("", "ms a step", "overhead"):
        table.add_column(column, justify="right" if column else "left")
    for way, times in seconds.items():
        over = median(a / b - 1 for a, b in zip(times, seconds["bare"], strict=True))
        table.add_row(way, f"{1000 * median(times) / steps:.2f}", f"{over:.2%}")
    share = median(own) / (milliseconds / 1000)
    table.add_row("of it in the loop's thread", f"{1000 * median(own):.3f}", f"{share:.2%}")
    Console().print(table)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
