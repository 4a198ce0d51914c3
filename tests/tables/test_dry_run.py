"""What `paper_tables --dry-run` says: which runs there would be, what they share, and what is there already."""

from pathlib import Path

import pytest
import yaml

from dgnet_platform.storage.serialize import to_dict
from jobs.paper_tables import main
from tests.helpers.runs import tiny_experiment

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_dry_run_plans_each_run_once_and_changes_nothing(people_store: Path, tmp_path: Path, capsys):
    storage, settings = tmp_path / "runs", tmp_path / "base.yaml"
    values = to_dict(tiny_experiment(people_store, storage))
    settings.write_text(yaml.safe_dump({name: values[name] for name in values if name not in ("data", "storage")}))
    status = main([
        "--data", str(people_store), "--storage", str(storage), "--config", str(settings), "--tables", "ablation",
        "labels", "--seeds", "2", "--seconds-before", "1", "--seconds-after", "2", "--dry-run",
    ])  # fmt: skip
    shown = " ".join(capsys.readouterr().out.split())
    assert status == 0, shown
    # Of each seed: the teacher, nine DG-Nets of both tables, whose full, baseline and appearance rows are shared, and
    # the baseline on generated pictures.
    assert "0 of 22 runs are finished; the report would go to" in shown
    assert "4 teachers and baselines would be trained too: 24 iterations" in shown
    assert shown.count("not started") == 22
    assert not storage.exists()
