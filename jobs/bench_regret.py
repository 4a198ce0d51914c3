#!/usr/bin/env python
"""What searches' winners are worth: mAP on query and gallery, and regret beside the best trial of all these searches.

`uv run jobs/bench_regret.py --searches runs/fair-0 runs/fair-1 --store runs/data/people-laptop --out results/regret`
Searches that share a budget and a data set are compared; each finished trial is evaluated once, at the weight of f_fine
that its search chose for it. Intervals are 95 %, by a bootstrap over the identities of the queries.
"""

from pathlib import Path

import tyro
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from dgnet_platform.errors import UserError
from dgnet_platform.search.report.leaderboard import in_points
from dgnet_platform.search.report.regret import regrets


def main(searches: tuple[Path, ...], store: str, out: Path) -> None:
    """Evaluate and print a table.

    Args:
        searches: Folders of searches that are over, such as runs/fair-0.
        store: With query and gallery.
        out: Folder for the results of each trial; what is there already is taken.
    """
    console = Console()
    try:
        found = regrets(searches, store, out, lambda *_: None)
    except UserError as error:
        raise SystemExit(str(error)) from None
    title = f"Winners on query and gallery, points of mAP; the best of all trials is {found[0].best}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for column in ("search", "winner", "mAP", "regret"):
        table.add_column(column, justify="left" if column == "search" else "right")
    for row in found:
        table.add_row(row.search, str(row.winner), in_points(row.mean).removeprefix("+"), in_points(row.regret))
    console.print(table)


if __name__ == "__main__":
    tyro.cli(main)
