"""Fixtures that several files share."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dgnet_platform.datasets.prepare import PrepareConfig, prepare


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
    return unused_port()


def unused_port() -> int:
    """As the fixture."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
