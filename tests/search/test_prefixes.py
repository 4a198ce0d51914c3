"""Shared prefixes: trained once, reused, waited for, removed - and equal to a run of its own in every bit."""

import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dgnet_platform.runs.checkpoint import checkpoints
from dgnet_platform.runs.journal import JOURNAL
from dgnet_platform.runs.run import Outcome, Run
from dgnet_platform.search import prefixes as prefix
from dgnet_platform.search.prefixes import PrefixError, collect, key_of, link_prefix
from dgnet_platform.storage import files as disk
from tests.helpers.prefixes import prefixes_in
from tests.helpers.runs import lines, same, tensors, untracked


@pytest.fixture
def prefixes(people_store, tmp_path, one_thread, monkeypatch):
    return prefixes_in(tmp_path, people_store, monkeypatch)


def trial_run(ensure, folder: Path) -> Run:
    return untracked(ensure.experiment, folder, teacher=str(ensure.teacher))


def test_a_prefix_is_trained_once_extended_and_the_same_as_a_run_of_its_own(prefixes, tmp_path):
    prefixes(2)
    four = prefixes(4)
    prefixes(4)
    prefixes(3)
    assert prefixes.trained == [(0, 2), (2, 4), (2, 3)]  # what 4 has in between was not kept

    whole, forked = trial_run(prefixes, tmp_path / "whole"), trial_run(prefixes, tmp_path / "forked")
    assert prefixes.fit(whole).ending == "finished"
    link_prefix(four.checkpoint, forked.folder)
    assert [line["iteration"] for line in lines(forked.folder)] == [1, 2, 3, 4]
    prefixes_gone = collect(tmp_path, 0)
    assert len(prefixes_gone) == 3  # the trial has what it needs
    assert prefixes.fit(forked).ending == "finished"
    assert same(tensors(whole, 12), tensors(forked, 12))
    for one, other in zip(lines(whole.folder), lines(forked.folder), strict=True):
        assert one.get("pictures") == other.get("pictures")
        for name, value in one["metrics"].items():
            assert name.startswith("speed/") or other["metrics"][name] == value, name
    for line in lines(forked.folder):
        assert all((forked.folder / file).exists() for file in line.get("pictures", {}).values())


def test_a_damaged_prefix_is_trained_again(prefixes):
    path = prefixes(2).checkpoint / "tensors.pt"
    path.write_bytes(path.read_bytes()[:-10])
    prefixes(2)
    prefixes(2)
    assert prefixes.trained == [(0, 2), (0, 2)]


def test_a_prefix_left_unfinished_goes_on_from_one_that_overtook_it(prefixes, tmp_path):
    def stopped_at(iteration: int) -> Callable[[Run], Outcome]:
        return lambda run: replace(prefixes.fit(replace(run, until=iteration)), ending="stopped")

    each = {"checkpoint_every": 1}
    with pytest.raises(PrefixError):
        prefixes(4, fit=stopped_at(1), **each)
    prefixes(6, **each)
    four = prefixes(4, **each)
    damaged = four.checkpoint / "tensors.pt"
    content = damaged.read_bytes()
    damaged.unlink()  # the other one has the same file
    damaged.write_bytes(content[:-10])
    assert same(tensors(prefixes(4, **each).run, 4), tensors(prefixes(6, **each).run, 4))
    assert prefixes.trained == [(0, 4), (1, 6), (4, 4), (4, 4)]
    assert [line["iteration"] for line in lines(four.run.folder)] == [1, 2, 3, 4]


def test_what_decides_a_prefix_names_it(prefixes, people_store):
    experiment = prefixes.experiment

    def key(fingerprint="f", **overrides):
        return key_of(replace(experiment, **overrides), fingerprint, prefixes.teacher)

    model = experiment.model
    later = replace(model, loss=replace(model.loss, alpha=0.9, prim=1.0), iterations=50)
    assert key() == key(model=later) == key(name="other", keep=9, checkpoint_every=2, threads=4)
    assert key() == key(workers="2")  # equal to rounding; where BatchNorm is local it is not
    local = replace(model, batch_norm="local")
    others = [
        key("g"),
        key(model=local),
        key(model=local, workers="2"),
        key(evaluate_every=5),
        key(model=replace(model, seed=1)),
        key(model=replace(model, loss=replace(model.loss, generated_identity=0.1))),
    ]
    assert len({key(), *others}) == 7


def test_a_prefix_that_another_one_trains_is_waited_for(prefixes, tmp_path):
    key = prefixes(2).run.folder.parent
    with (key / prefix.LOCK).open("w") as file:
        disk.lock(file)
        assert collect(tmp_path, 0) == []  # it is in use
        threading.Timer(1.2, (tmp_path / "stop").touch).start()
        with pytest.raises(PrefixError) as raised:
            prefixes(2)
        assert raised.value.outcome.ending == "stopped"
    assert prefixes.said[-1] == "waits"


def test_prefixes_longest_unused_are_removed_first(prefixes, tmp_path):
    stages = [prefixes(fork).run.folder for fork in (1, 2, 3)]
    for age, stage in zip((10, 30, 20), stages, strict=True):
        os.utime(stage, (stage.stat().st_mtime - age,) * 2)
    size = sum(path.stat().st_size for stage in stages for path in stage.rglob("*") if path.is_file())
    assert collect(tmp_path, size) == []
    assert collect(tmp_path, size - 1) == [stages[1]]
    assert collect(tmp_path, 1) == [stages[2], stages[0]]


def test_what_is_left_of_a_half_removed_prefix_is_not_used_and_goes(prefixes, tmp_path):
    stage = prefixes(2).run.folder
    gone = stage.rename(stage.with_name(f".{stage.name}.gone"))
    (gone / JOURNAL).unlink()  # its checkpoint is whole
    prefixes(3)
    assert prefixes.trained == [(0, 2), (0, 3)]
    assert collect(tmp_path, 2**40) == []
    assert not gone.exists()


def test_prefixes_that_another_search_removes_meanwhile_are_left_to_it(prefixes, tmp_path, monkeypatch):
    stages = [prefixes(fork).run.folder for fork in (1, 2)]
    take = prefix.lock

    def overtaken(file, **options):
        shutil.rmtree(stages[0], ignore_errors=True)
        take(file, **options)

    monkeypatch.setattr(prefix, "lock", overtaken)
    assert collect(tmp_path, 0) == [stages[1]]


def test_a_prefix_resumes_on_the_workers_that_are_asked_for_now(prefixes):
    """Else one that was begun on two GPUs would wait for them for ever, on a machine that has one."""

    def fit(run):
        asked.append((run.experiment.workers, run.experiment.gpus))
        return replace(prefixes.fit(replace(run, until=1)), ending="stopped")

    asked = []
    for workers, gpus in (("2", True), ("0", False)):
        with pytest.raises(PrefixError):
            prefixes(4, fit=fit, workers=workers, gpus=gpus)
    assert asked == [("2", True), ("0", False)]


def test_a_prefix_that_diverges_says_so(prefixes):
    lost = lambda run: Outcome(ending="diverged", iteration=1, reason="L_img1 is not finite")  # noqa: E731
    with pytest.raises(PrefixError, match="not finite"):
        prefixes(2, fit=lost)
    prefixes(2)
    assert prefixes.trained == [(0, 2), (0, 2)]


def test_checkpoints_of_a_prefix_are_all_kept(prefixes):
    stage = prefixes(4, checkpoint_every=1).run.folder
    assert [int(path.name[-8:]) for path in checkpoints(stage)] == [1, 2, 3, 4]
