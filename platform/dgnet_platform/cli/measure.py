"""The command that measures generated people, and what it shows on the terminal."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from shutil import rmtree
from typing import Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dgnet_platform.cli.terminal import DONE, progress_bars
from dgnet_platform.errors import printable
from dgnet_platform.evaluation.config import MeasureConfig
from dgnet_platform.evaluation.measure import measure
from dgnet_platform.evaluation.measured import Measured, write
from dgnet_platform.evaluation.results import DRAWN, replacing
from dgnet_platform.runs.tracking_uri import usable
from dgnet_platform.tracking.measured import log_measured


def measure_and_show(config: MeasureConfig, console: Console) -> int:
    """Measure, write the results, tell MLflow, and show the tables; returns the exit status."""
    config = replace(config, tracking_uri=usable(config.tracking_uri))  # refused before hours of measuring
    with replacing(config.out) as folder, progress_bars(console) as progress:
        measured = measure(config, progress)
        write(measured, folder)
    uri = log_measured(config, measured)
    told = f" MLflow at {uri} has them too." if uri else ""
    for folder in (config.parts, config.made):
        rmtree(folder, ignore_errors=True)
    console.print(tables(measured))
    console.print(printable(f"Tables and pictures are in {config.out}.{told}"), style="green")
    return DONE


def tables(measured: Measured) -> RenderableType:
    """All tables for a terminal."""
    parts: list[RenderableType] = [Text(printable(measured.source), style="bold")]
    if len(measured.distances):
        parts.append(
            _table(
                f"Distances from the real pictures (±: over subsets), by {_judges(measured)}",
                measured.distances,
                _DISTANCES,
            )
        )
    if len(measured.diversity):
        parts.append(
            _table("Diversity: DSSIM of pairs of one identity (±: over rounds)", measured.diversity, _DIVERSITY)
        )
    if len(measured.people):
        parts.append(
            _table(
                "Without background, against the true picture (upper, lower: colour error; rest: L1 of the background)",
                measured.people,
                PEOPLE,
            )
        )
    if len(measured.identity):
        parts.append(
            _table(
                "Identity kept: ranks of a_i and s_j, the generated picture is the query", measured.identity, _IDENTITY
            )
        )
    parts += [Text(f"Left out: {printable(reason)}", style="yellow") for reason in measured.left_out]
    if measured.drawn:
        parts.append(Text(DRAWN, style="yellow"))
    return Group(*parts)


def _judges(measured: Measured) -> str:
    """The networks that judge, each with the start of its digest."""
    networks = ", ".join(f"{name} {digest[:12]}" for name, digest in measured.networks.items())
    return networks if measured.mode is None else f"{networks}; FID mode {measured.mode}"


def _number(digits: int) -> Callable[[Any], str]:
    return lambda value: "" if value is None or math.isnan(value) else f"{value:,.{digits}f}"


def _share(value: Any) -> str:
    return "" if value is None or math.isnan(value) else f"{100 * value:.1f} %"


Columns = dict[str, tuple[str, Callable[[Any], str]]]
"""Headings of a table: the column of the data and how its values are shown."""
_DISTANCES: Columns = {
    "figure": ("figure", str), "compared": ("compared", str), "n": ("pictures", _number(0)),
    "value": ("value", _number(4)), "±": ("deviation", _number(4)), "subset": ("subset", _number(0)),
}  # fmt: skip
_DIVERSITY: Columns = {
    "pictures": ("picture", str), "high": ("height", _number(0)), "wide": ("width", _number(0)),
    "pairs": ("pairs", _number(0)), "DSSIM": ("DSSIM", _number(4)), "±": ("deviation", _number(4)),
    "Table 2's": ("table2", _number(4)), "± ": ("table2_range", _number(4)),
}  # fmt: skip
PEOPLE: Columns = {
    "picture": ("picture", str), "L1": ("person_L1", _number(4)), "PSNR": ("person_PSNR", _number(1)),
    "SSIM": ("person_SSIM", _number(4)), "upper": ("upper_colour", _number(1)), "lower": ("lower_colour", _number(1)),
    "transfer": ("transfer", _number(2)), "sharp": ("sharpness", _number(2)), "rest": ("background_L1", _number(4)),
}  # fmt: skip
_IDENTITY: Columns = {
    "query": ("picture", str), "n": ("pictures", _number(0)), "of": ("identities", _number(0)),
    "a_i first": ("appearance_rank1", _share), "median": ("appearance_median", _number(0)),
    "s_j first": ("structure_rank1", _share), "median ": ("structure_median", _number(0)),
}  # fmt: skip


def _table(title: str, data: pd.DataFrame, columns: Columns) -> Table:
    table = Table(title=title, title_justify="left", collapse_padding=True)  # 80 columns hold all figures of people
    for heading, (_, show) in columns.items():
        table.add_column(heading, justify="left" if show is str else "right", no_wrap=True)
    rows: Sequence[dict[Any, Any]] = data.to_dict("records")
    for row in rows:
        table.add_row(*(show(row.get(name)) for name, show in columns.values()))
    return table
