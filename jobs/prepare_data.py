#!/usr/bin/env python
"""Pack a data set into a store.

`uv run jobs/prepare_data.py --dataset market1501 --source Market-1501-v15.09.15.zip --out data/market`
`uv run jobs/prepare_data.py --dataset people --size laptop --out data/people` draws people instead.
`--keypoints market-annotation-train.csv` keeps the joints of the people beside the store, with ten pictures to look at.
The exit status is 0 when the store is there, 1 when files are bad and --skip-bad was not given, 2 when the
source or the output folder cannot be used at all, 130 when it was stopped.
"""

import signal
import sys
from collections.abc import Sequence

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dgnet_platform.cli.prepare import report
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.prepare import prepare
from dgnet_platform.errors import UserError, printable


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    console = Console()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job scheduler's end cleans up, as Ctrl-C does
    try:
        config = tyro.cli(PrepareConfig, args=args, description=__doc__)
        bar = Progress(
            TextColumn("pictures"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console
        )
        with bar:
            task = bar.add_task("pictures", total=None)
            prepared = prepare(config, lambda done, total: bar.update(task, completed=done, total=total))
    except (UserError, OSError) as error:
        console.print(printable(str(error)), style="bold red", markup=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Stopped: nothing was written.", style="bold yellow")
        return 128 + signal.SIGINT
    console.print(report(prepared), soft_wrap=True)
    return 1 if prepared.outcome == "refused" else 0


if __name__ == "__main__":
    sys.exit(main())
