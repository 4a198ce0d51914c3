"""Shared prefixes in this process."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgnet_core.teacher.networks import Teacher
from dgnet_platform.runs.experiment import DGNetExperiment
from dgnet_platform.runs.run import Outcome, Run
from dgnet_platform.search.prefixes import Prefix, ensure_prefix
from dgnet_platform.training import worker
from dgnet_platform.training.loop import run_loop
from dgnet_platform.training.worker import build_rank
from tests.helpers.runs import tiny_experiment


def prefixes_in(tmp_path: Path, people_store: Path, monkeypatch: pytest.MonkeyPatch) -> "Prefixes":
    """Ensures the prefix of a trial up to a fork, and trains runs, in this process."""
    experiment = tiny_experiment(people_store, tmp_path, evaluate_every=3, checkpoint_every=100)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        teacher = Teacher(experiment.model.network, experiment.model.num_classes)
    file = tmp_path / "teacher.pth"
    file.write_bytes(b"teacher")
    monkeypatch.setattr(worker, "load_teacher", lambda *_: teacher)
    return Prefixes(experiment, file, tmp_path / "stop")


class Prefixes:
    """Ensures prefixes of a trial, and trains runs, in this process."""

    def __init__(self, experiment: DGNetExperiment, teacher: Path, stop_file: Path):
        self.experiment, self.teacher, self._stop_file = experiment, teacher, stop_file
        self._tracking_uri = f"sqlite:///{stop_file.parents[1]}/prefixes.db"  # for all tests: it takes seconds to make
        self.said: list[str] = []
        self.trained: list[tuple[int, int]] = []

    def fit(self, run: Run) -> Outcome:
        learner, validator = build_rank(run, torch.device("cpu"))
        worker._restore(run, learner)
        return run_loop(run, learner, validator, report=lambda _: None, leaving=lambda: False)

    def __call__(self, fork: int, fit: Callable[[Run], Outcome] | None = None, **overrides) -> Prefix:
        found = ensure_prefix(
            replace(self.experiment, **overrides),
            fork,
            teacher=self.teacher,
            tracking_uri=self._tracking_uri,
            stop_file=self._stop_file,
            fit=fit or self.fit,
            say=self._say,
        )
        with found as there:
            return there

    def _say(self, what: str, folder: Path, start: int) -> None:
        self.said.append(what)
        if what == "trains":
            self.trained.append((start, int(folder.name)))
