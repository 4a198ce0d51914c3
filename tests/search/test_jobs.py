"""Searches as jobs of one Ray cluster: in both forms, beside each other, stopped and submitted again."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import optuna
import psutil
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from dgnet_platform.runs.checkpoint import checkpoints
from dgnet_platform.runs.presets import teacher_of
from dgnet_platform.runs.run import Run
from dgnet_platform.search.study import FILE
from dgnet_platform.search.trial import TrialProgress
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.training.driver import train
from tests.helpers.runs import QUIET, ROOT, lines, tiny_experiment
from tests.helpers.servers import free_ports, wait_for

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,  # a lab of hosts submits searches in minutes less: tests/cluster/test_cluster_lab.py
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # Ray, MLflow and gRPC warn of each other
]
ITERATIONS, TRIALS = 100, 3


class Cluster:
    """A Ray cluster of this machine, as a user of `ray job` sees it."""

    def __init__(self):
        port, dashboard, agent = free_ports(3)  # jobs go through the agent, whose own port another cluster may have
        self._address = f"http://127.0.0.1:{dashboard}"
        self._environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | {
            # Without the last one, Ray kills a job three seconds after it was asked to stop.
            "OMP_NUM_THREADS": "1", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef" * 2,
            "RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "RAY_JOB_STOP_WAIT_TIME_S": "120",
        }  # fmt: skip
        self._head = self._ray(
            "start", "--head", "--block", "--num-cpus", "2", "--port", str(port), "--dashboard-port", str(dashboard),
            "--dashboard-agent-listen-port", str(agent),
        )  # fmt: skip

    def _ray(self, *arguments: str) -> subprocess.Popen[str]:
        ray = Path(sys.executable).parent / "ray"
        pipe, out = subprocess.PIPE, subprocess.STDOUT
        return subprocess.Popen([ray, *arguments], stdout=pipe, stderr=out, text=True, cwd=ROOT, env=self._environment)

    def job(self, command: str, *arguments: str) -> tuple[int, str]:
        """Exit status and output of `ray job COMMAND`."""
        process = self._ray("job", command, "--address", self._address, *arguments)
        output, _ = process.communicate(timeout=300)
        return process.returncode, output

    def submit(self, name: str, *entry: str) -> None:
        """The README's command."""
        status, output = self.job(
            "submit", "--no-wait", "--submission-id", name, "--working-dir", ".", "--runtime-env-json",
            '{"env_vars": {"PYTHONPATH": "platform"}}', "--", *entry,
        )  # fmt: skip
        assert status == 0, output

    def close(self) -> None:
        """End all its processes."""
        everyone = [*psutil.Process(self._head.pid).children(recursive=True)]
        self._head.send_signal(signal.SIGTERM)
        self._head.communicate(timeout=60)
        for process in psutil.wait_procs(everyone, timeout=30)[1]:
            with suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    started = Cluster()
    try:
        wait_for(lambda: started.job("list")[0] == 0, 120)
        yield started
    finally:
        started.close()


def trials_of(storage: Path, name: str) -> list[FrozenTrial]:
    backend = JournalStorage(JournalFileBackend(str(storage / name / FILE)))
    return optuna.load_study(study_name=name, storage=backend).get_trials()


def is_done(storage: Path, name: str) -> bool:
    trials = trials_of(storage, name)
    return len(trials) == TRIALS and all(trial.state.is_finished() for trial in trials)


def test_searches_beside_each_other_are_stopped_and_submitted_again(cluster, people_store, tmp_path):
    base = tiny_experiment(people_store, tmp_path, evaluate_every=20, checkpoint_every=4)
    base = replace(base, model=replace(base.model, iterations=ITERATIONS))
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(to_dict(base)))
    teacher = train(teacher_of(base), console=QUIET).run.last_checkpoint
    options = [
        "--storage", str(tmp_path), "--data", str(people_store), "--teacher", str(teacher), "--config",
        str(tmp_path / "base.yaml"), "--trials", str(TRIALS), "--concurrent", "2", "--stopping.kind", "none",
        "--second", "swap", "--set", "ramp=4", "warmup_start={choices: [4, 8, 12]}",
    ]  # fmt: skip
    one = ("python", "jobs/tune_market.py", "--name", "one", "--seed", "1", *options)
    two = ("jobs/tune_market.py", "--name", "two", "--seed", "2", *options)
    cluster.submit("job-one", *one)
    cluster.submit("job-two", *two)

    # One is stopped in the middle of a trial, which is saved; the other one goes on.
    folder = tmp_path / "one-000"
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(lines(folder)) > 13, 400)
    status, output = cluster.job("stop", "job-one")
    assert status == 0, output
    saved = int(checkpoints(folder)[-1].name[-8:])
    assert 13 < saved == lines(folder)[-1]["iteration"] < ITERATIONS
    assert "the same command resumes" in cluster.job("logs", "job-one")[1]
    cluster.submit("job-one-again", *one)
    wait_for(lambda: is_done(tmp_path, "one") and is_done(tmp_path, "two"), 600)
    for job in ("job-one-again", "job-two"):
        wait_for(lambda job=job: "succeeded" in cluster.job("status", job)[1], 120)

    assert [entry["iteration"] for entry in lines(folder)] == list(range(1, ITERATIONS + 1))
    for name in ("one", "two"):
        trials = trials_of(tmp_path, name)
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * TRIALS
        runs = [Run.read(tmp_path / f"{name}-{trial.number:03d}") for trial in trials]
        assert all(Path(run.stop_file or "").parent.name == name for run in runs)
        assert all(len(trial.values) == 2 for trial in trials)
        assert list((tmp_path / name).glob("front-*.yaml"))
    assert trials_of(tmp_path, "one")[1].params != trials_of(tmp_path, "two")[1].params

    # What both have in common was trained once.
    progress = [TrialProgress.read(tmp_path / f"{name}-{k:03d}") for name in ("one", "two") for k in range(TRIALS)]
    assert len({p.prefix for p in progress}) == len(list((tmp_path / "prefixes").glob("*/*/")))
    assert sum(p.trained for p in progress) == max(p.fork for p in progress)
