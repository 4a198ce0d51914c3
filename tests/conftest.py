"""Fixtures that several files share."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.servers import free_ports

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before PyTorch is imported, and for all that tests start

import torch
from pyarrow import fs

from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.prepare import prepare


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
