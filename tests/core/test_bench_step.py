"""What the bench of the step tells of every batch size: time of a whole run, and the share of random draws."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from dgnet_core.dgnet.config import RecipeConfig
from jobs import bench_step
from tests.helpers.tiny import tiny_config


def test_several_batch_sizes_stand_in_one_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench_step, "keep_freed_memory", lambda: None)  # of the process that runs all tests
    options = (
        "--preset laptop --size 32 16 --classes 3 --batch-size 2 3 --variants channels_last --steps 1 --device cpu"
    )
    monkeypatch.setattr("sys.argv", ["bench_step.py", *options.split(), "--out", str(tmp_path / "bench")])
    bench_step.main()
    rows = json.loads((tmp_path / "bench.json").read_text())
    assert [(row["batch_size"], row["phase"]) for row in rows] == [
        (size, phase) for size in (2, 3) for phase in bench_step.PHASES
    ]
    for row in rows:
        assert row["hours"] == pytest.approx(row["ms"] / 36)  # 100,000 iterations
        assert 0 < row["draws"] < 1
    header, _, *lines = (tmp_path / "bench.md").read_text().splitlines()[2:]
    assert "hours for 100,000 iterations" in header
    assert [line.split(" | ")[0] for line in lines] == ["| 2", "| 2", "| 3", "| 3"]


def test_an_iterations_draws_are_made_again():
    config = tiny_config(recipe=RecipeConfig(structure_negatives=True))
    state, batch = bench_step.prepare(config, "after warm-up", torch.device("cpu"))
    draw = bench_step.draws_of(partial(bench_step.one_step, False, state, batch, config))
    drawn: list[dict[str, torch.Tensor]] = draw()  # pyright: ignore[reportAssignmentType]
    assert {purpose for draws in drawn for purpose in draws} == {
        "augment", "negative", "dropout prim real", "dropout fine real", "dropout prim generated",
        "dropout fine generated",
    }  # fmt: skip
    assert state.iteration == config.loss.teacher_warmup.end(config.loss.prim) + 1
