"""A search's pictures."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from PIL import Image

from dgnet_platform.search.leaderboard import (
    _ORDER,
    FAILED,
    FINISHED,
    STOPPED,
    TrialRow,
    as_short,
    as_text,
    front,
    is_numeric,
    ranked,
    varying,
)

_log = logging.getLogger(__name__)
_GREEN, _BLUE, _RED, _GRAY, _PALE, _INK = "#16964a", "#3b76c4", "#d62c26", "#8a8e94", "#e3e5e8", "#222428"
_COLOURS = {FINISHED: _GREEN, STOPPED: _BLUE, FAILED: _RED}
_MAP = "viridis"


# ----------------------------------------------------------------------------------------------------------------
# The pictures


class _Skipped(Exception):  # noqa: N818 - no error
    """There is nothing to draw; the message says why."""


def figures(study: optuna.study.Study, rows: Sequence[TrialRow]) -> dict[str, Image.Image]:
    """Pictures by name: importances, parallel_coordinates, slices, history, front, alpha_beta, iterations.

    One that has nothing to show is left out, and the log says why.

    Args:
        study: its trials' distributions say which scales are logarithmic; the importances are found from it.
        rows: the trials.
    """
    rows = sorted(rows, key=lambda row: row.number)
    scales = {name: scale for trial in study.get_trials(deepcopy=False) for name, scale in trial.distributions.items()}
    painters: dict[str, Callable[[], Figure]] = {
        "importances": lambda: _importances(study),
        "parallel_coordinates": lambda: _parallel_coordinates(rows, scales),
        "slices": lambda: _slices(rows, scales),
        "history": lambda: _history(rows),
        "front": lambda: _front(rows),
        "alpha_beta": lambda: _alpha_beta(rows),
        "iterations": lambda: _iterations(rows),
    }
    drawn = {}
    for name, paint in painters.items():
        try:
            drawn[name] = _picture(paint())
        except _Skipped as reason:
            _log.info("No picture of %s: %s.", name, reason)
    return drawn


def _importances(study: optuna.study.Study) -> Figure:
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < 4:
        raise _Skipped(f"{len(complete)} trials have a result, at least 4 are needed")
    if len({tuple(trial.values) for trial in complete}) == 1:
        raise _Skipped("all results are equal")
    found = optuna.importance.get_param_importances(study)
    if not all(map(math.isfinite, found.values())) or sum(found.values()) == 0:
        raise _Skipped("no parameter makes a difference")
    names, shares = list(found)[::-1], list(found.values())[::-1]
    figure, axes = _figure("What sets the best trials apart (PED-ANOVA)", height=1.3 + 0.36 * len(names))
    axes.barh(names, shares, color=_BLUE, height=0.62)
    for place, share in enumerate(shares):
        axes.text(share + 0.01, place, f"{share:.0%}", va="center", color=_INK, fontsize=9)
    axes.set_xlim(0, max(shares) * 1.12)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", visible=False)
    return figure


def _parallel_coordinates(rows: Sequence[TrialRow], scales: Mapping[str, BaseDistribution]) -> Figure:
    rated = [row for row in ranked(rows) if row.score is not None][::-1]  # the best on top
    names = varying(rated)
    if not names:
        raise _Skipped("no parameter varies among the trials with a result")
    scores = np.array([100 * (row.score or 0.0) for row in rated])
    figure, axes = _figure("Parameters and mAP, a line a trial", width=max(7.0, 1.5 * len(names) + 3))
    heights, marks = [], []
    for name in names:
        positions, ticks = _scaled([row.values.get(name) for row in rated], scales.get(name))
        heights.append(positions)
        marks.append(ticks)
    positions, ticks = _scaled(list(scores), None)
    heights.append(positions)
    marks.append(ticks)
    lines = np.stack(heights, axis=1)
    places = np.arange(len(marks))
    segments = [np.stack([places, line], axis=1) for line in lines]
    colours = LineCollection(segments, array=scores, cmap=_MAP, norm=_norm(scores), linewidths=1.4, alpha=0.85)
    axes.add_collection(colours)
    for place, ticks in enumerate(marks):
        axes.axvline(place, color=_GRAY, linewidth=0.8, zorder=0)
        for height, text in ticks:
            axes.plot([place - 0.02, place], [height, height], color=_GRAY, linewidth=0.8)
            axes.text(
                place - 0.04, height, text, ha="right", va="center", fontsize=8, color=_INK,
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8}, zorder=5,
            )  # fmt: skip
    axes.set_xlim(-0.55, len(marks) - 0.9)
    axes.set_ylim(-0.06, 1.06)
    axes.set_xticks(places, [*names, "mAP, %"])
    axes.tick_params(axis="x", length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.set_yticks([])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    return figure


def _slices(rows: Sequence[TrialRow], scales: Mapping[str, BaseDistribution]) -> Figure:
    rated = [row for row in rows if row.score is not None]
    names = varying(rated)
    if not names:
        raise _Skipped("no parameter varies among the trials with a result")
    columns = min(3, len(names))
    lines = math.ceil(len(names) / columns)
    figure = Figure(figsize=(0.8 + 3.1 * max(2, columns), 0.7 + 2.8 * lines), dpi=120, layout="constrained")
    figure.suptitle("mAP over each parameter", x=0.02, ha="left", fontsize=12, color=_INK)
    panels = figure.subplots(lines, columns, squeeze=False, sharey=True)
    for place, axes in enumerate(panels.flat):
        if place >= len(names):
            axes.set_visible(False)
            continue
        name, scale = names[place], scales.get(names[place])
        for state in (STOPPED, FINISHED, None):
            chosen = [row for row in rated if (row.state if row.state in _ORDER else None) == state]
            x = [row.values.get(name) for row in chosen]
            _dots(axes, x if is_numeric(rated, name) else [as_text(v) for v in x], chosen)
        if _is_log(scale):
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        if is_numeric(rated, name):
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: as_short(value)))
        axes.set_xlabel(name)
        axes.margins(x=0.1)
        _plain(axes)
        if place % columns == 0:
            axes.set_ylabel("mAP, %")
    _legend(figure, rated)
    return figure


def _history(rows: Sequence[TrialRow]) -> Figure:
    rated = [row for row in rows if row.score is not None]
    if not rated:
        raise _Skipped("no trial has a result")
    figure, axes = _figure("Results in the order of the trials")
    best, steps = -math.inf, []
    for row in rated:
        if row.state == FINISHED:
            best = max(best, 100 * (row.score or 0.0))
        steps.append(best if math.isfinite(best) else np.nan)
    axes.step(
        [row.number for row in rated], steps, where="post", color=_GREEN, linewidth=1.2, alpha=0.6,
        label="best finished so far",
    )  # fmt: skip
    _dots(axes, [row.number for row in rated], rated)
    lost = [row.number for row in rows if row.state == FAILED and row.score is None]
    if lost:
        axes.plot(
            lost, [0.03] * len(lost), "x", color=_RED, transform=axes.get_xaxis_transform(), markersize=6, zorder=3
        )
    axes.set_xlabel("trial")
    axes.set_ylabel("mAP, %")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.margins(0.06, 0.12)
    _legend(figure, [*rated, *(row for row in rows if row.number in lost)])
    return figure


def _front(rows: Sequence[TrialRow]) -> Figure:
    rated = [row for row in rows if row.score is not None and row.second is not None]
    if not rated:
        raise _Skipped("no trial has two results")
    figure, axes = _figure("The best compromises")
    line = front(rated)
    x = [row.second for row in line]
    axes.plot(x, [100 * (row.score or 0.0) for row in line], color=_GREEN, linewidth=1.2, alpha=0.6, zorder=2)  # pyright: ignore[reportArgumentType]
    _dots(axes, [row.second for row in rated], rated)
    for row in line:
        axes.annotate(
            str(row.number), (row.second or 0.0, 100 * (row.score or 0.0)), (5, 5), textcoords="offset points"
        )
    axes.set_xlabel("SSIM with the true pictures")
    axes.set_ylabel("mAP, %")
    axes.margins(0.12)
    _legend(figure, rated)
    return figure


def _alpha_beta(rows: Sequence[TrialRow]) -> Figure:
    """mAP over alpha in training and beta in testing (paper, Figure 8): a column a trial."""
    found = [
        (float(alpha), row) for row in rows if isinstance(alpha := row.values.get("alpha"), int | float) and _betas(row)
    ]
    found.sort(key=lambda pair: (pair[0], pair[1].number))
    if not found:
        raise _Skipped("no trial has mAP over beta and an alpha")
    betas = sorted({beta for _, row in found for beta in _betas(row)})
    if len(betas) < 2:
        raise _Skipped("mAP is known for one beta only")
    table = np.array([[100 * row.by_beta.get(beta, math.nan) for _, row in found] for beta in betas])
    title = "mAP, %, over alpha in training and beta in testing"
    figure, axes = _figure(title, width=min(14.0, max(7.0, 2.4 + 0.42 * len(found))))
    edges = np.array([betas[0], *((a + b) / 2 for a, b in pairwise(betas)), betas[-1]])
    mesh = axes.pcolormesh(np.arange(len(found) + 1), edges, np.ma.masked_invalid(table), cmap=_MAP)
    figure.colorbar(mesh, ax=axes, pad=0.02).outline.set_visible(False)
    best = [betas[int(np.nanargmax(column))] for column in table.T]
    best = np.clip(best, edges[0] + 0.015, edges[-1] - 0.015)
    axes.plot(np.arange(len(found)) + 0.5, best, "o", color="white", markeredgecolor=_INK, markersize=5, zorder=3)
    every = math.ceil(len(found) / 24)
    axes.set_xticks(
        np.arange(len(found))[::every] + 0.5, [as_short(alpha) for alpha, _ in found[::every]],
        rotation=45 if len(found) > 10 else 0,
    )  # fmt: skip
    axes.set_xlabel("alpha of a trial (others of its parameters differ too); circles: its best beta")
    axes.set_ylabel("beta")
    axes.grid(visible=False)
    return figure


def _iterations(rows: Sequence[TrialRow]) -> Figure:
    known = [row for row in rows if row.iterations > 0]
    if not known:
        raise _Skipped("no trial has trained")
    full = max(row.iterations for row in known)
    places = np.arange(len(known))
    shared = np.array([min(row.shared_iterations, row.iterations) for row in known])
    done = np.array([row.iterations for row in known])
    figure, axes = _figure("Iterations of each trial", width=min(14.0, max(7.0, 2.0 + 0.2 * len(known))))
    parts = (
        ("taken from a prefix", shared, 0 * shared, _GREEN),
        ("trained in the trial", done - shared, shared, _BLUE),
        ("not trained", full - done, done, _PALE),
    )
    for label, heights, bottom, colour in parts:
        axes.bar(places, heights, bottom=bottom, color=colour, width=0.75, label=f"{label}: {int(heights.sum()):,}")
    every = math.ceil(len(known) / 32)
    axes.set_xticks(places[::every], [str(row.number) for row in known[::every]])
    axes.set_xlim(-0.7, len(known) - 0.3)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.set_xlabel("trial")
    axes.grid(axis="x", visible=False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    return figure


# ----------------------------------------------------------------------------------------------------------------
# What the pictures are made of


def _figure(title: str, *, width: float = 7.0, height: float = 4.2) -> tuple[Figure, Axes]:
    """A figure that belongs to no window and no global state."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, loc="left", fontsize=12, color=_INK, pad=12)
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_GRAY)
    axes.grid(color=_PALE, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, labelsize=9)


def _picture(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _dots(axes: Axes, x: Sequence[object], rows: Sequence[TrialRow]) -> None:
    """Trials with a result: filled if they finished, hollow if not."""
    colours = [_COLOURS.get(row.state, _GRAY) for row in rows]
    filled = [colour if row.state == FINISHED else "white" for colour, row in zip(colours, rows, strict=True)]
    y = [100 * (row.score or 0.0) for row in rows]
    axes.scatter(x, y, s=30, c=filled, edgecolors=colours, linewidths=1.3, zorder=3)  # pyright: ignore[reportArgumentType]


def _legend(figure: Figure, rows: Sequence[TrialRow]) -> None:
    """The states that there are, below a figure."""
    axes = figure.axes[0]
    for state in dict.fromkeys(sorted((row.state for row in rows), key=lambda s: _ORDER.get(s, 2))):
        colour, marker = _COLOURS.get(state, _GRAY), "x" if state == FAILED else "o"
        face = colour if state == FINISHED else "white"
        axes.plot([], [], linestyle="none", color=colour, marker=marker, markerfacecolor=face, label=state)
    figure.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=9)


def _scaled(values: Sequence[object], scale: BaseDistribution | None) -> tuple[np.ndarray, list[tuple[float, str]]]:
    """Heights in [0, 1] on an axis of parallel coordinates, and its ticks as height and text."""
    numbers = [float(value) for value in values if isinstance(value, int | float)]
    if len(numbers) < len(values) or isinstance(scale, optuna.distributions.CategoricalDistribution):
        options = sorted(set(values), key=lambda v: (isinstance(v, str), v if isinstance(v, str) else float(v or 0)))  # pyright: ignore[reportArgumentType]
        height = {option: place / max(1, len(options) - 1) for place, option in enumerate(options)}
        return np.array([height[value] for value in values]), [(height[option], as_text(option)) for option in options]
    low, high = min(numbers), max(numbers)
    if low == high:
        return np.full(len(numbers), 0.5), [(0.5, as_short(low))]
    log = _is_log(scale) and low > 0
    array = np.array(numbers)
    heights = np.log(array / low) / math.log(high / low) if log else (array - low) / (high - low)
    ticks = [(h, low * (high / low) ** h if log else low + h * (high - low)) for h in (0.0, 0.25, 0.5, 0.75, 1.0)]
    return heights, [(h, as_short(value)) for h, value in ticks]


def _norm(scores: np.ndarray) -> Normalize:
    low, high = float(scores.min()), float(scores.max())
    return Normalize(low, high) if low < high else Normalize(low - 1, high + 1)


def _betas(row: TrialRow) -> list[float]:
    """Weights of f_fine between 0 and 1 that mAP is known for."""
    return [beta for beta, value in row.by_beta.items() if 0 <= beta <= 1 and math.isfinite(value)]


def _is_log(scale: BaseDistribution | None) -> bool:
    return isinstance(scale, FloatDistribution | IntDistribution) and scale.log
