"""What several files on jobs/evaluate.py share: a drawn store, and an untrained checkpoint of a run on it."""

from pathlib import Path

import pytest

from tests.helpers.evaluations import drawn_store, untrained


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_store(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="session")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(store, tmp_path_factory.mktemp("run"))


@pytest.fixture
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
