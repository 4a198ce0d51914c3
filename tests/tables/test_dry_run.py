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
    # Of each seed: the teacher, ten DG-Nets of both tables, whose full, baseline and appearance rows are shared, and
    # the baseline on generated pictures.
    assert "0 of 24 runs are finished; the report would go to" in shown
    assert "4 teachers and baselines would be trained too: 24 iterations" in shown
    assert shown.count("not started") == 24
    assert not storage.exists()


def test_settings_that_a_search_has_found_are_rows_beside_the_preset(people_store: Path, tmp_path: Path, capsys):
    found, base = tmp_path / "best.yaml", tmp_path / "base.yaml"
    found.write_text("model: {beta: 0.3, seed: 3, loss: {alpha: 0.4}}\n")  # of seed 3: a table has its own
    values = to_dict(tiny_experiment(people_store, tmp_path))
    base.write_text(yaml.safe_dump({name: values[name] for name in values if name not in ("data", "storage")}))

    def told(*arguments: str, status: int) -> str:
        assert main([
            "--data", str(people_store), "--storage", str(tmp_path / "runs"), "--config", str(base), "--seeds", "2",
            "--dry-run", *arguments,
        ]) == status  # fmt: skip
        shown = capsys.readouterr()
        return " ".join((shown.out + shown.err).split())

    table = ("--tables", "settings", "--settings", str(found))
    # Of each seed: the teacher, the preset's run, and the file's.
    assert "0 of 6 runs are finished" in told(*table, status=0)
    for half in (table[:2], table[2:]):
        with pytest.raises(SystemExit):
            main(half)
        assert "go together" in capsys.readouterr().err
    found.write_text("model: {loss: {alhpa: 0.4}}\n")
    assert f"--settings {found}: " in told(*table, status=2)
    found.write_text("data: elsewhere\n")
    assert f"--settings {found} has data: rows differ in model and baseline alone" in told(*table, status=2)
    found.write_text("model: {iterations: 7}\n")
    assert "has model.iterations: 7, but runs have" in told(*table, status=2)
