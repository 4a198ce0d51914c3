"""Jobs under other surroundings than their authors': each row is a process as a user starts it.

A row combines what is independent of each other, so that all of them take two minutes, and one store serves all.
"""

import os
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from dgnet_platform.runs.run import Run
from dgnet_platform.runs.tracking_uri import database_of, sqlite_uri
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.tracking.client import open_experiment
from tests.helpers.runs import ROOT, tiny_experiment, tiny_teacher

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.filterwarnings("ignore")]


def command(
    job: str,
    *arguments: object,
    folder: Path,
    environment: Mapping[str, str] | None = None,
    before: tuple[str, ...] = (),
    python: str | Path = sys.executable,
) -> subprocess.CompletedProcess[str]:
    """A job, started in a folder of its own, with what it prints."""
    return subprocess.run(
        [*before, str(python), str(ROOT / "jobs" / job), *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": "local", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        check=False,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Somewhere else, with all that a path may hold."""
    made = tmp_path / "50% o'neil & söhne; 学习"
    made.mkdir()
    return made


def settings(experiment: object, folder: Path) -> Path:
    file = folder / 'settings "quoted".yaml'
    values = to_dict(experiment)
    values.pop("storage")
    file.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    return file


def named(output: str, status: int, found: int) -> str:
    """What a command printed, which is no traceback."""
    assert found == status, output
    assert "Traceback" not in output
    return output


def test_training(people_store: Path, folder: Path):
    """An ASCII terminal of 20 columns, no home, a proxy that answers nobody, a cluster that is gone."""
    database = folder / "elsewhere" / "mlflow.db"
    environment = {
        "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "COLUMNS": "20", "OMP_NUM_THREADS": "3", "HOME": "/proc/none",
        "http_proxy": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9", "RAY_ADDRESS": "127.0.0.1:9",
        "MLFLOW_TRACKING_URI": sqlite_uri(database), "TERM": "dumb",
    }  # fmt: skip
    store = folder / "the store"
    shutil.copytree(people_store, store)
    file = settings(tiny_teacher(Path("the store"), folder), folder)
    done = command("train_teacher.py", "--config", file.name, "--name", "t", folder=folder, environment=environment)
    named(done.stdout, 0, done.returncode)
    assert database.exists()
    assert not (folder / "runs" / "mlflow.db").exists()
    run = Run.read(folder / "runs" / "t")
    assert (run.folder / "results" / "results.json").exists()
    assert run.experiment.data == str(store)


@pytest.mark.ray
def test_a_search(people_store: Path, folder: Path):
    environment = {
        "LC_ALL": "C", "COLUMNS": "30", "http_proxy": "http://127.0.0.1:9", "OMP_NUM_THREADS": "2",
        "DGNET_STORAGE": "my runs", "MLFLOW_TRACKING_URI": sqlite_uri(folder / "elsewhere" / "mlflow.db"),
    }  # fmt: skip
    file = settings(tiny_experiment(people_store, folder), folder)
    options = [
        "--config", file.name, "--name", "s", "--iterations", "12", "--set", "ramp=4", "warmup_start=4",
        "--stopping.kind", "none",
    ]  # fmt: skip
    done = command("tune_market.py", *options, "--trials", 1, folder=folder, environment=environment)
    named(done.stdout, 0, done.returncode)
    assert (folder / "my runs" / "s" / "leaderboard.csv").exists()
    assert (folder / "elsewhere" / "mlflow.db").exists()
    assert not (folder / "my runs" / "mlflow.db").exists()
    for words, changed in (
        ("HOME has to name a folder that can be written", {"HOME": "/proc/none"}),
        ("no cluster answers at RAY_ADDRESS=127.0.0.1:9", {"RAY_ADDRESS": "127.0.0.1:9"}),
    ):
        refused = command("tune_market.py", *options, "--trials", 2, folder=folder, environment=environment | changed)
        assert words in named(refused.stdout, 2, refused.returncode)


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_each_python(version: str, people_store: Path, folder: Path, tmp_path: Path):
    found = subprocess.run(
        ["uv", "python", "find", "--no-python-downloads", version], capture_output=True, text=True, check=False
    )
    if found.returncode:
        pytest.skip(f"uv finds no Python {version}")
    made = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(tmp_path / "venv")}
    sync = ["uv", "sync", "--quiet", "--locked", "--no-dev", "--python", found.stdout.strip()]
    subprocess.run(sync, check=True, cwd=ROOT, env=made)
    python = tmp_path / "venv" / "bin" / "python"
    told = subprocess.run([python, "--version"], capture_output=True, text=True, check=True).stdout
    assert told.startswith(f"Python {version}.")
    file = settings(tiny_experiment(people_store, folder), folder)
    done = command("train_market.py", "--config", file.name, folder=folder, python=python)
    named(done.stdout, 0, done.returncode)
    options = ["--config", file.name, "--name", "s", "--trials", 1, "--set", "ramp=4", "warmup_start=4"]
    done = command("tune_market.py", *options, "--stopping.kind", "none", folder=folder, python=python)
    named(done.stdout, 0, done.returncode)
    assert (folder / "runs" / "s" / "leaderboard.csv").exists()


def test_an_older_mlflow_database_is_left_alone(people_store: Path, folder: Path):
    uri = sqlite_uri(folder / "runs" / "mlflow.db")
    open_experiment(uri, "dgnet")
    with sqlite3.connect(database_of(uri)) as connection:
        connection.execute("update alembic_version set version_num='bd07f7e963c5'")
    before = database_of(uri).read_bytes()
    file = settings(tiny_teacher(people_store, folder), folder)
    done = command("train_teacher.py", "--config", file.name, folder=folder)
    assert "`uv run mlflow db upgrade " in named(done.stdout, 2, done.returncode)
    assert database_of(uri).read_bytes() == before


def mounting(script: str, *arguments: str) -> tuple[str, ...]:
    """What to put before a command: a script that runs it, as "$@", with mounts that no one else sees."""
    before = ("unshare", "-m", "sh", "-c", script, *arguments)
    probe = ("unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt")
    if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("needs root, to mount a small disk")
    return before


GROWING = """
mount -t tmpfs none runs
for size in 400k 2m 5m 6m 1g; do
    mount -o remount,size=$size runs
    "$@"
    echo "status $? with $size"
done
test -s runs/t/results/results.json
"""
"""A disk that is full: at MLflow's database, the first checkpoint, a later picture, the results or earlier; and not."""


@pytest.mark.long
def test_a_disk_that_is_full(people_store: Path, folder: Path):
    """The error names the file, and with more room the same command continues."""
    file = settings(tiny_teacher(people_store, folder), folder)
    (folder / "runs").mkdir()
    arguments = "--config", file.name, "--name", "t"
    done = command("train_teacher.py", *arguments, folder=folder, before=mounting(GROWING, "sh"))
    *full, last = re.findall(r"(.*)\n+status (\d+) with \w+\n", named(done.stdout, 0, done.returncode))
    assert len(full) == 4
    for said, status in full:
        assert (status, "/runs/" in said) == ("2", True), said
    assert last[1] == "0"


@pytest.mark.long
@pytest.mark.ray
def test_a_small_shared_memory(people_store: Path, folder: Path):
    """Containers have 64 MB of it, and some none."""
    before = mounting('mount -t tmpfs -o size=1m none /dev/shm && exec "$@"', "sh")
    file = settings(tiny_teacher(people_store, folder), folder)
    options = "--config", file.name, "--name", "t", "--workers", "1"
    done = command("train_teacher.py", *options, folder=folder, before=before)
    named(done.stdout, 0, done.returncode)
    assert [rank["iteration"] for rank in Run.read(folder / "runs" / "t").starts] == [0]
