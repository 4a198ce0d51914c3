#!/usr/bin/env python
"""Make a set of generated pictures, such as DG-Market: the appearance of each picture in the structures of others.

`uv run jobs/generate.py --checkpoint runs/market/checkpoint_00100000 --store data/market --out data/dg-market`
`--workers 8 --gpus` makes it on a Ray cluster. The folder `--out` receives JPEGs, manifest.csv and manifest.parquet,
in parts: the same command again goes on where it was stopped. The exit status is 0, 2 when something given cannot be
used, 130 when it was stopped.
"""

import signal
import sys
from collections.abc import Sequence

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dgnet_platform.compute.parts import PartsError
from dgnet_platform.data.store import StoreError
from dgnet_platform.errors import ExperimentError, printable
from dgnet_platform.evaluation.config import GenerateConfig
from dgnet_platform.evaluation.generate import EXAMPLES, generate
from dgnet_platform.runs.checkpoint import CheckpointError

USER_ERRORS = (CheckpointError, ExperimentError, OSError, PartsError, StoreError)


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    console = Console()
    try:
        config = tyro.cli(GenerateConfig, args=args, description=__doc__)
        columns = TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("pictures", total=None)
            made = generate(config, lambda done, total: bar.update(task, completed=done, total=total))
    except USER_ERRORS as error:
        lines = "\n".join(map(printable, str(error).splitlines()))
        console.print(lines, style="bold red", markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Stopped: the same command goes on from the parts that are there.", style="bold yellow")
        return 128 + signal.SIGINT
    out = printable(str(config.out))
    lines = [
        f"{made.pictures:,} pictures of {made.people:,} people are in {out}, {made.made:,} made now.",
        f"Some to look at: {out}/{EXAMPLES}",
        f"To train on them: uv run jobs/prepare_data.py --dataset folder --source {out} --out {out}-store",
    ]
    console.print("\n".join(lines), style="green", markup=False, highlight=False, soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
