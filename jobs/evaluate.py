#!/usr/bin/env python
"""Evaluate trained networks on one store or several.

`uv run jobs/evaluate.py --checkpoint runs/market/checkpoint_00100000 --store data/market --out results/a`
Several stores (`--store A --store B`) show how the networks transfer. The folder `--out` receives
results.json, results.parquet and pictures. `--distributed --workers 8` extracts on a Ray cluster, in parts: the same
command again goes on where it was stopped. The exit status is 0, 2 when something given cannot be used, 130 when it
was stopped.
"""

import signal
import sys
from collections.abc import Sequence
from shutil import rmtree

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dgnet_platform.cli.evaluate import tables
from dgnet_platform.data.decode import PictureError
from dgnet_platform.data.store import StoreError
from dgnet_platform.errors import printable
from dgnet_platform.evaluation.config import EvaluateConfig
from dgnet_platform.evaluation.evaluate import evaluate
from dgnet_platform.evaluation.results import EvaluationError, replacing, write
from dgnet_platform.runs.checkpoint import CheckpointError

USER_ERRORS = (CheckpointError, EvaluationError, OSError, PictureError, StoreError)


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    console = Console()
    try:
        config = tyro.cli(EvaluateConfig, args=args, description=__doc__, config=(tyro.conf.UseAppendAction,))
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with replacing(config.out) as folder, Progress(*columns, console=console, transient=True) as bar:
            tasks = {}

            def progress(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(printable(what))
                bar.update(tasks[what], completed=done, total=total)

            evaluation = evaluate(config, progress)
            write(evaluation, folder)
        if config.distributed:
            rmtree(config.descriptors)
    except USER_ERRORS as error:
        console.print(printable(str(error)), style="bold red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Stopped: nothing was written but finished parts of --distributed.", style="bold yellow")
        return 128 + signal.SIGINT
    console.print(tables(evaluation))
    console.print(f"Tables and pictures are in {printable(str(config.out))}.", style="green", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
