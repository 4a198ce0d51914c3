#!/usr/bin/env python
"""The paper's tables and figures, each row trained with several seeds.

`uv run jobs/paper_tables.py --seeds 3` draws people, trains what the tables of ablation and labels need at laptop size,
and writes runs/tables/report.html. `--data data/market --preset paper --gpus-per-run 1` is the same on Market-1501, and
with --dry-run its plan. Rows are trained as trials of a search are: what they share before the warm-up is trained once,
and nothing that a table, a training or a search has trained with this code is trained again.
The same command again resumes, also after a kill; --partial reports what there is. Ctrl-C saves and stops.
The exit status is 0 when the tables are whole, 130 when it was stopped, 2 when it was refused, 1 when runs failed.
"""

import sys
from collections.abc import Sequence

from dgnet_platform.cli.commands import paper_tables
from dgnet_platform.cli.terminal import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    return run(paper_tables, __doc__, args)


if __name__ == "__main__":
    sys.exit(main())
