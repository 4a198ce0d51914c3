"""How tests are run: what is skipped and why, who takes turns; fixtures that several files share."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Generator, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported, and for all that tests start
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would starve its workers beside other tests

import torch
from pyarrow import fs
from xdist.scheduler import LoadFileScheduling

from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.prepare import prepare
from tests.cluster.lab import obstacle
from tests.helpers.servers import free_ports

# ----------------------------------------------------------------------------------------------------------------
# What this machine lacks


@cache
def lacking(marker: str) -> str:
    """Why tests with a marker cannot run here; nothing if they can."""
    if marker == "gpu" and not torch.cuda.is_available():
        return "no CUDA device"
    if marker == "browser" and not shutil.which("chromium"):
        return "Debian's chromium is not installed"
    return obstacle() if marker == "cluster" else ""


def left_out(item: pytest.Item) -> bool:
    """Whether a test has to be asked for."""
    return item.get_closest_marker("long") is not None and "long" not in item.config.option.markexpr


def pytest_runtest_setup(item: pytest.Item) -> None:
    if left_out(item):
        pytest.skip("left to uv run pytest -m long")
    for marker in item.iter_markers():
        if reason := lacking(marker.name):
            pytest.skip(reason)


# ----------------------------------------------------------------------------------------------------------------
# Workers


@cache
def starts_clusters(file: Path) -> bool:
    """Whether a test file starts Ray clusters or hosts."""
    text = file.read_text(encoding="utf-8")
    return "mark.ray" in text or "mark.cluster" in text


SHARING = {f"tests/training/test_{name}.py" for name in ("driver", "interruptions", "refusals")}
"""Files that look at one finished run, which takes half a minute to make."""


class Turns(LoadFileScheduling):
    """Gives a worker a file at a time, and one worker all files that start clusters: they would take turns anyway."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        if starts_clusters(self.config.rootpath / file):
            return "clusters"
        return "a finished run" if file in SHARING else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Turns:
    return Turns(config, log)


_crashed: set[str] = set()


def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport) -> None:
    """Count a test that killed its process as failed when it does so again: the scheduler gives it to the next one."""
    if crashitem not in _crashed:
        report.outcome = "rerun"  # pyright: ignore[reportAttributeAccessIssue]
    _crashed.add(crashitem)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes long starts first, so that no worker waits for another in the end."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow") and not left_out(item))
    items.sort(key=lambda item: (not takes_turns(item), -slow[item.path]))


def takes_turns(item: pytest.Item | None) -> bool:
    """Whether a test starts a Ray cluster or hosts."""
    return item is not None and any(item.get_closest_marker(marker) for marker in ("ray", "cluster"))


LOCK = os.open(Path(tempfile.gettempdir()) / f"dgnet-tests-{os.getuid()}.lock", os.O_CREAT | os.O_RDWR, 0o600)


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around the timeout's clock: waiting is no fault of a test
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Hold a lock of all workers, and of all pytests of this machine, while there is a Ray cluster or a host."""
    if takes_turns(item):
        fcntl.flock(LOCK, fcntl.LOCK_EX)
    try:
        return (yield)
    finally:
        if not takes_turns(nextitem):  # until then fixtures of the file may keep theirs
            fcntl.flock(LOCK, fcntl.LOCK_UN)


# ----------------------------------------------------------------------------------------------------------------
# Fixtures


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take longer than networks as small as the tests'."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def people_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the smallest set of drawn people."""
    out = tmp_path_factory.mktemp("stores") / "people"
    prepare(PrepareConfig(dataset="people", size="tiny", out=out, threads=1))
    return out


@pytest.fixture
def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URI of a bucket on an S3 server of this machine, which credentials in the environment may write.

    There is another user, `reader` with the secret `secret`, who may only read.
    """
    folder = tmp_path_factory.mktemp("s3")
    users = {"writer": ["Admin", "Read", "List", "Write"], "reader": ["Read", "List"]}
    identities = [
        {"name": user, "credentials": [{"accessKey": user, "secretKey": "secret"}], "actions": actions}
        for user, actions in users.items()
    ]
    (folder / "users.json").write_text(json.dumps({"identities": identities}))
    names = [f"{part}.port{grpc}" for part in ("master", "volume", "filer", "s3") for grpc in ("", ".grpc")]
    ports = dict(zip(names, free_ports(len(names)), strict=True))
    options = {
        "dir": folder, "ip": "127.0.0.1", "ip.bind": "127.0.0.1", "s3": "true", "s3.config": folder / "users.json",
        "s3.autoCreateBucket": "false", "s3.port.iceberg": 0, "s3.port.lance": 0, "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64, "volume.max": 0, "volume.minFreeSpace": "1GiB", **ports,
    }  # fmt: skip
    command = [
        str(Path(sys.executable).parent / "weed"),
        "server",
        *(f"-{name}={value}" for name, value in options.items()),
    ]
    with (folder / "log").open("wb") as log, pytest.MonkeyPatch.context() as environment:
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
                environment.delenv(name, raising=False)
            environment.setenv("AWS_ACCESS_KEY_ID", "writer")
            environment.setenv("AWS_SECRET_ACCESS_KEY", "secret")
            environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
            environment.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{ports['s3.port']}")
            end = time.monotonic() + 60
            while True:
                try:
                    filesystem, bucket = fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
                    filesystem.create_dir(bucket)
                    break
                except OSError:
                    assert server.poll() is None, (folder / "log").read_text(errors="replace")[-2000:]
                    assert time.monotonic() < end, (folder / "log").read_text(errors="replace")[-2000:]
            yield "s3://bucket"
        finally:
            server.kill()
            server.wait()
            for left in Path("/tmp").glob("seaweedfs-*.sock"):
                if any(str(port) in left.name for port in ports.values()):
                    left.unlink()
