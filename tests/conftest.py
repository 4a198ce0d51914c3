"""Fixtures that several files share."""

import socket
from pathlib import Path

import pytest

from dgnet_platform.datasets.prepare import PrepareConfig, prepare


@pytest.fixture(scope="session")
def people_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the smallest set of drawn people."""
    out = tmp_path_factory.mktemp("stores") / "people"
    prepare(PrepareConfig(dataset="people", size="tiny", out=out, threads=1))
    return out


@pytest.fixture
def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
