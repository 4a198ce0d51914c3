"""A run's description in MLflow: a short report in Markdown, above its figures."""

import logging
import math
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from dgnet_platform.evaluation.results import DRAWN, Evaluation, read
from dgnet_platform.runs import journal
from dgnet_platform.runs.presets import nearest_preset
from dgnet_platform.runs.run import RESULTS, Run
from dgnet_platform.tracking.client import UNREACHABLE, TrackedRun

_FIGURES = {"Rank@1": "rank1", "Rank@5": "rank5", "Rank@10": "rank10", "mAP": "mAP", "mINP": "mINP"}
_log = logging.getLogger(__name__)


def tell(tracked: TrackedRun, note: str) -> None:
    """Show a note in MLflow; that it is away is no error: the same command tells it later."""
    try:
        tracked.describe(note)
    except UNREACHABLE as error:
        _log.warning("MLflow was not told of %s: %s", tracked.id, error)


def run_note(run: Run, pictures: int) -> str:
    """What there is to say of a training run now: results, settings, how to resume, what to look at.

    Args:
        run: with its folder.
        pictures: of the training split, which a preset goes by.
    """
    parts: list[str] = []
    results = run.folder / RESULTS
    if (results / "results.json").exists():
        parts += [results_table(read(results))]
    best = best_picture(run.folder)
    if best:
        parts.append(f"Best pictures so far: {best}, below *Artifacts*.")
    parts += [_settings(run, pictures), resumes(run.folder)]
    return "\n\n".join(parts)


def results_table(evaluation: Evaluation) -> str:
    """Retrieval figures in percent, and the 95 % interval of mAP."""
    lines = []
    for row in evaluation.retrieval.to_dict("records"):
        feature = f"both, beta {row['beta']:g}" if row["feature"] == "both" else str(row["feature"])
        how = [", multi-query" if row["query"] == "multi" else "", ", re-ranked" if row["reranked"] else ""]
        low, high = (row.get(f"mAP_{end}", math.nan) for end in ("low", "high"))
        interval = "-" if math.isnan(low) else f"{100 * low:.1f} to {100 * high:.1f}"
        figures = [f"{100 * row[name]:.2f}" for name in _FIGURES.values()]
        lines.append([feature + "".join(how), *figures, interval])
    table = markdown_table(["Query and gallery, %", *_FIGURES, "95 % of mAP"], lines)
    return f"{table}\n\n{DRAWN}" if evaluation.drawn else table


def best_picture(folder: Path) -> str:
    """The pictures of the evaluation with the best mAP, or SSIM where nothing is ranked; nothing if there are none."""
    best: tuple[float, str] | None = None
    for entry in journal.read(folder):
        figures = [value for name, value in entry.metrics.items() if name.startswith(("val/", "test/", "train/"))]
        if not (entry.pictures and figures):
            continue
        maps = [value for name, value in entry.metrics.items() if name.endswith("/mAP")]
        scores = maps or [value for name, value in entry.metrics.items() if name.endswith("/SSIM")]
        name = "swaps" if "swaps" in entry.pictures else next(iter(entry.pictures))
        if scores and (best is None or max(scores) > best[0]):
            best = max(scores), f"*{name}* of step {entry.iteration} (`{entry.pictures[name]}` in the run's folder)"
    return best[1] if best else ""


def resumes(folder: Path) -> str:
    """How to resume what is in a folder."""
    program = Path(sys.argv[0])
    command = ["uv", "run", f"{program.parent.name}/{program.name}", *sys.argv[1:]]
    same = f"`{shlex.join(command)}`" if program.suffix == ".py" else "the same command"
    return f"Resumes by {same}. All of it is in `{folder}`."


def markdown_table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown, whose first column is aligned to the left and whose others are to the right."""
    marks = ["---", *["--:"] * (len(headings) - 1)]
    cells = [headings, marks, *rows]
    return "\n".join(f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in cells)


def _settings(run: Run, pictures: int) -> str:
    nearest = nearest_preset(run.experiment, pictures)
    if nearest is None:
        return "All settings are this run's parameters."
    preset, changed = nearest
    if not changed:
        return f"Settings: the *{preset}* preset's."
    rows = [[f"`{name}`", before, after] for name, (before, after) in changed.items()]
    return markdown_table([f"Differs from the *{preset}* preset", "preset", "this run"], rows)
