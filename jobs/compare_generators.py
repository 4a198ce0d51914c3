#!/usr/bin/env python
"""Compare generators of people as the paper's Figure 3 and Table 2 do: DG-Net, LSGAN, PG2-GAN, PN-GAN, FD-GAN.

`uv run jobs/compare_generators.py --train dgnet lsgan pg2gan pngan fdgan --out results/compared`
`uv run jobs/compare_generators.py --checkpoint A B --store data/market --teacher net_last.pth --out results/compared`
Takes checkpoints, or trains runs first, with --seeds seeds, on drawn people where no store is named. The folder `--out`
receives figure3.png, the same people in the same poses by each generator, and Table 2 as Markdown and CSV. The same
command resumes where it was stopped. The exit status is 0, 130 when it was stopped, 2 when something given cannot be
used, 1 when runs failed.
"""

import sys
from collections.abc import Sequence

from dgnet_platform.cli.commands import compare
from dgnet_platform.cli.terminal import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    return run(compare, __doc__, args)


if __name__ == "__main__":
    sys.exit(main())
