"""What a person sees of a search under way: one live table on a terminal, lines elsewhere."""

import threading
import time
from collections.abc import Sequence
from statistics import fmean
from types import TracebackType
from typing import Self

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dgnet_platform.progress import LINES_EVERY, in_words
from dgnet_platform.search.report.leaderboard import FAILED, FINISHED, STOPPED, TrialRow
from dgnet_platform.search.report.results import Results

EVERY = 1.0
"""Seconds between looks at the journals."""
_STYLES = {FINISHED: "green", STOPPED: "blue", FAILED: "red"}
_WORDS = {
    "starts": "starts",
    "waits": "waits for a prefix",
    "prefix": "trains its prefix",
    "trains": "trains",
    "over": "is over",
}


class SearchDisplay:
    """Follows the trials' journals from a thread of its own, as long as its context lasts."""

    def __init__(self, results: Results, console: Console):
        self._results, self._console = results, console
        self._rows: list[TrialRow] = []
        self._told: dict[str, str] = {}
        self._notice = ""
        self._clock: tuple[float, int] | None = None  # when iterations were first seen to be trained, and how many
        self._line_at = time.monotonic()
        self._live = Live(console=console, get_renderable=self._panel, refresh_per_second=2, transient=True)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="search display", daemon=True)

    def __enter__(self) -> Self:
        self._rows = self._look()
        self._told = {row.name: row.state for row in self._rows}  # what was before needs no line
        self._spent_before = _spent(self._rows)
        if self._console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._over.set()
        self._thread.join()
        self._update()
        self._live.stop()

    def say(self, notice: str) -> None:
        """Show what is going on beside the trials."""
        self._notice = notice
        if not self._console.is_terminal:
            self._console.print(notice, markup=False, soft_wrap=True)

    def _follow(self) -> None:
        while not self._over.wait(EVERY):
            self._update()

    def _look(self) -> list[TrialRow]:
        return [*self._results.sibling_rows(), *self._results.rows()]

    def _update(self) -> None:
        self._rows = self._look()
        now, spent = time.monotonic(), _spent(self._rows)
        if self._clock is None and spent > self._spent_before:  # what was before that is start-up
            self._clock = now, spent
        if self._console.is_terminal:
            return
        for row in self._rows:
            if row.state != self._told.get(row.name) and row.state not in ("starts", "over"):
                self._told[row.name] = row.state
                line = f"{self._title(row)} {_WORDS.get(row.state, row.state)}{_values(row)}{_result(row)}"
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        if now - self._line_at >= LINES_EVERY and not self._over.is_set():
            self._line_at = now
            line = f"{self._results.plan.name}: {self._progress()}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _title(self, row: TrialRow) -> str:
        return f"trial {row.number}" if row.number >= 0 else row.name.removeprefix(f"{self._results.plan.name}-")

    def _progress(self) -> str:
        """How far the search is, what it took and takes, and how long it will take."""
        results, rows = self._results, self._rows
        spent, last = _spent(rows), results.plan.base.model.iterations
        over = [row for row in rows if row.number >= 0 and row.state in (FINISHED, STOPPED)]
        each = fmean(row.trained_iterations for row in over) if over else last
        active = sum(last - row.iterations for row in rows if row.state not in (*_STYLES, "over"))
        # at most: some of those under way will stop early, and seeds share prefixes
        left = results.study.missing * each + active + results.runs_to_confirm * last
        text = (
            f"{len(over)} of {results.study.target} trials, {spent:,} of about {spent + left:,.0f} iterations trained"
        )
        if self._clock is None or spent <= self._clock[1]:
            return text
        speed = (spent - self._clock[1]) / (time.monotonic() - self._clock[0])
        return f"{text}, {speed:.3g} a second, about {in_words(left / speed)} left"

    def _panel(self) -> RenderableType:
        plan, rows = self._results.plan, self._rows
        title = f"{plan.name}: {self._progress()}"
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        names = list(plan.space.searched)
        for column in ("trial", *(name.replace("_", " ") for name in names), "iteration", "mAP"):
            table.add_column(column, justify="right")
        table.add_column("state", overflow="fold")
        last = plan.base.model.iterations
        room = max(5, self._console.height - 8)
        active = [row for row in rows if row.state not in _STYLES]
        recent = [row for row in rows if row.state in _STYLES][-max(1, room - len(active)) :]
        for row in sorted([*active[:room], *recent], key=lambda row: row.number):
            figure = "-" if row.score is None else f"{100 * row.score:.1f}"
            values = [_value(row.values.get(name)) for name in names]
            state = f"{_WORDS.get(row.state, row.state)}{f': {row.reason}' if row.reason else ''}"
            progress = f"{row.iterations:,}/{last:,}"
            table.add_row(
                self._title(row).removeprefix("trial "), *values, progress, figure, state, style=_STYLES.get(row.state)
            )
        return Group(table, Text(self._notice, style="yellow")) if self._notice else table


def _spent(rows: Sequence[TrialRow]) -> int:
    """Iterations that were trained, of prefixes too."""
    return sum(row.trained_iterations for row in rows)


def _values(row: TrialRow) -> str:
    values = ", ".join(f"{name} {_value(value)}" for name, value in row.values.items())
    return f": {values}" if values else ""


def _value(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _result(row: TrialRow) -> str:
    if row.state not in _STYLES:
        return ""
    figure = "" if row.score is None else f", mAP {100 * row.score:.1f} at iteration {row.iterations:,}"
    return f"{figure}{f' ({row.reason})' if row.reason else ''}"
