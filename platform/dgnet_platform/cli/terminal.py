"""The frame around every command: its console, its progress, how errors are shown, and its exit status."""

import io
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TaskID, TextColumn, TimeRemainingColumn

from dgnet_platform.errors import TrainingError, UserError, printable
from dgnet_platform.progress import LINES_EVERY, in_words

DONE, FAILED, REFUSED, STOPPED = 0, 1, 2, 128 + signal.SIGINT
"""Exit statuses of all commands."""

Command = Callable[[str | None, Sequence[str], Console], int]
"""Takes the description for --help, the arguments and a console; returns the exit status."""
ShowProgress = Callable[[str, int, int], None]
"""Takes what is being done, how much of it is done, and how much there is."""


def run(command: Command, description: str | None, args: Sequence[str] | None) -> int:
    """Run a command; errors that a user can mend end it with a line instead of a traceback.

    Args:
        command: what to run.
        description: what --help says first.
        args: arguments; None: those of the command line.

    Returns:
        The exit status: 0 done, 130 stopped, 2 refused, 1 failed on the way.

    Raises:
        SystemExit: the command line is wrong (status 2, tyro has explained it), or asked for help (status 0).
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # what a terminal cannot show never ends a command
    console = Console(markup=False, highlight=False, soft_wrap=True)  # lines are copied: no bracket or break is added
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a job scheduler's end cleans up, as Ctrl-C does
    try:
        return command(description, sys.argv[1:] if args is None else args, console)
    except (UserError, OSError) as error:
        console.print(printable_lines(error), style="bold red")
        return FAILED if isinstance(error, TrainingError) else REFUSED
    except KeyboardInterrupt:
        console.print("Stopped: the same command resumes from what is saved.", style="bold yellow")
        return STOPPED


def printable_lines(error: BaseException) -> str:
    """An error's message, safe to show, with its line breaks."""
    return "\n".join(printable(line) for line in (str(error) or type(error).__name__).splitlines())


@contextmanager
def progress_bars(console: Console) -> Iterator[ShowProgress]:
    """A bar for each thing that is being done, for as long as the context lasts; without a terminal a line at times."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    bars = Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal, speed_estimate_period=300
    )
    tasks: dict[str, TaskID] = {}
    told = time.monotonic()

    def show(what: str, done: int, total: int) -> None:
        nonlocal told
        if what not in tasks:
            tasks[what] = bars.add_task(printable(what))
        bars.update(tasks[what], completed=done, total=total)
        if not console.is_terminal and time.monotonic() - told >= LINES_EVERY:
            told = time.monotonic()
            if under_way := [task for task in bars.tasks if not task.finished]:
                *others, finest = under_way  # whole runs are too few to tell the time by
                left = "" if finest.time_remaining is None else f", about {in_words(finest.time_remaining)} left"
                console.print("; ".join([*map(_line, others), _line(finest) + left]))

    with bars:
        yield show


def _line(task: Task) -> str:
    """What a task is, and how far it is."""
    return f"{task.description}: {task.completed:,.0f} of {task.total or 0:,.0f}"
