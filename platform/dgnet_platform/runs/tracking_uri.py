"""Where MLflow's tracking store is: strings only."""

import os
import shlex
from pathlib import Path

from dgnet_platform.errors import TrackingError

SQLITE = "sqlite:///"


def default_uri(storage: str) -> str:
    """The tracking URI of runs that name none: DGNET_TRACKING_URI's, or a database in the storage folder."""
    named = usable(os.environ.get("DGNET_TRACKING_URI", ""))
    return named or f"{SQLITE}{Path(storage).expanduser().resolve() / 'mlflow.db'}"


def usable(uri: str) -> str:
    """A tracking URI that holds in every process; nothing stays nothing.

    Raises:
        TrackingError: it is none, or has a password in it, which would be seen in records, logs and MLflow itself.
    """
    scheme, separator, place = uri.partition("://")
    if not uri or (separator and scheme not in ("http", "https", "sqlite")):
        return uri
    if not separator:
        raise TrackingError(f"--tracking-uri {uri}: name a server such as http://127.0.0.1:5000, or sqlite:///FILE")
    if scheme == "sqlite":
        return f"{SQLITE}{database_of(uri).resolve()}"
    if "@" in place.partition("/")[0]:
        raise TrackingError(
            f"--tracking-uri {scheme}://...@{place.rpartition('@')[2]}: without user and password, which belong in"
            " MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or in ~/.mlflow/credentials"
        )
    return uri


def is_gone(uri: str) -> bool:
    """Whether a URI names a database file that is not there."""
    return uri.startswith(SQLITE) and not database_of(uri).exists()


def ui_command(uri: str) -> str:
    """How to look at the runs: a command, or the server's address."""
    return uri if uri.startswith("http") else f"uv run mlflow ui --backend-store-uri {shlex.quote(uri)}"


def database_of(uri: str) -> Path:
    """The file of an SQLite URI."""
    return Path(uri.removeprefix(SQLITE))
