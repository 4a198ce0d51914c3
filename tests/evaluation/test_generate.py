"""jobs/generate.py: which pictures a set has, what they show, and that it can be stopped anywhere."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from dgnet_core.dgnet.release import save_release
from dgnet_core.dgnet.state import TrainState
from dgnet_core.learning.augment import denormalise, normalise
from dgnet_core.methods import METHODS
from dgnet_core.teacher.config import laptop_teacher
from dgnet_core.teacher.state import TeacherState
from dgnet_platform.compute.parts import RECORD, PartsError, owned
from dgnet_platform.data import images as images_module
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.decode import PictureError
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store, StoreError
from dgnet_platform.errors import UserError
from dgnet_platform.evaluation.config import GenerateConfig
from dgnet_platform.evaluation.generate import EXAMPLES, MANIFEST, TABLE, Plan, generate
from dgnet_platform.evaluation.pictures import stored_pictures
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.loading import digest_of, open_trained
from jobs.generate import main
from tests.helpers.runs import job
from tests.helpers.servers import wait_for
from tests.helpers.sets import CONFIG, contents, options

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(people_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    state = TrainState.build(CONFIG)
    return checkpoint.save(state, CONFIG, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def config(people_store: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> GenerateConfig:
    out = tmp_path_factory.mktemp("sets") / "whole"
    return GenerateConfig(checkpoint=trained, store=str(people_store), out=out, per_image=2, quality=100, threads=1)


@pytest.fixture(scope="module")
def whole(config: GenerateConfig) -> Path:
    assert generate(config, lambda *_: None).made == 2 * 144
    return config.out


# ------------------------------------------------------------------------------------------------------------
# What a set holds


def test_structures_depend_on_seed_and_picture_alone():
    def plan(seed: int, per_image: int = 5, pictures: int = 9) -> Plan:
        people = pd.DataFrame({"person_id": [1] * pictures, "camera_id": [1] * pictures})
        return Plan(people=people, per_image=per_image, seed=seed, method=METHODS["dgnet"])

    drawn = [plan(0).structures(row).tolist() for row in range(9)]
    for row, structures in enumerate(drawn):
        assert len(set(structures)) == 5
        assert set(structures) <= set(range(9)) - {row}
    assert drawn == [plan(0).structures(row).tolist() for row in range(9)]
    assert len(set(map(tuple, drawn))) > 5
    assert drawn != [plan(1).structures(row).tolist() for row in range(9)]
    assert sorted(plan(0, per_image=8).structures(3).tolist()) == [0, 1, 2, 4, 5, 6, 7, 8]
    counts = np.bincount(np.concatenate([plan(0, 1, 400).structures(row) for row in range(400)]), minlength=400)
    assert counts.max() < 10  # all are drawn about equally often


def test_a_set_shows_appearances_in_structures(whole: Path, config: GenerateConfig, trained: Path):
    store = Store.open(config.store)
    index = store.index("train").set_index("file_name")
    table = pd.read_parquet(whole / TABLE)
    assert len(table) == 2 * 144
    assert table["path"].is_unique
    assert table["appearance"].value_counts().tolist() == [2] * 144
    assert not set(table["appearance"] + table["structure"]) & {name * 2 for name in index.index}
    assert table["person_id"].tolist() == index.loc[table["appearance"], "person_id"].tolist()
    assert table["camera_id"].tolist() == index.loc[table["structure"], "camera_id"].tolist()
    assert table["structure_person_id"].tolist() == index.loc[table["structure"], "person_id"].tolist()
    assert set(table["checkpoint"]) == {digest_of(trained)}
    assert digest_of(trained) == checkpoint.read_meta(trained).tensors_sha256
    jpegs = {str(path.relative_to(whole)) for path in whole.rglob("*.jpg")}
    assert jpegs == set(table["path"])

    networks = open_trained(trained)
    rows = [0, 1, 77, 287]
    places = {name: row for row, name in enumerate(index.index)}

    def images(column: str) -> torch.Tensor:
        pictures = stored_pictures(store, "train", [places[name] for name in table[column].iloc[rows]])
        size = networks.network.height, networks.network.width
        return torch.cat([normalise(torch.from_numpy(picture.copy())[None], *size) for picture in pictures])

    expected = denormalise(networks.draw(images("appearance"), images("structure")))
    for picture, path in zip(expected, table["path"].iloc[rows], strict=True):
        with Image.open(whole / path) as opened:
            assert opened.format == "JPEG"
            found = np.asarray(opened).transpose(2, 0, 1).astype(int)
        jpeg = io.BytesIO()
        Image.fromarray(picture.permute(1, 2, 0).numpy()).save(jpeg, "JPEG", quality=100)
        with Image.open(jpeg) as opened:
            assert np.abs(np.asarray(opened).transpose(2, 0, 1).astype(int) - found).max() <= 8
    with Image.open(whole / EXAMPLES) as opened:
        assert opened.width > 300


def test_prepare_data_reads_a_set(whole: Path, tmp_path: Path):
    prepared = prepare(PrepareConfig(dataset="folder", source=whole, out=tmp_path / "store", threads=1))
    assert (prepared.outcome, prepared.problems) == ("packed", [])
    packed, table = Store.open(tmp_path / "store"), pd.read_parquet(whole / TABLE)
    assert (packed.count("train"), packed.info.splits["train"].people) == (2 * 144, 12)
    index = packed.index("train").set_index("file_name")
    assert index.loc[table["path"], "person_id"].tolist() == table["person_id"].tolist()
    assert index.loc[table["path"], "camera_id"].tolist() == table["camera_id"].tolist()


def test_empty_scenes_get_no_identity(config: GenerateConfig, tmp_path: Path):
    generate(replace(config, split="gallery", out=tmp_path, per_image=1), lambda *_: None)
    persons = Store.open(config.store).index("gallery")["person_id"].tolist()
    assert {-1, 0} < set(persons)
    assert sorted(pd.read_parquet(tmp_path / TABLE)["person_id"]) == sorted(p for p in persons if p > 0)


# ------------------------------------------------------------------------------------------------------------
# Stopped and gone on with


def test_a_stopped_set_goes_on(whole: Path, config: GenerateConfig, tmp_path: Path):
    stopped = replace(config, out=tmp_path / "stopped", threads=3)

    def stop(done: int, total: int) -> None:
        assert total == 2 * 144
        if done == 2 * 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(stopped, stop)
    there = contents(stopped.out)
    assert MANIFEST not in there
    assert len(there) == 2 * 64 + 1
    half = stopped.out / ".train-00003.partial"  # as a kill would leave it
    half.mkdir()
    (half / "cut.jpg").write_bytes(b"cut")
    seen: list[int] = []
    assert generate(stopped, lambda done, _: seen.append(done)).made == 2 * 80
    assert seen == [2 * n for n in (64, 96, 128, 144)]
    assert contents(stopped.out) == contents(whole)


def test_ctrl_c_says_how_to_go_on(
    config: GenerateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("dgnet_platform.cli.generate.generate", stop)
    assert main(options(replace(config, out=tmp_path / "stopped"))) == 130
    assert "Stopped: the same command resumes from what is saved." in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.long  # a killed set is finished by other workers in tests/compute/test_parts.py
def test_a_killed_set_goes_on(config: GenerateConfig, tmp_path: Path):
    many = replace(config, batch_size=4, per_image=8)
    generate(replace(many, out=tmp_path / "whole"), lambda *_: None)
    killed = replace(many, out=tmp_path / "killed")
    process = job("generate.py", *options(killed))
    wait_for(lambda: (killed.out / "train-00002").exists() or process.poll() is not None)
    process.kill()
    process.communicate()
    assert not (killed.out / "train-00030").exists(), "it was killed too late to tell"
    process = job("generate.py", *options(killed))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "1,152 pictures of 12 people" in output
    assert contents(killed.out) == contents(tmp_path / "whole")


def test_a_complete_set_is_left_alone(whole: Path, config: GenerateConfig, capsys: pytest.CaptureFixture[str]):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    assert main(options(config)) == 0
    shown = capsys.readouterr().out
    assert "288 pictures of 12 people" in shown
    assert f"jobs/prepare_data.py --dataset folder --source {whole}" in shown.replace("\n", "")
    assert before == {path: path.stat().st_mtime_ns for path in whole.rglob("*")}


# ------------------------------------------------------------------------------------------------------------
# What cannot be used


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--per-image", "0"], "--per-image 0: must be 1 or more"),
        (["--quality", "0"], "--quality 0: must be 1 to 100"),
        (["--batch-size", "0"], "--batch-size 0"),
        (["--workers", "-1"], "--workers -1"),
        (["--gpus"], "say how many"),
    ],
)
def test_bad_arguments_end_with_status_2(arguments: list[str], named: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--checkpoint", "x", "--store", "y", "--out", "z", *arguments])
    assert ended.value.code == 2
    printed = capsys.readouterr()
    assert named in " ".join((printed.out + printed.err).replace("│", " ").split())


def teacher(folder: Path) -> Path:
    settings = replace(laptop_teacher(12, 144), network=CONFIG.network)
    return checkpoint.save(TeacherState.build(settings), settings, folder)


def release_without_decoder(folder: Path) -> Path:
    save_release(TrainState.build(CONFIG), folder)
    next(folder.glob("gen_*.pt")).unlink()
    return folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda _: {"checkpoint": Path("nowhere")}, "nowhere does not exist"),
        (lambda folder: {"checkpoint": teacher(folder)}, "is a teacher's: name a checkpoint of DG-Net"),
        (lambda folder: {"checkpoint": release_without_decoder(folder)}, r"gen_00000000\.pt"),
        (lambda _: {"store": "nowhere"}, "nowhere holds no store"),
        (lambda _: {"split": "holiday"}, "no split 'holiday': it has gallery, multi_query, query, train"),
        (lambda _: {"per_image": 144}, "--per-image 144: train of .* people in 144 pictures.* at most 143 others"),
    ],
)
def test_refused_before_anything_is_written(
    change: Callable[[Path], dict[str, object]], named: str, config: GenerateConfig, tmp_path: Path
):
    (tmp_path / "given").mkdir()
    changed = replace(config, out=tmp_path / "out", **change(tmp_path / "given"))
    with pytest.raises((checkpoint.CheckpointError, StoreError, PartsError), match=named):
        generate(changed, lambda *_: None)
    assert not changed.out.exists()


def test_folders_of_others_are_left_alone(
    whole: Path, config: GenerateConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = contents(whole)
    assert main(options(replace(config, per_image=3, seed=1))) == 2
    shown = capsys.readouterr().out
    assert "begun with other settings:\n" in shown
    assert "\n  per_image: 2 -> 3\n" in shown
    assert "\n  seed: 0 -> 1\n" in shown
    assert contents(whole) == before

    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(PartsError, match=rf"holds other things, no {RECORD}: name another folder"):
        generate(replace(config, out=tmp_path), lambda *_: None)
    with pytest.raises(PartsError, match=r"mine\.txt is a file"):
        generate(replace(config, out=tmp_path / "mine.txt"), lambda *_: None)
    assert list(contents(tmp_path)) == ["mine.txt"]

    damaged = shutil.copytree(whole, tmp_path / "damaged")
    (damaged / RECORD).write_text("{")
    with pytest.raises(PartsError, match=rf"{RECORD} is damaged"):
        generate(replace(config, out=damaged), lambda *_: None)
    settings = json.loads((whole / RECORD).read_text())
    with owned(whole, settings), pytest.raises(UserError, match="is being written by another run"):
        generate(config, lambda *_: None)


def test_a_damaged_picture_is_named(config: GenerateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bad = Store.open(config.store).index("train")["file_name"][100]
    [content] = [
        table["image"][row].as_py()
        for table in Store.open(config.store).row_groups("train")
        for row, name in enumerate(table["file_name"].to_pylist())
        if name == bad
    ]
    decode = images_module.decode

    def broken(picture: bytes, *place: np.ndarray) -> np.ndarray:
        if picture == content:
            raise PictureError("does not decode")
        return decode(picture, *place)

    monkeypatch.setattr(images_module, "decode", broken)
    with pytest.raises(StoreError, match=rf"train\.parquet: {bad}: does not decode"):
        generate(replace(config, out=tmp_path), lambda *_: None)
    assert not (tmp_path / MANIFEST).exists()
