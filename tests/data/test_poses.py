"""Key points beside a store: every published form read and matched, checked, kept, shown; and what is refused."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from dgnet_core.learning.joints import HIDDEN, MISSING, SEEN
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.people.people import JUNK, People
from dgnet_platform.data.people.people_set import Size, write_market
from dgnet_platform.data.pose_files import CSV_HEADER, PoseError, read_pose_files
from dgnet_platform.data.poses import FILE, SHEET, KeyPoints, draw_sheet, found_keypoints
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store
from jobs import prepare_data
from tests.helpers.market import packed
from tests.helpers.market import write_market as write_photographs

SMALL = Size(
    train_identities=2, test_identities=2, cameras=3, train=12, queries=5, gallery=6, distractors=3, junk=3,
    hand_drawn=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> Path:
    return write_market(People(4), tmp_path_factory.mktemp("people") / "set", SMALL)


@pytest.fixture(scope="module")
def store(drawn, tmp_path_factory) -> Store:
    out = tmp_path_factory.mktemp("store") / "people"
    prepare(PrepareConfig(dataset="people", source=drawn, out=out, threads=2))
    return Store.open(out)


def index_of(store: Store):
    return {split: store.index(split) for split in store.info.splits}


def csv(rows: dict[str, np.ndarray]) -> str:
    """A published CSV of places (18, 2), NaN where a joint is missing."""
    lines = [CSV_HEADER]
    for name, places in rows.items():
        x, y = np.where(np.isnan(places), -1, np.floor(places)).astype(int).T.tolist()
        lines.append(f"{name}: {json.dumps(y)}: {json.dumps(x)}")
    return "\n".join(lines)


def truth(store: Store) -> dict[tuple[str, str], np.ndarray]:
    points = KeyPoints.open(store)
    return {
        picture: np.where(visibility[:, None] == MISSING, np.nan, places)
        for picture, places, visibility in zip(points.pictures, points.places, points.visibility, strict=True)
    }


def read_back(store: Store, path: Path) -> KeyPoints:
    return found_keypoints(store, read_pose_files(path, index_of(store)))


def same_places(store: Store, points: KeyPoints, joints=slice(None), splits=("train", "query", "gallery")) -> None:
    exact = truth(store)
    for picture, places, visibility in zip(points.pictures, points.places, points.visibility, strict=True):
        if picture[0] in splits:
            wanted = exact[picture][joints]
            assert np.array_equal(visibility[joints] == MISSING, np.isnan(wanted[:, 0]))
            assert np.nanmax(np.abs(wanted - places[joints]), initial=0) <= 0.5


# ------------------------------------------------------------------------------------------------------------
# Drawn people


def test_drawn_people_have_theirs(store, drawn):
    points = KeyPoints.open(store)
    assert len(points.pictures) == sum(split.pictures for split in store.info.splits.values())
    assert set(np.unique(points.visibility)) == {MISSING, HIDDEN, SEEN}
    index = store.index("train")
    twice = points.joints("train", index, height=256, width=64)
    people = People(4)
    for row, name in enumerate(index["file_name"]):
        identity, camera, frame = int(name[:4]), int(name[6]), int(name[10:16])
        places, visibility = people.keypoints((identity, camera, frame))  # pyright: ignore[reportArgumentType]
        assert np.array_equal(twice[row, :, 2], visibility)
        assert np.allclose(twice[row, :, :2], places * (1, 2))
    with Image.open(Path(store.location) / SHEET) as sheet:
        assert sheet.size == (10 * 3 * 64, 2 * 3 * 128)


def test_stores_are_what_they_were(store, drawn, tmp_path):
    Path(tmp_path / "plain").mkdir()
    points = KeyPoints.open(store)
    (Path(store.location) / FILE).rename(tmp_path / FILE)
    fingerprint = Store.open(store.location).info.fingerprint
    again = prepare(PrepareConfig(dataset="people", source=drawn, out=store.location, threads=1))
    assert (again.outcome, again.info.fingerprint) == ("already packed", fingerprint)
    assert KeyPoints.open(store).digest == points.digest
    assert (Path(store.location) / FILE).read_bytes() == (tmp_path / FILE).read_bytes()


def test_as_estimated_is_another_table(store, drawn, tmp_path):
    prepare(PrepareConfig(dataset="people", source=drawn, out=tmp_path / "s", keypoints_as_estimated=True, threads=1))
    found, exact = KeyPoints.open(Store.open(tmp_path / "s")), KeyPoints.open(store)
    assert found.store == exact.store
    assert found.digest != exact.digest
    assert found.report.missing > exact.report.missing


# ------------------------------------------------------------------------------------------------------------
# Published forms


def test_csv(store, tmp_path):
    rows = {file: places for (split, file), places in truth(store).items() if split in ("train", "query", "gallery")}
    rows["0099_c1s1_000000_01.jpg"] = np.ones((18, 2))
    (tmp_path / "market-annotation.csv").write_text(csv(rows))
    points = read_back(store, tmp_path / "market-annotation.csv")
    same_places(store, points)
    assert points.report.others == 1
    assert points.report.absent == store.count("multi_query") - store.count("query")


def test_text_files_are_numbered_as_open_reid_does(store, tmp_path):
    (tmp_path / "poses").mkdir()
    counts, exact = {}, truth(store)
    for split in ("train", "gallery", "query"):
        for row in store.index(split).sort_values("file_name").itertuples():
            if row.person_id != JUNK:
                key = f"{row.person_id:08d}_{row.camera_id - 1:02d}"
                counts[key] = counts.get(key, -1) + 1
                places = exact[split, row.file_name]
                lines = [f"{y:.0f} {x:.0f}" for x, y in np.where(np.isnan(places), -1, np.floor(places))]
                (tmp_path / "poses" / f"{key}_{counts[key]:04d}.txt").write_text("\n".join(lines))
    points = read_back(store, tmp_path)
    same_places(store, points)
    assert points.report.absent == store.count("multi_query") + SMALL.junk


def test_fourteen_points(store, tmp_path):
    exact = truth(store)
    names = sorted(store.index("train")["file_name"])
    joints = np.stack([exact["train", name] for name in names])[:, 1:14]
    head = np.zeros((len(names), 1, 2))
    fourteen = np.floor(np.nan_to_num(np.concatenate([head, joints], axis=1))) + 1
    with h5py.File(tmp_path / "train.mat", "w") as file:  # MATLAB's 28 x N, as h5py sees it
        file["points"] = np.concatenate([fourteen[..., 0], fourteen[..., 1]], axis=1)
    points = read_back(store, tmp_path / "train.mat")
    body = slice(1, 14)
    for picture, places in zip(points.pictures, points.places, strict=True):
        wanted = exact[picture][body]
        assert np.nanmax(np.abs(wanted - places[body])) <= 0.5
    assert (points.visibility[:, [0, 14, 15, 16, 17]] == MISSING).all()
    with h5py.File(tmp_path / "other.mat", "w") as file:
        file["points"] = np.ones((99, 28))
    with pytest.raises(PoseError, match=r"other.mat is for 99 pictures, the store has .*train 12"):
        read_back(store, tmp_path / "other.mat")


def test_photographs_are_prepared_with_key_points(tmp_path, capsys):
    source = write_photographs(tmp_path / "market", size=(64, 128))
    upright = np.stack([np.full(18, 30.0), np.linspace(5, 120, 18)], axis=1)
    names = sorted(file.name for file in source.rglob("*.jpg"))
    changed = {names[0]: np.full((18, 2), np.nan), names[1]: (0, 128) + upright * (1, -1)}
    (tmp_path / "poses.csv").write_text(csv(dict.fromkeys(names, upright) | changed))
    arguments = ["--dataset", "market1501", "--source", str(source), "--out", str(tmp_path / "store")]
    assert prepare_data.main([*arguments, "--keypoints", str(tmp_path / "poses.csv")]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"1 pictures have no joint at all: gallery/{names[0]}" in shown
    assert f"the shoulders are below the hips in 1 pictures: train/{names[1]}" in shown
    assert "in the first column" not in shown
    assert "See ten of them in" in shown
    points = KeyPoints.open(Store.open(tmp_path / "store"))
    assert points.visibility.sum() == 2 * 18 * (len(names) - 1)
    assert prepare_data.main([*arguments, "--keypoints", str(tmp_path / "missing.csv")]) == 2


# ------------------------------------------------------------------------------------------------------------
# What is wrong is named


def refused(store: Store, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "poses.csv").write_text(content)
    with pytest.raises(PoseError, match=message):
        read_back(store, tmp_path / "poses.csv")


def test_bad_key_points_are_named(store, tmp_path):
    rows = {file: places for (split, file), places in truth(store).items() if split == "train"}
    first = min(rows)
    exchanged = {file: places[:, ::-1] for file, places in rows.items()}
    refused(store, tmp_path, csv(exchanged), r"trunk lies across the picture in \d+%.* x and y look exchanged")
    refused(store, tmp_path, csv(dict.fromkeys(rows, np.full((18, 2), np.nan))), "all joints of all pictures are -1")
    refused(store, tmp_path, csv({"other.jpg": np.ones((18, 2))}), "for 1 other pictures and none of the store's")
    refused(store, tmp_path, csv({first: rows[first]}), "11 of 12 training pictures have no joint at all")
    refused(store, tmp_path, csv({first: rows[first][:17]}), rf"line 2 \({first}\): not two lists of 18 numbers")
    refused(store, tmp_path, f"{CSV_HEADER}\n{first}:[1, 2", "line 2 .*not two lists")
    refused(store, tmp_path, "name,x,y\n", "begins with 'name,x,y': its columns must be")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(PoseError, match=r"holds none of them: name a \.csv"):
        read_back(store, tmp_path / "nothing")
    (tmp_path / "poses.csv").write_text("x")
    (tmp_path / "00000001_00_0000.txt").write_text("1 2")
    with pytest.raises(PoseError, match=r"holds both .csv and .txt"):
        read_back(store, tmp_path)


def test_implausible_people_are_reported(store, tmp_path):
    rows = {file: places.copy() for (split, file), places in truth(store).items() if split == "train"}
    fallen, edge, *_ = sorted(rows)
    rows[fallen] = (0, 128) + rows[fallen] * (1, -1)
    rows[edge][4, 0] = 0.5
    (tmp_path / "poses.csv").write_text(csv(rows))
    found = read_back(store, tmp_path / "poses.csv").report
    assert found.implausible_names["the shoulders are below the hips"] == [f"train/{fallen}"]
    assert f"train/{edge}" in found.implausible_names["joints in the first column of pixels"]
    assert found.implausible["the nose is below the shoulders"] == 1


def test_a_table_of_another_store_is_refused(store, drawn, tmp_path):
    with pytest.raises(PoseError, match=r"has no key points .*--keypoints"):
        KeyPoints.open(packed_without(tmp_path))
    prepare(PrepareConfig(dataset="people", size="tiny", out=tmp_path / "tiny", threads=2))
    tiny = Store.open(tmp_path / "tiny")
    (tmp_path / "tiny" / FILE).write_bytes((Path(store.location) / FILE).read_bytes())
    with pytest.raises(PoseError, match="its pictures were changed after their key points were made"):
        KeyPoints.open(tiny)
    (tmp_path / "tiny" / FILE).write_bytes(b"no table")
    with pytest.raises(PoseError, match="cannot be read"):
        KeyPoints.open(tiny)


def packed_without(tmp_path: Path) -> Store:
    packed(write_photographs(tmp_path / "photographs"), tmp_path / "without")
    return Store.open(tmp_path / "without")


def test_switches_are_for_drawn_people(tmp_path):
    with pytest.raises(ValueError, match="--keypoints-as-estimated is for drawn people's own"):
        PrepareConfig(dataset="market1501", source=tmp_path, out=tmp_path / "s", keypoints_as_estimated=True)


def test_sheet_shows_both_sides(store):
    points = KeyPoints.open(store)
    sheet = np.asarray(draw_sheet(points, store, rows=[0, store.count("train") - 1])).astype(int)
    upper, lower = sheet[:384], sheet[384:]
    for half, mirror in ((upper, lower), (lower, upper)):
        red = (half[..., 0] > 200) & (half[..., 1] < 70) & (half[..., 2] < 70)
        blue = (mirror[:, ::-1, 2] > 230) & (mirror[:, ::-1, 0] < 80)
        assert red[:, :192].sum() > 30
        assert blue[:, 192:].sum() > 30
