"""What generate shows on the terminal."""

import shlex
from functools import partial

from rich.console import Console

from dgnet_platform.cli.terminal import DONE, progress_bars
from dgnet_platform.errors import printable
from dgnet_platform.evaluation.config import GenerateConfig
from dgnet_platform.evaluation.generate import EXAMPLES, generate


def generate_and_show(config: GenerateConfig, console: Console) -> int:
    """Make a set, show its progress and where it is; returns the exit status."""
    with progress_bars(console) as show:
        made = generate(config, partial(show, "pictures"))
    out = str(config.out)
    source, store = shlex.quote(out), shlex.quote(f"{out}-store")
    whom = f"{made.people:,} people" if made.people else "people who do not exist"
    lines = [
        f"{made.pictures:,} pictures of {whom} are in {out}, {made.made:,} made now.",
        f"Some to look at: {out}/{EXAMPLES}",
    ]
    if made.people:
        lines.append(f"To train on them: uv run jobs/prepare_data.py --dataset folder --source {source} --out {store}")
    console.print("\n".join(map(printable, lines)), style="green")
    return DONE
