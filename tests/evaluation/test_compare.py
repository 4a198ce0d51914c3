"""Generators beside each other: figure, table and what is refused, from the command's own arguments."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from dgnet_core.learning.config import StepConfig
from dgnet_core.methods import METHODS, build
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import shot_of
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.compare import CSV, FIGURE, MARKDOWN, _names
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.loading import open_trained
from jobs import compare_generators, generate
from tests.helpers.generators import tiny_method
from tests.helpers.runs import PEOPLE
from tests.helpers.tiny import tiny_config, tiny_teacher

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def untrained(one_thread, people_store, tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each method, none of which has learned anything."""
    fingerprint = Store.open(people_store).info.fingerprint
    found = {}
    for name, method in METHODS.items():
        config = tiny_method(method, num_classes=PEOPLE, step=StepConfig())
        teacher = tiny_teacher(tiny_config(num_classes=PEOPLE))
        folder = tmp_path_factory.mktemp(name)
        state = build(config, teacher=teacher)
        found[name] = checkpoint.save(state, config, folder, dataset="people", fingerprint=fingerprint)
    return found


def test_figure_and_table_of_all_methods(untrained, people_store, tmp_path, capsys):
    names = ["dgnet", "lsgan", "pg2gan", "pngan", "fdgan"]
    out = tmp_path / "compared"
    status = compare_generators.main([
        "--checkpoint", *(str(untrained[name]) for name in names), "--teacher", str(untrained["teacher"]),
        "--store", str(people_store), "--out", str(out), "--people", "8", "--diversity-pairs", "1", "--pictures", "60",
        "--threads", "1",
    ])  # fmt: skip
    assert status == 0, capsys.readouterr().out
    table = pd.read_csv(out / CSV).set_index("generator")
    assert list(table.index) == ["real", "DG-Net", "LSGAN", "PG2-GAN", "PN-GAN", "FD-GAN"]
    assert table.loc["real", "paper_FID"] == 7.22
    assert table.loc["FD-GAN", "paper_SSIM"] == 0.247
    known = {name: table[name].notna().tolist() for name in ("kid_teacher", "DSSIM", "person_L1")}
    assert known["kid_teacher"] == [True] * 6
    assert known["DSSIM"] == [True, True, False, True, True, True]  # there is no second picture of nobody
    assert known["person_L1"] == [False, True, False, True, True, True]
    states = {name: checkpoint.load_networks(untrained[name])[0].networks for name in names}
    million = {name: sum(p.numel() for p in networks.parameters()) / 1e6 for name, networks in states["pngan"].items()}
    assert table.loc["PN-GAN", "parameters_M"] == pytest.approx(million["generator"])
    assert min(table["GMAC"].dropna().tolist()) > 0
    text = (out / MARKDOWN).read_text()
    assert "| FD-GAN |" in text
    assert "on Market-1501, as the paper's Table 2 has them" in text
    assert "Drawn people are no photographs" in text
    with Image.open(out / FIGURE) as figure:
        assert figure.height > 9 * 130  # who, in whose pose, five generators, two truths
    assert json.loads((out / "results.json").read_text())["left_out"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["compared"]  # nothing is left behind


def test_checkpoints_of_one_run_are_told_apart(untrained):
    path = untrained["lsgan"]
    later = path.with_name("checkpoint_00000009")
    trained = [open_trained(path)] * 2
    assert _names(trained, [path, later]) == [f"LSGAN ({path.parent.name}/{name})" for name in (path.name, later.name)]
    assert _names(trained[:1], [path]) == ["LSGAN"]


def test_generators_of_other_data_are_refused(untrained, tmp_path, capsys):
    other = tmp_path / "other"
    prepare(PrepareConfig(dataset="people", size="tiny", seed=3, out=other, threads=1))
    arguments = ["--checkpoint", str(untrained["pngan"]), "--store", str(other), "--out", str(tmp_path / "out")]
    assert compare_generators.main(arguments) == 2
    assert "compare generators of the same data" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "out").exists()


def test_a_set_of_people_who_do_not_exist(untrained, people_store, tmp_path):
    out = tmp_path / "set"
    arguments = ["--checkpoint", str(untrained["lsgan"]), "--store", str(people_store), "--out", str(out)]
    assert generate.main([*arguments, "--per-image", "1", "--threads", "1"]) == 0
    manifest = pd.read_parquet(out / "manifest.parquet")
    assert set(manifest["person_id"]) == {-1}
    assert set(manifest["appearance"]) == set(manifest["body"]) == {""}
    assert all((out / path).exists() for path in manifest["path"])


def test_a_set_of_a_pose_generator_says_that_the_body_is_the_sources(untrained, people_store, tmp_path):
    for name, body in (("pngan", "appearance"), ("dgnet", "structure")):
        out = tmp_path / name
        arguments = ["--checkpoint", str(untrained[name]), "--store", str(people_store), "--out", str(out)]
        assert generate.main([*arguments, "--per-image", "1", "--threads", "1"]) == 0
        manifest = pd.read_parquet(out / "manifest.parquet")
        assert manifest["body"].tolist() == manifest[body].tolist()
        assert manifest["appearance"].tolist() != manifest["structure"].tolist()


def test_the_truth_that_a_pose_generator_can_know():
    people = People(1)
    one, other = shot_of("0001_c1s1_000000_01.jpg"), shot_of("0007_c2s1_000001_01.jpg")
    assert people.body(one) != people.body(other)
    swap = people.draw(appearance_of=one, structure_of=other)
    own = people.draw(appearance_of=one, structure_of=other, body_of=one)
    assert (swap == people.draw(appearance_of=one, structure_of=other, body_of=other)).all()
    assert (own != swap).any()
    assert (own == people.draw(appearance_of=one, structure_of=other, body_of=one)).all()
    mask = torch.from_numpy(people.silhouette(appearance_of=one, structure_of=other, body_of=one))
    assert 0.05 < float(mask.mean()) < 0.6
    assert (people.draw(appearance_of=one, structure_of=one, body_of=one) == people.picture(*one)).all()
