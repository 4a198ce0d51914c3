"""The MLflow server of platform/cluster/mlflow_server.py: who gets in, what becomes of it, and what it never says."""

import os
import signal
import subprocess
import sys
import tarfile
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from configparser import ConfigParser
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import mlflow.artifacts
import psutil
import pytest
import requests
from mlflow import MlflowClient

from dgnet_platform.errors import TrackingError
from dgnet_platform.runs.run import Run
from dgnet_platform.tracking import client as tracking
from tests.helpers.cluster_files import FOLDER, mlflow_server
from tests.helpers.runs import by_command_line, job, tiny_teacher
from tests.helpers.servers import free_ports, wait_for

SCRIPT = FOLDER / "mlflow_server.py"
TOKEN = "planted-token-0123456789"
API = "api/2.0/mlflow/experiments/search?max_results=1"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600), pytest.mark.filterwarnings("ignore")]


@dataclass(frozen=True)
class Server:
    home: Path
    folder: Path
    port: int

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """Of a client on the same machine, who has a secret of his own."""
        mine = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "AWS_"))}
        return mine | {"HOME": str(self.home), "RAY_AUTH_TOKEN": TOKEN}

    @property
    def password(self) -> str:
        parser = ConfigParser()
        parser.read(self.home / ".mlflow" / "credentials")
        return parser["mlflow"]["mlflow_tracking_password"]

    def command(self, name: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        where = ["--folder", self.folder, *(["--port", str(self.port)] if name in ("serve", "start") else [])]
        return subprocess.run(
            [sys.executable, SCRIPT, name, *where, *options],
            env=self.environment | environment, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip

    def get(self, path: str = API, auth: tuple[str, str] | None = None, **headers: str) -> int:
        return requests.get(f"{self.uri}/{path}", auth=auth, headers=headers, timeout=30).status_code

    @property
    def processes(self) -> list[psutil.Process]:
        supervisor = psutil.Process(int((self.folder / ".server.lock").read_text()))
        return [supervisor, *supervisor.children(recursive=True)]


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """A server with nothing but defaults, started for the first time."""
    home = tmp_path_factory.mktemp("home")
    server = Server(home, home / "MLflow für uns", free_ports(1)[0])
    try:
        done = server.command("start")
        assert done.returncode == 0, done.stderr
        assert done.stdout == f"{server.uri}\n"
        assert f"password in {home}/.mlflow/credentials" in done.stderr
        yield server
    finally:
        server.command("stop")


@pytest.fixture
def client(server, monkeypatch) -> MlflowClient:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", server.password)
    return tracking.client(server.uri)


def test_only_those_with_the_password_get_in(server):
    assert server.get() == server.get(auth=("admin", "wrong")) == server.get("") == 401
    assert server.get(auth=("admin", server.password)) == server.get("", auth=("admin", server.password)) == 200
    assert server.get(auth=("admin", server.password), Host="elsewhere.example:5000") == 403
    assert "- admin [" in (log := (server.folder / "server.log").read_text())
    assert '/search?max_results=1 HTTP/1.1" 401 ' in log  # a guess is seen
    assert (server.home / ".mlflow" / "credentials").stat().st_mode & 0o777 == 0o600
    assert server.folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("up", ["..", "%2e%2e", "%252e%252e", "a/../..", "..%2f.."])
def test_no_artifact_lies_outside_its_folder(server, up):
    """Not even for those with the password."""
    login = b64encode(f"admin:{server.password}".encode()).decode()
    for method, name, body in (("GET", "secret_key", None), ("PUT", "evil", "evil"), ("DELETE", "secret_key", None)):
        connection = HTTPConnection("127.0.0.1", server.port, timeout=30)  # requests would resolve the dots
        path = f"/api/2.0/mlflow-artifacts/artifacts/{up}/{name}"
        connection.request(method, path, body, {"Authorization": f"Basic {login}"})
        answer = connection.getresponse()
        assert answer.status == 400, answer.read()
        assert b"Invalid path" in answer.read()
        connection.close()
    assert (server.folder / "secret_key").exists()
    assert not list(server.home.rglob("evil"))


def test_its_owner_alone_reaches_it_and_reads_its_secrets(server):
    listening = [
        connection.laddr.ip
        for process in server.processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}
    for process in server.processes:
        assert server.password not in " ".join(process.cmdline())


def test_a_run_is_tracked_and_its_secrets_are_nowhere(server, client, people_store, tmp_path):
    experiment = tiny_teacher(people_store, tmp_path / "runs", name="tracked", tracking_uri=server.uri)
    process = job("train_teacher.py", *by_command_line(experiment, tmp_path / "options.yaml"), **server.environment)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    run = Run.read(tmp_path / "runs" / "tracked")
    known = client.get_run(run.mlflow_run)
    assert known.info.status == "FINISHED"
    assert known.data.metrics["iteration"] == 6
    assert client.list_artifacts(run.mlflow_run)
    said = output + repr(known.data.params) + repr(known.data.tags)
    written = [path for path in (*tmp_path.rglob("*"), *server.folder.rglob("*")) if path.is_file()]
    assert server.folder / "server.log" in written
    for secret in (server.password, TOKEN):
        assert secret not in said
        assert not [path for path in written if secret.encode() in path.read_bytes()]


def test_a_server_that_is_killed_comes_back(server):
    _, *killed = server.processes
    for process in killed:
        process.send_signal(signal.SIGKILL)
    psutil.wait_procs(killed, 10)

    def back() -> bool:
        try:
            return server.get(auth=("admin", server.password)) == 200
        except requests.RequestException:
            return False

    wait_for(back, 120)
    assert not {process.pid for process in killed} & {process.pid for process in server.processes[1:]}


@pytest.mark.long
def test_a_backup_is_all_there_is(server, client, tmp_path):
    run = client.create_run("0", run_name="kept")
    client.log_metric(run.info.run_id, "loss", 0.5, step=3)
    client.log_text(run.info.run_id, "a picture", "picture.txt")
    done = server.command("backup", "--to", str(tmp_path / "backup.tar.gz"))
    assert done.returncode == 0, done.stderr
    restored = Server(server.home, tmp_path / "restored", free_ports(1)[0])
    restored.folder.mkdir()
    with tarfile.open(tmp_path / "backup.tar.gz") as tar:
        tar.extractall(restored.folder, filter="data")
    try:
        done = restored.command("start")
        assert done.returncode == 0, done.stderr
        other = tracking.client(restored.uri)
        assert other.get_run(run.info.run_id).data.metrics == {"loss": 0.5}
        assert mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/picture.txt") == "a picture"
    finally:
        restored.command("stop")
    assert server.command("backup", "--to", "x.tar.gz", "--folder", str(tmp_path / "none")).returncode == 2


@pytest.fixture
def other(server, tmp_path, monkeypatch, capsys) -> Callable[..., str]:
    """Has another server refused in this process, and gives what it said in how few seconds."""
    for name in [name for name in os.environ if name.startswith(("MLFLOW_", "AWS_"))]:
        monkeypatch.delenv(name)
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "mlflow.db").touch()  # it takes seconds to make, and is not opened

    def refused(*options: str, **environment: str) -> str:
        began = time.monotonic()
        with monkeypatch.context() as patch:
            for name, value in (server.environment | environment).items():
                patch.setenv(name, value)
            patch.setattr(mlflow_server, "CREDENTIALS", Path("~/.mlflow/credentials").expanduser())
            patch.setattr(sys, "argv", [str(SCRIPT), "serve", "--folder", str(folder), *options])
            assert mlflow_server.main() == 2
        assert time.monotonic() - began < 60
        return capsys.readouterr().err

    return refused


def test_what_cannot_be_served_is_said_in_seconds(server, other, tmp_path):
    here, free = ("--port", str(server.port)), ("--port", str(free_ports(1)[0]))
    assert f"cannot listen on 127.0.0.1:{server.port} (Address already in use, by process " in other(*here)
    assert "cannot listen on 203.0.113.1:" in other(*here, "--host", "203.0.113.1")
    again = server.command("serve")
    assert again.returncode == 2
    assert "a server runs in" in again.stderr
    no_one = {"AWS_EC2_METADATA_DISABLED": "true", "AWS_DEFAULT_REGION": "us-west-2"}
    said = other(*free, "--artifacts", "s3://no-such-bucket/mlflow", **no_one)
    assert "no-such-bucket/mlflow cannot be used (Unable to locate credentials)" in said
    said = other(*free, MLFLOW_BACKEND_STORE_URI="postgresql://me:secret-password@127.0.0.1:9/mlflow")
    assert "MLFLOW_BACKEND_STORE_URI postgresql://me:***@127.0.0.1:9/mlflow " in said
    assert "secret-password" not in said
    (tmp_path / "half").mkdir()
    said = other(*free, MLFLOW_TRACKING_USERNAME="half", HOME=str(tmp_path / "half"))
    assert "give no user with a password" in said


def test_a_missing_bucket_is_named(other, free_port):
    from moto.server import ThreadedMotoServer

    s3 = ThreadedMotoServer("127.0.0.1", free_port, verbose=False)
    s3.start()
    try:
        somebody = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        said = other(
            "--port", str(free_ports(1)[0]), "--artifacts", "s3://no-such-bucket/mlflow",
            AWS_ENDPOINT_URL=f"http://127.0.0.1:{free_port}", AWS_DEFAULT_REGION="us-west-2", **somebody,
        )  # fmt: skip
    finally:
        s3.stop()
    assert "s3://no-such-bucket/mlflow cannot be used" in said
    assert "make the bucket" in said


def test_a_wrong_password_is_explained(server, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    began = time.monotonic()
    with pytest.raises(TrackingError, match=r"MLFLOW_TRACKING_PASSWORD or ~/.mlflow/credentials"):
        tracking.open_experiment(server.uri, "dgnet")
    assert time.monotonic() - began < 30


@pytest.mark.long
def test_another_password_than_at_the_first_start_is_explained(server):
    done = server.command("start", MLFLOW_TRACKING_USERNAME="admin", MLFLOW_TRACKING_PASSWORD="another-password")
    assert done.returncode == 2
    assert "put the old one there, or remove" in done.stderr
    assert server.command("start").returncode == 0
    assert server.get(auth=("admin", server.password)) == 200
