"""The report: tables beside the paper's, pictures, settings, provenance and cost, as HTML in one file and Markdown."""

import base64
import html
import io
import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dgnet_platform.storage.files import write_whole
from dgnet_platform.tables.results import FIGURES, SWAPS, Figure, RowResult, TableResult
from dgnet_platform.tracking.notes import markdown_table

HTML, MARKDOWN, JSON = "report.html", "report.md", "tables.json"
FORMAT = 1
"""Version of tables.json."""


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A table as texts."""

    title: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str]


@dataclass(frozen=True, kw_only=True)
class Report:
    """All that is reported."""

    title: str
    facts: Mapping[str, str]
    """Code, data, seeds, cost: what by name."""
    notes: Sequence[str]
    """What a reader has to know."""
    tables: Sequence[TableResult]
    grids: Sequence[Grid] = ()
    """Further tables, which stand after them."""
    pictures: Mapping[str, Image.Image]
    """By caption."""
    runs: Sequence[Mapping[str, str]]
    """A row for each run: name, what, seed, state, folder, MLflow's page, code."""
    settings: Mapping[str, Any]
    """Of the paper's run, from which rows differ."""


def write_report(report: Report, folder: Path, data: str, code: str) -> list[Path]:
    """Write the report in three forms into a folder; returns the files.

    Args:
        report: what is reported.
        folder: where to.
        data: fingerprint of the data.
        code: digest of the code that trains.
    """
    tables = [table.to_dict() for table in report.tables]
    values = {"format": FORMAT, "data": data, "code": code, "tables": tables}
    contents = {
        HTML: as_html(report),
        MARKDOWN: as_markdown(report),
        JSON: json.dumps(values, indent=2, sort_keys=True) + "\n",
    }
    for name, content in contents.items():
        write_whole(folder / name, content.encode())
    return [folder / name for name in contents]


def grid_of(table: TableResult, seeds: int) -> Grid:
    """A table as it is shown.

    Args:
        table: what it says.
        seeds: how many each row should have.
    """
    measures = {name: title for name, title in FIGURES.items() if not (table.held_out and name != "mAP")}
    header = ["", *measures.values(), "mAP, 95 %"]
    if table.reference:
        header.append(f"mAP against {table.reference}")
    header += list(SWAPS.values()) * table.swaps
    with_paper = any(row.published or row.published_elsewhere for row in table.rows)
    header += ["published Rank@1 / mAP"] * with_paper + ["runs"]
    rows: list[list[str]] = []
    notes: list[str] = []
    for row in table.rows:
        mark = ""
        if row.note:
            mark = f" [{len(notes) + 1}]"
            notes.append(f"[{len(notes) + 1}] {row.label}: {row.note}.")
        cells = [row.label + mark, *(mean_of(row.figures.get(name)) for name in measures)]
        overall = row.figures.get("mAP")
        cells.append(interval_of(overall.interval if overall else None))
        if table.reference:
            cells.append(difference_of(row, table.reference))
        cells += [_swap_of(row.swaps.get(name)) for name in SWAPS] * table.swaps
        cells += [published_of(row)] * with_paper
        cells.append(runs_of(row, seeds))
        rows.append(cells)
    notes += [f"{row.label}: {row.source}." for row in table.rows if row.source]
    for row in table.rows:
        notes += [f"Missing: {row.label}, seed {seed} ({why})." for seed, why in row.missing.items()]
    if table.swaps:
        notes.append(
            "Swaps are of drawn people that no run was trained on, within their silhouettes: colour errors are"
            " differences in CIE Lab; transfer is 0 for x_j as it is and 1 for the true picture."
        )
    if table.held_out:
        notes.append("On identities held out of training: intervals are over seeds alone.")
    return Grid(title=table.title, header=header, rows=rows, notes=notes)


def mean_of(figure: Figure | None) -> str:
    """Mean and deviation in percent."""
    if figure is None:
        return "-"
    mean = f"{100 * figure.mean:.2f}"
    return f"{mean} (one seed)" if figure.deviation is None else f"{mean} ± {100 * figure.deviation:.2f}"


def _swap_of(found: tuple[float, float | None] | None) -> str:
    """Mean and deviation of a measure of swaps, in its own unit."""
    if found is None:
        return "-"
    mean, deviation = found
    digits = 1 if mean >= 1 else 3
    return f"{mean:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")


def interval_of(interval: tuple[float, float] | None, sign: str = "") -> str:
    """An interval in percent; a dash where there is none."""
    return "-" if interval is None else f"[{100 * interval[0]:{sign}.2f}, {100 * interval[1]:{sign}.2f}]"


def difference_of(row: RowResult, reference: str) -> str:
    """How a row differs from the reference."""
    figure = row.figures.get("mAP")
    if row.label == reference:
        return "reference"
    if figure is None or figure.difference is None:
        return "-"
    if figure.difference_interval is None:
        return f"{100 * figure.difference:+.2f} (no interval)"
    return f"{100 * figure.difference:+.2f} {interval_of(figure.difference_interval, '+')} {figure.verdict}"


def published_of(row: RowResult) -> str:
    """Published Rank@1 and mAP; of other data sets with their names."""
    if row.published:
        return _pair(row.published)
    return "; ".join(f"{dataset} {_pair(figures)}" for dataset, figures in row.published_elsewhere.items()) or "-"


def _pair(figures: tuple[float | None, float]) -> str:
    return f"{'-' if figures[0] is None else figures[0]} / {figures[1]}"


def runs_of(row: RowResult, seeds: int) -> str:
    """Names of a row's runs, and how many are missing."""
    if not row.runs and not row.missing:
        return "published"
    missing = [f"{len(row.missing)} of {seeds} missing"] if row.missing else []
    return ", ".join([*row.runs.values(), *missing])


# ----------------------------------------------------------------------------------------------------------------
# Markdown


def as_markdown(report: Report) -> str:
    """The report without its pictures."""
    parts = [f"# {report.title}", "\n".join(f"- {name}: {value}" for name, value in report.facts.items())]
    parts += [f"> {note}" for note in report.notes]
    for grid in _grids(report):
        parts += [f"## {grid.title}", markdown_table(grid.header, grid.rows)]
        if grid.notes:
            parts.append("\n".join(f"- {note}" for note in grid.notes))
    if report.runs:
        header = list(report.runs[0])
        parts += ["## Runs", markdown_table(header, [[run[name] for name in header] for run in report.runs])]
    parts += ["## Settings", "    " + json.dumps(report.settings, indent=2).replace("\n", "\n    ")]
    return "\n\n".join(parts) + "\n"


def _grids(report: Report) -> list[Grid]:
    seeds = max((len(row.runs) + len(row.missing) for table in report.tables for row in table.rows), default=0)
    return [*(grid_of(table, seeds) for table in report.tables), *report.grids]


# ----------------------------------------------------------------------------------------------------------------
# HTML

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222428; max-width: 75rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #e3e5e8; text-align: left; vertical-align: top }
th { border-bottom: 2px solid #8a8e94 }
.runs, .notes, dd { color: #666a70; font-size: 13px }
.better { color: #16964a } .worse { color: #c2362b }
img { max-width: 100% } pre { background: #f6f7f8; padding: 1rem; overflow: auto; font-size: 12px }
dt { font-weight: 600; float: left; clear: left; width: 12rem } dd { margin-left: 12.5rem }
"""


def as_html(report: Report) -> str:
    """The report as one file that needs no other."""
    title = html.escape(report.title)
    parts = [
        "<!doctype html>",
        f'<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style></head><body>',
        f"<h1>{title}</h1>",
        "<dl>" + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in report.facts.items()),
        "</dl>",
        *(f"<p><strong>{html.escape(note)}</strong></p>" for note in report.notes),
    ]
    known = {run["run"] for run in report.runs}
    for grid in _grids(report):
        parts += [f"<h2>{html.escape(grid.title)}</h2>", _html_table(grid.header, grid.rows, known)]
        parts += [f'<p class="notes">{"<br>".join(map(html.escape, grid.notes))}</p>'] if grid.notes else []
    for caption, picture in report.pictures.items():
        parts += [f"<h2>{html.escape(caption)}</h2>", f'<img alt="{html.escape(caption)}" src="{_inline(picture)}">']
    if report.runs:
        header = list(report.runs[0])
        parts += ["<h2>Runs</h2>", _html_table(header, [[run[name] for name in header] for run in report.runs], known)]
    parts += ["<h2>Settings</h2>", f"<pre>{html.escape(json.dumps(report.settings, indent=2))}</pre>", "</body></html>"]
    return "\n".join(parts) + "\n"


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]], known: Container[str]) -> str:
    """A table; names of known runs in its column `runs` lead to the rows that have them in their column `run`."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(_html_cell(cell, name, known) for cell, name in zip(row, header, strict=True)) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_cell(cell: str, column: str, known: Container[str]) -> str:
    word = cell.rpartition(" ")[2]
    if column == "run":
        return f'<td id="run-{html.escape(cell)}">{html.escape(cell)}</td>'
    if column == "runs":
        names = [(name, html.escape(name)) for name in cell.split(", ")]
        links = [f'<a href="#run-{shown}">{shown}</a>' if name in known else shown for name, shown in names]
        return f'<td class="runs">{", ".join(links)}</td>'
    if column == "MLflow" and cell.startswith("http"):
        return f'<td><a href="{html.escape(cell)}">{html.escape(cell)}</a></td>'
    kind = f' class="{word}"' if word in ("better", "worse") else ""
    return f"<td{kind}>{html.escape(cell)}</td>"


def _inline(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
