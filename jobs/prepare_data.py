#!/usr/bin/env python
"""Pack a data set into a store.

`uv run jobs/prepare_data.py --dataset market1501 --source Market-1501-v15.09.15.zip --out data/market`
`uv run jobs/prepare_data.py --dataset people --size laptop --out data/people` draws people instead.
`--keypoints market-annotation-train.csv` keeps the joints of the people beside the store, with ten pictures to look at.
The exit status is 0 when the store is there, 1 when files are bad and --skip-bad was not given, 2 when the
source or the output folder cannot be used at all, 130 when it was stopped.
"""

import sys
from collections.abc import Sequence

from dgnet_platform.cli.commands import prepare_data
from dgnet_platform.cli.terminal import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    return run(prepare_data, __doc__, args)


if __name__ == "__main__":
    sys.exit(main())
