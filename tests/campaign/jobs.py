"""The jobs of a campaign, and what they leave."""

import hashlib
import json
import random
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import yaml
from mlflow import MlflowClient
from rich.console import Console

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
from tests.campaign.campaign import Campaign, Fault, Job, Outcome, run
from tests.cluster.lab import HEAD, WORKERS, lab, wait_for
from tests.cluster.lab_cluster import SEARCH, Cluster, furnish
from tests.helpers.runs import QUIET, job, lines, tiny_experiment

ALONE = ("prepare", "training", "search", "generate", "evaluate")
"""Jobs that need no other machine."""
CLUSTER = "cluster"
"""A search whose trials have two hosts each."""
SERVED = ("kill", "stop", "pause", "disk", "server", "refuse")
AWAY = 5.0, 45.0
"""Seconds that a host is away: Ray misses it, or does not."""


def campaign(
    root: Path, kills: int, seed: int, names: Sequence[str], faults: Sequence[str], console: Console
) -> list[Fault]:
    """Make what some jobs need, and run a campaign of them; returns what became of its faults."""
    store = root / "store"
    write_market(People(0), root / "people", SIZES["tiny"])
    prepare(PrepareConfig(dataset="people", source=root / "people", out=store, threads=1))
    jobs = jobs_alone(root, store, [name for name in names if name != CLUSTER])
    if CLUSTER not in names:
        return run(Campaign(root / "faults", jobs), kills, seed, faults, console)
    with cluster_job(root, store) as search:
        return run(Campaign(root / "faults", {**jobs, CLUSTER: search}), kills, seed, faults, console)


def jobs_alone(root: Path, store: Path, names: Sequence[str]) -> dict[str, Job]:
    """The jobs of this machine alone, and all that they need."""
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
            start=command("prepare_data.py", lambda out: [
                "--dataset", "people", "--source", str(root / "people"), "--out", str(out / "store"),
            ]),
            outcome=digests,
        ),
        "training": Job(
            start=command("train_market.py", lambda out: [*settings, "--storage", str(out)]),
            outcome=lambda out: outcome_of_run(out / "run"),
            runs="run",
            faults=SERVED,
        ),
        "search": Job(
            start=command("tune_market.py", lambda out: [
                "--config", str(root / "search.yaml"), "--storage", str(out), "--name", "search",
                "--trials", "2",
                "--teacher", base.teacher, "--concurrent", "1", "--set", "ramp=4", "warmup_start={choices: [4, 6]}",
                "--stopping.rungs", "2", "--stopping.eta", "2", "--stopping.first", "0.3",
            ]),
            outcome=outcome_of_search,
            runs="search-*",
            faults=SERVED,
        ),
        "generate": Job(
            start=command("generate.py", lambda out: [
                "--checkpoint", checkpoint, "--store", str(store), "--out", str(out / "set"), "--per-image", "2",
                "--batch-size", "4",
            ]),
            outcome=digests,
        ),
        "evaluate": Job(
            start=command("evaluate.py", lambda out: [
                "--checkpoint", checkpoint, "--store", str(store), "--out", str(out / "results"), "--swap-pairs", "8",
            ]),
            outcome=outcome_of_evaluation,
        ),
    }  # fmt: skip
    return {name: jobs[name] for name in names}


def command(script: str, arguments: Callable[[Path], list[str]]) -> Callable[..., subprocess.Popen[str]]:
    """Starts a job with its arguments, by the folder that it writes to."""
    return lambda folder, *more: job(script, *arguments(folder), *more)


@contextmanager
def cluster_job(root: Path, store: Path) -> Iterator[Job]:
    """A search on a cluster of four hosts, which is up as long as the context."""
    with lab() as hosts:
        furnish(hosts.shared, store, root / "furnished")
        cluster = Cluster(hosts)
        cluster.up()

        def complete() -> bool:
            return cluster.alive() == {HEAD, *WORKERS}

        def start(folder: Path, *more: str) -> subprocess.Popen[str]:
            wait_for(complete, 240, "workers")
            return cluster.submit(f"{SEARCH} --storage /shared/{folder.name} {' '.join(more)}")

        def strike(fault: Fault) -> None:
            lot = random.Random(fault.share)
            host, away = lot.choice(WORKERS), lot.choice(AWAY)
            if fault.kind == "kill":
                hosts.run(HEAD, "pkill -KILL -f '^python jobs/tune_market.py' || true")  # or it has just ended
            elif fault.kind == "cut":
                hosts.cut(host)
                time.sleep(away)
                hosts.mend(host)
            else:
                hosts.off(host)
                time.sleep(away)
                hosts.on(host)

        def outcome(folder: Path) -> Outcome:
            found = outcome_of_leaderboard(folder)
            answer = cluster.mlflow("experiments/search", max_results=10, filter="name = 'dgnet-people'")
            [experiment] = answer["experiments"]
            tracked = cluster.mlflow("runs/search", experiment_ids=[experiment["experiment_id"]])["runs"]
            by_id = {run["info"]["run_id"]: run for run in tracked}
            for trial in sorted(folder.glob("search-[0-9]*")):
                run = by_id[Run.read(trial).mlflow_run]
                metrics = {metric["key"]: metric for metric in run["data"]["metrics"]}
                found |= {f"{trial.name}: {name}": value for name, value in weights_and_curves(trial).items()}
                found[f"{trial.name}: status in MLflow"] = run["info"]["status"]
                found[f"{trial.name}: last step in MLflow"] = metrics["iteration"]["step"]
            return found

        yield Job(
            start=start, outcome=outcome, runs="search-*", faults=("kill", "cut", "off"), root=hosts.shared,
            strike=strike,
        )  # fmt: skip


def digests(folder: Path) -> Outcome:
    """Every file below a folder but locks, and its content."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".lock")]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def outcome_of_run(folder: Path) -> Outcome:
    """Weights, curves, results, files of a run; how often MLflow has each of its steps."""
    run, found = Run.read(folder), weights_and_curves(folder)
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


def weights_and_curves(folder: Path) -> dict[str, Any]:
    """A run's checkpoints, and its journal but for the speed."""
    found: dict[str, Any] = {f"weights of {path.name}": _weights(path) for path in checkpoints(folder)}
    for line in lines(folder):
        curves = {name: value for name, value in line["metrics"].items() if not name.startswith("speed/")}
        found[f"curves at {line['iteration']}"] = curves
    return found


def outcome_of_evaluation(folder: Path) -> Outcome:
    """Figures and files of an evaluation."""
    values = json.loads((folder / "results" / "results.json").read_text())
    del values["extraction"]  # how long it took
    return values | {"all files": sorted(path.name for path in (folder / "results").iterdir())}


def outcome_of_search(folder: Path) -> Outcome:
    """Trials, their curves and weights, and the best settings."""
    found = outcome_of_leaderboard(folder)
    for trial in sorted(folder.glob("search-[0-9]*")):
        found |= {f"{trial.name}: {name}": value for name, value in outcome_of_run(trial).items()}
    return found


def outcome_of_leaderboard(folder: Path) -> dict[str, Any]:
    """Trials, and the best settings."""
    board = pd.read_csv(folder / "search" / "leaderboard.csv").astype(object)
    found: dict[str, Any] = {f"trial {row['trial']}": str(row) for row in board.to_dict("records")}
    return found | {"best.yaml": (folder / "search" / "best.yaml").read_text()}


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
