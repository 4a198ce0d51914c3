"""What a person sees of a run under way: one live panel on a terminal, a line now and then elsewhere."""

import threading
import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from dgnet_core.methods import method_of
from dgnet_platform.progress import LINES_EVERY, in_words
from dgnet_platform.runs.journal import Entry, Tail
from dgnet_platform.runs.run import Run


class Display:
    """Follows a run's journal from a thread of its own, as long as its context lasts."""

    def __init__(self, run: Run, console: Console):
        model = run.experiment.model
        self._run, self._console = run, console
        self._tail = Tail(run.folder)
        self._iterations = model.iterations
        self._config, self._method = model, method_of(model)
        self._clock = self._method.clock(model) if self._method.clock is not None else None
        self._last: Entry | None = None
        self._before: Entry | None = None
        self._figures: dict[str, float] = {}
        self._notice = "starting"
        self._warned = False
        self._told = time.monotonic()
        self._begun: tuple[float, int] | None = None  # when an iteration of this start was first seen, and which
        columns = TextColumn(run.name), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task("", total=self._iterations)
        self._live = Live(console=console, get_renderable=self._panel, refresh_per_second=2, transient=True)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="display", daemon=True)

    def __enter__(self) -> Self:
        for entry in self._tail.read():  # what the run did before
            self._take(entry)
        self._before = self._last
        self._bar.reset(self._task, total=self._iterations, completed=self._last.iteration if self._last else 0)
        if self._console.is_terminal:
            self._live.start()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._over.set()
        self._thread.join()
        self._update()
        self._live.stop()

    @property
    def waiting(self) -> bool:
        """Whether nothing has happened since it was started."""
        return self._last is self._before

    def say(self, notice: str) -> None:
        """Show what is going on beside training."""
        if notice == self._notice:
            return
        self._notice = notice
        if not self._console.is_terminal:
            self._console.print(f"{self._run.name}: {notice}", markup=False, soft_wrap=True)

    def _follow(self) -> None:
        while not self._over.wait(0.5):
            self._update()

    def _update(self) -> None:
        """Read what is new and show it."""
        evaluated = False
        entries = list(self._tail.read())
        for entry in entries:
            evaluated |= self._take(entry)
        if self._last is not None:
            self._bar.update(self._task, completed=self._last.iteration)
        if entries and self._begun is None:
            self._begun = time.monotonic(), entries[-1].iteration
        done = entries and entries[-1].iteration >= self._iterations
        if done and self._run.evaluated_at_end and not self._over.is_set():
            self.say("evaluating on query and gallery")
        due = time.monotonic() - self._told >= LINES_EVERY and not self._over.is_set()
        if not self._console.is_terminal and (evaluated or due):
            self._told = time.monotonic()
            parts = [f"{self._last.iteration:,} of {self._iterations:,}"] if self._last is not None else []
            parts += [self._line(), *self._left(), *([self._notice] if parts and self._notice else [])]
            line = f"{self._run.name}: {', '.join(parts)}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _left(self) -> list[str]:
        """How long the iterations that are left will take, once it is known."""
        if self._begun is None or self._last is None or not self._begun[1] < self._last.iteration < self._iterations:
            return []
        pace = (time.monotonic() - self._begun[0]) / (self._last.iteration - self._begun[1])
        return [f"about {in_words(pace * (self._iterations - self._last.iteration))} left"]

    def _take(self, entry: Entry) -> bool:
        """Remember an entry; returns whether the run was evaluated."""
        self._last, self._notice = entry, ""
        if self._method.warning is not None and not self._warned:
            named = {name.partition("/")[2]: value for name, value in entry.metrics.items()}
            if warning := self._method.warning(self._config, named):
                self._warned = True
                self._console.print(f"iteration {entry.iteration:,}: {warning}", style="yellow", soft_wrap=True)
        found = {name: value for name, value in entry.metrics.items() if name.startswith(("val/", "test/"))}
        self._figures = found or self._figures
        return bool(found)

    def _phase(self) -> str:
        return self._clock.phase(self._last.iteration) if self._clock is not None and self._last is not None else ""

    def _line(self) -> str:
        """Losses, speed and figures in a few words."""
        if self._last is None:
            return self._notice
        metrics = self._last.metrics
        parts = [self._phase()] if self._phase() else []
        parts += [
            f"{title} {metrics[f'loss/{name}']:.3f}"
            for name, title in self._method.shown.items()
            if f"loss/{name}" in metrics
        ]
        parts.append(f"{metrics.get('speed/images_per_second', 0):.0f} images/s")
        return ", ".join([*parts, *self._evaluated()])

    def _evaluated(self) -> list[str]:
        maps = {name.split("/")[1]: 100 * value for name, value in self._figures.items() if name.endswith("/mAP")}
        figures = [f"{feature} {value:.1f}" for feature, value in maps.items()]
        swap = [f"swap SSIM {value:.3f}" for name, value in self._figures.items() if name.endswith("swap/SSIM")]
        where = "validation" if any(name.startswith("val/") for name in self._figures) else "test"
        return [f"{where} mAP: {' '.join(figures)}", *swap] if figures else []

    def _panel(self) -> RenderableType:
        lines: list[RenderableType] = [self._bar, Text(f"  {self._line()}", style="dim")]
        if self._notice and self._last is not None:
            lines.append(Text(f"  {self._notice}", style="yellow"))
        return Group(*lines)
