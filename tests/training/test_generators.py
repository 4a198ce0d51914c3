"""The compared generators in the platform: joints in every batch, resumed runs across stages, bad data refused."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dgnet_core.fdgan.config import FDGANConfig
from dgnet_core.generation.grids import to_pixels
from dgnet_core.learning.augment import training_batch
from dgnet_core.learning.batches import Batch
from dgnet_core.methods import METHODS, build
from dgnet_platform.data.decode import decode
from dgnet_platform.data.poses import FILE, KeyPoints, PoseError
from dgnet_platform.data.store import Store
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.experiment import AnyExperiment, Experiment
from dgnet_platform.runs.loading import open_trained
from dgnet_platform.runs.run import Run
from dgnet_platform.training import learner as learning
from dgnet_platform.training import loop, worker
from dgnet_platform.training.plan import make_plan, name_run
from jobs import train_generator
from tests.helpers.generators import SMALL, tiny_method
from tests.helpers.market import packed
from tests.helpers.market import write_market as write_photographs
from tests.helpers.runs import PEOPLE, lines, same, tensors, untracked

pytestmark = pytest.mark.usefixtures("one_thread")
each_generator = pytest.mark.parametrize("name", list(SMALL))


def experiment_of(name: str, store: Path, storage: Path, **overrides: Any) -> AnyExperiment:
    """A generator for 9 iterations, saved at 3, 6 and 9 and evaluated at the end."""
    model = tiny_method(METHODS[name], num_classes=PEOPLE, **overrides)
    return Experiment(
        data=str(store), storage=str(storage), model=model, hold_out=False, log_every=1, evaluate_every=9,
        checkpoint_every=3, threads=1,
    )  # fmt: skip


def train(run: Run) -> None:
    """As a newly started worker would."""
    rank, validator = worker.build_rank(run, torch.device("cpu"))
    worker._restore(run, rank)
    loop.run_loop(run, rank, validator, report=lambda _: None, leaving=lambda: False)


@each_generator
def test_a_run_that_is_stopped_in_each_stage_ends_with_the_same_bits(name, people_store, tmp_path):
    whole = untracked(experiment_of(name, people_store, tmp_path), tmp_path / "whole")
    train(whole)
    parts = untracked(whole.experiment, tmp_path / "parts")
    for until in (3, 6, None):
        train(replace(parts, until=until))
    assert same(tensors(whole, 9), tensors(parts, 9))
    metrics = [line["metrics"] for line in lines(whole.folder)]
    assert len(metrics) == 9
    shown = {f"loss/{term}" for term in METHODS[name].shown}
    assert shown <= set().union(*metrics)
    pictures = sorted(path.relative_to(whole.folder).as_posix() for path in whole.folder.glob("pictures/*/*.png"))
    if METHODS[name].draw is None:
        assert pictures == ["pictures/people/00000009.png"]
        assert "test/thumbnails/KID" in metrics[-1]
    else:
        assert "pictures/swaps/00000009.png" in pictures
        assert {"test/reconstruction/SSIM", "test/swap/SSIM"} <= set(metrics[-1])
    state, meta = checkpoint.load_networks(checkpoint.checkpoints(whole.folder)[-1])
    assert meta.config == whole.experiment.model
    assert set(state.networks) == set(tensors(whole, 9)["networks"])


def test_batches_have_the_joints_of_their_pictures(people_store, tmp_path, monkeypatch):
    given: list[tuple[torch.Tensor, torch.Tensor]] = []

    def watched(pixels, labels, position, config, joints) -> Batch:
        given.append((pixels, joints))
        return training_batch(pixels, labels, position, config, joints)

    monkeypatch.setattr(learning, "training_batch", watched)
    run = untracked(experiment_of("fdgan", people_store, tmp_path), tmp_path / "run")
    rank, _ = worker.build_rank(run, torch.device("cpu"))
    rank.advance()
    ((pixels, joints),) = given
    assert pixels.shape[:2] == joints.shape[:2] == (5, 4)
    store = Store.open(people_store)
    index = store.index("train")
    known = KeyPoints.open(store).joints("train", index, height=32, width=32)
    row_of = {picture.numpy().tobytes(): row for row, picture in enumerate(rank._images.images.contiguous())}
    for picture, found in zip(pixels.flatten(0, 1).contiguous(), joints.flatten(0, 1), strict=True):
        assert np.array_equal(found.numpy(), known[row_of[picture.numpy().tobytes()]])


def test_key_points_decide_the_runs_name(people_store, tmp_path):
    experiment = experiment_of("pngan", people_store, tmp_path)
    named = name_run(experiment, teacher=None)
    assert named.identity.keypoints == KeyPoints.open(Store.open(people_store)).digest
    assert named.folder.name.startswith("people-pngan-")
    unposed = name_run(experiment_of("lsgan", people_store, tmp_path), teacher=None)
    assert "keypoints" not in unposed.identity.values()


def test_no_stage_begins_without_the_one_before(people_store, tmp_path):
    experiment = experiment_of("fdgan", people_store, tmp_path)  # stages begin at 0, 4 and 8
    model = experiment.model
    assert isinstance(model, FDGANConfig)
    early, late = (saved(model, tmp_path / name, iteration) for name, iteration in (("early", 3), ("late", 5)))

    def planned(origin: Path, stage1: int) -> None:
        changed = replace(experiment, model=replace(model, stage1=stage1, stage2=3))
        make_plan(name_run(changed, teacher=None, origin=origin))

    planned(early, 3)  # stage 2 begins with the next iteration
    planned(late, 3)
    with pytest.raises(ExperimentError, match=r"at 3 iterations it is in stage 1, the run in stage 2: keep the length"):
        planned(early, 2)
    with pytest.raises(ExperimentError, match=r"at 5 iterations it is in stage 2, the run in stage 1: keep the length"):
        planned(late, 6)


def saved(model: FDGANConfig, folder: Path, iteration: int) -> Path:
    state = build(model)
    state.iteration = iteration
    return checkpoint.save(state, model, folder)


def test_what_a_pose_generator_cannot_train_on(people_store, tmp_path):
    photographs = tmp_path / "photographs"
    packed(write_photographs(tmp_path / "market"), photographs)
    experiment = experiment_of("pngan", people_store, tmp_path)
    experiment = replace(experiment, model=replace(experiment.model, num_classes=3))
    with pytest.raises(PoseError, match=rf"no key points \({FILE} is missing\): run .* again, with --keypoints"):
        name_run(replace(experiment, data=str(photographs)), teacher=None)


def test_identities_of_one_picture_make_no_pair(people_store, tmp_path, monkeypatch):
    store = Store.open(people_store)
    index = store.index("train")
    lonely = index[(index["person_id"] != 3) | ~index["person_id"].duplicated()]
    monkeypatch.setattr(Store, "index", lambda _, split: lonely if split == "train" else index)
    with pytest.raises(ExperimentError, match=r"PG2-GAN trains on pairs .* but 1 of 12 training identities .* \(3\)"):
        name_run(experiment_of("pg2gan", people_store, tmp_path), teacher=None, store=store)


@each_generator
def test_the_job_says_what_it_would_train(name, people_store, tmp_path, capsys):
    options = ["--data", str(people_store), "--storage", str(tmp_path / "runs"), "--iterations", "2", "--dry-run"]
    assert train_generator.main(["--method", name, *options]) == 0
    said = capsys.readouterr().out
    assert f"run people-{name}-" in said
    assert "would start from the beginning" in said
    assert "2 iterations" in said
    assert not list((tmp_path / "runs").glob("*/*"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of MLflow's
def test_the_job_trains_and_registers_what_draws(people_store, tmp_path, capsys):
    storage = tmp_path / "runs"
    options = ["--data", str(people_store), "--storage", str(storage), "--iterations", "2", "--register", "drawn"]
    assert train_generator.main(["--method", "pg2gan", *options]) == 0
    assert "Model in MLflow: models:/" in capsys.readouterr().out
    (folder,) = storage.glob("people-pg2gan-*")
    run = Run.read(folder)
    assert [line["iteration"] for line in lines(folder)] == [1, 2]
    mlflow.set_tracking_uri(run.tracking_uri)
    model = mlflow.pyfunc.load_model("models:/drawn/1")
    size = model.metadata.metadata or {}
    assert (size["height"], size["width"]) == (64, 32)
    trained = open_trained(run.last_checkpoint)
    store = Store.open(people_store)
    rows = next(iter(store.row_groups("query")))["image"].to_pylist()[:2]
    joints = trained.joints(store, "query", store.index("query").iloc[:2])
    assert joints is not None
    found = model.predict(pd.DataFrame({"image": rows, "joints": joints.tolist()}))
    drawn = np.stack([np.asarray(Image.open(io.BytesIO(picture))) for picture in found["image"]])
    images = trained.images([decode(row).transpose(2, 0, 1) for row in rows])
    expected = to_pixels(trained.draw(images, joints)).permute(0, 2, 3, 1).numpy()
    assert np.abs(drawn.astype(int) - expected.astype(int)).max() <= 1
