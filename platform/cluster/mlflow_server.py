#!/usr/bin/env python
"""MLflow's tracking server for a laptop or a cluster, behind a password.

`uv run platform/cluster/mlflow_server.py serve` runs until Ctrl-C, `start` in the background, in place of one that runs
already, until `stop`. A server that dies is started again. Runs are in mlflow.db in its folder, or in the database that
MLFLOW_BACKEND_STORE_URI names (PostgreSQL: `uv sync --extra postgres`). Pictures and models go through the server:
clients need nothing but HTTP.

User and password are those of ~/.mlflow/credentials, where MLflow's clients look for them too, or of
MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD. If there are none the file is made, for this user's eyes only.

`backup --to FILE.tar.gz`, also of a server that runs, writes down all of its folder. To restore it, on any machine:
`mkdir FOLDER && tar -xzf FILE.tar.gz -C FOLDER`, and start.
"""

import fcntl
import os
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Annotated

import psutil
import requests
import sqlalchemy
import tyro
from mlflow.utils.credentials import read_mlflow_creds
from pyarrow.fs import FileSystem, LocalFileSystem
from sqlalchemy.exc import SQLAlchemyError

CREDENTIALS = Path("~/.mlflow/credentials").expanduser()
LOG = "server.log"
PATIENCE = 300.0
"""Seconds that a server may take to start."""
AUTH = """[mlflow]
default_permission = READ
database_uri = sqlite:///basic_auth.db
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
# checking a password takes 0.2 s: once a minute is enough
auth_cache_ttl_seconds = 60
"""


class ServerError(RuntimeError):
    """The server cannot do as asked; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class Server:
    """Where the server keeps what it knows, and where it listens."""

    folder: Path = Path("~/mlflow")
    """Databases, artifacts, log. On a disk of this machine: SQLite does not go with NFS."""
    host: tuple[str, ...] = ("127.0.0.1",)
    """Addresses to listen on; `node`: the one by which Ray's other nodes know this machine."""
    port: int = 5000
    artifacts: str = ""
    """Where pictures and models are kept: a folder, or s3://BUCKET/PATH (`uv sync --extra aws`); none: in `folder`."""
    allowed_hosts: str = ""
    """Names by which browsers and clients may call the server, with commas between; none: localhost and private
    addresses."""

    @property
    def home(self) -> Path:
        """The folder, which exists."""
        path = self.folder.expanduser().resolve()
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return path

    @property
    def addresses(self) -> list[str]:
        """The addresses of `host`."""
        return [_node_address() if host == "node" else host for host in self.host]

    @property
    def uri(self) -> str:
        """The tracking URI for clients: on the last of the addresses."""
        return f"http://{self.addresses[-1]}:{self.port}"


Options = Annotated[Server, tyro.conf.arg(name="")]
"""A server, as options without a prefix."""


def serve(server: Options) -> None:
    """Serve until told to stop; start the server again when it dies.

    Raises:
        ServerError: it cannot start: a port in use, a missing bucket, another server in the same folder.
    """
    home = server.home
    with _alone(home):
        _check_ports(server)
        if uri := os.environ.get("MLFLOW_BACKEND_STORE_URI"):
            _check_database(uri)
        else:
            _make_database(home / "mlflow.db")
        if server.artifacts.startswith("s3://"):
            _check_bucket(server.artifacts)
        environment, command = _environment(home), _command(server)
        stop: list[int] = []

        def remember(number: int, _: FrameType | None) -> None:
            stop.append(number)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, remember)
        answered = False
        while not stop:
            process = subprocess.Popen(command, env=environment, cwd=home, start_new_session=True)
            while process.poll() is None and not stop:
                answered = answered or _answers(server)
                time.sleep(0.2)
            _end(process)
            if not stop and not answered:
                raise ServerError("MLflow ended before it answered: what it says above is why")
            time.sleep(1)


def start(server: Options) -> None:
    """Start the server in the background, wait until it answers, and print its tracking URI.

    Raises:
        ServerError: it does not answer, or takes another password.
    """
    stop(server)
    user, password, source = credentials()
    home = server.home
    log = home / LOG
    begin = log.stat().st_size if log.exists() else 0
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, __file__, "serve", *_arguments(server)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    give_up = time.monotonic() + PATIENCE
    while not _answers(server):
        if process.poll() is not None:
            raise ServerError(f"{_tail(log, begin)}\nThe server did not start; all it said: {log}")
        if time.monotonic() > give_up:
            stop(server)
            raise ServerError(f"{_tail(log, begin)}\nThe server does not answer after {PATIENCE:g} s; see {log}")
        time.sleep(0.5)
    answer = requests.get(f"{server.uri}/api/2.0/mlflow/users/current", auth=(user, password), timeout=30)
    if answer.status_code == 401:
        stop(server)
        raise ServerError(
            f"the server's users are of an earlier start, and {user}'s password was another one than that in {source}:"
            f" put the old one there, or remove {home / 'basic_auth.db'}, and all users with it"
        )
    print(f"user {user}, password in {source}; log in {log}", file=sys.stderr)
    print(server.uri)


def stop(server: Options) -> None:
    """End the server of this folder, if there is one."""
    home = server.home
    try:
        with _alone(home):
            return
    except ServerError:
        number = int((home / ".server.lock").read_text() or 0)
    if number:
        os.kill(number, signal.SIGTERM)
    give_up = time.monotonic() + 30
    while psutil.pid_exists(number) and psutil.Process(number).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > give_up:
            raise ServerError(f"the server, process {number}, does not end")
        time.sleep(0.1)


def backup(server: Options, *, to: str) -> None:
    """Write databases and artifacts into a .tar.gz; the server may run meanwhile.

    Args:
        server: whose.
        to: The file: a path, or s3://BUCKET/FILE.tar.gz.

    Raises:
        ServerError: there is nothing to back up.
        OSError: the file cannot be written.
    """
    home = server.home
    databases = [home / name for name in ("mlflow.db", "basic_auth.db") if (home / name).exists()]
    if not databases:
        raise ServerError(f"{home} holds no server's databases: name its --folder")
    filesystem, path = FileSystem.from_uri(to) if "://" in to else (LocalFileSystem(), str(Path(to).resolve()))
    artifacts = _artifacts(server)
    with (
        tempfile.TemporaryDirectory() as temporary,
        filesystem.open_output_stream(f"{path}.part") as out,
        tarfile.open(fileobj=out, mode="w|gz") as tar,
    ):
        for database in databases:  # before the artifacts: whatever they speak of is there by then
            copy = Path(temporary) / database.name
            with closing(sqlite3.connect(database)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
            tar.add(copy, database.name)
        here = "://" not in artifacts and Path(artifacts).exists()
        if here:
            tar.add(artifacts, "artifacts")
    filesystem.move(f"{path}.part", path)
    held = [*(database.name for database in databases), *(["artifacts"] if here else [])]
    left = [os.environ.get("MLFLOW_BACKEND_STORE_URI", "").partition(":")[0]]
    left += (
        [] if here else [f"artifacts ({artifacts if '://' in artifacts else 'they are where the server puts them'})"]
    )
    note = f"; not in it: {', '.join(filter(None, left))}" if any(left) else ""
    print(f"{to} holds {', '.join(held)}{note}")


def credentials() -> tuple[str, str, str]:
    """User, password and where they are from; made if there are none.

    Raises:
        ServerError: half of them is missing.
    """
    user, password = read_mlflow_creds()
    if user and password:
        return (
            user,
            password,
            "MLFLOW_TRACKING_PASSWORD" if "MLFLOW_TRACKING_PASSWORD" in os.environ else str(CREDENTIALS),
        )
    if user or password or CREDENTIALS.exists():
        raise ServerError(
            f"{CREDENTIALS} and MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD give no user with a password: give"
            " both, or remove the file, and it is made"
        )
    CREDENTIALS.parent.mkdir(mode=0o700, exist_ok=True)
    user, password = "admin", secrets.token_urlsafe(24)
    write_private(CREDENTIALS, f"[mlflow]\nmlflow_tracking_username = {user}\nmlflow_tracking_password = {password}\n")
    return user, password, str(CREDENTIALS)


# ------------------------------------------------------------------------------------------------------------
# Details


def _environment(home: Path) -> dict[str, str]:
    """The server's environment: whatever is secret is there, not among its arguments, which every user can see."""
    user, password, _ = credentials()
    key, auth = home / "secret_key", home / "basic_auth.ini"
    if not key.exists():
        write_private(key, secrets.token_hex(32))
    auth.write_text(AUTH, encoding="utf-8")  # MLflow reads it by locale: ASCII, with no name of a folder or user
    return {
        "MLFLOW_BACKEND_STORE_URI": f"sqlite:///{home}/mlflow.db",
        **os.environ,
        "MLFLOW_AUTH_CONFIG_PATH": str(auth),
        "MLFLOW_AUTH_ADMIN_USERNAME": user,
        "MLFLOW_AUTH_ADMIN_PASSWORD": password,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": key.read_text(),
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # it would run code that clients send
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "PYTHONWARNINGS": "ignore",
    }


def _command(server: Server) -> list[str]:
    """How MLflow's own server is started: with gunicorn, because uvicorn listens on one address only."""
    first, *others = server.addresses
    options = [
        "--threads 8 --graceful-timeout 5 --no-control-socket",
        "--access-logfile -",  # who guesses passwords is seen
        *(f"--bind {host}:{server.port}" for host in others),
    ]
    return [
        *(sys.executable, "-m", "mlflow", "server", "--app-name", "basic-auth"),
        *("--host", first, "--port", str(server.port), "--workers", "1", "--gunicorn-opts", " ".join(options)),
        *("--artifacts-destination", _artifacts(server)),
        *(("--allowed-hosts", server.allowed_hosts) if server.allowed_hosts else ()),
    ]


def _arguments(server: Server) -> list[str]:
    """The command line of a server."""
    return [
        *("--folder", str(server.home), "--host", *server.addresses, "--port", str(server.port)),
        *("--artifacts", server.artifacts, "--allowed-hosts", server.allowed_hosts),
    ]


def _artifacts(server: Server) -> str:
    if "://" in server.artifacts:
        return server.artifacts
    return str(Path(server.artifacts).expanduser().resolve() if server.artifacts else server.home / "artifacts")


def _node_address() -> str:
    import ray.util  # takes seconds, and only a cluster needs it

    return ray.util.get_node_ip_address()


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Only one server in a folder; its process is in .server.lock."""
    with (home / ".server.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ServerError(f"a server runs in {home} already, process {lock.read()}: stop it first") from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _make_database(database: Path) -> None:
    """Make MLflow's database if it is missing: whole, for MLflow opens none that was left between two of its steps."""
    if not database.exists():
        from mlflow.store.db.utils import _initialize_tables  # takes seconds

        partial = database.with_name(".mlflow.db.partial")
        partial.unlink(missing_ok=True)
        _initialize_tables(sqlalchemy.create_engine(f"sqlite:///{partial}", poolclass=sqlalchemy.NullPool))
        partial.rename(database)


def _check_ports(server: Server) -> None:
    for host in server.addresses:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, server.port))
            except OSError as error:
                holder = next((f", by process {c.pid}" for c in _listening() if c.laddr[1] == server.port), "")
                raise ServerError(
                    f"cannot listen on {host}:{server.port} ({error.strerror}{holder}): stop that, or name another"
                    " --port or --host"
                ) from None


def _listening() -> list:
    try:
        return [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid]
    except psutil.AccessDenied:
        return []


def _check_database(uri: str) -> None:
    shown = sqlalchemy.make_url(uri).render_as_string(hide_password=True)
    try:
        sqlalchemy.create_engine(uri).connect().close()
    except ModuleNotFoundError as error:
        raise ServerError(f"MLFLOW_BACKEND_STORE_URI {shown} needs {error.name}: uv sync --extra postgres") from None
    except SQLAlchemyError as error:
        raise ServerError(f"MLFLOW_BACKEND_STORE_URI {shown} cannot be used: {str(error).strip()}") from None


def _check_bucket(uri: str) -> None:
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise ServerError(f"--artifacts {uri} needs boto3: uv sync --extra aws") from None
    bucket = uri.removeprefix("s3://").partition("/")[0]
    quick = Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 2})
    try:
        boto3.client("s3", config=quick).head_bucket(Bucket=bucket)
    except (BotoCoreError, ClientError, ValueError) as error:
        raise ServerError(
            f"--artifacts {uri} cannot be used ({error}): make the bucket, or give this machine credentials that may"
            " read and write it (AWS_PROFILE, AWS_ACCESS_KEY_ID, or the instance's role)"
        ) from None


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a server, and what one that was killed leaves behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(15)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answers(server: Server) -> bool:
    try:
        return requests.get(f"{server.uri}/health", timeout=5).ok
    except requests.RequestException:
        return False


def _tail(log: Path, begin: int) -> str:
    with log.open(encoding="utf-8") as lines:
        lines.seek(begin)
        return "".join(lines.readlines()[-20:]).strip()


def write_private(path: Path, text: str) -> None:
    """Write a new file that its owner alone reads."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(text)


def main() -> int:
    """Run the command that the command line names; returns the exit status."""
    commands = {"serve": serve, "start": start, "stop": stop, "backup": backup}
    try:
        tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
    except (ServerError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
