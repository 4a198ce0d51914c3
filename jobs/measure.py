#!/usr/bin/env python
"""Measure how good generated people are: a checkpoint's, or any generator's from a folder of pictures.

`uv run jobs/measure.py --checkpoint runs/market/checkpoint_00100000 --store data/market --out results/generated`
`uv run jobs/measure.py --generated pictures --store data/market --teacher net_last.pth --out results/generated`
Distances between sets of pictures (FID and KID with `--inception FILE`, the same over a teacher's features without it),
diversity as in the paper's Table 2, drawn people without their background, and whether identity is kept. The folder
`--out` receives results.json, results.parquet and a picture of the best and worst swaps. The same command again resumes
where it was stopped. The exit status is 0, 2 when something given cannot be used, 130 when it was stopped.
"""

import sys
from collections.abc import Sequence

from dgnet_platform.cli.commands import measure
from dgnet_platform.cli.terminal import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    return run(measure, __doc__, args)


if __name__ == "__main__":
    sys.exit(main())
