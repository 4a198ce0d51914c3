#!/usr/bin/env python
"""Train a generator that the paper compares DG-Net with: on drawn people with nothing prepared, or on a store.

`uv run jobs/train_generator.py --method pngan`
`uv run jobs/train_generator.py --method lsgan --data data/market --preset paper --workers 1 --gpus`
LSGAN draws people from noise; PG2-GAN, PN-GAN and FD-GAN draw a given person in a given pose, and need a store with key
points. Runs are named, resumed and tracked as those of jobs/train_market.py, and the exit status is as there.
"""

import sys
from collections.abc import Sequence

from dgnet_platform.cli.commands import train_generator
from dgnet_platform.cli.terminal import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    return run(train_generator, __doc__, args)


if __name__ == "__main__":
    sys.exit(main())
