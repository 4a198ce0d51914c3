"""Searches on a Ray cluster of this machine: with and without shared prefixes, killed, diverging, of two workers."""

import json
import re
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import optuna
import pandas as pd
import psutil
import pytest
import torch
import yaml
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from dgnet_platform.runs.checkpoint import checkpoints
from dgnet_platform.runs.presets import teacher_of
from dgnet_platform.runs.run import Run
from dgnet_platform.runs.tracking_uri import default_uri
from dgnet_platform.search.study import FILE
from dgnet_platform.search.trial import TrialProgress
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.training.driver import train
from tests.helpers.runs import QUIET, job, lines, same, tiny_experiment
from tests.helpers.servers import TrackingServer, wait_for

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # Ray, MLflow and gRPC warn of each other
]
NAME, TRIALS = "search", 8


@pytest.fixture(scope="module")
def options(people_store, tmp_path_factory):
    """Gives the options of a search of tiny trials in a storage folder of its own."""
    root = tmp_path_factory.mktemp("searches")
    base = tiny_experiment(people_store, root, evaluate_every=2, checkpoint_every=4)
    base = replace(base, model=replace(base.model, iterations=24))
    (root / "base.yaml").write_text(yaml.safe_dump(to_dict(base)))
    teacher = train(teacher_of(base), console=QUIET).run.last_checkpoint

    return Options(root, people_store, teacher)


class Options:
    """Gives the options of a search in a storage folder of its own, below `root`."""

    def __init__(self, root: Path, store: Path, teacher: Path):
        self.root, self._store, self._teacher = root, store, teacher

    def __call__(self, storage: str, *more: str) -> list[str]:
        return [
            "--name", NAME, "--storage", str(self.root / storage), "--data", str(self._store), "--teacher",
            str(self._teacher), "--config", str(self.root / "base.yaml"), "--trials", str(TRIALS),
            "--stopping.rungs", "2", "--stopping.eta", "2", "--stopping.first", "0.3",
            "--set", "generated_identity=0.5", "ramp=4", "warmup_start={choices: [4, 6, 8, 10]}", *more,
        ]  # fmt: skip


def searched(arguments: list[str], status: int = 0) -> str:
    output, _ = (process := job("tune_market.py", *arguments)).communicate()
    assert process.returncode == status, output
    return output


@pytest.fixture(scope="module")
def shared(options):
    """A search with shared prefixes that nothing happened to, and what it printed."""
    output = searched(options("shared"))
    return options.root / "shared", output


def study_of(storage: Path) -> list[optuna.trial.FrozenTrial]:
    backend = JournalStorage(JournalFileBackend(str(storage / NAME / FILE)))
    return optuna.load_study(study_name=NAME, storage=backend).get_trials()


def leaderboard(storage: Path) -> pd.DataFrame:
    return pd.read_csv(storage / NAME / "leaderboard.csv")


def curves(folder: Path) -> list:
    return [
        (
            line["iteration"],
            {k: v for k, v in line["metrics"].items() if not k.startswith("speed/")},
            line.get("pictures"),
        )
        for line in lines(folder)
    ]


def assert_same_search(one: Path, other: Path) -> None:
    """Two searches have the same trials with the same curves and weights."""
    for left, right in zip(study_of(one), study_of(other), strict=True):
        assert (left.state, left.params, left.values) == (right.state, right.params, right.values)
        assert left.intermediate_values == right.intermediate_values
        folders = [storage / f"{NAME}-{left.number:03d}" for storage in (one, other)]
        assert curves(folders[0]) == curves(folders[1])
        ends = [checkpoints(folder)[-1] for folder in folders]
        assert ends[0].name == ends[1].name
        assert same(*(torch.load(end / "tensors.pt", weights_only=True) for end in ends))


def executed(storage: Path) -> int:
    """Iterations that a search trained, by its journal of trials and prefixes."""
    progress = [TrialProgress.read(folder) for folder in storage.glob(f"{NAME}-*")]  # with the control
    return sum(p.iteration - p.fork + p.trained for p in progress)


def assert_tracked(storage: Path, uri: str = "") -> None:
    """Study, folders and MLflow tell the same."""
    client = MlflowClient(uri or default_uri(str(storage)))
    [experiment] = [e for e in client.search_experiments() if e.name.startswith("dgnet-")]
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    [parent] = [run for run in runs if run.data.tags["dgnet.kind"] == "search"]
    assert parent.info.status == "FINISHED"
    children = {
        int(run.data.tags["dgnet.trial"]): run
        for run in runs
        if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id and run.data.tags["dgnet.kind"] == "trial"
    }
    siblings = [run for run in runs if run.data.tags["dgnet.kind"] == "sibling"]
    assert [run.info.status for run in siblings] == ["FINISHED"] * len(siblings)
    trials = study_of(storage)
    assert sum(run.data.tags["dgnet.kind"] == "trial" for run in runs) == len(children) == len(trials)
    folders = [f"{NAME}-{t.number:03d}" for t in trials] + [str(run.info.run_name) for run in siblings]
    assert sorted(path.name for path in storage.glob(f"{NAME}-*")) == sorted(folders)
    statuses = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}
    prefixes = {run.info.run_id: run for run in runs if run.data.tags["dgnet.kind"] == "prefix"}
    for trial in trials:
        child = children[trial.number]
        run = Run.read(storage / f"{NAME}-{trial.number:03d}")
        assert run.mlflow_run == child.info.run_id
        assert child.info.status == statuses[trial.state]
        assert (trial.state == TrialState.COMPLETE) == ("dgnet.reason" not in child.data.tags)
        steps = [metric.step for metric in client.get_metric_history(child.info.run_id, "iteration")]
        assert steps == [line["iteration"] for line in lines(run.folder)]
        if trial.state != TrialState.FAIL:
            start = run.experiment.model.loss.teacher_warmup.start  # pyright: ignore[reportAttributeAccessIssue]
            for name in ("val/best/mAP", "val/both/mAP"):
                history = client.get_metric_history(child.info.run_id, name)
                own = client.get_metric_history(child.info.run_id, f"since_warmup/{name}")
                assert [(m.step - start, m.value) for m in history] == [(m.step, m.value) for m in own]
        if "dgnet.prefix_run" in child.data.tags:
            prefix = prefixes[child.data.tags["dgnet.prefix_run"]]
            assert prefix.info.status == "FINISHED"
            assert prefix.data.params["fork"] == child.data.tags["dgnet.fork"]


def test_shared_prefixes_change_nothing_but_the_work(shared, options):
    storage, output = shared
    alone = searched(options("alone", "--no-sharing"))
    assert_same_search(storage, options.root / "alone")
    with_sharing, without = executed(storage), executed(options.root / "alone")
    assert with_sharing < without
    assert f"{with_sharing:,} iterations trained; {without:,} without shared prefixes" in output
    assert f"{without:,} iterations trained; {without:,} without shared prefixes" in alone
    states = [trial.state for trial in study_of(storage)]
    assert states[0] == TrialState.COMPLETE
    assert TrialState.PRUNED in states
    assert len({trial.params["warmup_start"] for trial in study_of(storage)}) > 1


def test_a_search_is_tracked(shared):
    storage, output = shared
    assert_tracked(storage)
    board = leaderboard(storage)
    assert len(board) == TRIALS
    assert list(board["mAP"][board["state"] == "finished"]) == sorted(board["mAP"][board["state"] == "finished"])[::-1]
    assert not re.search("Configuration for experiment|Trial status|RUNNING", output)
    client = MlflowClient(default_uri(str(storage)))
    [experiment] = [e for e in client.search_experiments() if e.name.startswith("dgnet-")]
    [parent] = client.search_runs([experiment.experiment_id], "tags.`dgnet.kind` = 'search'")
    files = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert {"leaderboard.csv", "best.yaml", "figures"} <= files
    assert parent.data.metrics["search/best_mAP"] == board["mAP"].iloc[0]
    assert parent.data.metrics["search/iterations_spent"] == executed(storage)
    note = parent.data.tags["mlflow.note.content"]
    assert note.startswith("| trial | state | mAP, % |")
    assert f"| {board['trial'].iloc[0]} | finished | {100 * board['mAP'].iloc[0]:.2f} |" in note
    assert "Look first at `figures/" in note
    assert parent.data.tags["mlflow.user"]
    assert parent.data.tags["mlflow.source.name"].endswith("jobs/tune_market.py")
    assert f"/#/experiments/{experiment.experiment_id}/runs/{parent.info.run_id}?workflowType" in output


def test_mlflow_may_be_away_in_the_middle(options, tmp_path, free_port):
    """While a trial trains and ends, and while the next one wants to start."""
    server = TrackingServer(tmp_path, free_port)
    server.start()
    process = job("tune_market.py", *options("away", "--trials", "4", "--tracking-uri", server.uri))
    first = options.root / "away" / f"{NAME}-000"
    try:
        wait_for(lambda: ((first / "metrics.jsonl").exists() and lines(first)) or process.poll() is not None)
        server.stop()
        wait_for(lambda: TrialProgress.read(first).over or process.poll() is not None)
        time.sleep(50)  # longer than a trial's own process waits for MLflow at its end
        assert process.poll() is None
        server.start()
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert all(trial.state != TrialState.FAIL for trial in study_of(options.root / "away"))
        assert_tracked(options.root / "away", server.uri)
    finally:
        server.stop()
        if process.poll() is None:
            process.kill()
            process.communicate()


def test_the_best_settings_are_a_configuration_and_more_trials_are_added(shared, options, people_store):
    storage, _ = shared
    best = storage / NAME / "best.yaml"
    assert "num_classes" not in best.read_text()
    process = job(
        "train_market.py", "--data", str(people_store), "--config", str(best), "--storage", str(storage), "--dry-run"
    )
    output, _ = process.communicate()
    assert process.returncode == 0, output
    number = int(leaderboard(storage)["trial"].iloc[0])
    model = to_dict(Run.read(storage / f"{NAME}-{number:03d}").experiment.model)
    assert f"alpha: {model['loss']['alpha']}" in output

    before = study_of(storage)
    again = searched(options("shared"))  # nothing is left to do
    assert "Leaderboard" in again
    assert study_of(storage) == before
    arguments = options("shared")
    arguments[arguments.index("--trials") + 1] = "+1"
    searched(arguments)
    after = study_of(storage)
    assert len(after) == TRIALS + 1
    assert [t.params for t in after[:TRIALS]] == [t.params for t in before]


def test_a_killed_driver_loses_and_repeats_nothing(shared, options):
    whole, _ = shared
    storage = options.root / "killed"
    moments = (
        (storage / f"{NAME}-001" / "run.json").exists,  # just asked for
        lambda: len(lines_of(storage / f"{NAME}-003")) > 9,  # in the middle of a trial
        lambda: TrialProgress.read(storage / f"{NAME}-005").over,  # over, and perhaps told
    )
    for moment in moments:
        process = job("tune_market.py", *options("killed"))
        wait_for(lambda moment=moment, process=process: moment() or process.poll() is not None, 300)
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        process.communicate()
    searched(options("killed"))
    for left, right in zip(study_of(whole)[:TRIALS], study_of(storage), strict=True):
        assert (left.state, left.params, left.values) == (right.state, right.params, right.values)
    one, other = leaderboard(whole), leaderboard(storage)
    one = one.query(f"trial < {TRIALS}").reset_index(drop=True)
    pd.testing.assert_frame_equal(one, other)
    assert_tracked(storage)


def lines_of(folder: Path) -> list[dict]:
    return lines(folder) if (folder / "metrics.jsonl").exists() else []


def test_a_search_goes_on_when_its_machine_is_lost(shared, options):
    whole, _ = shared
    storage, uri = options.root / "lost", f"sqlite:///{options.root}/lost.db"
    arguments = options("lost", "--archive", (options.root / "archive").as_uri(), "--tracking-uri", uri)
    process = job("tune_market.py", *arguments)
    wait_for(lambda: len(lines_of(storage / f"{NAME}-003")) > 9 or process.poll() is not None, 400)
    assert process.poll() is None, process.communicate()[0]
    machine = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for each in machine:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.communicate()
    psutil.wait_procs(machine, timeout=20)
    shutil.rmtree(storage)

    assert "Brought search search back from" in " ".join(searched(arguments).split())
    for left, right in zip(study_of(whole)[:TRIALS], study_of(storage), strict=True):
        assert (left.state, left.params, left.values) == (right.state, right.params, right.values)
    one, other = leaderboard(whole), leaderboard(storage)
    one = one.query(f"trial < {TRIALS}").reset_index(drop=True)
    pd.testing.assert_frame_equal(one, other)
    trained = [sum(TrialProgress.read(s / f"{NAME}-{n:03d}").trained for n in range(TRIALS)) for s in (whole, storage)]
    assert trained[0] == trained[1]  # each prefix once, before or after
    client = MlflowClient(uri)
    [experiment] = [e for e in client.search_experiments() if e.name.startswith("dgnet-")]
    runs = [run for run in client.search_runs([experiment.experiment_id]) if run.data.tags["dgnet.kind"] == "trial"]
    assert len(runs) == TRIALS
    for run in runs:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "iteration")]
        assert steps == list(range(1, len(steps) + 1))


def test_a_stopped_search_saves_and_goes_on(shared, options):
    whole, _ = shared
    storage = options.root / "stopped"
    process = job("tune_market.py", *options("stopped"))
    wait_for(lambda: len(lines_of(storage / f"{NAME}-000")) > 6 or process.poll() is not None, 300)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "the same command resumes" in output
    folder = storage / f"{NAME}-000"
    assert int(checkpoints(folder)[-1].name[-8:]) == lines(folder)[-1]["iteration"] < 24
    searched(options("stopped"))
    for left, right in zip(study_of(whole)[:TRIALS], study_of(storage), strict=True):
        assert (left.state, left.params, left.values) == (right.state, right.params, right.values)


def test_trials_that_diverge_fail_and_are_replaced(options):
    output = searched(
        [*options("diverging", "appearance_lr={choices: [0.002, 1.0e+30]}"), "--seed", "1", "--retries", "0"]
    )
    trials = study_of(options.root / "diverging")
    failed = [trial for trial in trials if trial.state == TrialState.FAIL]
    assert failed
    for trial in failed:
        assert trial.params["appearance_lr"] == 1e30
        assert "not finite" in trial.user_attrs["reason"]
        assert f"trial {trial.number} failed" in output
    done = [trial for trial in trials if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(done) + len(failed) == TRIALS + min(2, len(failed))  # as many as may be replaced
    assert_tracked(options.root / "diverging")


def test_trials_of_two_workers_run_one_after_the_other(options):
    arguments = options("two", "alpha=0.3", "warmup_start=4")
    arguments[arguments.index("--trials") + 1] = "2"
    searched([*arguments, "--workers-per-trial", "2", "--stopping.kind", "none"])
    trials = study_of(options.root / "two")
    assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 2
    run = Run.read(options.root / "two" / f"{NAME}-001")
    assert run.experiment.workers == "2"
    assert json.loads((checkpoints(run.folder)[-1] / "meta.json").read_text())["world_size"] == 2


def test_the_best_are_confirmed_with_other_seeds_also_after_a_kill(options):
    storage = options.root / "confirmed"
    arguments = options("confirmed", "--confirm", "2")
    arguments[arguments.index("--trials") + 1] = "3"
    process = job("tune_market.py", *arguments)
    wait_for(lambda: len(list(storage.glob(f"{NAME}-*-seed-*"))) > 1 or process.poll() is not None, 400)
    assert process.poll() is None, process.communicate()[0]
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = {folder: lines_of(folder) for folder in storage.glob(f"{NAME}-*") if TrialProgress.read(folder).over}
    assert len(before) > 4  # the control, the trials, and the first of those with another seed
    output = searched(arguments)
    assert "under 2 other seeds" in " ".join(output.split())
    assert all(lines_of(folder) == journal for folder, journal in before.items())  # nothing is trained again
    board = leaderboard(storage)
    again = board[board["confirmed_seeds"] > 0]
    assert 0 in set(again["trial"])
    assert len(again) == sum(board["state"] == "finished")
    assert set(again["confirmed_seeds"]) == {2}
    assert_tracked(storage)
