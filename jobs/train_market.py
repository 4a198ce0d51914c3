#!/usr/bin/env python
"""Train DG-Net: on drawn people with nothing prepared, or on a store of your own.

`uv run jobs/train_market.py` draws people, trains the teacher and DG-Net at laptop size, and evaluates.
`uv run jobs/train_market.py --data data/market --preset paper --workers 1 --gpus` is the paper's run; more workers
share its batch. --dry-run shows all settings, each of which is an option.
The same command again resumes the run. Ctrl-C saves and stops.
The exit status is 0 when the run is finished, 130 when it was stopped, 2 when it was refused, 1 when it failed.
"""

import sys
from collections.abc import Sequence

from dgnet_platform.cli.commands import train_dgnet
from dgnet_platform.cli.terminal import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    return run(train_dgnet, __doc__, args)


if __name__ == "__main__":
    sys.exit(main())
