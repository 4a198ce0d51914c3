#!/usr/bin/env python
"""Train the re-id baseline, DG-Net's teacher: on drawn people with nothing prepared, or on a store of your own.

`uv run jobs/train_teacher.py --data data/market --preset paper --workers 1 --gpus`
jobs/train_market.py does this by itself; `--teacher CHECKPOINT` there names another one.
The exit status is as of jobs/train_market.py.
"""

import sys
from collections.abc import Sequence

from dgnet_platform.cli.commands import train_teacher
from dgnet_platform.cli.terminal import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    return run(train_teacher, __doc__, args)


if __name__ == "__main__":
    sys.exit(main())
