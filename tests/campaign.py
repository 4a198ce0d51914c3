"""A campaign of faults: each is drawn from a seed, the same command is run again, and the outcome is compared.

    uv run python -m tests.campaign --kills 40 --seed 1
    uv run python -m tests.campaign --kills 10 --jobs training search --faults kill server

A fault is a job, a kind and a moment. *kill* is SIGKILL to the command alone, *stop* is SIGTERM, *pause* SIGSTOP, and
SIGCONT 5 seconds later; *disk* lets no file of the command grow from that moment on; *server* kills MLflow's server and
starts it again 5 seconds later, *refuse* has it answer 500 and 503 as long. Half of them wait from the moment on for a
write: a file that is half there, or a journal that grows. Then the same command is run until it ends. What it leaves is
compared with what an undisturbed command left: bits of weights, curves, metric steps in MLflow (each once), trials,
files. The table has a line for each job and kind of fault.
"""

import argparse
import hashlib
import json
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import torch
import yaml
from mlflow import MlflowClient
from rich.console import Console
from rich.table import Table

from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import write_market
from dgnet_platform.data.people.sizes import SIZES
from dgnet_platform.data.prepare import prepare
from dgnet_platform.runs.checkpoint import checkpoints
from dgnet_platform.runs.presets import teacher_of
from dgnet_platform.runs.run import Run
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.training.driver import train
from tests.helpers.runs import QUIET, job, lines, tiny_experiment
from tests.helpers.servers import TrackingServer, free_ports, refusing

ENDS = 900.0
"""Seconds within which a command ends, also on a busy machine."""
TRIES = 3
"""How often the same command is run at most until it succeeds."""
AWAY = 5.0
"""Seconds that a command is paused, or a server is away."""
FAULTS = ("kill", "stop", "pause", "disk", "server", "refuse")
Outcome = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A command that is disturbed."""

    script: str
    arguments: Callable[[Path], list[str]]
    """Its arguments, by the folder that it writes to."""
    outcome: Callable[[Path], Outcome]
    """What it left there, by name."""
    runs: str = ""
    """Names of the runs whose journals tell how many iterations a fault costs; empty: that is not measured."""
    faults: tuple[str, ...] = ("kill", "stop", "pause", "disk")


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
        folder = self._folder(f"{name}-undisturbed")
        begun = time.monotonic()
        status, output = self._finish(self._start(name, folder))
        assert status == 0, output
        self.durations[name] = time.monotonic() - begun
        self.expected[name] = self.jobs[name].outcome(folder)

    def disturb(self, fault: Fault, number: int) -> Fault:
        """Have a fault happen to a job, run the same command again, and compare."""
        folder = self._folder(f"{number:04d}-{fault.job}-{fault.kind}")
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
        process = self._start(fault.job, folder, *uri)
        with suppress(subprocess.TimeoutExpired):
            process.wait(fault.share * self.durations[fault.job])
        fault = replace(fault, within=fault.within and _writes(folder, process))
        if process.poll() is None:
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
            status, output = self._finish(self._start(fault.job, folder, *uri))
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

    def _start(self, name: str, folder: Path, *more: str) -> subprocess.Popen[str]:
        return job(self.jobs[name].script, *self.jobs[name].arguments(folder), *more)

    def _finish(self, process: subprocess.Popen[str]) -> tuple[int, str]:
        try:
            output, _ = process.communicate(timeout=ENDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return -1, f"it did not end within {ENDS:.0f} s"
        return process.returncode, output

    def _folder(self, name: str) -> Path:
        folder = self.root / name
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


# ----------------------------------------------------------------------------------------------------------------
# The jobs, and what they leave


def make_campaign(root: Path, names: Sequence[str]) -> Campaign:
    """All that the jobs need, and the jobs."""
    store = root / "store"
    write_market(People(0), root / "people", SIZES["tiny"])
    prepare(PrepareConfig(dataset="people", source=root / "people", out=store, threads=1))
    base = tiny_experiment(store, root / "base", checkpoint_every=2, name="run")
    if {"training", "search", "generate", "evaluate"} & set(names):
        taught = train(teacher_of(replace(base, name="")), console=QUIET)
        base = replace(base, teacher=str(taught.run.last_checkpoint))
    (root / "base.yaml").write_text(yaml.safe_dump(to_dict(base)))
    longer = replace(base, evaluate_every=1, model=replace(base.model, iterations=20))  # room for two rungs
    (root / "search.yaml").write_text(yaml.safe_dump(to_dict(longer)))
    checkpoint = ""
    if {"generate", "evaluate"} & set(names):
        checkpoint = str(train(base, console=QUIET).run.last_checkpoint)
    settings = ["--config", str(root / "base.yaml")]
    jobs = {
        "prepare": Job(
            script="prepare_data.py",
            arguments=lambda out: [
                "--dataset", "people", "--source", str(root / "people"), "--out", str(out / "store"),
            ],
            outcome=digests,
        ),
        "training": Job(
            script="train_market.py",
            arguments=lambda out: [*settings, "--storage", str(out)],
            outcome=lambda out: outcome_of_run(out / "run"),
            runs="run",
            faults=FAULTS,
        ),
        "search": Job(
            script="tune_market.py",
            arguments=lambda out: [
                "--config", str(root / "search.yaml"), "--storage", str(out), "--name", "search",
                "--trials", "2",
                "--teacher", base.teacher, "--concurrent", "1", "--set", "ramp=4", "warmup_start={choices: [4, 6]}",
                "--stopping.rungs", "2", "--stopping.eta", "2", "--stopping.first", "0.3",
            ],
            outcome=outcome_of_search,
            runs="search-*",
            faults=FAULTS,
        ),
        "generate": Job(
            script="generate.py",
            arguments=lambda out: [
                "--checkpoint", checkpoint, "--store", str(store), "--out", str(out / "set"), "--per-image", "2",
                "--batch-size", "4",
            ],
            outcome=digests,
        ),
        "evaluate": Job(
            script="evaluate.py",
            arguments=lambda out: [
                "--checkpoint", checkpoint, "--store", str(store), "--out", str(out / "results"), "--swap-pairs", "8",
            ],
            outcome=outcome_of_evaluation,
        ),
    }  # fmt: skip
    return Campaign(root / "faults", {name: jobs[name] for name in names})


def digests(folder: Path) -> Outcome:
    """Every file below a folder but locks, and its content."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".lock")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def outcome_of_run(folder: Path) -> Outcome:
    """Weights, curves, results, files of a run; how often MLflow has each of its steps."""
    run, found = Run.read(folder), dict[str, Any]()
    for path in checkpoints(folder):
        found[f"weights of {path.name}"] = _weights(path)
    for line in lines(folder):
        curves = {name: value for name, value in line["metrics"].items() if not name.startswith("speed/")}
        found[f"curves at {line['iteration']}"] = curves
    if (folder / "results" / "results.json").exists():
        found |= {f"results: {name}": value for name, value in outcome_of_evaluation(folder).items()}
    found["files"] = sorted(
        {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {"shipping.log"}
    )
    client = MlflowClient(run.tracking_uri)
    found["steps in MLflow"] = [metric.step for metric in client.get_metric_history(run.mlflow_run, "iteration")]
    tracked = client.get_run(run.mlflow_run)
    found["status in MLflow"] = tracked.info.status
    found["metrics in MLflow"] = sorted(name for name in tracked.data.metrics if not name.startswith("system/"))
    return found


def outcome_of_evaluation(folder: Path) -> Outcome:
    """Figures and files of an evaluation."""
    values = json.loads((folder / "results" / "results.json").read_text())
    del values["extraction"]  # how long it took
    return values | {"all files": sorted(path.name for path in (folder / "results").iterdir())}


def outcome_of_search(folder: Path) -> Outcome:
    """Trials, their curves and weights, and the best settings."""
    board = pd.read_csv(folder / "search" / "leaderboard.csv").astype(object)
    found: dict[str, Any] = {f"trial {row['trial']}": str(row) for row in board.to_dict("records")}
    found["best.yaml"] = (folder / "search" / "best.yaml").read_text()
    for trial in sorted(folder.glob("search-[0-9]*")):
        found |= {f"{trial.name}: {name}": value for name, value in outcome_of_run(trial).items()}
    return found


def _weights(path: Path) -> str:
    """A digest of a checkpoint's tensors: their bytes, by name."""
    digest = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, torch.Tensor):
            digest.update(f"{name}{value.dtype}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(value, Mapping):
            for key, below in value.items():
                add(f"{name}.{key}", below)
        elif isinstance(value, list | tuple):
            for place, below in enumerate(value):
                add(f"{name}[{place}]", below)
        else:
            digest.update(f"{name}={value!r}".encode())

    add("", torch.load(path / "tensors.pt", weights_only=True))
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------------
# The campaign


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


def campaign(
    root: Path, kills: int, seed: int, jobs: Sequence[str], faults: Sequence[str], console: Console
) -> list[Fault]:
    """Run a campaign; returns what happened."""
    made, done = make_campaign(root, jobs), []
    for number, planned in enumerate(draw(kills, seed, made.jobs, faults)):
        made.undisturbed(planned.job)
        fault = made.disturb(planned, number)
        done.append(fault)
        said = ", ".join(fault.differences) or "none"
        console.print(f"{number + 1} of {kills}: {fault.kind} at {fault.share:.0%} of {fault.job}; differences: {said}")
    console.print(table_of(done))
    return done


NAMES = ("prepare", "training", "search", "generate", "evaluate")


def main() -> int:
    """Run the campaign that the command line asks for; returns 1 if any outcome differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="how many faults")
    parser.add_argument("--seed", type=int, default=0, help="draws kinds and moments")
    parser.add_argument("--jobs", nargs="+", choices=NAMES, default=NAMES)
    parser.add_argument("--faults", nargs="+", choices=FAULTS, default=FAULTS)
    parser.add_argument("--folder", type=Path, help="keep all there; none: a temporary one")
    options = parser.parse_args()
    console = Console(soft_wrap=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = options.folder or Path(temporary)
        done = campaign(root, options.kills, options.seed, options.jobs, options.faults, console)
    return int(any(fault.differences for fault in done))


if __name__ == "__main__":
    sys.exit(main())
