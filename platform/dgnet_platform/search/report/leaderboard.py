"""A search's trials in order: rows, front and table."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from dgnet_core.ranking.intervals import Estimate
from dgnet_platform.search.confirmation import Confirmation

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"
_ORDER = {FINISHED: 0, STOPPED: 1}


@dataclass(frozen=True, kw_only=True)
class TrialRow:
    """One trial of a search, as the report needs it."""

    number: int
    """Its number in the study."""
    name: str
    """Its run's."""
    state: str
    """"finished", "stopped" (at a rung), "failed", "saved" (to be continued), or what it is doing now."""
    reason: str = ""
    """Why it was stopped or failed."""
    values: Mapping[str, object] = field(default_factory=dict)
    """Its parameters by name."""
    objective: float | None = None
    """mAP at its best beta in [0, 1], of its last iteration; None: none was reported."""
    second: float | None = None
    """The second objective, an SSIM; None: there is none, or it was not reported."""
    best_beta: float | None = None
    """Weight of f_fine that the objective was reached with."""
    iterations: int = 0
    """How far it got."""
    shared_iterations: int = 0
    """How many of them it took from a prefix."""
    trained_iterations: int = 0
    """How many it trained itself, with those for a prefix that others share."""
    is_preset: bool = False
    """Whether its parameters are the preset's: the trial that the others are compared with."""
    by_beta: Mapping[float, float] = field(default_factory=dict)
    """mAP by weight of f_fine."""
    gain: float | None = None
    """mAP above that of the control at the last rung at which it was judged; None: it was not."""
    difference: Estimate | None = None
    """Its mAP minus the preset's, both at their best beta, paired by query; None: one of them is not finished."""
    confirmation: Confirmation | None = None
    """Its settings under other seeds; None: not trained."""

    @property
    def score(self) -> float | None:
        """The objective, if it is a number."""
        return self.objective if self.objective is not None and math.isfinite(self.objective) else None


# ----------------------------------------------------------------------------------------------------------------
# The leaderboard


def ranked(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """The best under other seeds, then finished trials, those stopped early, and all others; of each the best first."""
    best = confirmed_best(rows)

    def place(row: TrialRow) -> tuple[bool, int, float, int]:
        score = row.gain if row.state == STOPPED and row.gain is not None else row.score
        return row is not best, _ORDER.get(row.state, 2), math.inf if score is None else -score, row.number

    return sorted(rows, key=place)


def front(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """The best compromises of two objectives, by falling mAP: finished trials that no other one beats in both."""
    best, found = -math.inf, []
    finished = [row for row in rows if row.state == FINISHED and row.score is not None and row.second is not None]
    for row in sorted(finished, key=lambda row: (row.score, row.second, -row.number), reverse=True):
        assert row.second is not None
        if row.second > best:
            best = row.second
            found.append(row)
    return found


def leaderboard(rows: Sequence[TrialRow]) -> pd.DataFrame:
    """A line a trial, in the order of `ranked`, with a column for each parameter."""
    names = parameter_names(rows)
    compromises, winner = {row.number for row in front(rows)}, winner_of(rows)
    seconds = ["SSIM", "front"] if any(row.second is not None for row in rows) else []
    lines = [
        {
            "trial": row.number,
            "name": row.name,
            "state": row.state,
            "mAP": row.score,
            "SSIM": row.second,
            "front": row.number in compromises,
            "winner": row is winner,
            "beta": row.best_beta,
            **_uncertainty(row),
            **{name: row.values.get(name) for name in names},
            "iterations": row.iterations,
            "shared_iterations": row.shared_iterations,
            "reason": row.reason,
        }
        for row in ranked(rows)
    ]
    columns = ["trial", "name", "state", "winner", "mAP", *seconds, "beta", *_UNCERTAINTY, *names]
    columns += ["iterations", "shared_iterations", "reason"]
    return pd.DataFrame(lines, columns=columns)


_UNCERTAINTY = (
    "gain", "difference", "difference_low", "difference_high", "confirmed", "confirmed_sd", "confirmed_seeds",
    "confirmed_difference", "confirmed_low", "confirmed_high",
)  # fmt: skip


def _uncertainty(row: TrialRow) -> dict[str, float | int | None]:
    """How sure a trial's figures are, by column."""

    def ends(found: Estimate | None) -> tuple[float | None, float | None, float | None]:
        low, high = (found and found.interval) or (None, None)
        return found and found.value, low, high

    again = row.confirmation
    means = (None, None, 0) if again is None else (again.mean, again.deviation, len(again.scores))
    values = (row.gain, *ends(row.difference), *means, *ends(again and again.difference))
    return dict(zip(_UNCERTAINTY, values, strict=True))


def in_points(found: Estimate | None) -> str:
    """A difference in points of mAP with its interval, such as +1.2 [-0.3, 2.7]."""
    if found is None:
        return "-"
    ends = "" if found.interval is None else " [{:.1f}, {:.1f}]".format(*(100 * end for end in found.interval))
    return f"{100 * found.value:+.1f}{ends}"


def mean_and_deviation(found: Confirmation | None) -> str:
    """mAP under other seeds in percent, such as 26.8 ± 0.4."""
    if found is None or found.mean is None:
        return "-"
    return f"{100 * found.mean:.1f}" + ("" if found.deviation is None else f" ± {100 * found.deviation:.1f}")


def leaderboard_table(rows: Sequence[TrialRow], most: int | None = None) -> Group:
    """The leaderboard on the terminal: parameters that vary have columns, the others and what failed stand below.

    Args:
        rows: the trials.
        most: how many lines are shown; None: all.
    """
    names = varying(rows)
    compromises = {row.number for row in front(rows)}
    seconds = ["SSIM"] if any(row.second is not None for row in rows) else []
    table = Table(title="Leaderboard, mAP in %", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    sure = {
        "- preset": lambda row: in_points(row.difference),
        "other seeds": lambda row: mean_and_deviation(row.confirmation),
    }
    told = {heading: tell for heading, tell in sure.items() if any(tell(row) != "-" for row in rows)}
    for column in ("trial", "mAP", *seconds, "beta", *told, *names, "trained to"):
        heading = column.replace("_", " ")
        table.add_column(heading, justify="right", min_width=max(map(len, heading.split())))
    table.add_column("state", no_wrap=True)
    shown = ranked(rows)
    for row in shown[:most]:
        figures = ["-" if row.score is None else f"{100 * row.score:.2f}", as_text(row.best_beta)]
        if seconds:
            figures.insert(1, as_text(row.second) + "*" * (row.number in compromises))
        values = [as_text(row.values.get(name)) for name in names]
        style = "dim" if row.state == FAILED else None
        figures += [tell(row) for tell in told.values()]
        table.add_row(str(row.number), *figures, *values, as_short(row.iterations), row.state, style=style)
    notes = [f"and {len(shown) - most} more"] if most is not None and len(shown) > most else []
    notes += [verdict] if (verdict := against_preset(rows)) else []
    notes += unconfirmed(rows)
    if compromises:
        notes.append("* no other trial is better in both: a settings file each, front-<trial>.yaml")
    if constant := {name: rows[0].values.get(name) for name in parameter_names(rows) if name not in names}:
        notes.append("all: " + ", ".join(f"{name} {as_text(value)}" for name, value in constant.items()))
    notes += [f"trial {row.number} failed: {row.reason or 'no reason known'}" for row in rows if row.state == FAILED]
    return Group(table, *map(Text, notes))


def against_preset(rows: Sequence[TrialRow]) -> str:
    """By how much the best finished trial is better than the preset's own settings; "" if none is finished."""
    if (winner := confirmed_best(rows)) is not None:
        return _confirmed(winner)
    best = next((row for row in ranked(rows) if row.state == FINISHED and row.score is not None), None)
    preset = next((row for row in ranked(rows) if row.is_preset), None)
    if best is None or preset is None:
        return ""
    if preset is best:
        return f"No trial is better than the preset (trial {preset.number})."
    assert best.score is not None
    if preset.state != FINISHED or preset.score is None:
        return f"The preset (trial {preset.number}) did not finish ({preset.state}): nothing to compare the best with."
    points = 100 * (best.score - preset.score)
    text = f"Trial {best.number} is {points:.2f} points of mAP above the preset (trial {preset.number}), one run each"
    if best.difference is not None and best.difference.interval is not None:
        low, high = (100 * end for end in best.difference.interval)
        text += f", 95 % interval over held-out people {low:.1f} to {high:.1f}"
        if best.difference.verdict == "undecided":
            text += ": undecided"
    return f"{text}. The best of many is too good by chance: --confirm 3 trains it again with other seeds."


def winner_of(rows: Sequence[TrialRow]) -> TrialRow | None:
    """The trial that is best under other seeds, or else the best finished one; None: none is finished."""
    return next((row for row in ranked(rows) if row.state == FINISHED and row.score is not None), None)


def confirmed_best(rows: Sequence[TrialRow]) -> TrialRow | None:
    """The trial with the best mean under other seeds, of those that finished with all; None: none did."""
    again = [row for row in rows if row.confirmation is not None and not row.confirmation.missing]
    return max(again, key=lambda row: (row.confirmation.mean, row.is_preset), default=None)  # pyright: ignore


def unconfirmed(rows: Sequence[TrialRow]) -> list[str]:
    """A line for each trial that other seeds cannot name the winner, for some of them have no score."""
    return [
        f"trial {row.number} does not compete under other seeds: "
        + "; ".join(f"seed {seed} {why}" for seed, why in row.confirmation.missing.items())
        for row in rows
        if row.confirmation is not None and row.confirmation.missing
    ]


def _confirmed(winner: TrialRow) -> str:
    found = winner.confirmation
    assert found is not None
    count = len(found.scores)
    seeds = f"{count} other seed{'s' * (count > 1)}: mAP {mean_and_deviation(found)}"
    if winner.is_preset:
        return f"No trial is better than the preset (trial {winner.number}) under {seeds}."
    text = f"Trial {winner.number} is the best under {seeds}"
    if found.difference is None:
        return f"{text}."
    verdict = "" if found.difference.verdict == "better" else ", undecided"
    if count == 1:
        verdict = ", over identities alone: one seed gives no verdict"
    return f"{text}, {in_points(found.difference)} points above the preset (95 % interval){verdict}."


def parameter_names(rows: Sequence[TrialRow]) -> list[str]:
    """Parameters of any trial, in the order in which they appear."""
    return list(dict.fromkeys(name for row in rows for name in row.values))


def varying(rows: Sequence[TrialRow]) -> list[str]:
    """Parameters of all trials that do not have one value only."""
    return [
        name
        for name in parameter_names(rows)
        if all(name in row.values for row in rows) and len({as_text(row.values[name]) for row in rows}) > 1
    ]


def as_short(value: float) -> str:
    """A number with three digits."""
    return f"{value / 1000:,.3g}K" if abs(value) >= 1000 else f"{value:.3g}"


def as_text(value: object) -> str:
    """A parameter's value as the table shows it."""
    if value is None:
        return "-"
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
