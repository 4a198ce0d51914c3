"""Fixtures that several files share."""

from pathlib import Path

import pytest

from dgnet_platform.datasets.prepare import PrepareConfig, prepare


@pytest.fixture(scope="session")
def people_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the smallest set of drawn people."""
    out = tmp_path_factory.mktemp("stores") / "people"
    prepare(PrepareConfig(dataset="people", size="tiny", out=out, threads=1))
    return out
