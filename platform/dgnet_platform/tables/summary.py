"""A report put together: tables, pictures, where all of it comes from, and what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from dgnet_core.methods import method_of
from dgnet_platform.evaluation.compare import read, table2
from dgnet_platform.evaluation.results import DRAWN
from dgnet_platform.runs import journal
from dgnet_platform.runs.experiment import AnyExperiment, TaughtExperiment
from dgnet_platform.runs.provenance import code_version, training_digest
from dgnet_platform.runs.tracking_uri import default_uri, page_of
from dgnet_platform.search.trial import TrialProgress
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.tables.campaign import Campaign
from dgnet_platform.tables.pictures import curves, generated
from dgnet_platform.tables.plan import TablesPlan
from dgnet_platform.tables.report import Grid, Report
from dgnet_platform.tables.results import TableResult, result_of


def report_of(
    campaign: Campaign[TablesPlan], base: TaughtExperiment[Any], preset: str, compared: Path | None = None
) -> Report:
    """The report of a campaign's runs by now.

    Args:
        campaign: the runs.
        base: the paper's run, from which rows differ.
        preset: where its settings come from, in words.
        compared: what jobs/compare_generators.py wrote, which stands beside table generators; None: nothing.

    Raises:
        CampaignError: runs that cannot stand in one table.
        EvaluationError: the comparison is damaged.
    """
    tables = [result_of(table, campaign) for table in campaign.plan.tables]
    beside = Beside()
    if compared is not None and any(table.name == "generators" for table in tables):
        beside = beside_generators(compared, campaign.plan.own_store.info.fingerprint)
    return Report(
        title="Tables of DG-Net",
        facts=_facts(campaign, base, preset),
        notes=[*_notes(campaign, base), *beside.notes],
        tables=tables,
        grids=beside.grids,
        pictures={**curves(tables), **generated(campaign), **beside.pictures},
        runs=_runs(campaign),
        settings=to_dict(base),
    )


@dataclass(frozen=True, kw_only=True)
class Beside:
    """What stands in a report beside what its own runs say."""

    grids: Sequence[Grid] = ()
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    notes: Sequence[str] = ()


def beside_generators(folder: Path, data: str) -> Beside:
    """Table 2 and Figure 3 as jobs/compare_generators.py made them, or a note why they are missing.

    Args:
        folder: what it wrote.
        data: fingerprint of the report's data; a comparison of other data is left out.

    Raises:
        EvaluationError: the comparison is damaged.
    """
    missing = "Table 2 and Figure 3 are missing"
    try:
        found = read(folder)
    except FileNotFoundError:
        return Beside(notes=[f"{missing}: jobs/compare_generators.py --out {folder} makes them."])
    if found.data != data:
        return Beside(notes=[f"{missing}: {folder} is of other data (fingerprint {found.data[:12]})."])
    header, rows, notes = table2(found)
    grid = Grid(title=f"Table 2: {found.source}", header=header, rows=rows, notes=notes)
    return Beside(grids=[grid], pictures={"Figure 3: the same people in the same poses": found.figure})


def missing_of(campaign: Campaign[TablesPlan]) -> list[str]:
    """A line for each run that is not finished, or not tested on a row's store: for which row, and why."""
    lines: dict[tuple[AnyExperiment, str], str] = {}
    for cell in campaign.plan.cells:
        if reason := campaign.missing(cell.experiment, cell.tested_on):
            where = f"{cell.table.name}, {cell.row.label}, seed {cell.seed}"
            lines.setdefault((cell.experiment, reason), f"missing: {where}: {reason}")
    return list(lines.values())


def metrics_of(tables: Sequence[TableResult]) -> dict[str, float]:
    """The tables' figures for MLflow."""
    found: dict[str, float] = {}
    for table in tables:
        for row in table.rows:
            label = "".join(c if c.isalnum() or c in "._- " else "_" for c in row.label)
            for measure, figure in row.figures.items():
                name = f"{table.name}/{label}/{measure}"
                found[name] = figure.mean
                if figure.deviation is not None:
                    found[f"{name}_deviation"] = figure.deviation
                if figure.interval is not None:
                    found[f"{name}_low"], found[f"{name}_high"] = figure.interval
                if figure.difference is not None:
                    found[f"{name}_difference"] = figure.difference
                if figure.difference_interval is not None:
                    found[f"{name}_difference_low"], found[f"{name}_difference_high"] = figure.difference_interval
    return found


def _facts(campaign: Campaign[TablesPlan], base: TaughtExperiment[Any], preset: str) -> dict[str, str]:
    plan = campaign.plan
    trained, alone, seconds = _cost(campaign)
    return {
        "data": "; ".join(f"{s.info.dataset}, fingerprint {s.info.fingerprint}" for s in plan.stores.values()),
        "preset": preset,
        "seeds": ", ".join(map(str, plan.seeds)),
        "code": f"{code_version()}, training {training_digest()[:12]}",
        "PyTorch": torch.__version__,
        "MLflow": base.tracking_uri or default_uri(base.storage),
        "intervals": "95 %, bootstrap over identities and Student's t over seeds; differences paired by query and seed",
        "iterations": f"{trained:,} trained; {alone:,} if each run were trained by itself",
        "training time": f"{seconds / 3600:.2f} hours of runs with their validation, but not their evaluation",
    }


def _notes(campaign: Campaign[TablesPlan], base: TaughtExperiment[Any]) -> list[str]:
    plan, missing = campaign.plan, missing_of(campaign)
    notes = [DRAWN] if any(store.info.origin for store in plan.stores.values()) else []
    if len(plan.seeds) < 2:
        notes.append("One seed: there is no deviation and no verdict, and intervals are over identities alone.")
    if base.teacher != "auto":
        notes.append(f"All seeds have the same teacher, {base.teacher}: deviations lack its part.")
    if campaign.any_code:
        notes.append("Runs that other code trained were taken (--any-code).")
    if missing:
        notes.append(f"Not whole: {len(missing)} runs or tests are missing.")
    return notes


def _cost(campaign: Campaign[TablesPlan]) -> tuple[int, int, float]:
    """Iterations that were trained, those of all runs by themselves, and seconds; what runs share is counted once."""
    parts: dict[Path, tuple[Path, int, AnyExperiment]] = {}  # by folder: of which key, from which iteration, of what
    alone = 0
    for experiment in campaign.plan.all_experiments:
        state = campaign.state(experiment)
        if state.run is None:
            continue
        progress = TrialProgress.read(state.run.folder)
        alone += state.iterations
        parts[state.run.folder] = state.run.folder, progress.fork, experiment
        if progress.prefix:
            parts[Path(progress.prefix)] = Path(progress.prefix).parent, 0, experiment
    counted: set[tuple[Path, int]] = set()  # a key's later prefix has the journal of the one that it starts from
    seconds = 0.0
    for folder, (key, start, experiment) in parts.items():
        images = len(method_of(experiment.model).sets) * experiment.model.batch_size
        entries = [e for e in journal.read(folder) if e.iteration > start and (key, e.iteration) not in counted]
        counted |= {(key, entry.iteration) for entry in entries}
        speeds = [entry.metrics.get("speed/images_per_second", 0.0) for entry in entries]
        seconds += sum(images / speed for speed in speeds if speed)
    return len(counted), alone, seconds


def _runs(campaign: Campaign[TablesPlan]) -> list[dict[str, str]]:
    """A row for each run."""
    rows: dict[AnyExperiment, dict[str, str]] = {}
    for cell in campaign.plan.cells:
        state = campaign.state(cell.experiment)
        row = rows.setdefault(
            cell.experiment,
            {
                "run": state.name,
                "rows": "",
                "seed": str(cell.seed),
                "state": "finished" if state.finished else state.reason,
                "folder": str(state.run.folder) if state.run else "-",
                "MLflow": page_of(state.run.tracking_uri, state.run.mlflow_experiment, state.run.mlflow_run)
                if state.run and state.run.mlflow_run
                else "-",
                "code": state.run.code[:12] if state.run else "-",
            },
        )
        row["rows"] += f"{', ' * bool(row['rows'])}{cell.table.name}: {cell.row.label}"
    return list(rows.values())
