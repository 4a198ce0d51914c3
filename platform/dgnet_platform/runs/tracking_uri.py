"""Where MLflow's tracking store is, and where a person looks at it: strings only."""

import os
import re
import shlex
from pathlib import Path
from urllib.parse import unquote, urlsplit

from dgnet_platform.errors import TrackingError
from dgnet_platform.storage.files import resolved

SQLITE = "sqlite:///"
VARIABLE = "MLFLOW_TRACKING_URI"
UI = "http://127.0.0.1:5000"
"""Where `mlflow ui` listens."""


def default_uri(storage: str) -> str:
    """The tracking URI of runs that name none: MLFLOW_TRACKING_URI's, or a database in the storage folder."""
    return named_uri() or sqlite_uri(resolved(storage) / "mlflow.db")


def named_uri() -> str:
    """The tracking URI that MLFLOW_TRACKING_URI names, or nothing."""
    return usable(os.environ.get(VARIABLE, ""), f"{VARIABLE}=")


def sqlite_uri(file: Path) -> str:
    """The URI of a database file, whatever its path holds."""
    return SQLITE + re.sub("[%?#]", lambda found: f"%{ord(found[0]):02X}", str(file))


def database_of(uri: str) -> Path:
    """The file of an SQLite URI."""
    return Path(unquote(uri.removeprefix(SQLITE)))


def usable(uri: str, source: str = "--tracking-uri ") -> str:
    """A tracking URI that holds in every process; nothing stays nothing.

    Args:
        uri: a server's, a database's, or nothing.
        source: where it was named, for messages.

    Raises:
        TrackingError: it is none, or has a password in it, which would be seen in records, logs and MLflow itself.
    """
    if not uri:
        return uri
    scheme, separator, place = uri.partition("://")
    if not separator or scheme == "file":
        raise TrackingError(f"{source}{uri}: name a server such as http://127.0.0.1:5000, or sqlite:///FILE")
    if scheme == "sqlite":
        try:
            return sqlite_uri(database_of(uri).resolve())
        except (ValueError, RuntimeError) as error:  # it holds what no file's name can, or links go round in a circle
            raise TrackingError(f"{source}{uri!r} names no file ({error}): name another one") from None
    try:
        parts = urlsplit(uri)
        secret = parts.password is not None or (scheme in ("http", "https") and parts.username is not None)
    except ValueError as error:
        raise TrackingError(f"{source}{scheme}://...: {error}") from None
    if secret or "password=" in parts.query:
        server = scheme in ("http", "https")
        where = (
            "which belong in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or in ~/.mlflow/credentials"
            if server
            else "which belongs in ~/.pgpass, or start MLflow's server on it (platform/cluster/mlflow_server.py)"
        )
        what = "user and password" if server else "a password"
        raise TrackingError(
            f"{source}{scheme}://...@{place.rpartition('@')[2].partition('?')[0]}: without {what}, {where}"
        )
    return uri


def is_gone(uri: str) -> bool:
    """Whether a URI names a database file that is missing."""
    return uri.startswith(SQLITE) and not database_of(uri).exists()


def page_of(uri: str, experiment: str, run: str, *, report: bool = False) -> str:
    """The address of a run's charts or report, of a database's file as `mlflow ui` shows it.

    Arguments as for `where_to_look`.
    """
    server = uri.rstrip("/") if uri.startswith("http") else UI
    tab = "" if report else "/model-metrics"
    return f"{server}/#/experiments/{experiment}/runs/{run}{tab}?workflowType=machine_learning"


def where_to_look(uri: str, experiment: str, run: str, *, report: bool = False) -> str:
    """How to look at a run: the address of its charts, and before it the command that serves it, if it is a file.

    The address opens MLflow's view for training: its own first page is the one for language models.

    Args:
        uri: MLflow's store or server.
        experiment: id of MLflow's experiment.
        run: id of MLflow's run.
        report: its description is what to look at, such as a leaderboard: it has no curves of its own.
    """
    page = page_of(uri, experiment, run, report=report)
    if uri.startswith("http"):
        return page
    return f"uv run mlflow ui --workers 1 --backend-store-uri {shlex.quote(uri)}\n  then {page}"
