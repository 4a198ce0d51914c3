"""What the command of tables does and shows: its plan, its runs, its report."""

import json
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table as RichTable

from dgnet_platform.cli.campaigns import train_missing
from dgnet_platform.cli.experiments import table_base, with_settings
from dgnet_platform.cli.options import PaperTables
from dgnet_platform.cli.terminal import DONE, FAILED, STOPPED
from dgnet_platform.cli.train import announce, drawn_store, with_data
from dgnet_platform.cli.tune import costs_of
from dgnet_platform.data.poses import KeyPoints
from dgnet_platform.data.store import Store
from dgnet_platform.errors import printable
from dgnet_platform.runs.experiment import DGNetExperiment
from dgnet_platform.runs.presets import DRAWN
from dgnet_platform.runs.provenance import training_digest
from dgnet_platform.runs.run import absolute, folder_of, training_alone
from dgnet_platform.runs.tracking_uri import where_to_look
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.tables.campaign import Campaign, CampaignError
from dgnet_platform.tables.changes import Change
from dgnet_platform.tables.plan import TablesPlan, plan_tables
from dgnet_platform.tables.report import HTML, JSON, grid_of, write_report
from dgnet_platform.tables.results import TableResult
from dgnet_platform.tables.rows import tables_of
from dgnet_platform.tables.summary import metrics_of, missing_of, report_of
from dgnet_platform.tracking.client import UNREACHABLE, TrackedRun
from dgnet_platform.tracking.notes import markdown_table, resumes, tell

NAME = "tables"
"""Folder of the report in the storage folder, unless another --name is given."""


def tables_and_show(options: PaperTables, console: Console) -> int:
    """Train what is missing, and report; returns the exit status."""
    drawn = drawn_store(options.storage, options.preset)
    asked = table_base(options, options.data, False)
    if options.dry_run and not asked.data and not drawn.exists():
        console.print(f"People would be drawn into {printable(str(drawn))}: the plan needs them.")
        console.print(
            f"uv run jobs/prepare_data.py --dataset people --size {DRAWN[options.preset]}"
            f" --out {shlex.quote(str(drawn))} draws them.",
            soft_wrap=True,
        )
        return DONE
    data = with_data(options.preset, asked, console).data
    locations = [absolute(location) for location in dict.fromkeys([data, *options.stores])]
    stores = {location: Store.open(location) for location in locations}
    posed = KeyPoints.beside(stores[locations[0]])
    files: dict[str, Change] = {str(path): partial(with_settings, path) for path in options.settings}
    tables = tables_of(options.tables, names_of(stores), posed=posed, files=files, only=options.rows)
    plan = plan_tables(tables, lambda location, held: table_base(options, location, held), range(options.seeds), stores)
    folder = folder_of(options.storage, options.name or NAME)
    _check_data(folder, plan)
    campaign = Campaign(plan, folder, any_code=options.any_code)
    if options.dry_run:
        _show_plan(options, campaign, console)
        return DONE
    base = table_base(options, locations[0], False)
    announce(base, console)
    if options.seeds < 2:
        console.print("--seeds 1: one seed has no deviation, and says nothing of others.", style="yellow")
    folder.mkdir(parents=True, exist_ok=True)
    with training_alone(folder):
        settings = {"tables": ", ".join(options.tables), "seeds": options.seeds} | to_dict(base)
        with campaign.open(settings, base) as tracked:
            if not options.partial:
                train_missing(options, campaign, console)
            return _report(options, campaign, base, tracked, console)


def names_of(stores: Mapping[str, Store]) -> dict[str, str]:
    """Data sets by the location of their stores; those of the same one also have their location."""
    names = {location: store.info.dataset for location, store in stores.items()}
    return {
        location: name if list(names.values()).count(name) == 1 else f"{name} ({location})"
        for location, name in names.items()
    }


def _check_data(folder: Path, plan: TablesPlan) -> None:
    """Refuse to replace a report on other data."""
    try:
        before = json.loads((folder / JSON).read_text())["data"]
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError) as error:
        raise CampaignError(f"{folder / JSON} is damaged ({error!r}): move it, or pass another --name") from None
    store = plan.own_store
    if before != store.info.fingerprint:
        raise CampaignError(
            f"{folder} holds tables of other data (fingerprint {before[:12]}, {store.location} has"
            f" {store.info.fingerprint[:12]}): pass another --name"
        )


# ------------------------------------------------------------------------------------------------------------
# The report


def _report(
    options: PaperTables, campaign: Campaign[TablesPlan], base: DGNetExperiment, tracked: TrackedRun, console: Console
) -> int:
    """Write and show the report, and keep it in MLflow; returns the exit status."""
    missing = missing_of(campaign)
    if missing and not options.partial:
        for line in missing:
            console.print(line, style="yellow")
        stopped = campaign.stop_asked
        console.print("The same command resumes; --partial reports what there is.", style="yellow")
        tracked.close("KILLED" if stopped else "FAILED", f"{len(missing)} runs are missing")
        return STOPPED if stopped else FAILED
    preset = options.preset + (f", {options.iterations:,} iterations" if options.iterations else "")
    report = report_of(campaign, base, preset, options.compared)
    files = write_report(report, campaign.folder, campaign.plan.own_store.info.fingerprint, training_digest())
    for table in report.tables:
        console.print(_shown(table, options.seeds))
    for line in [*report.notes, *missing]:
        console.print(line, style="yellow")
    told = [_told(table, options.seeds) for table in report.tables] + [f"All of it is in *{HTML}*, below *Artifacts*."]
    tell(tracked, "\n\n".join([*told, resumes(campaign.folder)]))
    try:
        for file in files:
            tracked.log_file(file)
        tracked.log(metrics_of(report.tables), step=len(report.runs))
        tracked.close("KILLED" if missing else "FINISHED", f"{len(missing)} runs are missing" if missing else "")
    except UNREACHABLE as error:
        console.print(f"MLflow has no report yet ({error}): run the same command again", style="yellow")
    console.print(f"Report: {files[0]}", style="green")
    console.print(f"Runs in MLflow: {where_to_look(tracked.uri, tracked.experiment, tracked.id, report=True)}")
    return DONE


def _told(table: TableResult, seeds: int) -> str:
    """A table for the description of the run in MLflow, whose length is limited: notes are in the report."""
    grid = grid_of(table, seeds)
    last = len(grid.header) - 1  # where the runs are: they stand beside the description
    return f"**{grid.title}**\n\n{markdown_table(grid.header[:last], [row[:last] for row in grid.rows])}"


def _shown(table: TableResult, seeds: int) -> RichTable:
    """A table on a terminal: the report has more columns."""
    grid = grid_of(table, seeds)
    beside = any(row.published for row in table.rows) or any(not row.runs and not row.missing for row in table.rows)
    places = [
        n for n, name in enumerate(grid.header) if name != "runs" and (beside or not name.startswith("published"))
    ]
    notes = [note for note in grid.notes if note.startswith(("[", "On identities"))]
    shown = RichTable(title=grid.title, title_justify="left", caption="\n".join(notes), caption_justify="left")
    for place in places:
        shown.add_column(grid.header[place])
    for row in grid.rows:
        shown.add_row(*(row[place] for place in places))
    return shown


# ------------------------------------------------------------------------------------------------------------
# The plan


def _show_plan(options: PaperTables, campaign: Campaign[TablesPlan], console: Console) -> None:
    """Print what would be trained, what runs share, and what it costs."""
    plan = campaign.plan
    runs = RichTable(title="Runs", title_justify="left")
    for column in ("run", "rows", "seed", "iterations", "state"):
        runs.add_column(column, overflow="fold")
    states = {experiment: campaign.state(experiment) for experiment in plan.all_experiments}
    rows = {experiment: list[str]() for experiment in states}
    for cell in plan.cells:
        rows[cell.experiment].append(f"{cell.table.name}: {cell.row.label}")
    for experiment, state in states.items():
        what = ", ".join(rows[experiment]) or "teacher of others"
        count = f"{experiment.model.iterations:,}"
        state_of = "finished" if state.finished else state.reason
        runs.add_row(state.name, what, str(experiment.model.seed), count, state_of)
    console.print(runs)
    finished = [experiment for experiment, state in states.items() if state.finished]
    console.print(plan.sharing(costs_of(options), finished))
    left = [experiment for experiment in (*plan.teachers, *plan.offline) if experiment not in finished]
    count = sum(experiment.model.iterations for experiment in left)
    console.print(f"{len(left)} teachers and baselines would be trained too: {count:,} iterations")
    console.print(f"{len(finished)} of {len(states)} runs are finished; the report would go to {campaign.folder}")
