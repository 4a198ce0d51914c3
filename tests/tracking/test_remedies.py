"""What is said when MLflow cannot be used as asked: the cause's own remedy, and nothing is migrated unasked."""

import shlex
import sqlite3
from pathlib import Path

import pytest
from mlflow.exceptions import MlflowException

from dgnet_platform.errors import TrackingError
from dgnet_platform.runs.tracking_uri import database_of, default_uri, sqlite_uri, usable
from dgnet_platform.tracking.client import open_experiment
from dgnet_platform.tracking.remedies import first_line, remedy_for

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow and its database warn of each other


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("tracking") / "50% o'neil?#" / "mlflow.db"
    open_experiment(sqlite_uri(file), "dgnet")
    assert file.exists()
    return file


def stamped(database: Path, folder: Path, version: str) -> str:
    copy = folder / "mlflow.db"
    copy.write_bytes(database.read_bytes())
    with sqlite3.connect(copy) as connection:
        connection.execute("update alembic_version set version_num=?", (version,))
    return sqlite_uri(copy)


@pytest.mark.parametrize("folder", [".", "my runs", "o'neil"])
def test_an_older_database_is_named_with_its_upgrade_and_left_alone(database: Path, tmp_path: Path, folder: str):
    (tmp_path / folder).mkdir(exist_ok=True)
    uri = stamped(database, tmp_path / folder, "bd07f7e963c5")
    before = database_of(uri).read_bytes()
    with pytest.raises(TrackingError, match=r"older MLflow; after a copy of .*mlflow db upgrade ") as told:
        open_experiment(uri, "dgnet")
    assert shlex.split(str(told.value).split("`")[1])[-2:] == ["upgrade", uri]
    assert database_of(uri).read_bytes() == before


def test_a_newer_database_is_not_to_be_upgraded(database: Path, tmp_path: Path):
    with pytest.raises(TrackingError, match="made by a newer MLflow than this one") as told:
        open_experiment(stamped(database, tmp_path, "fff000fff000"), "dgnet")
    assert "upgrade" not in str(told.value)


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (OSError("(sqlite3.OperationalError) database is locked"), "which other program has /tmp/mlflow.db open"),
        (ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2"), "psycopg2 is missing: uv sync --extra"),
        (MlflowException("API request failed with error code 401"), "MLFLOW_TRACKING_USERNAME"),
        (OSError("unable to open database file"), "can it be written?"),
    ],
)
def test_each_cause_has_its_remedy(error: Exception, remedy: str):
    assert remedy in remedy_for("sqlite:////tmp/mlflow.db", error)


def test_a_proxy_that_was_asked_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(
        TrackingError, match=r"the proxy that http_proxy names was asked for it: set no_proxy=127.0.0.1"
    ):
        open_experiment("http://127.0.0.1:5000", "dgnet")


def test_a_message_is_not_cut_in_a_word():
    assert first_line(OSError("word " * 100)).endswith("word ...")


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://me:secret@host/db",
        "http://me:secret@host",
        "http://token@host",
        "mysql://host/db?password=secret",
        "https://:secret@host:1/x@y",
    ],
)
def test_no_password_is_kept_or_shown(uri: str):
    with pytest.raises(TrackingError, match="without") as told:
        usable(uri)
    assert "secret" not in str(told.value)
    assert "token" not in str(told.value)


def test_mlflows_own_variable_names_the_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, database: Path):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    open_experiment(sqlite_uri(database), "dgnet")
    assert default_uri(str(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"  # not the store of a run before
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    open_experiment(sqlite_uri(database), "dgnet")
    assert default_uri(str(tmp_path)) == "http://host:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "./mlruns")
    with pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_URI=./mlruns: name a server"):
        default_uri(str(tmp_path))


@pytest.mark.parametrize("uri", ["sqlite:///a\0b.db", "sqlite:///\ud800.db"])
def test_what_no_file_can_be_called_is_named(uri: str):
    with pytest.raises(TrackingError, match=r"names no file \(.*\): name another one"):
        usable(uri)
