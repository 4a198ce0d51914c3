"""What a campaign is: jobs, faults, and the same command again."""

import random
import resource
import signal
import statistics
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from dgnet_platform.runs.run import Run
from tests.helpers.runs import lines
from tests.helpers.servers import TrackingServer, free_ports, refusing

ENDS = 900.0
"""Seconds within which a command ends, also on a busy machine."""
TRIES = 3
"""How often the same command is run at most until it succeeds."""
AWAY = 5.0
"""Seconds that a command is paused, or a server is away."""
FAULTS = ("kill", "stop", "pause", "disk", "server", "refuse", "cut", "off")
Outcome = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command that is disturbed."""

    start: Callable[..., subprocess.Popen[str]]
    """Starts it, by the folder that it writes to, and further arguments."""
    outcome: Callable[[Path], Outcome]
    """What it left there, by name."""
    runs: str = ""
    """Names of the runs whose journals tell how many iterations a fault costs; empty: that is not measured."""
    faults: tuple[str, ...] = ("kill", "stop", "pause", "disk")
    root: Path | None = None
    """Where its folders are made; None: the campaign's."""
    strike: Callable[["Fault"], None] | None = None
    """Makes a fault happen; None: it happens to the command's process."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What happened, and what it cost."""

    job: str
    kind: str
    share: float
    """Moment, as a share of an undisturbed command's time."""
    within: bool = False
    """Whether it waits for a write; afterwards, whether it struck within one."""
    lost: int | None = None
    """Iterations that were trained again; None: that is not measured."""
    seconds: float = 0.0
    """Of the commands after the fault, until one succeeded."""
    differences: tuple[str, ...] = ()
    """Names of what is not as an undisturbed command leaves it."""


@dataclass
class Campaign:
    """The jobs, what they leave when nothing happens, and the faults so far."""

    root: Path
    jobs: dict[str, Job]
    expected: dict[str, Outcome] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)

    def undisturbed(self, name: str) -> None:
        """Run a job to its end, and remember what it left."""
        if name in self.expected:
            return
        folder = self._folder(name, f"{name}-undisturbed")
        begun = time.monotonic()
        status, output = self._finish(self.jobs[name].start(folder))
        assert status == 0, output
        self.durations[name] = time.monotonic() - begun
        self.expected[name] = self.jobs[name].outcome(folder)

    def disturb(self, fault: Fault, number: int) -> Fault:
        """Have a fault happen to a job, run the same command again, and compare."""
        folder = self._folder(fault.job, f"{number:04d}-{fault.job}-{fault.kind}")
        if fault.kind not in ("server", "refuse"):
            return self._disturb(fault, folder, None)
        server = TrackingServer(folder, free_ports(1)[0])
        try:
            server.start()
            return self._disturb(fault, folder, server)
        finally:
            server.stop()

    def _disturb(self, fault: Fault, folder: Path, server: TrackingServer | None) -> Fault:
        planned = self.jobs[fault.job]
        uri = () if server is None else ("--tracking-uri", server.uri)
        process = planned.start(folder, *uri)
        with suppress(subprocess.TimeoutExpired):
            process.wait(fault.share * self.durations[fault.job])
        fault = replace(fault, within=fault.within and _writes(folder, process))
        if process.poll() is None:
            if planned.strike is not None:
                planned.strike(fault)
            else:
                self._happen(fault.kind, process, server)
        status, output = self._finish(process)
        journals = folder.glob(f"{planned.runs}/metrics.jsonl") if planned.runs else ()
        runs = [run for path in journals if (run := Run.find(path.parent))]
        before = [(run, len(lines(run.folder)), len(run.starts)) for run in runs]
        begun, tries = time.monotonic(), 0
        if "Traceback" in output:
            return replace(fault, differences=(f"traceback: {output.strip().splitlines()[-1]}",))
        while tries == 0 or status != 0:
            if tries == TRIES:
                return replace(fault, differences=(f"exit status {status}: {output.strip().splitlines()[-1]}",))
            status, output = self._finish(planned.start(folder, *uri))
            tries += 1
        seconds = time.monotonic() - begun
        lost = sum(_lost(*then) for then in before) if planned.runs else None
        found, expected = planned.outcome(folder), self.expected[fault.job]
        names = sorted(found.keys() | expected.keys())
        differences = tuple(name for name in names if found.get(name) != expected.get(name))
        return replace(fault, lost=lost, seconds=seconds, differences=differences)

    def _happen(self, kind: str, process: subprocess.Popen[str], server: TrackingServer | None) -> None:
        if kind == "kill":
            process.kill()
        elif kind == "stop":
            process.send_signal(signal.SIGTERM)
        elif kind == "pause":
            process.send_signal(signal.SIGSTOP)
            time.sleep(AWAY)
            process.send_signal(signal.SIGCONT)
        elif kind == "disk":
            psutil.Process(process.pid).rlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
        else:
            assert server is not None
            server.stop()
            with refusing(server.port) if kind == "refuse" else nullcontext():
                time.sleep(AWAY)
            server.start()

    def _finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        try:
            output, _ = process.communicate(timeout=ENDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return -1, f"it did not end within {ENDS:.0f} s"
        return process.returncode, output

    def _folder(self, job: str, name: str) -> Path:
        folder = (self.jobs[job].root or self.root) / name
        folder.mkdir(parents=True)
        return folder


def _writes(folder: Path, process: subprocess.Popen[str]) -> bool:
    """Wait until a command writes: a file is half there, or a journal grows; returns whether it ever did."""

    def sizes() -> list[int]:
        return [journal.stat().st_size for journal in folder.glob("*/metrics.jsonl")]

    before = sizes()
    while process.poll() is None:
        if next(folder.glob(".*.partial"), None) or next(folder.glob("*/.*.partial"), None) or sizes() != before:
            return True
        time.sleep(0.001)
    return False


def _lost(run: Run, done: int, starts: int) -> int:
    """Iterations that a run trained again which had done so many, and been started so often."""
    again = run.starts[starts:]
    return max(0, done - again[0]["iteration"]) if again else 0


def draw(count: int, seed: int, jobs: Mapping[str, Job], faults: Sequence[str]) -> list[Fault]:
    """So many faults, a function of the seed: jobs and kinds in turn, moments at random, half within a write."""
    pairs = [(name, kind) for name, planned in jobs.items() for kind in planned.faults if kind in faults]
    assert pairs, "none of these faults happens to these jobs"
    lot = random.Random(seed)
    lot.shuffle(pairs)
    return [
        Fault(job=name, kind=kind, share=lot.uniform(0.05, 0.95), within=lot.random() < 0.5)
        for name, kind in (pairs[number % len(pairs)] for number in range(count))
    ]


def table_of(faults: Sequence[Fault]) -> Table:
    """A line for each job and kind of fault."""
    columns = "job", "fault", "times", "within a write", "lost iterations", "seconds to the end", "differences"
    table = Table(*columns, title="Faults")
    groups: defaultdict[tuple[str, str], list[Fault]] = defaultdict(list)
    for fault in faults:
        groups[fault.job, fault.kind].append(fault)
    for (name, kind), group in sorted(groups.items()):
        lost = [fault.lost for fault in group if fault.lost is not None]
        seconds = statistics.median(fault.seconds for fault in group)
        differences = "; ".join(name for fault in group for name in fault.differences[:3]) or "none"
        mean = f"{statistics.fmean(lost):.1f}, at most {max(lost)}" if lost else "-"
        within = str(sum(fault.within for fault in group))
        table.add_row(name, kind, str(len(group)), within, mean, f"{seconds:.0f}", differences)
    return table


def run(made: Campaign, kills: int, seed: int, faults: Sequence[str], console: Console) -> list[Fault]:
    """Draw faults and have them happen; returns what became of them. The table is printed in any case."""
    done: list[Fault] = []
    try:
        for number, planned in enumerate(draw(kills, seed, made.jobs, faults)):
            made.undisturbed(planned.job)
            fault = made.disturb(planned, number)
            done.append(fault)
            said = ", ".join(fault.differences) or "none"
            what = f"{fault.kind} at {fault.share:.0%} of {fault.job}"
            console.print(f"{number + 1} of {kills}: {what}; differences: {said}")
    finally:
        console.print(table_of(done))
    return done
