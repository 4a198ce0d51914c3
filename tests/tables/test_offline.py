"""Stores of real pictures and of people who do not exist."""

from pathlib import Path

import pytest

from dgnet_core.learning.config import StepConfig
from dgnet_core.methods import METHODS, build
from dgnet_platform.data.store import Store
from dgnet_platform.runs import checkpoint
from dgnet_platform.tables.offline import pack_offline
from tests.helpers.generators import tiny_method
from tests.helpers.runs import PEOPLE

pytestmark = pytest.mark.usefixtures("one_thread")


def test_people_who_do_not_exist_are_packed_without_identity(people_store: Path, tmp_path: Path):
    real, config = Store.open(people_store), tiny_method(METHODS["lsgan"], num_classes=PEOPLE, step=StepConfig())
    drawing = checkpoint.save(build(config), config, tmp_path / "run", fingerprint=real.info.fingerprint)
    pack_offline(drawing, str(people_store), PEOPLE - 2, tmp_path / "both")
    both, pictures = Store.open(tmp_path / "both"), real.count("train")
    assert both.info.classes == real.info.classes
    persons = both.index("train")["person_id"].tolist()
    assert sorted(persons) == [-1] * pictures + sorted(real.index("train")["person_id"].tolist())
    assert {split: both.count(split) for split in ("query", "gallery")} == {
        split: real.count(split) for split in ("query", "gallery")
    }
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["both", "run"]
