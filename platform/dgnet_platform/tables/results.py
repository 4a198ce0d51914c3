"""What tables say: means and deviations over seeds, 95 % intervals, differences; read from the runs' folders."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from dgnet_core.methods import method_of
from dgnet_core.ranking.intervals import Estimate, estimate, seed_margin
from dgnet_platform.errors import printable
from dgnet_platform.evaluation.results import QUERIES, read
from dgnet_platform.evaluation.swaps import GENERATED
from dgnet_platform.runs import journal
from dgnet_platform.runs.run import Run
from dgnet_platform.search.config import METRIC_BY_BETA
from dgnet_platform.tables.campaign import Campaign, CampaignError, results_of
from dgnet_platform.tables.plan import Cell, TablesPlan
from dgnet_platform.tables.rows import Row, Table

FIGURES = {"rank1": "Rank@1", "mAP": "mAP"}
"""Measures of the columns, and their headings."""
SWAPS = {
    "upper_colour": "colour error, upper body",
    "lower_colour": "lower body",
    "transfer": "transfer",
    "person_SSIM": "SSIM",
}
"""Measures of swaps of drawn people that no run was trained on, within their silhouettes, and their headings."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What one run gives to a row."""

    run: str
    figures: Mapping[str, Tensor]
    """By measure, shares in [0, 1]: (Q,) of each query, or (1,) the mean on held-out identities."""
    person_ids: Tensor | None = None
    """(Q,) int64; None: queries are not known one by one."""
    swaps: Mapping[str, float] = field(default_factory=dict)
    """By measure of SWAPS."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A cell: shares in [0, 1]."""

    mean: float
    """Over seeds."""
    deviation: float | None
    """Over seeds, of a sample; None: there is one seed, which has none."""
    interval: tuple[float, float] | None
    """95 %, over identities and seeds; None: one identity, or one seed whose queries are not known."""
    difference: float | None = None
    """Against the table's reference, over the seeds that both have; None: nothing is compared."""
    difference_interval: tuple[float, float] | None = None
    verdict: str = ""
    """better, worse or undecided; one seed: that says nothing of others."""


@dataclass(frozen=True, kw_only=True)
class RowResult:
    """A row of a table."""

    label: str
    note: str
    source: str
    published: tuple[float | None, float] | None
    """Rank@1 and mAP in percent on the row's data set."""
    published_elsewhere: Mapping[str, tuple[float | None, float]]
    """The same on others, where the row's data set has none."""
    figures: Mapping[str, Figure]
    """By measure; none as long as no run is finished."""
    swaps: Mapping[str, tuple[float, float | None]]
    """Mean and deviation over seeds, by measure of SWAPS; none where swaps are not compared."""
    runs: Mapping[int, str]
    """Names of the finished runs by their seeds."""
    missing: Mapping[int, str]
    """Why others are not finished, by their seeds."""


@dataclass(frozen=True, kw_only=True)
class TableResult:
    """A table."""

    name: str
    title: str
    reference: str
    held_out: bool
    swaps: bool = False
    rows: tuple[RowResult, ...] = field(default=())

    @property
    def complete(self) -> bool:
        """Whether each row has all its runs."""
        return not any(row.missing for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary that JSON can hold."""
        return asdict(self)


def result_of(table: Table, campaign: Campaign[TablesPlan]) -> TableResult:
    """What a table says by now.

    Raises:
        CampaignError: runs that cannot stand in one table.
    """
    found: dict[str, tuple[dict[int, Score], dict[int, str]]] = {}
    for row in table.rows:
        cells = [cell for cell in campaign.plan.cells if cell.table.name == table.name and cell.row == row]
        missing = {cell.seed: reason for cell in cells if (reason := campaign.missing(cell.experiment, cell.tested_on))}
        scores: dict[int, Score] = {}
        for cell in cells:
            run = campaign.state(cell.experiment).run
            if run is not None and cell.seed not in missing:
                scores[cell.seed] = score_of(run, cell, campaign)
        found[row.label] = scores, missing
    reference = found[table.reference][0] if table.reference else {}
    own = campaign.plan.own_store.info.dataset
    rows: list[RowResult] = []
    for row in table.rows:
        scores, missing = found[row.label]
        dataset = campaign.plan.stores[row.tested_on].info.dataset if row.tested_on else own
        compared = reference if row.label != table.reference else {}
        rows.append(
            RowResult(
                label=row.label,
                note=row.note,
                source=row.source,
                published=row.published.get(dataset),
                published_elsewhere={} if dataset in row.published else row.published,
                figures=figures_of(scores, compared),
                swaps=swaps_of(scores.values()),
                runs={seed: score.run for seed, score in scores.items()},
                missing=missing,
            )
        )
    return TableResult(
        name=table.name,
        title=table.title,
        reference=table.reference,
        held_out=table.held_out,
        swaps=table.swaps,
        rows=tuple(rows),
    )


def score_of(run: Run, cell: Cell, campaign: Campaign[TablesPlan]) -> Score:
    """What a finished run says of each query.

    Raises:
        CampaignError: its results are of an earlier version, or lack the row.
    """
    if cell.table.held_out:
        return _held_out(run, cell.row)
    folder = results_of(run, campaign.plan.stores[cell.tested_on])
    if not (folder / QUERIES).exists():
        raise CampaignError(
            f"{folder} has no {QUERIES}: an earlier version wrote it, move it away and the same command evaluates again"
        )
    table = pd.read_parquet(folder / QUERIES)
    rows = table[(table["feature"] == cell.row.feature) & (table["query"] == "single") & ~table["reranked"]]
    if rows.empty:
        raise CampaignError(f"{folder / QUERIES} has no {cell.row.feature}, which row {cell.row.label} needs")
    figures = {name: torch.tensor(rows[name].tolist(), dtype=torch.float64) for name in FIGURES}
    return Score(
        run=run.name,
        figures=figures,
        person_ids=torch.tensor(rows["person_id"].tolist()),
        swaps=_swaps(folder) if cell.table.swaps else {},
    )


def _swaps(folder: Path) -> dict[str, float]:
    """Measures of the swaps of an evaluation; none of photographs, whose true swaps are unknown."""
    for row in read(folder).swaps.to_dict("records"):
        if row["identities"] == "unseen" and row["picture"] == GENERATED:
            return {name: float(row[name]) for name in SWAPS}
    return {}


def _held_out(run: Run, row: Row) -> Score:
    name = f"{METRIC_BY_BETA}/{row.beta if row.beta is not None else 0.5:g}"
    model = run.experiment.model
    if "both" not in method_of(model).features(model, model.iterations):
        name = "val/prim/mAP"  # f_fine has learned nothing that could be weighed
    last = [entry for entry in journal.read(run.folder) if name in entry.metrics]
    if not last:
        raise CampaignError(f"{run.folder} has no {name} in its journal, which row {printable(row.label)} needs")
    return Score(run=run.name, figures={"mAP": torch.tensor([last[-1].metrics[name]], dtype=torch.float64)})


def swaps_of(scores: Iterable[Score]) -> dict[str, tuple[float, float | None]]:
    """Mean and deviation of runs' swaps, by measure; of a single run without deviation."""
    measured = [score.swaps for score in scores if score.swaps]
    found: dict[str, tuple[float, float | None]] = {}
    for name in SWAPS if measured else ():
        values = [swaps[name] for swaps in measured]
        found[name] = fmean(values), stdev(values) if len(values) > 1 else None
    return found


def figures_of(scores: Mapping[int, Score], reference: Mapping[int, Score]) -> dict[str, Figure]:
    """The cells of a row.

    Args:
        scores: by seed.
        reference: the same of the row that it is compared with; empty: with none.

    Raises:
        CampaignError: runs were evaluated on other queries.
    """
    if not scores:
        return {}
    both = [seed for seed in scores if seed in reference]
    figures: dict[str, Figure] = {}
    for name in next(iter(scores.values())).figures:
        _check_queries([*scores.values(), *(reference[seed] for seed in both)])
        found = _estimate(scores.values(), [score.figures[name] for score in scores.values()])
        means = torch.stack([score.figures[name].mean() for score in scores.values()])
        compared = Estimate(value=math.nan, interval=None)
        if both:
            differences = [scores[seed].figures[name] - reference[seed].figures[name] for seed in both]
            compared = _estimate(scores.values(), differences)
        figures[name] = Figure(
            mean=found.value,
            deviation=float(means.std()) if len(means) > 1 else None,
            interval=found.interval,
            difference=compared.value if both else None,
            difference_interval=compared.interval,
            verdict="" if not both else "one seed" if len(both) == 1 else compared.verdict,
        )
    return figures


def _check_queries(scores: Sequence[Score]) -> None:
    first = scores[0].person_ids
    for score in scores[1:]:
        there = score.person_ids
        if first is not there and (first is None or there is None or not torch.equal(first, there)):
            raise CampaignError(
                f"runs {scores[0].run} and {score.run} were evaluated on other queries: evaluate both on the same store"
            )


def _estimate(scores: Iterable[Score], values: Sequence[Tensor]) -> Estimate:
    """The mean over seeds of some runs' values, all of the same queries."""
    person_ids = next(iter(scores)).person_ids
    if person_ids is not None:
        return estimate(torch.stack(list(values)), person_ids)
    means = torch.cat(list(values))
    value, margin = float(means.mean()), seed_margin(means)
    return Estimate(value=value, interval=(value - margin, value + margin) if len(means) > 1 else None)
