"""The search without Ray: its study, its prefixes, where trials run, and what is refused."""

import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import torch
import yaml
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from optuna.trial import TrialState
from ray.tune.search import Searcher

from dgnet_core.config import laptop
from dgnet_core.teacher import Teacher
from dgnet_platform import disk, prefix, tracking, worker
from dgnet_platform import search as search_module
from dgnet_platform import study as study_module
from dgnet_platform.checkpoint import checkpoints
from dgnet_platform.experiment import DGNetExperiment, ExperimentError, identity_of
from dgnet_platform.halving import Stopping
from dgnet_platform.journal import Journal
from dgnet_platform.placement import Node, Placement, place
from dgnet_platform.plain import to_dict
from dgnet_platform.prefix import Prefix, PrefixError, adopt, collect, ensure_prefix, key_of
from dgnet_platform.run import Run
from dgnet_platform.search import Feed, Search
from dgnet_platform.search_plan import METRIC, SearchConfig, plan_search
from dgnet_platform.space import Space
from dgnet_platform.study import FILE, Study, StudyError
from dgnet_platform.tracking import TrackingError
from dgnet_platform.trained import TrainedTeacher
from dgnet_platform.training import TrainingError
from dgnet_platform.trial import Progress
from dgnet_platform.worker import Outcome, prepare, train
from jobs import train_market
from jobs.tune_market import main
from tests.runs import CLASSES, lines, same, tensors, tiny_experiment

BASE = laptop(10, iterations=400)
SPACE = Space.default(BASE)
IDENTITY = {"space": SPACE.values(), "seed": 3}


# ----------------------------------------------------------------------------------------------------------------
# The study


def opened(folder: Path, **overrides) -> Study:
    arguments = {"name": "search", "identity": IDENTITY, "space": SPACE, "base": BASE, "seed": 3} | overrides
    study = Study(folder, **arguments)
    if not study.target:
        study.aim(8)
    return study


def end(study: Study, number: int) -> None:
    """A trial ends as its values have it."""
    values = study.values(number)
    if number == 3:
        study.tell(number, "pruned", curve={9: 0.1, 26: 0.2})
    elif number == 4:
        study.tell(number, "fail")
    else:
        study.tell(number, "complete", values=[float(values["prim"]) - float(values["alpha"])], curve={9: 0.3})


def searched(folder: Path, kill: tuple[int, ...] = ()) -> list[dict]:
    """Values of all trials of a search whose driver is killed in some of them."""
    study, found = opened(folder), []
    while study.missing or study.running:
        number = study.running[0] if study.running else study.ask()
        if number in kill:
            kill = tuple(k for k in kill if k != number)
            study = opened(folder)
            assert study.running == [number]
            study.again(number)
        found.append(study.values(number))
        end(study, number)
    return found


def test_a_study_is_the_same_after_kills(tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    trials = searched(whole)
    assert trials == searched(killed, kill=(0, 2, 6))
    assert len(trials) == 9  # one failed and was replaced
    assert trials[0] == SPACE.defaults(BASE)
    assert len({json.dumps(values) for values in trials}) == 9


def test_a_trial_that_was_half_asked_for_gets_the_same_values(tmp_path, monkeypatch):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    whole.mkdir()
    killed.mkdir()
    expected = searched(whole)[1]
    study = opened(killed)
    end(study, study.ask())

    class KillError(Exception):
        pass

    suggest = study_module._suggest

    def die(trial, name, distribution):
        if name == "alpha":
            raise KillError
        suggest(trial, name, distribution)

    with monkeypatch.context() as patch:
        patch.setattr(study_module, "_suggest", die)
        with pytest.raises(KillError):
            study.ask()
    study = opened(killed)
    assert set(study.values(1)) < set(expected)
    study.again(1)
    assert study.values(1) == expected


def test_half_a_line_at_the_end_of_a_study_is_cut_off(tmp_path):
    study = opened(tmp_path)
    end(study, study.ask())
    with (tmp_path / FILE).open("a") as file:
        file.write('{"op_code": 5, "wor')
    study = opened(tmp_path)
    assert study.ask() == 1
    assert len(opened(tmp_path).trials) == 2


def test_trials_are_added_once(tmp_path):
    study = opened(tmp_path)
    study.aim(2)
    for _ in range(2):
        end(study, study.ask())
    assert study.missing == 0
    study.aim(0, 3)
    assert (study.target, study.missing) == (5, 3)
    study.aim(0, 3)  # the same command after a kill
    assert study.target == 5
    numbers = [study.ask() for _ in range(3)]
    study.aim(0, 3)  # and after one while all were under way
    assert (study.target, study.missing) == (5, 0)
    for number in numbers:
        end(study, number)


def test_failures_are_replaced_within_bounds(tmp_path):
    study = opened(tmp_path)
    study.aim(4)
    study.tell(study.ask(), "complete", values=[0.5])
    asked = 1
    while study.missing:
        study.tell(study.ask(), "fail")
        asked += 1
    assert asked == 6


def test_another_search_of_the_same_name_is_refused(tmp_path):
    opened(tmp_path)
    before = (tmp_path / FILE).read_bytes()
    other = SPACE.overridden({"alpha": 0.3})
    with pytest.raises(StudyError, match=r"(?s)search search exists.*space\.alpha.*--name"):
        opened(tmp_path, identity={**IDENTITY, "space": other.values()}, space=other)
    assert (tmp_path / FILE).read_bytes() == before


def test_a_base_outside_the_space_is_tried_without_being_learned_from(tmp_path):
    space = SPACE.overridden({"alpha": {"low": 0.5, "high": 1.0}})
    study = opened(tmp_path, space=space)
    assert study.values(study.ask()) == {}
    study.tell(0, "complete", values=[0.5])
    assert study.values(study.ask()).keys() == space.distributions().keys()


def test_the_best_of_an_earlier_study_come_first(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    old = opened(tmp_path / "old")
    searched(tmp_path / "old")
    done = [t for t in old.trials if t.state == TrialState.COMPLETE]
    best = sorted(done, key=lambda t: -(t.value or 0))[:3]
    space = SPACE.overridden({"ramp": 16})  # not searched any more
    study = opened(tmp_path / "new", space=space, warm_start=(f"{tmp_path}/old/{FILE}:search",))
    tried = [study.values(study.ask()) for _ in range(4)]
    for trial, values in zip([t for t in best if t.number], tried[1:], strict=False):
        assert {**values, "ramp": trial.params["ramp"]} == trial.params
    with pytest.raises(StudyError, match="has no study 'other', only search"):
        opened(tmp_path, warm_start=(f"{tmp_path}/old/{FILE}:other",))
    with pytest.raises(StudyError, match="name a study's file"):
        opened(tmp_path, warm_start=("/nowhere:x",))


def test_a_study_of_two_objectives(tmp_path):
    study = opened(tmp_path, objectives=2)
    for _ in range(8):
        values = study.values(number := study.ask())
        study.tell(number, "complete", values=[float(values["prim"]), -float(values["prim"])])
    assert not study.missing
    assert [trial.values[0] for trial in study.trials] == [-trial.values[1] for trial in study.trials]
    again = opened(tmp_path, objectives=2, name="new", warm_start=(f"{tmp_path}/{FILE}:search",))
    assert again.values(again.ask()) == SPACE.defaults(BASE)


# ----------------------------------------------------------------------------------------------------------------
# What Tune is fed with


class Fake:
    """A search whose trials end as somebody says."""

    def __init__(self, folder: Path):
        self.study = opened(folder)
        self.stop_asked = False
        self.broken: Exception | None = None
        self.fails = {1}

    def prepare(self, number: int) -> Path:
        if self.broken:
            raise self.broken
        return Path(f"/runs/{number}")

    def conclude(self, number: int) -> None:
        fails = number in self.fails
        self.study.note(number, reason="no room" if fails else "")
        self.study.tell(number, "fail" if fails else "complete", values=None if fails else [0.5])

    def ask_to_stop(self) -> None:
        self.stop_asked = True


def test_trials_left_over_come_first_and_failed_ones_are_replaced(tmp_path):
    fake = Fake(tmp_path)
    fake.study.aim(3)
    fake.study.ask()
    feed = Feed(fake)  # pyright: ignore[reportArgumentType]
    assert feed.suggest("a") == {"folder": "/runs/0"}
    assert feed.suggest("b") == {"folder": "/runs/1"}
    assert feed.suggest("c") == {"folder": "/runs/2"}
    assert feed.suggest("d") is None  # nothing now, but one may fail
    feed.on_trial_complete("b", error=True)
    assert feed.suggest("e") == {"folder": "/runs/3"}
    for trial in "ace":
        feed.on_trial_complete(trial)
    assert feed.suggest("f") == Searcher.FINISHED


def test_a_search_in_which_all_fails_stops_and_begins_again(tmp_path):
    fake = Fake(tmp_path)
    fake.fails = {0, 1, 2}
    feed = Feed(fake)  # pyright: ignore[reportArgumentType]
    for trial in "abc":
        assert feed.error is None
        assert feed.suggest(trial) != Searcher.FINISHED
        feed.on_trial_complete(trial, error=True)
    assert isinstance(feed.error, TrainingError)
    assert re.search("first 3 trials failed, .* because: no room", str(feed.error))
    assert feed.suggest("d") == Searcher.FINISHED

    fake = Fake(tmp_path)
    assert fake.study.missing == 8
    assert fake.study.values(fake.study.ask()) == fake.study.values(0)


def test_no_more_trials_start_once_somebody_asked_to_stop(tmp_path):
    fake = Fake(tmp_path)
    feed = Feed(fake)  # pyright: ignore[reportArgumentType]
    assert feed.suggest("a") == {"folder": "/runs/0"}
    fake.stop_asked = True
    assert feed.suggest("b") == Searcher.FINISHED
    assert fake.study.running == [0]


def test_what_goes_wrong_between_trials_ends_the_search(tmp_path):
    fake = Fake(tmp_path)
    feed = Feed(fake)  # pyright: ignore[reportArgumentType]
    fake.broken = ExperimentError("no room")
    assert feed.suggest("a") == Searcher.FINISHED
    assert feed.error is fake.broken
    assert fake.stop_asked


# ----------------------------------------------------------------------------------------------------------------
# Placement

TWO, GPUS = Node(cpus=2), Node(cpus=16, gpus=8)


@pytest.mark.parametrize(
    ("nodes", "workers", "gpus", "concurrent", "expected"),
    [
        ([TWO], 0, 0, 0, (1, 2, 0, 0)),  # one trial takes the machine
        ([TWO], 1, 0, 2, (2, 1, 0, 0)),
        ([TWO], 0, 0, 8, (2, 1, 0, 0)),  # no more than there are CPUs
        ([TWO], 2, 0, 0, (1, 1, 0, 2)),
        ([TWO], 2, 0, 8, (1, 1, 0, 2)),  # eight trials of two workers: one after the other
        ([TWO, TWO], 0, 0, 0, (2, 2, 0, 0)),
        ([TWO, TWO], 3, 0, 0, (1, 1, 0, 3)),  # workers of a trial on two machines
        ([GPUS], 0, 1, 0, (8, 2, 1, 0)),
        ([GPUS], 0, 1, 3, (3, 2, 1, 0)),
        ([GPUS], 2, 2, 0, (4, 1, 1, 2)),
        ([GPUS], 2, 1, 0, (8, 1, 0.5, 2)),
        ([TWO, GPUS], 0, 0.5, 0, (16, 1, 0.5, 0)),
        ([GPUS, GPUS], 4, 4, 0, (4, 1, 1, 4)),
    ],
)
def test_as_many_trials_run_as_fit(nodes, workers, gpus, concurrent, expected):
    placed = place(nodes, workers=workers, gpus=gpus, concurrent=concurrent)
    assert (placed.concurrent, placed.cpus, placed.gpus, placed.workers) == expected
    if not placed.workers:  # they all fit at once
        assert placed.concurrent * placed.cpus <= sum(node.cpus for node in nodes)


@pytest.mark.parametrize(("nodes", "workers", "gpus"), [([TWO], 3, 0), ([TWO], 0, 1), ([GPUS], 0, 9), ([], 0, 0)])
def test_a_trial_that_never_fits_is_refused(nodes, workers, gpus):
    with pytest.raises(ExperimentError, match=r"never fits this cluster.*--workers-per-trial"):
        place(nodes, workers=workers, gpus=gpus, concurrent=0)


# ----------------------------------------------------------------------------------------------------------------
# Prefixes


@pytest.fixture
def prefixes(people_store, tmp_path, one_thread, monkeypatch):
    """Ensures the prefix of a trial up to a fork, and trains runs, in this process and without MLflow."""
    experiment = tiny_experiment(people_store, tmp_path, evaluate_every=3, checkpoint_every=100)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        teacher = Teacher(experiment.model.network, experiment.model.num_classes)
    file = tmp_path / "teacher.pth"
    file.write_bytes(b"teacher")
    trained = TrainedTeacher(teacher=teacher, network=experiment.model.network)
    monkeypatch.setattr(worker, "open_teacher", lambda *_: trained)
    monkeypatch.setattr(prefix.tracking, "connect", lambda *_: (None, "1"))
    monkeypatch.setattr(prefix.tracking, "open_run", lambda *_, **__: "run")
    monkeypatch.setattr(prefix.tracking, "client", lambda *_: None)
    monkeypatch.setattr(prefix.tracking, "close_run", lambda *_: None)
    monkeypatch.setattr(worker.ray.train, "get_preemption_info", lambda: None)
    return Prefixes(experiment, file, tmp_path / "stop")


class Prefixes:
    """Ensures prefixes of a trial, and trains runs, in this process and without MLflow."""

    def __init__(self, experiment: DGNetExperiment, teacher: Path, stop_file: Path):
        self.experiment, self.teacher, self._stop_file = experiment, teacher, stop_file
        self.said: list[str] = []

    def fit(self, run: Run) -> Outcome:
        learner, validator = prepare(run, torch.device("cpu"))
        worker._restore(run, learner)
        return train(run, learner, validator, report=lambda _: None)

    def __call__(self, fork: int, fit: Callable[[Run], Outcome] | None = None, **overrides) -> Prefix:
        found = ensure_prefix(
            replace(self.experiment, **overrides),
            fork,
            teacher=self.teacher,
            tracking_uri="",
            mlflow_experiment="1",
            stop_file=self._stop_file,
            fit=fit or self.fit,
            say=lambda what, _: self.said.append(what),
        )
        with found as there:
            return there


def trial_run(ensure, folder: Path) -> Run:
    folder.mkdir(exist_ok=True)
    identity = identity_of(ensure.experiment, dataset="people", fingerprint="f", teacher=None, origin=None)
    return Run(
        folder=folder, experiment=ensure.experiment, identity=identity.values(), teacher=str(ensure.teacher),
        tracking_uri="", mlflow_experiment="", mlflow_run="",
    )  # fmt: skip


def test_a_prefix_is_trained_once_extended_and_the_same_as_a_run_of_its_own(prefixes, tmp_path):
    assert prefixes(2).trained == 2
    four = prefixes(4)
    assert four.trained == 2
    assert prefixes(4).trained == 0
    assert prefixes(3).trained == 1  # from 2: what 4 has in between was not kept
    assert prefixes.said == ["trains", "trains", "trains"]

    whole, forked = trial_run(prefixes, tmp_path / "whole"), trial_run(prefixes, tmp_path / "forked")
    assert prefixes.fit(whole).ending == "finished"
    adopt(four.checkpoint, forked.folder)
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
    again = prefixes(2)
    assert again.trained == 2
    assert prefixes(2).trained == 0


def test_what_decides_a_prefix_names_it(prefixes, people_store):
    experiment = prefixes.experiment

    def key(fingerprint="f", **overrides):
        return key_of(replace(experiment, **overrides), fingerprint, prefixes.teacher)

    model = experiment.model
    later = replace(model, loss=replace(model.loss, alpha=0.9, prim=1.0), iterations=50)
    assert key() == key(model=later) == key(name="other", keep=9, checkpoint_every=2, threads=4)
    others = [
        key("g"),
        key(workers="2"),
        key(evaluate_every=5),
        key(model=replace(model, seed=1)),
        key(model=replace(model, loss=replace(model.loss, generated_identity=0.1))),
    ]
    assert len({key(), *others}) == 6


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


def test_a_prefix_that_diverges_says_so(prefixes):
    lost = lambda run: Outcome(ending="diverged", iteration=1, reason="L_img1 is not finite")  # noqa: E731
    with pytest.raises(PrefixError, match="not finite"):
        prefixes(2, fit=lost)
    assert prefixes(2).trained == 2


# ----------------------------------------------------------------------------------------------------------------
# Refusals


@pytest.fixture
def options(people_store, tmp_path):
    """Options of a tiny search."""
    base = tiny_experiment(people_store, tmp_path)
    file = tmp_path / "base.yaml"
    file.write_text(yaml.safe_dump(to_dict(replace(base, model=replace(base.model, iterations=24)))))
    return [
        "--data", str(people_store), "--config", str(file), "--storage", str(tmp_path / "storage"),
        "--stopping.rungs", "2", "--stopping.eta", "2", "--stopping.first", "0.3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "alpha={low: 1, high: 0.1}"], "alpha: low = 1 is above high = 0.1"),
        (["--set", "alpha={choices: []}"], "alpha: choices are empty"),
        (["--set", "alpha={choices: [[1]]}"], "numbers or texts are needed"),
        (["--name", "../up"], "name '../up': letters"),
        (["--iterations", "0"], "--iterations 0: must be 1 or more"),
        (["--seconds-before", "1"], "give both or none"),
        (["--set", "alpah=1"], "did you mean 'alpha'?"),
        (["--set", "alpha"], "--set alpha: a value"),
        (["--set", "warmup_start=30"], "runs end after 24 iterations"),
        (["--set", "warmup_start=19"], "19"),
        (["--set", "ramp=19"], "ramp"),
        (["--space", "/nowhere.yaml"], "--space /nowhere.yaml"),
        (["--data", "/nowhere"], "/nowhere holds no store"),
        (["--teacher", "/nowhere.pth"], "/nowhere.pth"),
        (["--storage", "/proc/nowhere", "--teacher", "none.pth"], "none.pth"),
        (["--stopping.first", "0"], "first"),
        (["--trials", "no"], "trials 'no'"),
        (["--trials", "0"], "trials '0'"),
        (["--concurrent", "-1"], "concurrent -1"),
        (["--second", "swap"], "pass --stopping.kind none too"),
    ],
)
def test_what_cannot_be_searched_is_refused(options, more, words, capsys, tmp_path):
    try:
        status = main([*options, *more])
    except SystemExit as error:
        status = error.code
    output = capsys.readouterr()
    assert status == 2
    assert words in " ".join((output.out + output.err).split())
    assert not (tmp_path / "storage").exists()


def test_the_plan_of_a_search_changes_nothing(options, capsys, tmp_path):
    assert main([*options, "--trials", "6", "--dry-run"]) == 0
    output = capsys.readouterr().out
    for words in ("Search space", "Shared prefixes", "with shared prefixes", "would be trained first"):
        assert words in output
    assert not (tmp_path / "storage").exists()


@pytest.mark.parametrize("job", [main, train_market.main], ids=["tune", "train"])
def test_the_store_may_be_named_in_the_file(job, people_store, tmp_path, capsys):
    file = tmp_path / "settings.yaml"
    file.write_text(f"data: {people_store}\nteacher: {tmp_path}/none.pth\n")
    options = ["--config", str(file), "--storage", str(tmp_path / "storage"), "--dry-run"]
    status = job(options)
    output = capsys.readouterr().out
    assert status == 2
    assert f"data: {people_store}" in output
    assert f"num_classes: {CLASSES}\n" in output
    assert f"{tmp_path}/none.pth" in output
    file.write_text("[1]")
    assert job(options) == 2
    assert "settings with their values are needed" in capsys.readouterr().out


def test_checkpoints_of_a_prefix_are_all_kept(prefixes):
    stage = prefixes(4, checkpoint_every=1).run.folder
    assert [int(path.name[-8:]) for path in checkpoints(stage)] == [1, 2, 3, 4]


def test_mlflow_is_told_later_of_a_trial_that_ended_while_it_was_away(people_store, tmp_path, monkeypatch):
    base = tiny_experiment(people_store, tmp_path)
    space = Space.default(base.model).overridden({"warmup_start": 4, "ramp": 1})
    config = SearchConfig(stopping=Stopping(kind="none"))
    plan = plan_search(base, space, config, teacher=None)
    plan.folder.mkdir()
    search = Search(plan, Placement(concurrent=1, cpus=1, gpus=0, workers=0))
    search.study.aim(1)
    folder = search.prepare(search.study.ask())
    journal = Journal(folder, 0)
    for iteration in range(1, 13):
        journal.write(iteration, {"loss/total": 1.0, METRIC: iteration / 12})
    journal.close()
    Progress(ending="finished", iteration=12, phase="over").save(folder)

    def known() -> tuple[str, float | None, float | None]:
        run = search.connected.get_run(Run.read(folder).mlflow_run)
        return run.info.status, run.data.metrics.get("iteration"), run.data.metrics.get("objective")

    monkeypatch.setattr(search_module, "ship", lambda *_, **__: False)
    search.conclude(0)
    assert search.study.trial(0).values == [1.0]
    assert known() == ("RUNNING", None, None)
    monkeypatch.undo()
    search.settle()
    assert known() == ("FINISHED", 12, 1.0)


def test_mlflow_may_be_away_for_a_while(monkeypatch):
    monkeypatch.setattr(tracking, "RETRY", 0)
    answers = iter([requests.ConnectionError("refused"), OSError("reset"), "here"])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert tracking.patiently(ask, "http://server", stop_asked=lambda: False) == "here"
    answers = iter([requests.ConnectionError("refused")])
    with pytest.raises(TrackingError, match="http://server was away for too long"):
        tracking.patiently(ask, "http://server", stop_asked=lambda: True)
    answers = iter([MlflowException("no such run", RESOURCE_DOES_NOT_EXIST)])
    with pytest.raises(MlflowException, match="no such run"):
        tracking.patiently(ask, "http://server", stop_asked=lambda: False)


def test_a_trial_whose_folder_is_gone_is_noticed(tmp_path):
    study = opened(tmp_path)
    study.note(study.ask(), folder="/lost/search-000")
    search = Search.__new__(Search)
    search.study, search.archive = study, None
    search.plan = SimpleNamespace(  # pyright: ignore[reportAttributeAccessIssue]
        name="search", trial_folder=lambda number: tmp_path / "lost" / f"search-{number:03d}"
    )
    with pytest.raises(ExperimentError, match=r"trial 0 of search .*search-000, which is gone"):
        search._check_folders()
