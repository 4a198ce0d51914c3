"""Runs of a strong recipe in this process: resumed in every bit, described by their averages, drawn by rarity."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgnet_core.dgnet.config import FeedConfig, OptimConfig
from dgnet_core.methods import method_of, needs_joints
from dgnet_core.teacher.networks import Teacher
from dgnet_platform.data.images import ImageSet
from dgnet_platform.data.poses import KeyPoints
from dgnet_platform.data.rarity import facing, rarity
from dgnet_platform.data.store import Store
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.experiment import AnyExperiment, DGNetExperiment
from dgnet_platform.runs.loading import keypoints_of, load_teacher
from dgnet_platform.runs.run import Run
from dgnet_platform.training import worker
from dgnet_platform.training.loop import run_loop
from dgnet_platform.training.plan import checkpoint_bytes
from dgnet_platform.training.worker import build_rank
from tests.helpers.runs import lines, same, tensors, tiny_experiment, tiny_teacher, untracked
from tests.helpers.strong import METRIC

pytestmark = pytest.mark.usefixtures("one_thread")


def strong(experiment: DGNetExperiment) -> DGNetExperiment:
    model = experiment.model
    return replace(
        experiment,
        model=replace(
            model, network=replace(model.network, neck="bnneck", pooling="gem"), metric=METRIC, ema=0.7, instances=2,
            partners="rare_pose", optim=OptimConfig(optimizer="adamw", appearance_lr=1e-3, cosine_end=12),
            feed=FeedConfig(confidence="weight", pictures=2, share=0.8, last_share=0.4),
        ),
    )  # fmt: skip


class CrashError(RuntimeError):
    """A worker dies."""


def trained(experiment: AnyExperiment, folder: Path, patch: pytest.MonkeyPatch, crash_at: int | None = None) -> Run:
    """A run up to its end, or its crash, going on from where it crashed."""
    run = untracked(experiment, folder, teacher="here")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        teacher = Teacher(experiment.model.network, experiment.model.num_classes)  # pyright: ignore[reportArgumentType]
    patch.setattr(worker, "load_teacher", lambda *_: teacher)
    learner, validator = build_rank(run, torch.device("cpu"))
    worker._restore(run, learner)
    advance = learner.advance

    def step() -> dict[str, torch.Tensor]:
        if learner.state.iteration == crash_at:
            raise CrashError
        return advance()

    learner.advance = step
    assert run_loop(run, learner, validator, report=lambda _: None, leaving=lambda: False).ending == "finished"
    return run


def test_a_strong_run_crashes_and_ends_with_the_same_bits(
    people_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    experiment = strong(tiny_experiment(people_store, tmp_path))
    whole = trained(experiment, tmp_path / "whole", monkeypatch)
    with pytest.raises(CrashError):
        trained(experiment, tmp_path / "crashed", monkeypatch, crash_at=8)
    crashed = trained(experiment, tmp_path / "crashed", monkeypatch)
    assert same(tensors(whole, 12), tensors(crashed, 12))
    for one, other in zip(lines(whole.folder), lines(crashed.folder), strict=True):
        for name, value in one["metrics"].items():
            assert name.startswith("speed/") or value == other["metrics"][name], name
    assert {"loss/L_triplet", "loss/L_circle", "monitor/fed_weight"} <= lines(whole.folder)[-1]["metrics"].keys()

    path = whole.folder / "checkpoint_00000012"
    state, _ = checkpoint.load_networks(path)
    describe = method_of(experiment.model).describe
    assert describe is not None
    for name, value in describe(state).state_dict().items():
        assert torch.equal(value, tensors(whole, 12)["averages"]["appearance_encoder"][name])
    assert (path / "tensors.pt").stat().st_size < 1.2 * checkpoint_bytes(experiment.model) + 200_000


def test_a_teacher_labels_by_its_average(people_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    experiment = tiny_teacher(people_store, tmp_path)
    experiment = replace(experiment, model=replace(experiment.model, ema=0.7, metric=METRIC, instances=2))
    run = trained(experiment, tmp_path / "teacher", monkeypatch)
    saved = tensors(run, 6)
    teacher = load_teacher(run.folder / "checkpoint_00000006")
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, saved["averages"]["teacher"][name])
    assert not torch.equal(
        saved["averages"]["teacher"]["trunk.conv1.weight"], saved["networks"]["teacher"]["trunk.conv1.weight"]
    )


def joints(left: float, right: float) -> torch.Tensor:
    """A person whose shoulders are at these columns, with a torso of 40 pixels."""
    found = torch.zeros(18, 3)
    for name, place in ((5, (left, 20)), (2, (right, 20)), (11, (left, 60)), (8, (right, 60))):
        found[name] = torch.tensor([*place, 2.0])
    return found


def test_facing_by_hand():
    missing = joints(40, 20)
    missing[2] = 0
    people = torch.stack([joints(20, 40), joints(33, 30), joints(27, 30), joints(40, 20), missing])
    assert facing(people).tolist() == [0, 1, 1, 2, 3]


def test_rarity_is_one_over_the_size_of_a_group(people_store: Path):
    store = Store.open(people_store)
    images = ImageSet.load(store, "train", height=24, width=12, posed=True)
    assert rarity(images, "uniform") is None
    by_camera, by_pose = rarity(images, "rare_camera"), rarity(images, "rare_pose")
    assert by_camera is not None
    assert by_pose is not None
    assert images.joints is not None
    cameras = images.camera_ids.tolist()
    assert by_camera.tolist() == [1 / cameras.count(camera) for camera in cameras]
    groups = list(zip(cameras, facing(images.joints).tolist(), strict=True))
    assert by_pose.tolist() == [1 / groups.count(group) for group in groups]
    assert len(set(groups)) > len(set(cameras))


def test_key_points_are_part_of_a_run_that_is_drawn_by_them(people_store: Path, tmp_path: Path):
    store, experiment = Store.open(people_store), tiny_experiment(people_store, tmp_path)
    assert not needs_joints(experiment.model)
    assert keypoints_of(store, experiment.model) is None
    assert keypoints_of(store, strong(experiment).model) == KeyPoints.open(store).digest
