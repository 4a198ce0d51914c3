"""Generators beside each other: figure, table and what is refused, from the command's own arguments."""

import json
import locale
from dataclasses import replace
from pathlib import Path
from statistics import fmean, stdev

import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from dgnet_core.learning.config import StepConfig
from dgnet_core.methods import METHODS, build
from dgnet_platform.cli import campaigns
from dgnet_platform.cli.compare import comparison_folder
from dgnet_platform.cli.options import CompareGenerators
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import shot_of
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.compare import CSV, FIGURE, MARKDOWN, Comparison, _generators, markdown, read, write
from dgnet_platform.evaluation.results import EvaluationError
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.loading import open_trained
from dgnet_platform.runs.run import Run
from dgnet_platform.runs.tracking_uri import default_uri
from jobs import compare_generators, evaluate, generate
from tests.helpers.generators import tiny_method
from tests.helpers.machines import Here
from tests.helpers.runs import PEOPLE, tiny_experiment, untracked
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


def folder_with_teacher(folder: Path, store: Path) -> Path:
    """The folder of a run that names its teacher."""
    experiment = tiny_experiment(store, folder.parent)
    untracked(experiment, folder, teacher=str(folder / "teacher.pth")).save()
    return folder


def saved(config, folder: Path, store: Path) -> Path:
    """An untrained checkpoint."""
    fingerprint = Store.open(store).info.fingerprint
    return checkpoint.save(build(config), config, folder, dataset="people", fingerprint=fingerprint)


def test_runs_that_differ_in_their_seed_are_one_generator(untrained, people_store, tmp_path, capsys):
    config = open_trained(untrained["pngan"]).config
    seeds = [untrained["pngan"]]
    for seed in (1, 2):
        torch.manual_seed(seed)
        seeds.append(saved(replace(config, seed=seed), tmp_path / f"run{seed}", people_store))
    [generator, other] = _generators([*seeds, untrained["fdgan"]])
    assert generator.paths == tuple(seeds)
    assert (generator.name, other.name) == ("PN-GAN", "FD-GAN")
    [once] = _generators([seeds[0], seeds[0]])
    assert once.paths == (seeds[0],)
    copies = [saved(config, tmp_path / name / "run", people_store) for name in ("before", "after")]
    again = [group.name for group in _generators(copies)]  # the same seed twice says nothing of seeds
    assert again == [f"PN-GAN ({copy})" for copy in copies]

    out = tmp_path / "compared"
    arguments = ["--teacher", untrained["teacher"], "--store", people_store, "--out", out, "--people", "4"]
    more = ["--diversity-pairs", "0", "--pictures", "60", "--threads", "1"]
    assert compare_generators.main(["--checkpoint", *map(str, [*seeds, *arguments]), *more]) == 0, capsys.readouterr()
    table = pd.read_csv(out / CSV)
    assert table["seed"].tolist()[1:] == [0, 1, 2]
    of_seeds = table["kid_teacher"].tolist()[1:]
    [line] = [line for line in (out / MARKDOWN).read_text().splitlines() if line.startswith("| PN-GAN |")]
    assert f"{fmean(of_seeds):.3g} ± {stdev(of_seeds):.2g}" in line
    assert "over 3 seeds" in (out / MARKDOWN).read_text()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # MLflow's
def test_generators_are_trained_as_trials_of_each_seed(untrained, people_store, tmp_path, capsys, monkeypatch):
    machines = Here()
    monkeypatch.setattr(campaigns, "RayMachines", lambda *_: machines)
    monkeypatch.setattr(campaigns, "_place", lambda *_: machines.placement)
    storage, out = tmp_path / "runs", tmp_path / "compared"
    arguments = ["--store", people_store, "--storage", storage, "--out", out, "--seeds", "2", "--iterations", "2"]
    more = ["--people", "4", "--pictures", "24", "--diversity-pairs", "0", "--threads", "1", "--train", "lsgan"]
    assert compare_generators.main(list(map(str, [*arguments, *more]))) == 2
    assert "add dgnet to --train" in " ".join(capsys.readouterr().out.split())
    assert machines.trained == []
    more += ["--teacher", untrained["teacher"]]
    assert compare_generators.main(list(map(str, [*arguments, *more]))) == 0, capsys.readouterr().out
    assert len(machines.trained) == len(set(machines.trained)) == 2
    assert pd.read_csv(out / CSV)["seed"].tolist()[1:] == [0, 1]
    runs = [Run.read(storage / name) for name in machines.trained]
    assert sorted(run.experiment.model.seed for run in runs) == [0, 1]
    client = MlflowClient(default_uri(str(storage)))
    [parent] = client.search_runs([runs[0].mlflow_experiment], "tags.`dgnet.kind` = 'comparison'")
    assert parent.info.status == "FINISHED"
    assert (parent.info.run_name or "").startswith("comparison-compared-")
    told = parent.data.tags["mlflow.note.content"]
    assert (out / MARKDOWN).read_text() in told
    assert f"All of it is in `{out}`" in told
    assert "LSGAN/kid_teacher" in parent.data.metrics
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {CSV, FIGURE, MARKDOWN}
    children = [client.get_run(run.mlflow_run).data.tags["mlflow.parentRunId"] for run in runs]
    assert children == [parent.info.run_id] * 2
    before = (out / CSV).read_text().splitlines()[2].rsplit(",", 6)[0]  # all but the time of a picture and what follows
    assert compare_generators.main(list(map(str, [*arguments, *more]))) == 0
    assert len(machines.trained) == 2
    assert (out / CSV).read_text().splitlines()[2].startswith(before)


def test_checkpoints_of_one_method_are_told_apart(untrained, people_store, tmp_path):
    config = replace(open_trained(untrained["lsgan"]).config, batch_size=7)
    other = saved(config, tmp_path / "run", people_store)
    names = [generator.name for generator in _generators([untrained["lsgan"], other])]
    assert names == [f"LSGAN ({'/'.join(path.parts[-2:])})" for path in (untrained["lsgan"], other)]


def test_one_seed_each_of_two_generators_is_no_mean(tmp_path):
    def compared(*seeds: tuple[str, int]) -> Comparison:
        rows = [{"generator": "real", "DSSIM": 0.3}]
        rows += [{"generator": name, "seed": seed, "DSSIM": 0.3 + seed / 10} for name, seed in seeds]
        table = pd.DataFrame(rows).astype({"seed": "Int64"})
        return Comparison(source="", data="", drawn=False, table=table, left_out=[], figure=Image.new("RGB", (1, 1)))

    assert "standard deviation" not in markdown(compared(("A", 0), ("B", 1)))
    assert "over 2 seeds" in markdown(compared(("A", 0), ("A", 1), ("B", 0), ("B", 1)))
    several = compared(("A", 0), ("A", 1), ("B", 0))
    assert "over 1 to 2 seeds" in markdown(several)
    before = locale.setlocale(locale.LC_CTYPE)
    try:
        locale.setlocale(locale.LC_CTYPE, "C")
        write(several, tmp_path)
    finally:
        locale.setlocale(locale.LC_CTYPE, before)
    assert "±" in (tmp_path / MARKDOWN).read_text(encoding="utf-8")
    assert markdown(read(tmp_path)) == markdown(several)
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(EvaluationError, match=r"holds no whole comparison of this version .*run jobs/compare_gen"):
        read(tmp_path)


def test_a_store_without_query_is_refused_before_training(people_store, tmp_path, capsys, monkeypatch):
    store = Store.open(people_store)
    splits = {name: split for name, split in store.info.splits.items() if name != "query"}
    monkeypatch.setattr(Store, "open", lambda _: replace(store, info=replace(store.info, splits=splits)))
    arguments = ["--train", "dgnet", "--store", people_store, "--storage", tmp_path, "--out", tmp_path / "out"]
    assert compare_generators.main(list(map(str, arguments))) == 2
    assert "no query, whose people the figure shows" in " ".join(capsys.readouterr().out.split())
    assert not list(tmp_path.iterdir())

    taught = folder_with_teacher(tmp_path / "run", people_store)  # it says how far pictures are apart
    arguments[1:2] = ["lsgan", "--checkpoint", taught / "checkpoint_00000012"]
    assert compare_generators.main(list(map(str, arguments))) == 2
    assert "no query, whose people the figure shows" in " ".join(capsys.readouterr().out.split())


def test_generators_of_other_data_are_refused(untrained, tmp_path, capsys):
    other = tmp_path / "other"
    prepare(PrepareConfig(dataset="people", size="tiny", seed=3, out=other, threads=1))
    arguments = ["--checkpoint", str(untrained["pngan"]), "--store", str(other), "--out", str(tmp_path / "out")]
    assert compare_generators.main(arguments) == 2
    assert "compare generators of the same data" in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "out").exists()


def test_people_who_do_not_exist_leave_nothing_to_workers(untrained, people_store, tmp_path, capsys):
    arguments = ["--checkpoint", str(untrained["lsgan"]), "--store", str(people_store), "--out", str(tmp_path / "out")]
    assert evaluate.main([*arguments, "--distributed"]) == 0, capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["out"]


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


def test_comparisons_of_one_name_in_other_folders_are_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    one, other, same = (comparison_folder(CompareGenerators(out=Path(out))) for out in ("a/x", "b/x", "./b/../a/x"))
    assert one == same != other
