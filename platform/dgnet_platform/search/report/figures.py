"""A search's pictures: Optuna's own, and two that it has not."""

import logging
import math
import warnings
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from optuna.trial import TrialState, create_trial
from optuna.visualization import matplotlib as plots
from PIL import Image

from dgnet_platform.search.report.leaderboard import FINISHED, TrialRow, as_short, front, varying
from dgnet_platform.search.space import Space

_log = logging.getLogger(__name__)
_GREEN, _BLUE, _GRAY, _PALE, _INK = "#16964a", "#3b76c4", "#8a8e94", "#e3e5e8", "#222428"
ENOUGH = 4
"""Finished trials that importances need."""
_MAP = "mAP, %"


# ----------------------------------------------------------------------------------------------------------------
# The pictures


class _Skipped(Exception):  # noqa: N818 - no error
    """There is nothing to draw; the message says why."""


def figures(space: Space, rows: Sequence[TrialRow]) -> dict[str, Image.Image]:
    """Pictures by name: importances, parallel_coordinates, slices, history, front, alpha_beta, iterations.

    One that has nothing to show is left out, and the log says why.

    Args:
        space: what is searched, and on which scales.
        rows: the trials.
    """
    rows = sorted(rows, key=lambda row: row.number)
    painters: dict[str, Callable[[], Figure]] = {
        "importances": lambda: _importances(space, rows),
        "parallel_coordinates": lambda: _parallel_coordinates(space, rows),
        "slices": lambda: _slices(space, rows),
        "history": lambda: _history(space, rows),
        "front": lambda: _front(rows),
        "alpha_beta": lambda: _alpha_beta(rows),
        "iterations": lambda: _iterations(rows),
    }
    drawn = {}
    for name, paint in painters.items():
        try:
            drawn[name] = _picture(paint)
        except _Skipped as reason:
            _log.info("No picture of %s: %s.", name, reason)
    return drawn


def _picture(paint: Callable[[], Figure]) -> Image.Image:
    from matplotlib import pyplot as plt  # here: what imports it first chooses its backend

    # Optuna draws with pyplot: its style and its list of figures are the whole process's.
    with mpl.rc_context({"backend": "agg", "figure.constrained_layout.use": True}), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Optuna calls its pictures experimental, matplotlib widens empty axes
        try:
            canvas = FigureCanvasAgg(paint())
            canvas.draw()
        finally:
            plt.close("all")
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


# ----------------------------------------------------------------------------------------------------------------
# Optuna's


def _importances(space: Space, rows: Sequence[TrialRow]) -> Figure:
    finished = [row for row in rows if row.state == FINISHED and row.score is not None]
    if len(finished) < ENOUGH:
        raise _Skipped(f"{len(finished)} trials are finished, at least {ENOUGH} are needed")
    if len({row.score for row in finished}) == 1:
        raise _Skipped("all results are equal")
    study, names = _study(space, finished)
    axes = plots.plot_param_importances(study, target_name=_MAP)
    return _dressed(axes, "What sets the best trials apart (PED-ANOVA)", 7.0, 2.2 + 0.4 * len(names))


def _parallel_coordinates(space: Space, rows: Sequence[TrialRow]) -> Figure:
    study, names = _study(space, rows)
    axes = plots.plot_parallel_coordinate(study, names, target_name=_MAP)
    title = "Parameters and mAP, a line a trial (dotted: stopped early)"
    return _dressed(axes, title, max(7.0, 1.5 * len(names) + 3), 4.4)


def _slices(space: Space, rows: Sequence[TrialRow]) -> Figure:
    study, names = _study(space, rows)
    axes = np.ravel(np.array(plots.plot_slice(study, names, target_name=_MAP)))[0]
    return _dressed(axes, "mAP over each parameter (gray: stopped early)", max(7.0, 2.6 * len(names)), 4.0)


def _history(space: Space, rows: Sequence[TrialRow]) -> Figure:
    if all(row.score is None for row in rows):
        raise _Skipped("no trial has a result")
    study, _ = _study(space, rows, named=False)
    axes = plots.plot_optimization_history(study, target_name=_MAP)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.legend(["finished", "best so far"], loc="best")
    return _dressed(axes, "Results in the order of the trials (gray: stopped early)", 7.0, 4.2, legend=True)


def _front(rows: Sequence[TrialRow]) -> Figure:
    rated = [row for row in rows if row.state == FINISHED and row.score is not None and row.second is not None]
    if not rated:
        raise _Skipped("no finished trial has two results")
    study = optuna.create_study(directions=["maximize", "maximize"])
    for row in rated:
        study.add_trial(create_trial(values=[100 * (row.score or 0.0), row.second or 0.0]))
    axes = plots.plot_pareto_front(study, target_names=[_MAP, "SSIM with the true pictures"])
    for row in front(rated):
        axes.annotate(
            str(row.number), (100 * (row.score or 0.0), row.second or 0.0), (5, 5), textcoords="offset points"
        )
    return _dressed(axes, "The best compromises", 7.0, 4.2, legend=True)


def _study(space: Space, rows: Sequence[TrialRow], *, named: bool = True) -> tuple[optuna.Study, list[str]]:
    """The trials with a result as Optuna draws them, mAP in percent, and which parameters vary.

    A trial that was stopped stands for one that breaks a constraint: it is drawn, and does not count among the best.
    Values outside the space, as the base may have them, are left out.
    """
    names = [name for name in varying([row for row in rows if row.score is not None]) if name in space.distributions]
    if named and not names:
        raise _Skipped("no parameter varies among the trials with a result")
    study = optuna.create_study(direction="maximize")
    for row in rows:
        if row.score is None:  # keeps the numbers of those that follow
            study.add_trial(create_trial(state=TrialState.FAIL))
            continue
        values: dict[str, Any] = {name: row.values[name] for name in names if space.holds(name, row.values[name])}
        scales = {name: space.distributions[name] for name in values}
        broken = {"stopped early": float(row.state != FINISHED)}
        trial = create_trial(value=100 * row.score, params=values, distributions=scales, constraints=broken)
        study.add_trial(trial)
    return study, names


def _dressed(axes: Axes, title: str, width: float, height: float, *, legend: bool = False) -> Figure:
    """A figure of Optuna's with a title, a size and ticks that can be read."""
    figure = axes.figure
    assert isinstance(figure, Figure)
    if not legend and (drawn := axes.get_legend()) is not None:
        drawn.remove()
    figure.set_dpi(120)
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained")
    for place in ("left", "center"):
        axes.set_title("", loc=place)
    figure.suptitle(title, x=0.02, ha="left", fontsize=12, color=_INK)
    for part in figure.axes:
        for axis in (part.xaxis, part.yaxis):
            if axis.get_scale() == "log":
                axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
                axis.set_minor_formatter(NullFormatter())
            if axis.get_scale() == "log" or max(map(abs, axis.get_view_interval())) >= 1000:
                axis.set_major_formatter(FuncFormatter(lambda value, _: as_short(value)))
    return figure


# ----------------------------------------------------------------------------------------------------------------
# Ours


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
    mesh = axes.pcolormesh(np.arange(len(found) + 1), edges, np.ma.masked_invalid(table), cmap="viridis")
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


def _betas(row: TrialRow) -> list[float]:
    """Weights of f_fine between 0 and 1 that mAP is known for."""
    return [beta for beta, value in row.by_beta.items() if 0 <= beta <= 1 and math.isfinite(value)]
