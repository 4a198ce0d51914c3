"""Servers of a test: free ports, an MLflow server, one that serves a model, and waiting for them."""

import base64
import os
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import cycle
from pathlib import Path

import numpy as np
import psutil
import requests


def wait_for(condition: Callable[[], object], seconds: float = 200) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that are free, and stay so.

    They lie above those of Ray's workers and below those that the system gives to connections, where the next
    connection of any process may take a port that was free a moment ago.
    """
    with ExitStack() as probes:
        found: list[int] = []
        while len(found) < count:
            port = random.SystemRandom().randrange(20_000, 32_000)  # not that of a test that seeds
            try:
                probes.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            found.append(port)
        return found


class TrackingServer:
    """An MLflow server on the loopback interface."""

    def __init__(self, folder: Path, port: int):
        self.uri = f"http://127.0.0.1:{port}"
        self._folder, self.port = folder, port

    def start(self) -> None:
        """Start it, with what it had before, and wait until it answers."""
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
            "--workers", "1", "--backend-store-uri", f"sqlite:///{self._folder}/server.db",
            "--artifacts-destination", str(self._folder / "artifacts"),
        ]  # fmt: skip
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
        with (self._folder / "server.log").open("ab") as log:
            self._process = psutil.Popen(command, env=environment, stdout=log, stderr=log)
        wait_for(lambda: answers(self.uri))

    def stop(self) -> None:
        """End it at once."""
        stop(self._process)


@contextmanager
def served(model: str, folder: Path, **environment: str) -> Iterator[Callable[[Sequence[bytes]], np.ndarray]]:
    """A model behind `mlflow models serve` on the loopback interface: gives descriptors (N, D) of N pictures' bytes."""
    (port,) = free_ports(1)
    uri = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-m", "mlflow", "models", "serve", "-m", model, "--env-manager", "local",
        "--host", "127.0.0.1", "--port", str(port),
    ]  # fmt: skip
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])  # of the web server
    with (folder / "serve.log").open("ab") as log:
        server = psutil.Popen(command, env={**os.environ, **environment, "PATH": path}, stdout=log, stderr=log)

    def describe(pictures: Sequence[bytes]) -> np.ndarray:
        rows = [[base64.b64encode(picture).decode()] for picture in pictures]
        body = {"dataframe_split": {"columns": ["image"], "data": rows}}
        answer = requests.post(f"{uri}/invocations", json=body, timeout=60)
        assert answer.ok, answer.text
        return np.array(answer.json()["predictions"], np.float32)

    try:
        wait_for(lambda: answers(uri))
        yield describe
    finally:
        stop(server)


@contextmanager
def refusing(port: int) -> Iterator[None]:
    """In a server's place one that answers all with 500 or 503 in turn, as one that is broken or overloaded."""
    statuses = cycle((500, 503))

    class Refusal(BaseHTTPRequestHandler):
        def _refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_error(next(statuses))

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _refuse  # noqa: N815 - http.server's names

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002
            """Keep it to itself."""

    with ThreadingHTTPServer(("127.0.0.1", port), Refusal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield
        finally:
            server.shutdown()


def answers(uri: str) -> bool:
    """Whether an MLflow server is up."""
    try:
        return requests.get(f"{uri}/health", timeout=1).ok
    except requests.RequestException:
        return False


def stop(server: psutil.Process) -> None:
    """End a server and all its workers."""
    everyone = [*server.children(recursive=True), server] if server.is_running() else []
    for process in everyone:
        process.kill()
    psutil.wait_procs(everyone, timeout=10)
