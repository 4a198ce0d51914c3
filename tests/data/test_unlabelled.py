"""Training pictures without identity: refused unless asked for, outside the classes, learned by teachers alone."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgnet_core.methods import METHODS
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.images import ImageSet, validation_split
from dgnet_platform.data.prepare import Prepared, prepare
from dgnet_platform.data.readers.folder import COLUMNS, MANIFEST
from dgnet_platform.data.store import Store
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs.experiment import Experiment
from dgnet_platform.training.plan import name_run
from tests.helpers.generators import tiny_method
from tests.helpers.market import noise

PERSONS = (2, 3, 5, 7)


def packed(folder: Path, *, unlabelled: bool) -> Prepared:
    """Four people before two cameras, twice each, and three pictures without identity."""
    source = folder / "own"
    (source / "a").mkdir(parents=True, exist_ok=True)
    rows = [(person, camera) for person in PERSONS for camera in (1, 1, 2, 2)] + [(-1, 1)] * 3
    listed = [(f"a/{number:02d}.png", person, camera, "train") for number, (person, camera) in enumerate(rows)]
    for number, (path, *_) in enumerate(listed):
        (source / path).write_bytes(noise(16, 8, number))
    with (source / MANIFEST).open("w", newline="") as file:
        csv.writer(file).writerows([COLUMNS, *listed])
    config = PrepareConfig(
        dataset="folder", source=source, out=folder / f"store-{unlabelled}", unlabelled=unlabelled, threads=1
    )
    return prepare(config)


def test_pictures_without_identity_are_kept_when_asked_for(tmp_path):
    refused = packed(tmp_path, unlabelled=False)
    assert refused.outcome == "refused"
    assert {problem.reason for problem in refused.problems} == {
        "junk (-1) is in train: remove it, or pass --unlabelled to train on pictures without identity"
    }
    kept = packed(tmp_path, unlabelled=True)
    assert (kept.outcome, kept.info.classes) == ("packed", PERSONS)
    assert (kept.info.splits["train"].pictures, kept.info.splits["train"].people) == (19, 4)
    store = Store.open(tmp_path / "store-True")
    store.verify()
    images = ImageSet.load(store, "train", height=16, width=8, threads=1)
    assert images.classes.tolist() == list(PERSONS)
    assert images.labels.tolist() == [label for label in range(4) for _ in range(4)] + [-1] * 3
    split = validation_split(images)  # they are no query, and stay in training
    assert split.train.labels.tolist() == [0] * 4 + [1] * 4 + [-1] * 3
    assert not torch.cat([split.query.person_ids, split.gallery.person_ids]).eq(-1).any()


def test_only_teachers_learn_them(tmp_path):
    packed(tmp_path, unlabelled=True)
    data = str(tmp_path / "store-True")

    def experiment(name: str) -> Experiment:
        model = tiny_method(METHODS[name], num_classes=4)
        return Experiment(data=data, storage=str(tmp_path), model=model, hold_out=False)

    assert name_run(experiment("teacher"), teacher=None).identity.kind == "teacher"
    held_out = experiment("teacher")
    held_out = replace(held_out, hold_out=True, model=replace(held_out.model, num_classes=2))
    assert name_run(held_out, teacher=None).identity.hold_out
    with pytest.raises(ExperimentError, match=r"LSGAN needs identities, but 3 training pictures of .* without --unla"):
        name_run(experiment("lsgan"), teacher=None)
