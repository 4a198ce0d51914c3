#!/usr/bin/env python
"""Measure how good generated people are: a checkpoint's, or any generator's from a folder of pictures.

`uv run jobs/measure.py --checkpoint runs/market/checkpoint_00100000 --store data/market --out results/generated`
`uv run jobs/measure.py --generated pictures --store data/market --teacher net_last.pth --out results/generated`
Distances between sets of pictures (FID and KID with `--inception FILE`, the same over a teacher's features without it),
diversity as in the paper's Table 2, drawn people without their background, and whether identity is kept. The folder
`--out` receives results.json, results.parquet and a picture of the best and worst swaps. The same command again resumes
where it was stopped. The exit status is 0, 2 when something given cannot be used, 130 when it was stopped.
"""

import signal
import sys
from collections.abc import Sequence

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dgnet_platform.errors import printable
from dgnet_platform.evaluation.config import MeasureConfig


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    console = Console()
    config = tyro.cli(MeasureConfig, args=args, description=__doc__)
    from dgnet_platform.cli.measure import run, tables  # takes seconds, and --help does not need it

    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    try:
        with Progress(*columns, console=console, transient=True) as bar:
            tasks = {}

            def progress(what: str, done: int, total: int) -> None:
                if what not in tasks:
                    tasks[what] = bar.add_task(printable(what))
                bar.update(tasks[what], completed=done, total=total)

            measured, where = run(config, progress)
    except (OSError, ValueError) as error:
        lines = "\n".join(map(printable, str(error).splitlines()))
        console.print(lines, style="bold red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Stopped: the same command resumes with what is missing.", style="bold yellow")
        return 128 + signal.SIGINT
    console.print(tables(measured))
    told = f" MLflow at {where} has them too." if where else ""
    console.print(f"Tables and pictures are in {config.out}.{told}", style="green", markup=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
