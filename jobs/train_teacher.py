#!/usr/bin/env python
"""Train the re-id baseline, DG-Net's teacher: on drawn people with nothing prepared, or on a store of your own.

`uv run jobs/train_teacher.py --data data/market --preset paper --workers 1 --gpus`
jobs/train_market.py does this by itself; `--teacher run:ID` or `--teacher CHECKPOINT` there names another one.
The exit status is as of jobs/train_market.py.
"""

import sys
from collections.abc import Sequence

from dgnet_platform.cli.options import TrainTeacher
from dgnet_platform.cli.train import run_job


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    return run_job(TrainTeacher, __doc__, args)


if __name__ == "__main__":
    sys.exit(main())
