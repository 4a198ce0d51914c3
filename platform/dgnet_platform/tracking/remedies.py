"""What helps when MLflow does not do as asked: by the error, not by the kind of store."""

import re
import shlex
from pathlib import Path
from urllib.request import getproxies

import mlflow

from dgnet_platform.runs.tracking_uri import SQLITE, database_of

_SCHEMA = re.compile(r"out-of-date database schema \(found version (?P<found>\w+)")


def remedy_for(uri: str, error: BaseException) -> str:
    """What to do about an error of MLflow's store or server."""
    text = str(error)
    if schema := _SCHEMA.search(text):
        return _other_version(uri, schema["found"])
    if isinstance(error, ImportError):
        return f"{error.name} is missing: uv sync --extra postgres"
    if "database is locked" in text:
        return f"which other program has {database_of(uri)} open? End it, or name another --tracking-uri"
    if "ProxyError" in text or "407 Proxy" in text:
        proxies = {name: url for name, url in getproxies().items() if name in ("http", "https", "all")}
        named = ", ".join(f"{name}_proxy" for name in proxies) or "http_proxy"
        host = uri.partition("://")[2].partition("/")[0].partition(":")[0]
        return f"the proxy that {named} names was asked for it: set no_proxy={host}"
    if "error code 401" in text:
        return (
            "it wants another user or password than those of MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD or"
            " ~/.mlflow/credentials"
        )
    return "can it be written?" if uri.startswith(SQLITE) else "is the server running?"


def first_line(error: BaseException) -> str:
    """What an error says first, without the advice that MLflow adds for administrators."""
    text = str(error).strip().partition("\n")[0]
    text = text.partition(" Take a backup")[0]
    return text if len(text) <= 300 else text[:300].rpartition(" ")[0] + " ..."


def _other_version(uri: str, found: str) -> str:
    """A database of another MLflow: nothing is migrated unasked."""
    migrations = Path(mlflow.__file__).parent / "store/db_migrations/versions"
    if not any(migrations.glob(f"{found}_*.py")):
        return (
            f"it was made by a newer MLflow than this one ({mlflow.__version__}): use that one, or name another"
            " --tracking-uri"
        )
    copied = f"after a copy of {database_of(uri)}" if uri.startswith(SQLITE) else "after a backup"
    return f"it was made by an older MLflow; {copied}, `uv run mlflow db upgrade {shlex.quote(uri)}` upgrades it"
