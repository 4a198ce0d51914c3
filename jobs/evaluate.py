#!/usr/bin/env python
"""Evaluate trained networks on one store or several.

`uv run jobs/evaluate.py --checkpoint runs/market/checkpoint_00100000 --store data/market --out results/a`
Several stores (`--store A --store B`) show how the networks transfer. The folder `--out` receives results.json,
results.parquet and pictures: ranked lists, swaps, interpolations, failures. `--export-release FOLDER` also writes the
networks as the authors' files. `--distributed --workers 8` extracts on a Ray cluster, in parts: the same command again
resumes where it was stopped. The exit status is 0, 2 when something given cannot be used, 130 when it was stopped.
"""

import sys
from collections.abc import Sequence

from dgnet_platform.cli.commands import evaluate
from dgnet_platform.cli.terminal import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    return run(evaluate, __doc__, args)


if __name__ == "__main__":
    sys.exit(main())
