"""jobs/evaluate.py from a drawn store and an untrained checkpoint to tables, pictures and the authors' files."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from rich.console import Console

from dgnet_core.dgnet import release
from dgnet_core.dgnet.state import TrainState
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.teacher.networks import Teacher
from dgnet_platform.cli.evaluate import tables
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.images import ImageSet
from dgnet_platform.data.people.people import People
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation import evaluate as evaluation
from dgnet_platform.evaluation import results
from dgnet_platform.evaluation.results import DRAWN, JSON, PARQUET, QUERIES
from dgnet_platform.runs.loading import TrainedNetworks, open_trained
from tests.helpers import market
from tests.helpers.evaluations import CONFIG, SMALL, drawn_store, frames, run

pytestmark = pytest.mark.usefixtures("one_thread", "wide_terminal")


@pytest.fixture(scope="module")
def other_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn_store(tmp_path_factory.mktemp("two"), 2)


def picture_in(path: Path) -> Image.Image:
    with Image.open(path) as opened:
        return opened.convert("RGB")


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
        "failures_drawn-people.png",
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
    assert run("--checkpoint", trained, "--store", store, "--out", out, "--swap-pairs", 0, "--no-failures") == 0
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
        "failures_vehicles.png",
        "interpolated_appearance_vehicles.png",
        "interpolated_structure_vehicles.png",
        "ranked_vehicles.png",
        "swaps_vehicles.png",
    ]
    assert DRAWN not in capsys.readouterr().out


def test_pictures_are_options(store: Path, trained: Path, tmp_path: Path):
    quick = ["--checkpoint", trained, "--store", store, "--swap-pairs", 0, "--queries-shown", 0]
    starts = {"--no-swap-grid": "swaps_", "--no-interpolations": "interpolated_", "--no-failures": "failures_"}
    for left_out in ([*starts], ["--no-failures"], ["--no-swap-grid", "--no-interpolations"]):
        assert run(*quick, "--out", tmp_path / "results", *left_out) == 0
        found = {path.name.partition("_")[0] + "_" for path in (tmp_path / "results").glob("*.png")}
        assert found == {start for option, start in starts.items() if option not in left_out}


def test_tables_print_percentages(store: Path, trained: Path, capsys: pytest.CaptureFixture[str]):
    config = evaluation.EvaluateConfig(store=(str(store),), out=Path("unused"), checkpoint=trained, swap_pairs=0)
    seen: list[str] = []
    found = evaluation.evaluate(config, lambda what, done, total: seen.append(what))
    assert "drawn people: gallery" in seen
    Console(width=200).print(tables(found))
    assert f"{100 * found.retrieval['mAP'].iloc[0]:.2f}" in capsys.readouterr().out


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


@pytest.mark.parametrize("changes", [{"pooling": "gem"}, {"neck": "bnneck"}])
def test_networks_that_the_authors_have_not_are_no_release(tmp_path: Path, changes: dict):
    config = replace(CONFIG, network=replace(CONFIG.network, **changes))
    state = TrainState.build(config)
    trained = TrainedNetworks(state=state, config=config, source="checkpoint", dataset=None, fingerprint=None)
    with pytest.raises(
        results.EvaluationError, match=r"--export-release: checkpoint has pooling \w+ and neck \w+, which"
    ):
        evaluation._check_export(trained, tmp_path / "released")
