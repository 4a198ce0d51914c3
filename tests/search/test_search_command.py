"""What the command of a search refuses, plans, and leaves behind."""

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import yaml
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST

from dgnet_platform.cli import tune as tuning
from dgnet_platform.cli.experiments import base_experiment
from dgnet_platform.cli.options import TuneMarket
from dgnet_platform.compute.placement import Placement
from dgnet_platform.errors import ExperimentError, TrackingError
from dgnet_platform.runs.journal import Journal
from dgnet_platform.runs.run import Run
from dgnet_platform.search import tracked
from dgnet_platform.search.config import METRIC, SearchConfig
from dgnet_platform.search.driver import Search
from dgnet_platform.search.parameters import PARAMETERS
from dgnet_platform.search.plan import plan_search
from dgnet_platform.search.report.results import Results
from dgnet_platform.search.space import Space
from dgnet_platform.search.stopping import StoppingRule
from dgnet_platform.search.study import FILE
from dgnet_platform.search.trial import TrialProgress
from dgnet_platform.search.trials import check_folders
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.tracking import client as tracking
from dgnet_platform.training import plan as training_plan
from jobs import train_market
from jobs.tune_market import main
from tests.helpers.market import packed, write_market
from tests.helpers.runs import CLASSES, tiny_experiment
from tests.helpers.studies import opened


@pytest.fixture
def options(people_store, tmp_path):
    """Options of a tiny search."""
    base = tiny_experiment(people_store, tmp_path, evaluate_every=1)
    file = tmp_path / "base.yaml"
    file.write_text(yaml.safe_dump(to_dict(replace(base, model=replace(base.model, iterations=24)))))
    return [
        "--data", str(people_store), "--config", str(file), "--storage", str(tmp_path / "storage"),
        "--stopping.rungs", "2", "--stopping.eta", "2", "--stopping.first", "0.3",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--set", "alpha={low: 1, high: 0.1}"], "alpha = {'low': 1.0, 'high': 0.1}: `low <= high` must hold"),
        (["--set", "alpha={choices: []}"], "alpha = {'choices': []}: The `choices` must contain one or more elements"),
        (["--set", "alpha={choices: [[1]]}"], "alpha = [1]: Input should be a valid number"),
        (["--name", "../up"], "name '../up': letters"),
        (["--iterations", "0"], "--iterations 0: must be 1 or more"),
        (["--seconds-before", "1"], "give both or none"),
        (["--set", "alpah=1"], "did you mean 'alpha'?"),
        (["--set", "alpha"], "--set alpha: its name stands for no"),
        (["--set", "warmup_start=30"], "warmup_start up to 30 and ramp up to 8 end at iteration 38: runs have 24"),
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


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_trials_of_too_few_images_are_refused_before_their_teacher_is_trained(options, more, capsys, tmp_path):
    file = Path(options[options.index("--config") + 1])
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings["model"]["batch_norm"] = "local"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main([*options, *more, "--workers-per-trial", "4"]) == 2
    output = " ".join(capsys.readouterr().out.split())
    assert "--workers-per-trial 4: with batch_norm local, 4 workers of a batch of 8 normalise over 2 images" in output
    assert not (tmp_path / "storage").exists()


def test_trials_get_only_as_many_workers_as_their_batch_can_be_shared_among(people_store, tmp_path):
    base = tiny_experiment(people_store, tmp_path)
    local, any_size = (
        replace(base, model=replace(base.model, batch_norm=kind)) for kind in ("local", "local_any_size")
    )
    space = Space.default(base.model).overridden({"warmup_start": 4, "ramp": 1})
    config = SearchConfig(stopping=StoppingRule(kind="none"))
    refused = (local, 4, "at most 2 workers, or say local_any_size"), (base, 9, "batch_size = 8")
    for experiment, workers, words in refused:
        with pytest.raises(ExperimentError, match=f"--workers-per-trial {workers}: .*{words}"):
            plan_search(experiment, space, replace(config, workers_per_trial=workers), teacher=None)
    for experiment, workers in ((local, 2), (local, 0), (any_size, 4), (base, 8)):
        plan_search(experiment, space, replace(config, workers_per_trial=workers), teacher=None)


def test_a_full_disk_is_noticed_before_trials_start(options, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tuning, "place_search", lambda _: Placement(concurrent=2, cpus=1, gpus=0, workers=0))
    monkeypatch.setattr(training_plan.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    file = Path(options[options.index("--config") + 1])
    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings["model"]["recipe"]["soft_label"] = "uniform"
    settings["model"]["trunk_from_teacher"] = False
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    folders: list[Path] = []
    check_free = tuning.check_free
    monkeypatch.setattr(tuning, "check_free", lambda at, *more: (folders.append(at), check_free(at, *more)))
    assert main(options) == 2
    assert "0.0 GiB free, 8 checkpoints take" in " ".join(capsys.readouterr().out.split())
    [folder] = folders
    assert not folder.exists()

    def goes_on(*_):
        raise ExperimentError("it goes on")

    monkeypatch.setattr(tuning, "Search", goes_on)
    folder.mkdir()
    (folder / FILE).touch()  # one that was begun has made room for itself, or is only looked at
    assert main(options) == 2
    assert "it goes on" in capsys.readouterr().out


def test_the_plan_of_a_search_changes_nothing(options, capsys, tmp_path):
    assert main([*options, "--trials", "6", "--dry-run"]) == 0
    output = capsys.readouterr().out
    for words in ("Search space", "Shared prefixes", "with shared prefixes", "would be trained first"):
        assert words in output
    assert not (tmp_path / "storage").exists()


def test_the_plan_of_a_search_says_what_control_and_confirmation_take(options, capsys):
    given = [*options, "--set", "warmup_start=4", "ramp=1", "--confirm", "3", "--dry-run"]
    assert main([*given, "--seconds-before", "100", "--seconds-after", "200"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "by which trials are judged: at most 24 iterations, 1.22 GPU-hours." in told  # 4 * 100 s + 20 * 200 s
    # Each seed has one prefix of 4 iterations, and four runs that leave it.
    assert "best 3 trials with 3 other seeds each: 252 iterations, 13.67 GPU-hours." in told
    assert main([*given, "--preset", "paper"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert re.search(r"252 iterations, \d+% of what the trials cost; --seconds-before and --seconds-after give", told)
    for other in (["--stopping.kind", "none"], ["--stopping.by", "metric"]):
        assert main([*options[:-6], *other, "--dry-run"]) == 0
        told = capsys.readouterr().out
        assert "The control" not in told
        assert "Confirmation" not in told


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
    assert "settings with their values, such as keep: 3 are needed" in capsys.readouterr().out


def test_mlflow_is_told_later_of_a_trial_that_ended_while_it_was_away(people_store, tmp_path, monkeypatch):
    base = tiny_experiment(people_store, tmp_path)
    space = Space.default(base.model).overridden({"warmup_start": 4, "ramp": 1})
    config = SearchConfig(stopping=StoppingRule(kind="none"))
    plan = plan_search(base, space, config, teacher=None)
    plan.folder.mkdir()
    search = Search(plan, Placement(concurrent=1, cpus=1, gpus=0, workers=0))
    search.study.set_target(1)
    folder = search.trials.prepare(search.study.ask())
    journal = Journal(folder, 0)
    for iteration in range(1, 13):
        journal.write(iteration, {"loss/total": 1.0, METRIC: iteration / 12})
    journal.close()
    TrialProgress(folder=folder).update(ending="finished", iteration=12, phase="over")

    def known() -> tuple[str, float | None, float | None]:
        run = search.trials.tracked.run.client.get_run(Run.read(folder).mlflow_run)
        return run.info.status, run.data.metrics.get("iteration"), run.data.metrics.get("search/objective")

    monkeypatch.setattr(tracked, "ship", lambda *_, **__: False)
    search.trials.finish_trial(0)
    assert search.study.trial(0).values == [1.0]
    assert known() == ("RUNNING", None, None)
    monkeypatch.undo()
    search.trials.recover()
    assert known() == ("FINISHED", 12, 1.0)


def test_an_earlier_study_to_start_from_makes_another_search(people_store, tmp_path):
    base = tiny_experiment(people_store, tmp_path)
    space = Space.default(base.model).overridden({"warmup_start": 4, "ramp": 1})
    config = SearchConfig(stopping=StoppingRule(kind="none"))
    cold, warm = (
        plan_search(base, space, replace(config, warm_start=earlier), teacher=None)
        for earlier in ((), ("study.jsonl:other",))
    )
    assert cold.name != warm.name


def test_rare_poses_are_refused_where_a_store_has_no_key_points(people_store, tmp_path):
    packed(write_market(tmp_path / "market"), tmp_path / "photographs")
    base = tiny_experiment(tmp_path / "photographs", tmp_path)
    default = Space.default(base.model).overridden({"warmup_start": 4, "ramp": 1})
    space = default.overridden({"partners": PARAMETERS["partners"].published})
    config = SearchConfig(stopping=StoppingRule(kind="none"))
    with pytest.raises(ExperimentError, match=r"partners = rare_pose: .* has no key points .*, or leave it out, such"):
        plan_search(base, space, config, teacher=None)
    assert plan_search(base, default, config, teacher=None)
    assert plan_search(replace(base, data=str(people_store)), space, config, teacher=None)


def test_the_best_settings_have_all_that_differs_from_the_preset(people_store, tmp_path):
    base = tiny_experiment(people_store, tmp_path)
    base = replace(base, baseline=replace(base.baseline, label_smoothing=0.25))
    base = replace(base, model=replace(base.model, precise_batches=40))  # as every search's
    space = Space.default(base.model).overridden({"warmup_start": 4, "ramp": 1})
    plan = plan_search(base, space, SearchConfig(stopping=StoppingRule(kind="none")), teacher=None)
    plan.folder.mkdir()
    study = opened(plan.folder, identity=plan.identity, space=space, base=base.model)
    study.ask()
    file = tmp_path / "best.yaml"
    file.write_text(Results(plan, study)._settings_yaml(0))
    again = base_experiment(TuneMarket(config=file, data=str(people_store)))
    assert to_dict(again.baseline) == to_dict(base.baseline)
    assert to_dict(again.model) == to_dict(plan.model(study.values(0)))


def test_mlflow_may_be_away_for_a_while(monkeypatch):
    monkeypatch.setattr(tracking, "RETRY", 0)
    answers = iter([requests.ConnectionError("refused"), OSError("reset"), "here"])

    def ask() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert tracking._patiently(ask, "http://server", lambda: False) == "here"
    answers = iter([requests.ConnectionError("refused")])
    with pytest.raises(TrackingError, match="http://server was away for too long"):
        tracking._patiently(ask, "http://server", lambda: True)
    answers = iter([MlflowException("no such run", RESOURCE_DOES_NOT_EXIST)])
    with pytest.raises(MlflowException, match="no such run"):
        tracking._patiently(ask, "http://server", lambda: False)


def test_a_trial_whose_folder_is_gone_is_noticed(tmp_path):
    study = opened(tmp_path)
    study.note(study.ask(), folder="/lost/search-000")
    plan = SimpleNamespace(name="search", trial_folder=lambda number: tmp_path / "lost" / f"search-{number:03d}")
    with pytest.raises(ExperimentError, match=r"trial 0 of search .*search-000, which is gone"):
        check_folders(plan, study, archived=False)  # pyright: ignore[reportArgumentType]
