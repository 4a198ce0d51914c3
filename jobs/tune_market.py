#!/usr/bin/env python
"""Search DG-Net's settings for a data set: loss weights, the warm-up, and more, by mAP on held-out identities.

`uv run jobs/tune_market.py` draws people, trains the teacher, and searches at laptop size: 8 trials, some tens of
minutes.
`uv run jobs/tune_market.py --data data/market --preset paper --trials 64 --gpus-per-trial 1` is the real search, and
with --dry-run its plan. The first trial is the preset itself. Trials that gain less than others over a run without
feeding, at equal distance from their own warm-up, stop early; what they have in common before it is trained once.
--confirm 3 trains the best of them and the preset again with three other seeds, before a winner is named.
The same command again resumes the search, also after a kill; --trials +16 adds some. Ctrl-C saves and stops.
The exit status is 0 when the search is finished, 130 when it was stopped, 2 when it was refused, 1 when it failed.
"""

import sys
from collections.abc import Sequence

from dgnet_platform.cli.commands import tune
from dgnet_platform.cli.terminal import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    return run(tune, __doc__, args)


if __name__ == "__main__":
    sys.exit(main())
