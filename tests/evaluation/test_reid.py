"""Re-id by PN-GAN's two models and by FD-GAN's verifier, from the commands' own arguments."""

from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from dgnet_core.learning.config import StepConfig
from dgnet_core.methods import METHODS, build
from dgnet_core.pngan.canonical import canonical_poses
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.pose_files import CSV_HEADER
from dgnet_platform.data.poses import KeyPoints
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.readers.folder import COLUMNS, MANIFEST
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation import canonical
from dgnet_platform.evaluation.canonical import canonical_rows
from dgnet_platform.evaluation.config import EvaluateConfig, GenerateConfig
from dgnet_platform.evaluation.generate import POSES, TABLE
from dgnet_platform.runs import checkpoint
from jobs import evaluate, generate
from tests.helpers.generators import tiny_method, upright
from tests.helpers.market import noise
from tests.helpers.runs import PEOPLE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def untrained(one_thread, people_store, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each method that re-id takes or refuses, and another teacher."""
    fingerprint = Store.open(people_store).info.fingerprint
    found = {}
    for name, seed in (("pngan", 0), ("fdgan", 0), ("lsgan", 0), ("teacher", 0), ("other teacher", 1)):
        method = METHODS[name.rpartition(" ")[2]]
        config = tiny_method(method, num_classes=PEOPLE, step=StepConfig(), seed=seed)
        folder = tmp_path_factory.mktemp("run")
        found[name] = checkpoint.save(build(config), config, folder, dataset="people", fingerprint=fingerprint)
    return found


def generated(checkpoint_: Path, store: Path, out: Path, *more: str) -> int:
    return generate.main([
        "--checkpoint", str(checkpoint_), "--store", str(store), "--out", str(out), "--poses", "canonical",
        "--threads", "1", *more,
    ])  # fmt: skip


def evaluated(untrained: dict[str, Path], store: Path, out: Path, generator: str = "pngan") -> int:
    return evaluate.main([
        "--checkpoint", str(untrained[generator]), "--teacher", str(untrained["teacher"]),
        "--rendered-teacher", str(untrained["other teacher"]), "--store", str(store), "--out", str(out),
        "--swap-pairs", "0", "--threads", "1", "--device", "cpu",
    ])  # fmt: skip


def test_a_set_shows_all_in_the_same_eight_poses(untrained, people_store, tmp_path):
    out = tmp_path / "set"
    assert generated(untrained["pngan"], people_store, out) == 0
    store = Store.open(people_store)
    rows = canonical_rows(store)
    assert len(set(rows)) == 8
    index, table = store.index("train"), pd.read_parquet(out / TABLE)
    names = index["file_name"].iloc[rows].tolist()
    assert table.groupby("appearance")["structure"].agg(list).tolist() == [names] * len(index)
    persons = index.set_index("file_name")["person_id"]
    assert table["person_id"].tolist() == persons.loc[table["appearance"]].tolist()
    with Image.open(out / POSES) as sheet:
        assert sheet.width == 8 * 3 * 64  # each three times as large, beside each other
    prepared = prepare(PrepareConfig(dataset="folder", source=out, out=tmp_path / "store", threads=1))
    assert prepared.problems == []
    packed = Store.open(tmp_path / "store").info
    assert (packed.splits["train"].pictures, packed.classes) == (8 * len(index), store.info.classes)


def test_no_canonical_pose_is_that_of_a_picture_without_identity(untrained, tmp_path, monkeypatch):
    source = tmp_path / "own"
    source.mkdir()
    manifest, poses = [",".join(COLUMNS)], [CSV_HEADER]
    standing = upright(256, 128, 1)[0, :, :2].numpy()
    for number in range(16):
        person = -1 if number < 4 else number // 4
        places = standing.copy()
        places[[4, 7], 1] += number * (30 if person == -1 else 1)  # wrists: those of -1 are clusters of their own
        x, y = places.astype(int).T.tolist()
        (source / f"{number:02}.jpg").write_bytes(noise(256, 128, number))
        manifest.append(f"{number:02}.jpg,{person},1,train")
        poses.append(f"{number:02}.jpg: {y}: {x}")
    (source / MANIFEST).write_text("\n".join(manifest))
    (tmp_path / "poses.csv").write_text("\n".join(poses))
    out = tmp_path / "store"
    settings = {"source": source, "keypoints": tmp_path / "poses.csv", "unlabelled": True, "threads": 1}
    assert prepare(PrepareConfig(dataset="folder", out=out, **settings)).outcome == "packed"
    times: list[int] = []
    monkeypatch.setattr(canonical, "canonical_poses", lambda joints: times.append(1) or canonical_poses(joints))
    assert generated(untrained["pngan"], out, tmp_path / "set") == 0
    assert len(times) == 1
    table = pd.read_parquet(tmp_path / "set" / TABLE)
    assert len(table) == 12 * 8
    assert (tmp_path / "set" / POSES).exists()
    assert int(table["structure"].str.removesuffix(".jpg").astype(int).min()) >= 4


def test_canonical_poses_of_drawn_people_face_both_sides(people_store):
    store = Store.open(people_store)
    index = store.index("train").iloc[canonical_rows(store)]
    joints = torch.from_numpy(KeyPoints.open(store).joints("train", index, height=256, width=128))
    right, left = joints[:, 2, 0], joints[:, 5, 0]  # shoulders
    assert (right < left).any()
    assert (right > left).any()


def test_models_a_and_b_and_both(untrained, people_store, tmp_path):
    out = tmp_path / "results"
    assert evaluated(untrained, people_store, out) == 0
    retrieval = pd.read_parquet(out / "results.parquet")
    assert retrieval["feature"].tolist()[:3] == ["model A", "model B", "A and B"]
    assert set(retrieval["model"]) == {"PN-GAN"}
    assert retrieval["mAP"].between(0, 1).all()


def test_fd_gan_is_ranked_with_and_without_its_verifier(untrained, people_store, tmp_path):
    arguments = ["--checkpoint", str(untrained["fdgan"]), "--store", str(people_store), "--out", str(tmp_path / "out")]
    assert evaluate.main([*arguments, "--swap-pairs", "0", "--threads", "1", "--device", "cpu"]) == 0
    retrieval = pd.read_parquet(tmp_path / "out" / "results.parquet")
    assert retrieval[retrieval["query"] == "single"]["feature"].tolist() == ["FD-GAN", "FD-GAN verified"]
    first, second = retrieval[retrieval["query"] == "single"]["mAP"].tolist()
    assert 0 <= min(first, second) <= max(first, second) <= 1
    assert first != second  # an untrained verifier has an order of its own


def test_what_has_no_canonical_poses_is_refused(untrained, people_store, tmp_path, capsys):
    assert generated(untrained["lsgan"], people_store, tmp_path / "set") == 2
    assert "--poses canonical: LSGAN draws from no key points, leave it out" in said(capsys)
    arguments = {"checkpoint": untrained["pngan"], "out": tmp_path / "out"}
    with pytest.raises(ValueError, match="are those of the training split: leave out --split query"):
        GenerateConfig(store=str(people_store), poses="canonical", split="query", **arguments)
    with pytest.raises(ValueError, match="name PN-GAN's --checkpoint and model A, --teacher, too"):
        EvaluateConfig(store=(str(people_store),), rendered_teacher=untrained["teacher"], **arguments)
    assert not (tmp_path / "set").exists()
    assert evaluated(untrained, people_store, tmp_path / "out", generator="lsgan") == 2
    assert "--rendered-teacher is for PN-GAN, --checkpoint is LSGAN's: leave it out" in said(capsys)
    other = tmp_path / "other"
    prepare(PrepareConfig(dataset="people", size="tiny", seed=3, out=other, threads=1))
    assert evaluated(untrained, other, tmp_path / "out") == 2
    assert "name its own --store first, which gives the canonical poses" in said(capsys)
    assert not (tmp_path / "out").exists()


def said(capsys) -> str:
    captured = capsys.readouterr()
    return " ".join((captured.out + captured.err).replace("│", " ").split())
