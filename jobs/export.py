#!/usr/bin/env python
"""Export the network that describes people as files that other programs run.

`uv run jobs/export.py --checkpoint runs/market/checkpoint_00100000 --out exported/market`
The folder `--out` receives, in float32 and in float16, an ONNX file, a program of torch.export (.pt2) and a folder that
`mlflow models serve` serves. ONNX needs `uv sync --extra export`. `jobs/evaluate.py --checkpoint FILE.onnx` ranks by
such a file. The exit status is 0, 2 when something given cannot be used, 130 when it was stopped.
"""

import sys
from collections.abc import Sequence

from dgnet_platform.cli.commands import export
from dgnet_platform.cli.terminal import run


def main(args: Sequence[str] | None = None) -> int:
    """Run the job with the given or the command line's arguments; returns the exit status."""
    return run(export, __doc__, args)


if __name__ == "__main__":
    sys.exit(main())
