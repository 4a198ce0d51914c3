#!/usr/bin/env python
"""Make a set of generated pictures, such as DG-Market: the appearance of each picture in the structures of others.

`uv run jobs/generate.py --checkpoint runs/market/checkpoint_00100000 --store data/market --out data/dg-market`
`--workers 8 --gpus` makes it on a Ray cluster. The folder `--out` receives JPEGs, manifest.csv and manifest.parquet,
in parts: the same command again resumes where it was stopped. The exit status is 0, 2 when something given cannot be
used, 130 when it was stopped.
"""

import sys
from collections.abc import Sequence

from dgnet_platform.cli.commands import generate
from dgnet_platform.cli.terminal import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    return run(generate, __doc__, args)


if __name__ == "__main__":
    sys.exit(main())
