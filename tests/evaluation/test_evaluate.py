"""jobs/evaluate.py from a drawn store and an untrained checkpoint to tables and pictures."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from rich.console import Console

from dgnet_core.dgnet import release
from dgnet_core.dgnet.generator import Generator, render
from dgnet_core.dgnet.state import TrainState
from dgnet_core.generation.fidelity import swap_fidelity
from dgnet_core.learning.augment import denormalise, normalise
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.ranking.extraction import extract
from dgnet_core.teacher.networks import Teacher
from dgnet_platform.cli.evaluate import tables
from dgnet_platform.compute.parts import PartsError
from dgnet_platform.data import images as images_module
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.images import ImageSet
from dgnet_platform.data.people.people import People, Shot
from dgnet_platform.data.people.people_set import shot_of, write_market
from dgnet_platform.data.people.sizes import Size
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import INFO_KEY, SCHEMA, Store, StoreError
from dgnet_platform.evaluation import evaluate as evaluation
from dgnet_platform.evaluation import results, swaps
from dgnet_platform.evaluation.extraction import Extraction, extract_on_workers, extract_splits
from dgnet_platform.evaluation.pictures import MATCH, WRONG, RankedRow, ranked_lists, stored_pictures
from dgnet_platform.evaluation.results import DRAWN, JSON, PARQUET, QUERIES
from dgnet_platform.evaluation.swaps import people_of
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.loading import TrainedNetworks, open_trained
from jobs.evaluate import main
from tests.helpers import market
from tests.helpers.tiny import small_config

SIZE = Size(
    train_identities=3, test_identities=4, cameras=2,
    train=8, queries=8, gallery=16, distractors=2, junk=2, hand_drawn=2,
)  # fmt: skip
CONFIG = small_config(3)
SMALL = CONFIG.network

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn_store(folder: Path, seed: int) -> Path:
    write_market(People(seed), folder / "people", SIZE)
    prepare(PrepareConfig(dataset="people", source=folder / "people", out=folder / f"store{seed}", threads=1))
    return folder / f"store{seed}"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_store(tmp_path_factory.mktemp("one"), 1)


@pytest.fixture(scope="module")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_store(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def trained(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    state = TrainState.build(CONFIG)
    state.iteration = 40
    info = Store.open(store).info
    return checkpoint.save(
        state, CONFIG, tmp_path_factory.mktemp("run"), dataset=info.dataset, fingerprint=info.fingerprint
    )


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def picture_in(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")


def frames(picture: Image.Image) -> tuple[int, int]:
    """Numbers of pixels in the colours of a match's and of a wrong picture's frame."""
    pixels = np.asarray(picture)
    return tuple(int((pixels == colour).all(axis=2).sum()) for colour in (MATCH, WRONG))  # pyright: ignore[reportReturnType]


# ------------------------------------------------------------------------------------------------------------
# End to end


def test_one_store(store: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "results"
    arguments = [
        "--checkpoint",
        trained,
        "--store",
        store,
        "--out",
        out,
        "--swap-pairs",
        5,
        "--device",
        "cpu",
    ]
    assert run(*arguments, "--sweep", "--queries-shown", 3) == 0
    shown = capsys.readouterr().out
    assert re.search(r"Retrieval, %: drawn people -> drawn people(?s:.)+│ f_prim +│", shown)
    assert "both, beta 0.5" in shown
    assert DRAWN in shown
    assert "waiting for data" in shown

    assert sorted(path.name for path in out.iterdir()) == [
        "interpolated_appearance_drawn-people.png", "interpolated_structure_drawn-people.png",
        QUERIES, "ranked_drawn-people.png", JSON, PARQUET, "swaps_drawn-people.png",
    ]  # fmt: skip
    values = json.loads((out / JSON).read_text())
    assert values["note"] == DRAWN
    assert values["source"] == "checkpoint_00000040, iteration 40, 3 identities"
    table = pd.DataFrame(values["retrieval"])
    assert list(zip(table["feature"], table["query"], strict=True)) == [
        (feature, query) for query in ("single", "multi") for feature in ("f_prim", "f_fine", "both")
    ]
    assert table["beta"].dropna().tolist() == [0.5, 0.5]
    assert table["queries"].tolist() == [8] * 6
    assert table["drawn"].tolist() == [True] * 6
    figures = table[["rank1", "rank5", "rank10", "mAP", "mINP"]].to_numpy()
    assert ((figures >= 0) & (figures <= 1)).all()
    low, high = (table[f"mAP_{end}"].to_numpy() for end in ("low", "high"))
    assert ((low <= table["mAP"]) & (table["mAP"] <= high)).all()
    assert "95 % intervals over 4 identities" in shown
    differences = pd.DataFrame(values["differences"])
    asked = ("feature", "minus", "query")
    assert [tuple(row) for row in differences[list(asked)].to_numpy()] == [
        (*pair, query)
        for query in ("single", "multi")
        for pair in (("f_fine", "f_prim"), ("both", "f_prim"), ("both", "f_fine"))
    ]
    scores: dict[tuple[str, str], list[float]] = {}
    for row in pd.read_parquet(out / QUERIES).to_dict("records"):
        scores.setdefault((row["query"], row["feature"]), []).append(row["mAP"])
    means = {asked: float(np.mean(values)) for asked, values in scores.items()}
    for row in table.to_dict("records"):
        assert means[row["query"], row["feature"]] == pytest.approx(row["mAP"])
    for row in differences.to_dict("records"):
        gain = means[row["query"], row["feature"]] - means[row["query"], row["minus"]]
        assert row["mAP"] == pytest.approx(gain)
        assert row["mAP_low"] <= gain <= row["mAP_high"]
        sure = row["mAP_low"] > 0 or row["mAP_high"] < 0
        assert (row["mAP_verdict"] != "undecided") == sure
    sweep = pd.DataFrame(values["sweep"])
    assert sweep["beta"].tolist() == [tenth / 10 for tenth in range(11)]
    for beta, feature in ((0, "f_prim"), (0.5, "both")):
        row = table[(table["feature"] == feature) & (table["query"] == "single")].iloc[0]
        assert sweep.set_index("beta").loc[beta, "mAP"] == pytest.approx(row["mAP"])
    swaps = pd.DataFrame(values["swaps"])
    assert swaps["identities"].tolist() == ["seen"] * 3 + ["unseen"] * 3
    assert swaps["picture"].tolist() == ["G(a_i, s_j)", "x_j as it is", "true, JPEG 75"] * 2
    assert swaps["pairs"].tolist() == [5] * 6
    rendered, untouched, noisy = (swaps["SSIM"].tolist()[k::3] for k in range(3))
    assert min(untouched) > max(rendered)  # the networks are not trained
    assert min(noisy) > max(rendered)
    transfer = swaps["transfer"].tolist()
    assert transfer[1::3] == [0, 0]
    assert min(transfer[2::3]) > max(transfer[0::3])
    assert "The same swaps without their background" in shown
    assert values["extraction"][0]["pictures"] == 8 + 20 + 16
    assert 0 <= values["extraction"][0]["waiting"] < 1

    parquet = pd.read_parquet(out / PARQUET)
    assert parquet["part"].tolist() == ["table"] * 6 + ["sweep over beta"] * 11
    assert parquet["mAP"].tolist()[:6] == pytest.approx(table["mAP"].tolist())
    matched, wrong = frames(picture_in(out / "ranked_drawn-people.png"))
    frame = 72 * 136 - 64 * 128
    assert (matched + wrong) // frame == 30
    assert matched // frame > 0
    assert picture_in(out / "swaps_drawn-people.png").width > 500


def test_transfer_baseline_and_re_ranking(
    store: Path, other_store: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    torch.save(release.release_state_dicts({"teacher": Teacher(SMALL, 5)})["teacher"], tmp_path / "net_last.pth")
    arguments = [
        "--checkpoint",
        trained,
        "--teacher",
        tmp_path / "net_last.pth",
        "--out",
        tmp_path / "results",
    ]
    options = ["--rerank", "--swap-pairs", 0, "--queries-shown", 0, "--beta", 0.3]
    assert run(*arguments, "--store", other_store, "--store", store, *options) == 0
    assert "drawn people (store1) -> drawn people (store2)" in capsys.readouterr().out
    values = json.loads((tmp_path / "results" / JSON).read_text())
    table = pd.DataFrame(values["retrieval"])
    assert values["swaps"] == []
    for name in ("drawn people (store2)", "drawn people (store1)"):
        rows = table[table["store"] == name]
        assert set(rows[rows["model"] == "DG-Net"]["trained_on"]) == {"drawn people (store1)"}
        assert rows[rows["model"] == "baseline"]["feature"].tolist() == ["baseline"] * 4
        assert rows["reranked"].tolist().count(True) == len(rows) / 2
    assert set(table[table["feature"] == "both"]["beta"]) == {0.3}


def test_re_ranking_takes_as_many_neighbours_as_there_are(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    market.packed(market.write_market(tmp_path / "market"), tmp_path / "pilot")
    arguments = ["--checkpoint", trained, "--store", tmp_path / "pilot", "--out", tmp_path / "results", "--rerank"]
    assert run(*arguments) == 0
    assert "re-ranked by 2 neighbours" in capsys.readouterr().out  # one query, two pictures of the gallery
    rows = json.loads((tmp_path / "results" / JSON).read_text())["retrieval"]
    assert [row["neighbours"] for row in rows] == [None] * 3 + [2.0] * 3
    assert {row["mAP"] for row in rows} <= {0.25, 1.0}  # the one match is second or first


def test_the_figures_are_those_of_the_networks(
    store: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Perfect descriptors give perfect figures: pictures and labels are not mixed up on the way."""
    person_of = {
        picture.numpy().tobytes(): person
        for split in ("query", "gallery", "multi_query")
        for images in [ImageSet.load(Store.open(store), split, height=SMALL.height, width=SMALL.width)]
        for picture, person in zip(images.images, images.person_ids.tolist(), strict=True)
    }

    def perfect(network: object, pixels: torch.Tensor, **_: object):
        people = torch.tensor([person_of[picture.numpy().tobytes()] for picture in pixels])
        half = torch.nn.functional.one_hot(people + 1, 20).float()
        return half, half

    monkeypatch.setattr("dgnet_platform.evaluation.extraction.extract_batch", perfect)
    out = tmp_path / "results"
    assert run("--checkpoint", trained, "--store", store, "--out", out, "--swap-pairs", 0) == 0
    table = pd.read_parquet(out / PARQUET)
    assert (table[["rank1", "mAP", "mINP"]].to_numpy() == 1).all()
    matched, wrong = frames(picture_in(out / "ranked_drawn-people.png"))
    assert matched > 0
    assert wrong > 0  # lists are longer than there are matches


def test_a_release_folder(store: Path, tmp_path: Path):
    network = NetworkConfig(
        appearance_layers=(1, 1, 1, 1), appearance_width=4, bottleneck=8, pretrained="none",
        structure_width=2, residual_blocks=1, adain_width=8, discriminator_width=4, discriminator_scales=1,
    )  # fmt: skip
    state = TrainState.build(replace(CONFIG, num_classes=6, network=network))
    state.iteration = 100_000
    (tmp_path / "released").mkdir()
    release.save_release(state, tmp_path / "released")
    out = tmp_path / "results"
    assert run("--checkpoint", tmp_path / "released", "--store", store, "--out", out, "--swap-pairs", 2) == 0
    values = json.loads((out / JSON).read_text())
    assert values["source"] == "released of the authors' release, iteration 100,000, 6 identities"
    assert values["retrieval"][0]["trained_on"] == "unknown"
    assert values["swaps"][0]["identities"] == "train split, not trained on"


def test_pictures_are_drawn_again_from_others_of_the_same_person(trained: Path, store: Path):
    opened, network = Store.open(store), open_trained(trained)
    people = opened.index("gallery")["person_id"].tolist()
    pairs = swaps.same_person_pairs(people, 9)
    assert len(pairs) == 9
    assert all(i != j and people[i] == people[j] > 0 for i, j in pairs)
    assert {people[i] for i, _ in pairs} == {person for person in people if person > 0 and people.count(person) > 1}
    assert swaps.same_person_pairs([1, 2, 0, 0, -1, -1], 9) == []

    pictures = stored_pictures(opened, "gallery", range(len(people)))
    scores = swaps.reconstruction(network, pictures, pairs, batch_size=4)
    tensors = [normalise(torch.from_numpy(picture.copy())[None], SMALL.height, SMALL.width) for picture in pictures]
    means = []
    for i, j in pairs:
        generated = denormalise(network.draw(tensors[i], tensors[j]))
        means.append(float(swap_fidelity(generated, denormalise(tensors[j])).ssim))
    assert scores["SSIM"] == pytest.approx(np.mean(means), abs=1e-4)
    assert set(scores) == {"L1", "PSNR", "SSIM"}


def test_photographs_have_no_swap_fidelity(tmp_path: Path, trained: Path, capsys: pytest.CaptureFixture[str]):
    for split, shots in (("train", "a"), ("query", "b"), ("gallery", "cd")):
        for person in (1, 2) if split == "train" else (3, 4):
            for shot in shots:
                camera = 1 if split == "query" else 2
                path = tmp_path / "own" / split / str(person) / f"{shot}_c{camera}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(People(0).picture(person, camera, ord(shot))).save(path)
    prepare(PrepareConfig(dataset="folder", source=tmp_path / "own", out=tmp_path / "vehicles"))
    out = tmp_path / "results"
    assert run("--checkpoint", trained, "--store", tmp_path / "vehicles", "--out", out) == 0
    values = json.loads((out / JSON).read_text())
    assert values["note"] is None
    assert values["swaps"] == []
    assert [path.name for path in sorted(out.glob("*.png"))] == [
        "interpolated_appearance_vehicles.png",
        "interpolated_structure_vehicles.png",
        "ranked_vehicles.png",
        "swaps_vehicles.png",
    ]
    assert DRAWN not in capsys.readouterr().out


# ------------------------------------------------------------------------------------------------------------
# Results are replaced as a whole


def test_results_replace_results_only_when_complete(
    store: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out = tmp_path / "results"
    quick = ["--checkpoint", trained, "--store", store, "--out", out, "--swap-pairs", 0]
    assert run(*quick) == 0
    before = (out / JSON).read_bytes()

    def broken(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(results.pd.DataFrame, "to_parquet", broken)
        assert run(*quick, "--queries-shown", 0) == 2
    assert (out / JSON).read_bytes() == before
    assert (out / "ranked_drawn-people.png").exists()
    assert run(*quick, "--queries-shown", 0) == 0
    assert not (out / "ranked_drawn-people.png").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["results"]

    out.rename(tmp_path / ".results.former")  # killed between the two renames
    assert run(*quick, "--store", tmp_path / "nothing") == 2
    assert (out / JSON).exists()


def test_other_things_are_never_replaced(
    store: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    arguments = ["--checkpoint", trained, "--store", store, "--swap-pairs", 0, "--out"]
    assert run(*arguments, tmp_path) == 2
    assert "holds other things than results" in capsys.readouterr().out
    assert run(*arguments, precious) == 2
    assert "is a file" in capsys.readouterr().out
    assert run(*arguments, precious / "below") == 2
    assert run(*arguments, tmp_path / "results") == 0
    (tmp_path / "results" / "notes.txt").write_text("mine")
    assert run(*arguments, tmp_path / "results") == 2
    assert precious.read_text() == (tmp_path / "results" / "notes.txt").read_text() == "mine"


# ------------------------------------------------------------------------------------------------------------
# Interpolations, and the authors' files


@pytest.mark.parametrize("code", ["appearance", "structure"])
def test_interpolations_lead_from_one_person_to_another(
    code: str, store: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
):
    grids: list[np.ndarray] = []
    shown = swaps.captioned_grids

    def note(title: str, panels: Sequence[tuple[str, np.ndarray]], *, cell_height: int) -> Image.Image:
        grids.extend(grid for _, grid in panels)
        return shown(title, panels, cell_height=cell_height)

    monkeypatch.setattr(swaps, "captioned_grids", note)
    networks = open_trained(trained)
    pictures = swaps.interpolation_pictures(networks, Store.open(str(store)), "interpolated")
    assert list(pictures) == ["appearance", "structure"]
    grid = torch.from_numpy(grids[list(pictures).index(code)])
    height, width = SMALL.height, SMALL.width
    row = grid[:, :height]
    assert 4 * height < grid.shape[1] < 5 * height  # a row for each of the four identities
    white = (row == 255).all(dim=0).all(dim=0).nonzero().flatten().tolist()
    lefts = [0, *(x + 1 for x in white if x + 1 not in white)]
    assert len(lefts) == 11
    other, first, *between, last = (row[:, :, left : left + width][None] for left in lefts)
    assert not torch.equal(other, first)
    assert not torch.equal(first, last)
    for end, generated in ((first, between[0]), (last, between[-1])):
        pair = (end, other) if code == "appearance" else (other, end)
        expected = denormalise(
            render(cast(Generator, networks.state), *(normalise(picture, height, width) for picture in pair))
        ).cpu()
        assert (expected.int() - generated.int()).abs().max() <= 2  # the pictures shown are rounded
    assert not torch.equal(between[0], between[-1])


def test_networks_are_exported_as_the_authors_files(
    store: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    release_folder = tmp_path / "release"
    arguments = [
        "--store", store, "--out", tmp_path / "results", "--swap-pairs", 0, "--export-release", release_folder,
    ]  # fmt: skip
    assert run("--checkpoint", trained, *arguments) == 0
    assert sorted(path.name for path in release_folder.iterdir()) == [
        "dis_00000040.pt", "gen_00000040.pt", "id_00000040.pt",
    ]  # fmt: skip
    assert "The authors' files are in" in capsys.readouterr().out
    exported, original = (open_trained(path).state.networks for path in (release_folder, trained))
    for name, network in original.items():
        for key, value in network.state_dict().items():
            assert torch.equal(exported[name].state_dict()[key], value), f"{name}.{key}"

    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*t")}
    assert run("--checkpoint", trained, *arguments) == 2
    assert "is not empty: name a new folder" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*t")} == before


# ------------------------------------------------------------------------------------------------------------
# Bad input


def without(store: Path, split: str, target: Path) -> Path:
    """A copy of a store that never had a split."""
    target.mkdir()
    for path in store.glob("*.parquet"):
        with pq.ParquetFile(path) as file:
            table, metadata = file.read(), file.metadata.metadata
        info = json.loads(metadata[INFO_KEY])
        del info["splits"][split]
        if path.stem != split:
            with pq.ParquetWriter(target / path.name, SCHEMA) as writer:
                writer.write_table(table)
                writer.add_key_value_metadata({INFO_KEY.decode(): json.dumps(info)})
    return target


def test_bad_input_is_named_without_a_traceback(
    store: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def refused(*arguments: object) -> str:
        assert run(*arguments, "--out", tmp_path / "results") == 2
        assert list(tmp_path.glob("*results*")) == []
        return capsys.readouterr().out

    assert "nothing does not exist" in refused("--checkpoint", tmp_path / "nothing", "--store", store)
    assert "holds no store" in refused("--checkpoint", trained, "--store", tmp_path / "nothing")
    for split in ("query", "gallery"):
        lacking = without(store, split, tmp_path / f"no-{split}")
        assert f"has no {split}, only" in refused("--checkpoint", trained, "--store", lacking)

    damaged = tmp_path / "checkpoint_00000040"
    damaged.mkdir()
    for path in trained.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / checkpoint.TENSORS).write_bytes((damaged / checkpoint.TENSORS).read_bytes()[:-5])
    assert "tensors.pt has" in refused("--checkpoint", damaged, "--store", store)
    (tmp_path / "net_last.pth").write_text("no tensors")
    assert "net_last.pth is no PyTorch file" in refused("--teacher", tmp_path / "net_last.pth", "--store", store)
    if not torch.cuda.is_available():
        assert "finds no GPU" in refused("--checkpoint", trained, "--store", store, "--device", "cuda")

    state = TrainState.build(CONFIG)
    state.appearance_encoder.fine.norm.bias.data[0] = math.nan
    broken = checkpoint.save(state, CONFIG, tmp_path / "broken")
    assert "DG-Net on query: fine: 8 rows hold NaN" in refused("--checkpoint", broken, "--store", store)


def test_a_query_without_a_match_is_named(
    store: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    opened = Store.open(store)
    person = int(opened.index("query")["person_id"].iloc[-1])
    index = Store.index

    def other_index(self: Store, split: str) -> pd.DataFrame:
        rows = index(self, split)
        return rows.query(f"person_id != {person}") if split == "gallery" else rows

    monkeypatch.setattr(Store, "index", other_index)
    assert run("--checkpoint", trained, "--store", store, "--out", tmp_path / "results") == 2
    assert re.search(rf"query {person:04d}_c1s1_000000_00.jpg shows person {person}, whom no", capsys.readouterr().out)


def test_ctrl_c_leaves_the_results_that_were_there(
    store: Path,
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    arguments = ["--checkpoint", trained, "--store", store, "--swap-pairs", 0, "--out", tmp_path / "results"]
    assert run(*arguments) == 0
    before = {path: path.read_bytes() for path in (tmp_path / "results").iterdir()}
    monkeypatch.setattr(evaluation, "extract_splits", stop)
    assert run(*arguments) == 130
    assert "Stopped: the same command resumes" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "results").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["results"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--store", "x", "--out", "y"],
        ["--checkpoint", "x", "--out", "y"],
        ["--checkpoint", "x", "--store", "x", "--out", "y", "--beta", "-1"],
        ["--checkpoint", "x", "--store", "x", "--out", "y", "--batch-size", "0"],
        ["--checkpoint", "x", "--store", "x", "--out", "y", "--workers", "2"],
        ["--checkpoint", "x", "--store", "x", "--out", "y", "--distributed", "--workers", "0"],
    ],
)
def test_bad_arguments_end_with_status_2(arguments: Sequence[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


# ------------------------------------------------------------------------------------------------------------
# Parts


def test_streamed_features_are_those_of_the_whole_split(store: Path, monkeypatch: pytest.MonkeyPatch):
    opened, size = Store.open(store), (SMALL.height, SMALL.width)
    torch.manual_seed(0)
    networks = {"DG-Net": TrainState.build(CONFIG).appearance_encoder, "baseline": Teacher(SMALL, 5)}
    modes = [module.training for network in networks.values() for module in network.modules()]
    wholes = {split: ImageSet.load(opened, split, height=size[0], width=size[1]) for split in ("query", "gallery")}
    decoded: list[bytes] = []
    decode = images_module.decode
    monkeypatch.setattr(
        images_module, "decode", lambda picture, *place: decoded.append(picture) or decode(picture, *place)
    )
    how = Extraction(
        height=size[0], width=size[1], batch_size=6, precision="float32", device=torch.device("cpu"), threads=2
    )
    seen: list[tuple[str, int, int]] = []
    features, timing = extract_splits(networks, opened, list(wholes), how, lambda *at: seen.append(at))
    assert len(decoded) == 8 + 20  # once for both networks
    assert seen == [("query", done, 8) for done in (6, 8)] + [("gallery", done, 20) for done in (6, 12, 18, 20)]
    assert timing["pictures"] == 8 + 20
    assert 0 <= timing["waiting"] < 1
    assert modes == [module.training for network in networks.values() for module in network.modules()]
    for name, network in networks.items():
        for split, images in wholes.items():
            labels = images.person_ids, images.camera_ids
            whole = extract(network, images.images, *labels, height=size[0], width=size[1], batch_size=6)
            for field in ("prim", "fine", "person_ids", "camera_ids"):
                assert torch.equal(getattr(features[name][split], field), getattr(whole, field)), (name, split, field)


def test_features_in_parts_are_the_same_and_are_made_once(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Here by this process; Ray's workers are told the same."""
    monkeypatch.setattr("dgnet_platform.evaluation.extraction.PART", 7)  # the next whole batch ends at 12
    opened, splits = Store.open(store), ("query", "gallery")
    torch.manual_seed(0)
    networks = {"DG-Net": TrainState.build(CONFIG).appearance_encoder, "baseline": Teacher(SMALL, 5)}
    how = Extraction(
        height=SMALL.height, width=SMALL.width, batch_size=6, precision="float32", device=torch.device("cpu"), threads=2
    )
    options = {"folder": tmp_path, "settings": {"checkpoint": "a"}, "workers": 0, "gpus": False}
    seen: list[tuple[str, int, int]] = []

    def stop_after_one_part(*at: object) -> None:
        seen.append(at)  # pyright: ignore[reportArgumentType]
        if at == ("gallery", 12, 20):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract_on_workers(networks, opened, splits, how, stop_after_one_part, **options)
    assert seen == [("query", 0, 8), ("gallery", 0, 20), ("query", 8, 8), ("gallery", 12, 20)]
    seen.clear()
    features, timing = extract_on_workers(networks, opened, splits, how, lambda *at: seen.append(at), **options)
    assert seen == [("query", 8, 8), ("gallery", 12, 20), ("gallery", 20, 20)]
    assert timing["pictures"] == 8
    local, _ = extract_splits(networks, opened, splits, how, lambda *_: None)
    for name in networks:
        for split in splits:
            for field in ("prim", "fine", "person_ids", "camera_ids"):
                assert torch.equal(getattr(features[name][split], field), getattr(local[name][split], field))

    for changed, named in (
        ({"how": replace(how, batch_size=4)}, "batch_size: 6 -> 4"),
        ({"settings": {"checkpoint": "b"}}, "checkpoint: 'a' -> 'b'"),
    ):
        given = {"how": how, **options, **changed}
        with pytest.raises(PartsError, match=named):
            extract_on_workers(networks, opened, splits, given.pop("how"), lambda *_: None, **given)


def test_ranked_lists_that_run_out(tmp_path: Path):
    grey = np.full((3, 20, 10), 99, np.uint8)
    row = RankedRow(query=grey, caption=("AP 50.0 %",), ranked=[grey, grey], is_match=[True, False])
    picture = ranked_lists("a title", [row], 4)
    frame = 72 * 136 - 64 * 128
    assert frames(picture) == (frame, frame)


def test_stored_pictures_are_the_stored_ones(store: Path):
    opened = Store.open(store)
    first, again, last = stored_pictures(opened, "query", [0, 0, 7])
    assert np.array_equal(first, again)
    names = opened.index("query")["file_name"].tolist()
    for found, name in ((first, names[0]), (last, names[7])):
        identity, camera = int(name[:4]), int(name[6])
        assert np.array_equal(found.transpose(1, 2, 0), People(1).picture(identity, camera, 0))


def test_people_of_a_store(store: Path):
    opened = Store.open(store)
    people = people_of(opened)
    assert people is not None
    assert (people.seed, people.height, people.width) == (1, 128, 64)
    assert people_of(replace(opened, info=replace(opened.info, origin={}))) is None
    origin = {**opened.info.origin, "drawn_people": 0}
    with pytest.raises(StoreError, match="drawn by version 0"):
        people_of(replace(opened, info=replace(opened.info, origin=origin)))


def test_swaps_are_compared_with_the_truth_about_the_same_two_people(
    store: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
):
    opened, people = Store.open(store), People(1)
    height, width = SMALL.height, SMALL.width

    def seen_as(appearance_of: Shot, structure_of: Shot) -> torch.Tensor:
        picture = people.draw(appearance_of=appearance_of, structure_of=structure_of)
        return normalise(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None], height, width)[0]

    files = {split: opened.index(split)["file_name"].tolist() for split in ("train", "query", "gallery")}
    shots = {seen_as(shot, shot).numpy().tobytes(): shot for names in files.values() for shot in map(shot_of, names)}
    asked: list[tuple[Shot, Shot]] = []

    def oracle(appearance: torch.Tensor, structure: torch.Tensor) -> torch.Tensor:
        pairs = [
            (shots[one.numpy().tobytes()], shots[other.numpy().tobytes()])
            for one, other in zip(appearance, structure, strict=True)
        ]
        asked.extend(pairs)
        return torch.stack([seen_as(*pair) for pair in pairs])

    monkeypatch.setattr(TrainedNetworks, "draw", property(lambda _: oracle))
    done: list[tuple[int, int]] = []
    rows = swaps.fidelity_rows(open_trained(trained), opened, people, 40, lambda *at: done.append(at))
    assert done == [(40, 80), (80, 80)]
    assert [row["SSIM"] == 1 and row["L1"] == 0 for row in rows] == [True, False, False] * 2
    assert [row["transfer"] == 1 for row in rows] == [True, False, False] * 2
    assert all(i.identity != j.identity and min(i.identity, j.identity) > 0 for i, j in asked)
    assert {shot.identity for pair in asked[:40] for shot in pair} == {1, 2, 3}
    assert {shot.identity for pair in asked[40:] for shot in pair} == {4, 5, 6, 7}


def test_tables_print_percentages(store: Path, trained: Path, capsys: pytest.CaptureFixture[str]):
    config = evaluation.EvaluateConfig(store=(str(store),), out=Path("unused"), checkpoint=trained, swap_pairs=0)
    seen: list[str] = []
    found = evaluation.evaluate(config, lambda what, done, total: seen.append(what))
    assert "drawn people: gallery" in seen
    Console(width=200).print(tables(found))
    assert f"{100 * found.retrieval['mAP'].iloc[0]:.2f}" in capsys.readouterr().out
