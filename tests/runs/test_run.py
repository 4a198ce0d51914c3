"""A run's folder is made, and kept, when something is begun in it."""

from pathlib import Path

import pytest

from dgnet_platform.errors import UserError
from dgnet_platform.runs.run import RECORD, training_alone


def test_a_folder_in_which_nothing_was_begun_is_removed(tmp_path: Path):
    folder = tmp_path / "run"
    with pytest.raises(UserError, match="refused"), training_alone(folder):
        raise UserError("refused")
    assert list(tmp_path.iterdir()) == []
    with training_alone(folder):
        (folder / RECORD).touch()
    assert [path.name for path in folder.iterdir()] == [RECORD]


def test_one_command_trains_in_a_folder_at_a_time(tmp_path: Path):
    folder = tmp_path / "run"
    with training_alone(folder):
        another = pytest.raises(UserError, match="run run is being trained by another command: wait for it")
        with another, training_alone(folder):
            raise AssertionError("two of them")
        assert folder.exists(), "the first one's lock is still there"
