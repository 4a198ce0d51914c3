"""The training loop in this process: bit-exact resume, checkpoints that are damaged, stops, losses that run away."""

import json
import shutil
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import torch

from dgnet_core.teacher.networks import Teacher
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.run import Outcome, Run
from dgnet_platform.training import worker
from dgnet_platform.training.learner import Learner
from dgnet_platform.training.loop import run_loop
from dgnet_platform.training.validation import read_queries
from dgnet_platform.training.worker import build_rank
from tests.helpers.runs import lines, same, tensors, tiny_experiment, tiny_teacher, untracked

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def start(people_store, tmp_path, monkeypatch):
    """Trains a run in this process up to an iteration, as a newly started worker would."""
    return partial(_start, people_store, tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def finished(one_thread, people_store, tmp_path_factory):
    """A run that nothing happened to, how it ended, and what it reported."""
    with pytest.MonkeyPatch.context() as patch:
        return _start(people_store, tmp_path_factory.mktemp("finished"), patch, "whole")


@pytest.fixture(scope="module")
def whole(finished):
    return tensors(finished[0], 12)


def _start(
    store, tmp_path, monkeypatch, name, experiment=None, *, stop_after=None, until=None, judge=None, asked_to_stop=None,
    leaving=lambda: False,
) -> tuple[Run, Outcome, list]:  # fmt: skip
    experiment = experiment or tiny_experiment(store, tmp_path)
    if experiment.data != str(store):
        experiment = replace(experiment, data=str(store))
    run = untracked(experiment, tmp_path / name, until=until)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        teacher = Teacher(experiment.model.network, experiment.model.num_classes)
    monkeypatch.setattr(worker, "load_teacher", lambda *_: teacher)
    learner, validator = build_rank(replace(run, teacher="here"), torch.device("cpu"))
    if stop_after is not None:
        _crash_after(learner, stop_after)
    worker._restore(run, learner)
    reports = []
    outcome = run_loop(
        run, learner, validator, report=reports.append, judge=judge, asked_to_stop=asked_to_stop, leaving=leaving
    )
    return run, outcome, reports


class CrashError(RuntimeError):
    """A worker dies."""


def _crash_after(learner, iterations):
    advance = learner.advance

    def crash():
        if learner.state.iteration == iterations:
            raise CrashError
        return advance()

    learner.advance = crash


def test_a_run_from_beginning_to_end(finished):
    run, outcome, reports = finished
    assert outcome == Outcome(ending="finished", iteration=12)
    journal = lines(run.folder)
    assert [line["iteration"] for line in journal] == list(range(1, 13))
    assert [line["iteration"] for line in journal if "val/both/mAP" in line["metrics"]] == [6, 12]
    assert [line["iteration"] for line in journal if "pictures" in line] == [6, 12]
    for file in journal[5]["pictures"].values():
        assert (run.folder / file).stat().st_size > 1000
    first, last = journal[0]["metrics"], journal[-1]["metrics"]
    assert first["weight/prim"] == 0
    assert last["weight/prim"] == 2
    assert {"loss/L_img1", "monitor/gradient_generator", "lr/appearance", "speed/images_per_second"} <= first.keys()
    assert {
        "loss/L_prim",
        "loss/L_fine",
        "monitor/identity_surge",
        "val/swap/SSIM",
        "val/reconstruction/SSIM",
    } <= last.keys()
    assert [report["iteration"] for report in reports] == [3, 6, 9, 12]
    assert all(type(value) in (int, float) for report in reports for value in report.values())
    kept = [path.name for path in checkpoint.checkpoints(run.folder)]
    assert kept[-2:] == ["checkpoint_00000009", "checkpoint_00000012"]


@pytest.mark.parametrize("crash", [1, 5, 9])
def test_a_crash_changes_nothing(start, crash, finished, whole):
    with pytest.raises(CrashError):
        start("crashed", stop_after=crash)
    crashed, outcome, _ = start("crashed")
    assert outcome.ending == "finished"
    assert same(whole, tensors(crashed, 12))
    quiet = ("speed/",)
    for one, other in zip(lines(finished[0].folder), lines(crashed.folder), strict=True):
        assert one["iteration"] == other["iteration"]
        for name in one["metrics"]:
            assert name.startswith(quiet) or one["metrics"][name] == other["metrics"][name], name


def test_a_crash_changes_nothing_in_bfloat16(start, people_store, tmp_path):
    """Of wider pictures: the CPU's bfloat16 convolution of stride 2 is wrong on maps one pixel wide."""
    experiment = tiny_experiment(people_store, tmp_path)
    network = replace(experiment.model.network, height=32, width=32)
    step = replace(experiment.model.step, precision="bfloat16")
    experiment = replace(experiment, model=replace(experiment.model, network=network, step=step))
    undisturbed, _, _ = start("undisturbed", experiment)
    with pytest.raises(CrashError):
        start("crashed", experiment, stop_after=8)
    crashed, _, _ = start("crashed", experiment)
    assert same(tensors(undisturbed, 12), tensors(crashed, 12))


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_checkpoint_is_set_aside(start, damage, caplog, whole, tmp_path):
    with pytest.raises(CrashError):
        start("crashed", stop_after=8)
    newest = next(reversed(checkpoint.checkpoints(tmp_path / "crashed")))
    file = newest / "tensors.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if damage == "flip" else content[:-100])
    crashed, _, _ = start("crashed")
    assert "checkpoint_00000006" in caplog.text
    assert (crashed.folder / "damaged_00000006").is_dir()
    assert same(whole, tensors(crashed, 12))


def test_a_stop_saves_where_it_is_and_costs_nothing(start, whole, tmp_path):
    stopped, outcome, _ = start("stopped", asked_to_stop=lambda: len(lines(tmp_path / "stopped")) >= 4)
    assert outcome == Outcome(ending="stopped", iteration=5)
    assert checkpoint.newest(stopped.folder) == stopped.folder / "checkpoint_00000005"
    resumed, outcome, _ = start("stopped")
    assert outcome.ending == "finished"
    assert same(whole, tensors(resumed, 12))


def test_a_node_that_will_be_taken_away_costs_nothing(start, whole, tmp_path):
    asked = count(1)
    with pytest.raises(CrashError):
        start("moved", stop_after=5, leaving=lambda: next(asked) >= 4)
    assert [path.name[-2:] for path in checkpoint.checkpoints(tmp_path / "moved")] == ["03", "04"]
    moved, outcome, _ = start("moved")
    assert outcome.ending == "finished"
    assert same(whole, tensors(moved, 12))


def test_log_every_changes_no_figure(start, people_store, tmp_path, finished, whole):
    one = finished[0]
    five, _, _ = start("five", tiny_experiment(people_store, tmp_path, log_every=5))
    assert same(whole, tensors(five, 12))
    for left, right in zip(lines(one.folder), lines(five.folder), strict=True):
        assert left["iteration"] == right["iteration"]
        assert left["metrics"]["loss/L_img1"] == right["metrics"]["loss/L_img1"]


def test_a_loss_that_runs_away_ends_the_run(start, people_store, tmp_path):
    experiment = tiny_experiment(people_store, tmp_path)
    optim = replace(experiment.model.optim, appearance_lr=1e30)
    run, outcome, _ = start("lost", replace(experiment, model=replace(experiment.model, optim=optim)))
    assert outcome.ending == "diverged"
    assert "not finite" in outcome.reason
    assert checkpoint.checkpoints(run.folder) == []
    for line in lines(run.folder):
        json.dumps(line, allow_nan=False)


def test_a_finished_run_is_left_alone(start, tmp_path, finished):
    shutil.copytree(finished[0].folder, tmp_path / "whole")
    before = (tmp_path / "whole" / "metrics.jsonl").read_bytes()
    run, outcome, reports = start("whole")
    assert outcome == Outcome(ending="finished", iteration=12)
    assert not reports
    assert (run.folder / "metrics.jsonl").read_bytes() == before


def test_the_teacher_learns_by_the_same_loop(start, people_store, tmp_path):
    experiment = tiny_teacher(people_store, tmp_path, evaluate_every=3, checkpoint_every=3)
    run, outcome, _ = start("teacher", experiment)
    assert outcome == Outcome(ending="finished", iteration=6)
    journal = lines(run.folder)
    assert [line["iteration"] for line in journal if "val/baseline/mAP" in line["metrics"]] == [3, 6]
    assert {"loss/L_id", "lr/trunk", "monitor/accuracy"} <= journal[0]["metrics"].keys()
    state, meta = checkpoint.load_networks(checkpoint.checkpoints(run.folder)[-1])
    assert meta.config == experiment.model
    assert set(state.networks) == {"teacher"}


def test_all_identities_are_trained_on_without_hold_out(start, people_store, tmp_path):
    experiment = tiny_experiment(people_store, tmp_path, hold_out=False)
    experiment = replace(experiment, model=replace(experiment.model, num_classes=12, iterations=6))
    run, outcome, _ = start("all", experiment)
    assert outcome.ending == "finished"
    assert "test/both/mAP" in lines(run.folder)[-1]["metrics"]


def test_a_learner_refuses_what_it_cannot_share(people_store, tmp_path, monkeypatch):
    monkeypatch.setattr("dgnet_platform.training.learner.ranks", lambda: (0, 9))
    experiment = tiny_experiment(people_store, tmp_path)
    images = None
    with pytest.raises(ValueError, match="batch_size = 8"):
        Learner(experiment.model, images_of(people_store), torch.device("cpu"), images)


def test_a_machine_that_does_not_see_the_run_says_so(tmp_path):
    with pytest.raises(ExperimentError, match="all machines share"):
        worker.train_loop({"folder": str(tmp_path / "elsewhere")})


def images_of(store: Path):
    from dgnet_platform.data.images import ImageSet
    from dgnet_platform.data.store import Store

    return ImageSet.load(Store.open(store), "train", height=24, width=12, threads=1)


# ----------------------------------------------------------------------------------------------------------------
# Trials


def judged(experiment, **overrides):
    return replace(experiment, evaluate_also=(5, 8), evaluate_every=12, checkpoint_every=12, **overrides)


def test_a_trial_is_evaluated_saved_and_judged_at_its_own_iterations(start, people_store, tmp_path):
    asked = []
    judge = lambda t, metrics: asked.append((t, metrics["val/best/mAP"])) or ""  # noqa: E731
    run, outcome, _ = start("trial", judged(tiny_experiment(people_store, tmp_path, keep=9)), judge=judge)
    assert outcome.ending == "finished"
    assert [t for t, _ in asked] == [5, 8]
    assert [int(path.name[-8:]) for path in checkpoint.checkpoints(run.folder)] == [5, 8, 12]
    assert not any(name.startswith("val/mAP_by_beta/") for name in lines(run.folder)[4]["metrics"])  # nothing fed yet
    figures = lines(run.folder)[7]["metrics"]
    by_beta = {name: value for name, value in figures.items() if name.startswith("val/mAP_by_beta/")}
    assert len(by_beta) == 11
    assert figures["val/best/mAP"] == max(by_beta.values()) == by_beta[f"val/mAP_by_beta/{figures['val/best/beta']:g}"]
    assert by_beta["val/mAP_by_beta/0.5"] == figures["val/both/mAP"]
    assert by_beta["val/mAP_by_beta/0"] == figures["val/prim/mAP"]


def test_a_trial_that_is_told_to_stop_saves_and_stays_stopped(start, people_store, tmp_path, whole):
    experiment = judged(tiny_experiment(people_store, tmp_path))
    judge = lambda t, metrics: f"mAP {metrics['val/best/mAP']}" if t == 8 else ""  # noqa: E731
    _, outcome, _ = start("trial", experiment, judge=judge)
    assert (outcome.ending, outcome.iteration) == ("stopped early", 8)
    assert outcome.reason.startswith("mAP 0.")
    again = start("trial", experiment, judge=judge)[1]  # killed before anybody noted how it ended
    assert again == outcome
    resumed, outcome, _ = start("trial", experiment)
    assert outcome.ending == "finished"
    assert same(whole, tensors(resumed, 12))


def test_a_trial_that_cannot_be_judged_yet_is_saved_and_asked_again(start, people_store, tmp_path, whole):
    experiment = judged(tiny_experiment(people_store, tmp_path))
    _, outcome, _ = start("trial", experiment, judge=lambda t, _: None if t == 8 else "")
    assert outcome == Outcome(ending="stopped", iteration=8)
    asked = []
    run, outcome, _ = start("trial", experiment, judge=lambda t, _: asked.append(t) or "")
    assert asked == [8]
    assert outcome.ending == "finished"
    assert same(whole, tensors(run, 12))


def test_a_prefix_ends_before_its_end_without_being_evaluated_there(start, people_store, tmp_path):
    experiment = tiny_experiment(people_store, tmp_path, evaluate_every=3, checkpoint_every=12)
    run, outcome, _ = start("prefix", experiment, until=4)
    assert outcome == Outcome(ending="finished", iteration=4)
    assert [path.name for path in checkpoint.checkpoints(run.folder)] == ["checkpoint_00000004"]
    assert [line["iteration"] for line in lines(run.folder) if "val/best/mAP" in line["metrics"]] == [3]


def test_a_record_keeps_what_a_run_is_for(start, tmp_path):
    run, _, _ = start("trial", until=3)
    facts = {"evaluated_at_end": False, "keeps_all": True, "counted_from": 4, "stop_file": str(tmp_path / "stop")}
    trial = replace(run, **facts)
    trial.save()
    assert Run.read(run.folder) == trial
    assert not trial.stop_asked
    (tmp_path / "stop").touch()
    assert trial.stop_asked


@pytest.mark.parametrize(
    ("role", "facts"),
    [
        ("run", {}),
        ("trial", {"evaluated_at_end": False, "counted_from": 4}),
        ("prefix", {"evaluated_at_end": False, "keeps_all": True}),
    ],
)
def test_a_record_of_the_version_before_is_read(start, role, facts):
    run, _, _ = start("before", until=3)
    run.save()
    values = json.loads((run.folder / "run.json").read_text())
    for name in ("evaluated_at_end", "keeps_all", "counted_from"):
        del values[name]
    (run.folder / "run.json").write_text(json.dumps(values | {"role": role, "judging": None}))
    assert Run.read(run.folder) == replace(run, **facts)


# ----------------------------------------------------------------------------------------------------------------
# BatchNorm's statistics for evaluations


def precise(store: Path, folder: Path):
    experiment = tiny_experiment(store, folder)
    return replace(experiment, model=replace(experiment.model, precise_batches=3))


def test_statistics_for_evaluations_leave_training_as_it_is_in_every_bit(start, people_store, tmp_path, whole):
    run, _, _ = start("precise", precise(people_store, tmp_path))
    found = tensors(run, 12)
    statistics = found.pop("statistics")
    assert same(found, whole)
    trained = whole["networks"]["appearance_encoder"]
    buffers = statistics["appearance_encoder"]
    assert buffers["trunk.bn1.running_mean"].shape == trained["trunk.bn1.running_mean"].shape
    assert not torch.equal(buffers["trunk.bn1.running_mean"], trained["trunk.bn1.running_mean"])
    # Whoever evaluates the checkpoint has what the run was evaluated with.
    state, _ = checkpoint.load_networks(run.folder / "checkpoint_00000012")
    loaded = state.networks["appearance_encoder"].state_dict()
    assert all(torch.equal(loaded[name], buffer) for name, buffer in buffers.items())
    assert torch.equal(loaded["trunk.conv1.weight"], trained["trunk.conv1.weight"])


def test_a_run_with_statistics_for_evaluations_resumes_exactly(start, people_store, tmp_path):
    whole_run, _, _ = start("whole", precise(people_store, tmp_path))
    with pytest.raises(CrashError):
        start("killed", precise(people_store, tmp_path), stop_after=8)
    run, outcome, _ = start("killed", precise(people_store, tmp_path))
    assert outcome.ending == "finished"
    assert same(tensors(run, 12), tensors(whole_run, 12))
    for one, other in zip(lines(whole_run.folder), lines(run.folder), strict=True):
        for name, value in one["metrics"].items():
            assert name.startswith("speed/") or other["metrics"][name] == value, name


def test_what_each_held_out_query_says_is_kept(finished):
    run, _, _ = finished
    found = read_queries(run.folder, 12)
    assert found is not None
    assert read_queries(run.folder, 6) is None
    last = lines(run.folder)[-1]["metrics"]
    assert float(found["own"].mean()) == pytest.approx(last["val/both/mAP"], abs=1e-12)
    assert float(found["best"].mean()) == pytest.approx(last["val/best/mAP"], abs=1e-12)
    assert found["person_ids"].shape == found["own"].shape


def test_a_feature_that_never_learned_is_not_reported(start, people_store, tmp_path):
    experiment = tiny_experiment(people_store, tmp_path)
    model = experiment.model
    without = replace(experiment, model=replace(model, recipe=replace(model.recipe, online_feeding=False)))
    run, _, _ = start("without", without)
    last = lines(run.folder)[-1]["metrics"]
    assert not {"val/both/mAP", "val/fine/mAP", "val/mAP_by_beta/0.5"} & last.keys()
    assert last["val/best/mAP"] == last["val/prim/mAP"]
    assert last["val/best/beta"] == 0


def test_the_weight_of_f_fine_is_the_runs_own(start, people_store, tmp_path, finished):
    experiment = tiny_experiment(people_store, tmp_path)
    run, _, _ = start("beta", replace(experiment, model=replace(experiment.model, beta=1.0)))
    last, before = (lines(folder)[-1]["metrics"] for folder in (run.folder, finished[0].folder))
    assert last["val/both/mAP"] == before["val/mAP_by_beta/1"]
    assert before["val/both/mAP"] == before["val/mAP_by_beta/0.5"]
