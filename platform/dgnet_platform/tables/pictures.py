"""The paper's figures out of what runs have left: curves over settings, and pictures side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from dgnet_platform.runs.run import Run
from dgnet_platform.tables.campaign import Campaign, results_of
from dgnet_platform.tables.plan import TablesPlan
from dgnet_platform.tables.results import RowResult, TableResult

_GREEN, _INK = "#16964a", (34, 36, 40)
COMPARED = ("both", "without online feeding", "without Eq. 3 and 6")
"""Rows of the ablation whose swaps stand side by side (paper, Figure 4)."""


def curves(tables: Sequence[TableResult]) -> dict[str, Image.Image]:
    """Figures 8 (alpha and beta) and the warm-up's start, with the deviation over seeds, where their tables are."""
    drawn: dict[str, Image.Image] = {}
    for table in tables:
        if table.name == "sensitivity":
            panels = {
                "alpha, at beta 0.5": _points(table, "alpha ", ", beta 0.5"),
                "beta, at alpha 0.2": _points(table, "alpha 0.2, beta ", ""),
            }
            drawn["Figure 8: sensitivity to alpha and beta"] = _curves(panels)
        if table.name == "warmup":
            panels = {"start of the warm-up, % of the run": _points(table, "from ", "% of the run")}
            drawn["When to start feeding"] = _curves(panels)
    return drawn


def _points(table: TableResult, before: str, after: str) -> list[tuple[float, RowResult]]:
    """Rows whose label is a number between two texts."""
    found: list[tuple[float, RowResult]] = []
    for row in table.rows:
        text = row.label.removeprefix(before).removesuffix(after)
        if row.label == f"{before}{text}{after}" and text.replace(".", "", 1).isdigit() and "mAP" in row.figures:
            found.append((float(text), row))
    return sorted(found, key=lambda point: point[0])


def _curves(panels: Mapping[str, Sequence[tuple[float, RowResult]]]) -> Image.Image:
    figure = Figure(figsize=(4.5 * len(panels), 3.4), dpi=120, layout="constrained")
    for axes, (label, points) in zip(np.ravel(figure.subplots(1, len(panels))), panels.items(), strict=True):
        figures = [row.figures["mAP"] for _, row in points]
        means = [100 * found.mean for found in figures]
        known = [100 * found.deviation for found in figures if found.deviation is not None]
        deviations = known if len(known) == len(figures) else None  # one seed has none
        axes.errorbar([x for x, _ in points], means, deviations, marker="o", color=_GREEN, capsize=3)
        axes.set_xlabel(label)
        axes.set_ylabel("mAP, %")
        axes.grid(color="#e3e5e8")
        axes.spines[["top", "right"]].set_visible(False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def generated(campaign: Campaign[TablesPlan]) -> dict[str, Image.Image]:
    """Figures 4, 5, 6 and 9 from the finished runs of the first seed."""
    by_label: dict[str, Run] = {}
    elsewhere: dict[str, Path] = {}
    for cell in campaign.plan.cells:
        state = campaign.state(cell.experiment)
        if cell.seed != campaign.plan.seeds[0] or state.run is None or not state.finished or cell.table.held_out:
            continue
        if cell.table.name == "transfer":
            there = results_of(state.run, campaign.plan.stores[cell.tested_on])
            if there.exists():
                elsewhere[cell.row.label] = there
        else:
            by_label.setdefault(cell.row.label, state.run)
    full = by_label.get("both") or by_label.get("ours") or by_label.get("dynamic soft labels")
    results = {label: run.folder / "results" for label, run in by_label.items()}
    found: dict[str, Image.Image] = {}
    compared = {label: _first(results[label], "swaps_") for label in COMPARED if label in results}
    if len(compared) > 1:
        found["Figure 4: swaps with and without parts of the method"] = _stacked(compared)
    if full is not None:
        folder = full.folder / "results"
        swaps = {"on its own data": _first(folder, "swaps_")}
        swaps |= {label: _first(path, "swaps_") for label, path in elsewhere.items()}
        found |= {"Figure 6: swaps of unseen people": _stacked(swaps)}
        for number, code in ((5, "appearance"), (9, "structure")):
            picture = {"": _first(folder, f"interpolated_{code}_")}
            found[f"Figure {number}: {code} interpolated"] = _stacked(picture)
    return found


def _first(folder: Path, prefix: str) -> Path:
    return next(iter(sorted(folder.glob(f"{prefix}*.png"))))


def _stacked(files: Mapping[str, Path]) -> Image.Image:
    """Pictures below each other, each under its caption."""
    pictures: list[tuple[str, Image.Image]] = []
    for caption, file in files.items():
        with Image.open(file) as opened:
            pictures.append((caption, opened.convert("RGB")))
    head = 28
    size = max(p.width for _, p in pictures), sum(p.height + head * bool(caption) for caption, p in pictures)
    sheet, y = Image.new("RGB", size, "white"), 0
    draw = ImageDraw.Draw(sheet)
    for caption, picture in pictures:
        if caption:
            draw.text((8, y + 6), caption, fill=_INK, font=ImageFont.load_default(13))
            y += head
        sheet.paste(picture, (0, y))
        y += picture.height
    return sheet
