"""jobs/measure.py: what is measured of generated people, that it resumes, and what it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console

from dgnet_core.dgnet.state import TrainState
from dgnet_core.generation.distances import frechet_distance, moments
from dgnet_core.generation.inception import InceptionFID
from dgnet_core.teacher.config import laptop_teacher
from dgnet_core.teacher.state import TeacherState
from dgnet_platform.cli.measure import tables
from dgnet_platform.compute import parts
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import Size, shot_of, write_market
from dgnet_platform.data.poses import FILE as KEYPOINTS
from dgnet_platform.data.poses import KeyPoints
from dgnet_platform.data.prepare import PrepareConfig, prepare
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.config import MeasureConfig
from dgnet_platform.evaluation.generate import shown_people
from dgnet_platform.evaluation.judges import POOLED
from dgnet_platform.evaluation.measure import INCEPTION, _distances, measure
from dgnet_platform.evaluation.measured import GENERATED, TABLES, Measured, write
from dgnet_platform.evaluation.picture_sets import PictureSetError, stored_set
from dgnet_platform.evaluation.results import DRAWN, JSON, PARQUET
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.loading import digest_of
from jobs.measure import main
from tests.helpers.tiny import small_config

SIZE = Size(
    train_identities=6, test_identities=2, cameras=2,
    train=72, queries=4, gallery=8, distractors=2, junk=2, hand_drawn=2,
)  # fmt: skip
CONFIG = small_config(6)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    write_market(People(1), folder / "people", SIZE)
    prepare(PrepareConfig(dataset="people", source=folder / "people", out=folder / "store", threads=1))
    return folder / "store"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = replace(laptop_teacher(6, 72), network=replace(CONFIG.network, appearance_width=1))
    return checkpoint.save(TeacherState.build(config), config, tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def true_swaps(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a perfect generator would leave: the true picture for each of 72 pairs."""
    folder = tmp_path_factory.mktemp("perfect")
    index = Store.open(store).index("train")
    order = np.random.default_rng(0).permutation(len(index))
    rows = []
    for number, (i, j) in enumerate(zip(order, np.roll(order, 7), strict=True)):
        one, other = index.iloc[i], index.iloc[j]
        pixels = People(1).draw(appearance_of=shot_of(one["file_name"]), structure_of=shot_of(other["file_name"]))
        Image.fromarray(pixels).save(folder / f"{number}.png")
        ids = {"appearance_id": one["person_id"], "structure_id": other["person_id"]}
        rows.append({"path": f"{number}.png", **ids, "appearance": one["file_name"], "structure": other["file_name"]})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False)
    return folder


def measured(store: Path, out: Path, **options: Any) -> Measured:
    config = MeasureConfig(**{"store": str(store), "out": out, "threads": 1, "people": 24, **options})
    return measure(config, lambda *_: None)


def by_figure(distances: pd.DataFrame) -> dict[tuple[str, str], float]:
    """Values by figure and what is compared."""
    return {(row["figure"], row["compared"]): row["value"] for row in distances.to_dict("records")}


# ------------------------------------------------------------------------------------------------------------
# What comes out


def test_a_checkpoint(store: Path, teacher: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    torch.manual_seed(0)
    trained = checkpoint.save(TrainState.build(CONFIG), CONFIG, tmp_path / "run")
    out = tmp_path / "results"
    arguments = ["--checkpoint", trained, "--teacher", teacher, "--store", store, "--out", out]
    assert main([*map(str, arguments), "--people", "12", "--threads", "1"]) == 0
    shown = capsys.readouterr().out
    assert "frechet_teacher" in shown
    assert "fid" not in shown.replace("fidelity", "")
    assert DRAWN in shown
    assert "x_j as it is" in shown
    assert "PSNR" in shown
    assert "…" not in shown  # all fits
    digest = digest_of(teacher)
    assert f"by teacher {digest[:12]}\n" in shown
    assert sorted(path.name for path in out.iterdir()) == [JSON, PARQUET, "swaps.png"]
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []  # parts are gone
    values = json.loads((out / JSON).read_text())
    assert set(TABLES) < set(values)
    assert (values["networks"], values["mode"]) == ({"teacher": digest}, None)
    figures = pd.DataFrame(values["distances"])
    assert set(figures["figure"]) == {"frechet_teacher", "kid_teacher"}
    assert set(figures["compared"]) >= {GENERATED, "real, other half", "generated, as many"}
    assert {row["pictures"] for row in values["distances"] if row["compared"] != GENERATED} == {36}
    by_set = by_figure(figures)
    floor = by_set["kid_teacher", "real, other half"]
    assert by_set["kid_teacher", "generated, as many"] > max(floor, 0)  # the networks are not trained
    diversity = pd.DataFrame(values["diversity"])
    assert diversity["height"].tolist() == [256, 32, 256, 128]
    assert set(diversity["pairs"]) == {60}  # 10 of each of 6 identities
    people = pd.DataFrame(values["people"]).set_index("picture")
    assert people.index.tolist() == ["generated", "x_j as it is", "true, JPEG 75"]
    assert people["transfer"].tolist()[1] == 0
    assert people["transfer"].tolist()[2] > 0.5
    parquet = pd.read_parquet(out / PARQUET)
    assert set(parquet["part"]) == set(TABLES)


def test_a_perfect_generator(store: Path, teacher: Path, true_swaps: Path, tmp_path: Path):
    found = measured(store, tmp_path / "out", generated=true_swaps, teacher=teacher)
    people = found.people.set_index("picture")
    perfect = people.loc[GENERATED]
    assert (perfect["person_L1"], perfect["transfer"], perfect["upper_colour"]) == (0, 1, 0)
    assert people.loc["true, JPEG 75"]["upper_colour"] < 5 < people.loc["x_j as it is"]["upper_colour"]
    identity = found.identity.set_index("picture")
    assert identity.loc[GENERATED]["pictures"] == 72
    assert identity["identities"].tolist() == [6] * 3
    assert found.left_out == []
    figures = found.figures()
    assert figures["test/generated/transfer"] == 1
    assert figures["test/generated/diversity"] == pytest.approx(found.diversity["DSSIM"].tolist()[0])
    assert figures["test/generated/kid_teacher_floor"] == pytest.approx(
        by_figure(found.distances)["kid_teacher", "real, other half"]
    )


def test_real_pictures_as_generated_ones(store: Path, teacher: Path, tmp_path: Path):
    """The distance of a set to itself is 0, to the other half of itself it is the floor."""
    table = shown_people(Store.open(store), "train")
    folder = tmp_path / "copies"
    folder.mkdir()
    lines = ["path,appearance_id,structure_id"]
    for row in table.select(["file_name", "person_id", "image"]).to_pylist():
        (folder / row["file_name"]).write_bytes(row["image"])
        lines.append(f"{row['file_name']},{row['person_id']},{row['person_id']}")
    (folder / "manifest.csv").write_text("\n".join(lines))
    found = measured(store, tmp_path / "out", generated=folder, teacher=teacher)
    frechet = by_figure(found.distances)["frechet_teacher", GENERATED]
    scale = float(moments(torch.rand(60, 32)).covariance.trace())
    assert abs(frechet) < 1e-6 * max(scale, 1)
    own = found.identity.iloc[0]  # each finds itself, but for the roundings of an untrained teacher's close descriptors
    assert own["appearance_rank1"] > 0.9
    assert own["appearance_median"] == 1
    assert len(found.people) == 0
    assert "no columns appearance and structure" in found.left_out[-1]
    real = {(row["picture"], row["height"]): row["DSSIM"] for row in found.diversity.to_dict("records")}
    assert real["generated", 256] == pytest.approx(real["real", 256])


@pytest.fixture(scope="module")
def photographs(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn people as if nothing were known of them but their key points."""
    folder = tmp_path_factory.mktemp("photographs")
    source, out = folder / "market", folder / "store"
    shutil.copytree(store.parent / "people", source)
    (source / "people.json").unlink()
    prepare(PrepareConfig(dataset="market1501", source=source, out=out, threads=1))
    opened = Store.open(out)
    replace(KeyPoints.open(Store.open(store)), store=opened.info.fingerprint).save(opened)
    return out


def test_people_in_photographs(photographs: Path, teacher: Path, true_swaps: Path, tmp_path: Path):
    options = {"teacher": teacher, "diversity_pairs": 0}
    of_two = copied(true_swaps, tmp_path / "of two", lambda m: m[m["appearance_id"] != m["structure_id"]])
    found = measured(photographs, tmp_path / "swaps", generated=of_two, **options)
    people = found.people.set_index("picture")
    assert not found.drawn
    assert people.index.tolist() == ["generated", "x_j as it is"]
    for part in ("upper_colour", "lower_colour"):  # light and bodies differ, clothes do not
        assert people.loc[GENERATED][part] < 0.8 * people.loc["x_j as it is"][part]
    assert people["person_L1"].isna().tolist() == [True, True]
    assert "two pictures of one person, of which there is none" in found.left_out[-1]

    index = Store.open(photographs).index("train").sort_values("person_id")
    folder = tmp_path / "reconstructions"
    folder.mkdir()
    pictures = {row["file_name"]: row["image"] for row in shown_people(Store.open(photographs), "train").to_pylist()}
    rows = []
    for number, (i, j) in enumerate(zip(index.iloc[:-1].itertuples(), index.iloc[1:].itertuples(), strict=True)):
        (folder / f"{number}.jpg").write_bytes(pictures[j.file_name])
        ids = {"appearance_id": i.person_id, "structure_id": j.person_id}
        rows.append({"path": f"{number}.jpg", **ids, "appearance": i.file_name, "structure": j.file_name})
    pd.DataFrame(rows).to_csv(folder / "manifest.csv", index=False, encoding="utf-8-sig")
    found = measured(photographs, tmp_path / "same", generated=folder, **options)
    generated = found.people.set_index("picture").loc[GENERATED]
    assert (generated["person_L1"], generated["person_PSNR"], generated["sharpness"]) == (0, 100, 1)
    assert found.left_out == []


def test_photographs_whose_key_points_are_missing_or_of_other_pictures(
    photographs: Path, teacher: Path, true_swaps: Path, tmp_path: Path
):
    other = tmp_path / "store"
    shutil.copytree(photographs, other)
    options = {"teacher": teacher, "diversity_pairs": 0, "generated": true_swaps}
    points = KeyPoints.open(Store.open(other))
    replace(points, store="0" * 64).save(Store.open(other))
    found = measured(other, tmp_path / "stale", **options)
    assert "its pictures were changed after their key points were made; run jobs/prepare_data.py" in found.left_out[0]
    (other / KEYPOINTS).unlink()
    found = measured(other, tmp_path / "none", **options)
    assert "has no key points (keypoints.feather is missing): run jobs/prepare_data.py again" in found.left_out[0]
    assert len(found.people) == 0


def test_fid_needs_its_network_and_enough_pictures(store: Path, true_swaps: Path, tmp_path: Path, monkeypatch):
    def features(network: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(x, (26, 27)).flatten(1)[:, :2048]

    monkeypatch.setattr(InceptionFID, "forward", features)  # seconds a picture
    torch.save(InceptionFID().state_dict(), tmp_path / "weights.pth")
    options = {"generated": true_swaps, "inception": tmp_path / "weights.pth", "people": 0, "diversity_pairs": 0}
    found = measured(store, tmp_path / "out", **options)
    assert set(found.distances["figure"]) == {"kid"}
    assert "fid of generated: 72 pictures: the Frechet distance over 2,048 features needs more" in found.left_out[0]
    assert len(found.identity) == 0

    found = measured(store, tmp_path / "clean", **options, mode="clean")
    assert set(found.distances["figure"]) == {"kid_clean"}
    assert {"test/generated/kid_clean", "test/generated/kid_clean_floor"} <= set(found.figures())
    written = tmp_path / "written"
    written.mkdir()
    write(found, written)
    values = json.loads((written / JSON).read_text())
    assert (values["networks"], values["mode"]) == ({INCEPTION: digest_of(tmp_path / "weights.pth")}, "clean")
    console = Console(file=(shown := StringIO()), soft_wrap=True)
    console.print(tables(found))
    assert f"by inception {values['networks'][INCEPTION][:12]}; FID mode clean" in shown.getvalue()


@pytest.mark.parametrize(
    ("options", "fid", "floor"),
    [
        ({}, "fid", "real, other half"),
        ({"floor": "gallery"}, "fid", "real, gallery"),
        ({"mode": "clean"}, "fid_clean", "real, other half"),
        ({"mode": "legacy_pytorch"}, "fid_legacy_pytorch", "real, other half"),
    ],
)
def test_distances_over_the_fid_networks_features(options: dict[str, Any], fid: str, floor: str):
    random = torch.Generator().manual_seed(0)
    features = {
        name: {f"{INCEPTION}.{POOLED}": torch.randn(count, 8, generator=random) + shift}
        for name, count, shift in ((GENERATED, 60, 1), ("real", 60, 0), ("gallery", 30, 3))
    }
    config = MeasureConfig(store="unused", out=Path("unused"), generated=Path("unused"), **options)
    left_out: list[str] = []
    rows = _distances(features, config, left_out)
    assert left_out == []
    kid = fid.replace("fid", "kid")
    sets = GENERATED, floor, f"{GENERATED}, as many"
    assert [(row["figure"], row["compared"]) for row in rows] == [(name, of) for of in sets for name in (fid, kid)]
    assert [row["pictures"] for row in rows] == [60, 60, 30, 30, 30, 30]
    found = by_figure(pd.DataFrame(rows))
    real, generated = (moments(features[name][f"{INCEPTION}.{POOLED}"]) for name in ("real", GENERATED))
    assert found[fid, GENERATED] == pytest.approx(frechet_distance(real, generated))
    # The gallery's 8 means are 3 away, those of the real pictures' other half nowhere.
    low, high = (60, 100) if "floor" in options else (0, 5)
    assert low < found[fid, floor] < high


@pytest.mark.parametrize("options", [{}, {"floor": "gallery"}])
def test_distances_are_of_all_people_although_sets_are_sorted_by_them(options: dict[str, Any]):
    """A generator that draws people as they are has the floor's distance, also where fewer of its pictures count."""
    random = torch.Generator().manual_seed(0)
    means = torch.randn(50, 8, generator=random) * 5

    def pictures(each: int) -> dict[str, torch.Tensor]:
        centres = means.repeat_interleave(each, 0)
        return {f"{INCEPTION}.{POOLED}": centres + torch.randn(centres.shape, generator=random)}

    features = {GENERATED: pictures(20), "real": pictures(8), "gallery": pictures(12)}
    config = MeasureConfig(store="unused", out=Path("unused"), generated=Path("unused"), **options)
    found = by_figure(pd.DataFrame(_distances(features, config, [])))
    fids = {compared: value for (figure, compared), value in found.items() if figure == "fid"}
    assert max(fids.values()) < 12  # the first people alone: 18 and 70
    assert len(fids) == (2 if options else 3)


# ------------------------------------------------------------------------------------------------------------
# Parts


def test_a_stopped_measurement_resumes_with_what_is_missing(
    store: Path, teacher: Path, true_swaps: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    options = {"generated": true_swaps, "teacher": teacher}
    whole = measured(store, tmp_path / "whole", **options)
    write, written = parts._write, []

    def stopping(folder: Path, name: str, files: parts.Files) -> None:
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(name)
        write(folder, name, files)

    with monkeypatch.context() as patched:
        patched.setattr(parts, "_write", stopping)
        with pytest.raises(KeyboardInterrupt):
            measured(store, tmp_path / "out", **options)
    before = set(written)
    monkeypatch.setattr(parts, "_write", lambda folder, name, files: (written.append(name), write(folder, name, files)))
    resumed = measured(store, tmp_path / "out", **options)
    assert len(written) == len(set(written)) > len(before) == 3
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(whole, name), getattr(resumed, name))
    with pytest.raises(parts.PartsError, match="diversity_rounds: 5 -> 4"):
        measured(store, tmp_path / "out", **options, diversity_rounds=4)


# ------------------------------------------------------------------------------------------------------------
# Bad input


def copied(folder: Path, out: Path, change: Callable[[pd.DataFrame], Any]) -> Path:
    shutil.copytree(folder, out)
    manifest = pd.read_csv(folder / "manifest.csv")
    change(manifest).to_csv(out / "manifest.csv", index=False)
    return out


def test_generated_pictures_that_say_too_little(
    store: Path, teacher: Path, true_swaps: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def refusal(folder: Path) -> str:
        arguments = ["--generated", folder, "--teacher", teacher, "--store", store, "--out", tmp_path / "out"]
        assert main([*map(str, arguments), "--people", "0", "--threads", "1"]) == 2
        assert not (tmp_path / "out").exists()
        return " ".join(capsys.readouterr().out.split())

    manifests: dict[str, tuple[Callable[[pd.DataFrame], Any], str]] = {
        "column": (
            lambda m: m.drop(columns="structure_id"),
            "has no column structure_id: its first line must name path",
        ),
        "identity": (lambda m: m.assign(appearance_id=["", *m["appearance_id"][1:]]), "line 2: appearance_id is ''"),
        "minus": (lambda m: m.assign(structure_id=["--5", *m["structure_id"][1:]]), "structure_id is '--5'"),
        "long": (lambda m: m.assign(structure_id=["9" * 20, *m["structure_id"][1:]]), "the number of an identity"),
        "unnamed": (lambda m: m.assign(path=[" ", *m["path"][1:]]), "line 2 names no picture: complete or"),
        "foreign": (lambda m: m.assign(appearance=["x.jpg", *m["appearance"][1:]]), "the store was changed since"),
        "other": (lambda m: m.assign(structure_id=m["structure_id"] + 1), "its structure from"),
        "twice": (lambda m: pd.concat([m, m[:1]]), "names 0.png more than once"),
        "lost": (lambda m: m.assign(path=["lost.png", *m["path"][1:]]), "lost.png, which its manifest names, cannot"),
        "outside": (lambda m: m.assign(path=["../0.png", *m["path"][1:]]), "leads out of the folder"),
        "empty": (lambda m: m[:0], "names no picture"),
    }
    for name, (change, expected) in manifests.items():
        assert expected in refusal(copied(true_swaps, tmp_path / name, change)), name
    bare = copied(true_swaps, tmp_path / "bare", lambda m: m)
    (bare / "manifest.csv").unlink()
    assert "has no manifest.csv, so nothing says whom its pictures show: write one" in refusal(bare)
    (bare / "manifest.csv").write_bytes("path,appearance_id,structure_id\n\xe4.png,1,2\n".encode("latin-1"))
    assert "manifest.csv is not UTF-8 text" in refusal(bare)
    (bare / "manifest.csv").write_text("appearance_id,structure_id,path\n1,2\n")
    assert "line 2 names no picture" in refusal(bare)
    (bare / "manifest.csv").write_text(f"path,appearance_id,structure_id\n{'a' * 200_000},1,2\n")
    assert "save it as comma-separated text again" in refusal(bare)
    sizes = copied(true_swaps, tmp_path / "sizes", lambda m: m)
    Image.new("RGB", (32, 64)).save(sizes / "1.png")
    assert "two sizes: 0.png is 64 x 128, 1.png is 32 x 64" in refusal(sizes)
    (sizes / "1.png").write_bytes(b"no picture")
    assert "1.png: does not decode: no picture" in refusal(sizes)


def test_few_pictures_and_missing_networks(store: Path, teacher: Path, true_swaps: Path, tmp_path: Path):
    found = measured(store, tmp_path / "few", generated=true_swaps, teacher=teacher, pictures=15, diversity_pairs=0)
    assert len(found.distances) == 0
    assert [reason.partition(":")[0] for reason in found.left_out][:2] == [
        "frechet_teacher of generated", "kid_teacher of generated",
    ]  # fmt: skip
    with pytest.raises(PictureSetError, match="name --teacher, --resnet, or the FID network's file"):
        measured(store, tmp_path / "none", generated=true_swaps)
    torch.save({"conv1.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(PictureSetError, match="no ResNet of bottleneck blocks"):
        measured(store, tmp_path / "none", generated=true_swaps, resnet=tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="another network"):
        measured(store, tmp_path / "none", generated=true_swaps, inception=tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="either --checkpoint or --generated"):
        MeasureConfig(store=str(store), out=tmp_path)


def test_a_resnet_from_torchvisions_file(store: Path, true_swaps: Path, tmp_path: Path):
    from torchvision.models import ResNet
    from torchvision.models.resnet import Bottleneck

    torch.manual_seed(0)
    reference = ResNet(Bottleneck, [1, 1, 1, 1]).eval()
    torch.save(reference.state_dict(), tmp_path / "resnet.pth")
    options = {"people": 0, "diversity_pairs": 0, "pictures": 24, "resnet": tmp_path / "resnet.pth"}
    found = measured(store, tmp_path / "out", generated=true_swaps, floor="gallery", **options)
    assert set(found.distances["figure"]) == {"kid_resnet14"}  # 24 pictures are too few for 2,048 features
    # Without distractors and junk the gallery has 8.
    assert any(reason.startswith("kid_resnet14 of real, gallery: 8 pictures") for reason in found.left_out)
    assert stored_set(Store.open(store), "train").decode([0, 5]).shape == (2, 3, 128, 64)
