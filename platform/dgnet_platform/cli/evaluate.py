"""What evaluate shows on the terminal."""

import math
from collections.abc import Callable, Sequence
from shutil import rmtree
from typing import Any

import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from dgnet_core.ranking.reranking import Reranking
from dgnet_platform.cli.terminal import DONE, progress_bars
from dgnet_platform.errors import printable
from dgnet_platform.evaluation.config import EvaluateConfig
from dgnet_platform.evaluation.evaluate import evaluate
from dgnet_platform.evaluation.results import DRAWN, Evaluation, replacing, write


def evaluate_and_show(config: EvaluateConfig, console: Console) -> int:
    """Evaluate, show progress and the tables, and write all results; returns the exit status."""
    with replacing(config.out) as folder, progress_bars(console) as show:
        evaluation = evaluate(config, show)
        write(evaluation, folder)
    if config.distributed:
        rmtree(config.descriptors, ignore_errors=True)  # of a method without descriptors there are none
    console.print(tables(evaluation))
    console.print(f"Tables and pictures are in {printable(str(config.out))}.", style="green")
    if config.export_release is not None:
        console.print(f"The authors' files are in {printable(str(config.export_release))}.", style="green")
    return DONE


def tables(evaluation: Evaluation) -> RenderableType:
    """All tables for a terminal."""
    parts: list[RenderableType] = [
        Text(evaluation.source, style="bold"),
    ]
    if len(evaluation.retrieval):
        parts.append(_retrieval_table(evaluation.retrieval))
    if "person_id" in evaluation.queries:
        parts.append(_interval_table(evaluation))
    if len(evaluation.sweep):
        parts.append(_sweep_table(evaluation.sweep))
    if len(evaluation.swaps):
        parts += [_swap_table(evaluation.swaps), _person_table(evaluation.swaps)]
    if evaluation.drawn:
        parts.append(Text(DRAWN, style="yellow"))
    for row in evaluation.extraction.to_dict("records"):
        speed = row["pictures"] / row["seconds"]
        waited = row.get("waiting")
        waiting = "" if waited is None or math.isnan(waited) else f", {waited:.1%} of it waiting for data"
        done = f"{row['store']}: {row['pictures']:,} pictures extracted in {row['seconds']:.1f} s ({speed:,.0f}/s)"
        parts.append(Text(done + waiting, style="dim"))
    return Group(*parts)


def _retrieval_table(retrieval: pd.DataFrame) -> Table:
    transfers = retrieval["trained_on"] + " -> " + retrieval["store"]
    same = len(set(transfers)) == 1
    title = f"Retrieval, %: {transfers.iloc[0]}" if same else "Retrieval, %"
    table = _table(title, *([] if same else ["trained on -> store"]), "feature", *_FIGURES)
    for label, rows in retrieval.groupby(transfers, sort=False):
        labels = [] if same else [str(label)]
        for row in rows.to_dict("records"):
            table.add_row(*labels, _label(row), *_percent(row))
            labels = [""] * len(labels)
        table.add_section()
    return table


def _reranked(row: dict[Any, Any]) -> str:
    """Whether a row is re-ranked, and by how many neighbours where these are fewer than the paper's."""
    if not row["reranked"]:
        return ""
    few = row.get("neighbours") is not None and row["neighbours"] < Reranking().k1
    return f", re-ranked by {row['neighbours']:.0f} neighbours" if few else ", re-ranked"


def _label(row: dict[Any, Any]) -> str:
    """What a row of retrieval is called."""
    feature = f"both, beta {row['beta']:g}" if row["feature"] == "both" else str(row["feature"])
    how = [", multi-query" if row["query"] == "multi" else "", _reranked(row)]
    return feature + "".join(how)


def _interval_table(evaluation: Evaluation) -> Table:
    """95 % intervals, and each row against the first of its kind."""
    retrieval, differences = evaluation.retrieval, evaluation.differences.to_dict("records")
    same = len(set(retrieval["store"])) == 1
    counts = set(evaluation.queries.groupby("store")["person_id"].nunique().tolist())
    identities = f"{counts.pop():,}" if len(counts) == 1 else "the stores'"
    title = f"95 % intervals over {identities} identities, %; differences paired by query"
    table = Table(title=title, title_justify="left")
    for column in ([] if same else ["store"]) + ["feature", "Rank@1", "mAP"]:
        text = column in ("store", "feature")  # wraps where a terminal is narrow
        table.add_column(column, justify="left" if text else "right", no_wrap=not text)
    table.add_column("mAP against the first row", no_wrap=True)
    for label, rows in retrieval.groupby("store", sort=False):
        labels = [] if same else [str(label)]
        first: dict[tuple[Any, Any], Any] = {}
        for row in rows.to_dict("records"):
            reference = first.setdefault((row["query"], row["reranked"]), row["feature"])
            against_first = against(differences, row, reference)
            table.add_row(*labels, _label(row), *map(_interval(row), ("rank1", "mAP")), against_first)
            labels = [""] * len(labels)
        table.add_section()
    return table


def _interval(row: dict[Any, Any], signed: bool = False) -> Callable[[str], str]:
    """Writes the interval of one of a row's figures, in percent; a dash for one identity."""
    form = "+.1f" if signed else ".1f"

    def write(figure: str) -> str:
        low, high = (row.get(f"{figure}_{end}", math.nan) for end in ("low", "high"))
        return "-" if math.isnan(low) else f"[{100 * low:{form}}, {100 * high:{form}}]"

    return write


def against(differences: Sequence[dict[Any, Any]], row: dict[Any, Any], reference: str) -> str:
    """A row's mAP minus that of a reference feature with its interval, and what follows; empty: not compared."""
    for found in differences:
        same = all(found[name] == row[name] for name in ("store", "feature", "query", "reranked"))
        if same and found["minus"] == reference:
            interval = _interval(found, signed=True)("mAP")
            verdict = f"{100 * found['mAP']:+.1f} {interval} {found['mAP_verdict']}"
            return verdict if interval != "-" else "one identity: no interval"
    return ""


def _sweep_table(sweep: pd.DataFrame) -> Table:
    table = _table("Weight of f_fine, %", "store", "beta", *_FIGURES)
    for store, rows in sweep.groupby("store", sort=False):
        label = str(store)
        for row in rows.to_dict("records"):
            table.add_row(label, f"{row['beta']:g}", *_percent(row))
            label = ""
        table.add_section()
    return table


def _swap_table(swaps: pd.DataFrame) -> Table:
    same = len(set(swaps["store"])) == 1
    title = f"Swap fidelity against the true picture, {swaps['pairs'].max():,} pairs"
    table = _table(title, *([] if same else ["store"]), "identities", "picture", "L1", "PSNR", "SSIM")
    for row in swaps.to_dict("records"):
        figures = f"{row['L1']:.4f}", f"{row['PSNR']:.2f} dB", f"{row['SSIM']:.4f}"
        table.add_row(*([] if same else [row["store"]]), row["identities"], row["picture"], *figures)
    return table


def _person_table(swaps: pd.DataFrame) -> Table:
    same = len(set(swaps["store"])) == 1
    title = "The same swaps without their background (upper, lower: colour error of clothes)"
    table = _table(title, *([] if same else ["store"]), "people", "picture", *_PERSON)
    for row in swaps.to_dict("records"):
        figures = [f"{row[name]:.{digits}f}" for name, digits in _PERSON.values()]
        table.add_row(*([] if same else [row["store"]]), row["identities"], row["picture"], *figures)
    return table


_PERSON = {
    "L1": ("person_L1", 4), "SSIM": ("person_SSIM", 4), "upper": ("upper_colour", 1),
    "lower": ("lower_colour", 1), "transfer": ("transfer", 2), "sharp": ("sharpness", 2),
}  # fmt: skip
"""Figures of the table of people by their heading, with their digits."""
_FIGURES = {"Rank@1": "rank1", "Rank@5": "rank5", "Rank@10": "rank10", "mAP": "mAP", "mINP": "mINP"}
"""Figures of a results table by their heading."""


def _table(title: str, *columns: str) -> Table:
    """A table whose columns of figures stand right-aligned."""
    table = Table(title=title, title_justify="left")
    for column in columns:
        figures = column in _FIGURES or column in ("beta", "pairs", "L1", "PSNR", "SSIM", *_PERSON)
        table.add_column(column, justify="right" if figures else "left", no_wrap=True)
    return table


def _percent(row: dict[Any, Any]) -> list[str]:
    return [f"{100 * row[name]:.2f}" for name in _FIGURES.values()]
