"""Which experiments the paper's tables consist of."""

import io
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args
from unittest.mock import Mock

import pytest
from rich.console import Console

from dgnet_core.dgnet.config import DGNetConfig, LossConfig, RecipeConfig
from dgnet_core.methods import method_of
from dgnet_core.teacher.config import TeacherConfig
from dgnet_platform.cli import campaigns
from dgnet_platform.cli.options import CompareGenerators, PaperTables
from dgnet_platform.cli.tables import names_of, tables_and_show
from dgnet_platform.data.store import Store
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs.experiment import DGNetExperiment, TaughtExperiment
from dgnet_platform.runs.presets import dgnet_experiment, generator_of
from dgnet_platform.search.sharing import Costs, fork_of, prefix_of
from dgnet_platform.storage.serialize import differences, to_dict
from dgnet_platform.tables import changes, rows
from dgnet_platform.tables.campaign import Campaign
from dgnet_platform.tables.config import TableName
from dgnet_platform.tables.plan import TablesPlan, plan_tables, seeded
from dgnet_platform.tables.rows import Row, RowsError, Table, tables_of
from dgnet_platform.tables.summary import report_of
from tests.helpers.market import packed, write_market
from tests.helpers.runs import CLASSES, QUIET, tiny_experiment

PAPER = dgnet_experiment("paper", 751, 12_936)
COSTS = Costs(1.0, 1.5)


def changed(change: changes.Change, experiment: DGNetExperiment = PAPER) -> dict[str, object]:
    """What a row's model has that the paper's has not."""
    found = differences(to_dict(experiment.model), to_dict(change(experiment).model))
    return {name: after for name, (_, after) in found.items()}


def planned(store: Path, *tables: Table, seeds: int = 2) -> TablesPlan:
    def base(location: str, held_out: bool) -> DGNetExperiment:
        return replace(tiny_experiment(store, store.parent), data=location, hold_out=True)

    return plan_tables(tables, base, range(seeds), {str(store): Store.open(store)})


def test_rows_of_the_ablation_differ_from_the_paper_in_what_they_say():
    assert changed(changes.full) == {}
    assert changed(changes.without_feeding) == {"recipe.online_feeding": False}
    assert changed(changes.without_generated_identity) == {"loss.generated_identity": 0.0}
    assert changed(changes.without_identity) == {
        "loss.identity": 0.0, "loss.positive_identity": 0.0, "loss.generated_identity": 0.0,
        "recipe.detach_appearance": False,
    }  # fmt: skip
    assert changed(changes.labelled("appearance")) == {"recipe.soft_label": "appearance"}
    assert not isinstance(changes.baseline(PAPER), TaughtExperiment)
    assert changes.baseline(PAPER).model == PAPER.baseline


def test_rows_of_structure_differ_in_what_the_structure_encoder_reads_and_leave_the_teacher():
    rows_ = {row.label: row.change for row in rows.structure().rows}
    assert {label: changed(change) for label, change in rows_.items() if change} == {
        "gray": {},
        "gray, negatives": {"recipe.structure_negatives": True},
        "local contrast": {"network.structure_input": "contrast"},
        "local contrast, negatives": {"network.structure_input": "contrast", "recipe.structure_negatives": True},
        "Eq. 4 teaches nothing": {},
    }
    laptop = dgnet_experiment("laptop", 80, 1_500)
    assert changed(changes.silent_code, laptop) == {"recipe.code_teaches_decoder": False}
    made = [change(laptop) for change in rows_.values() if change]
    assert laptop in made, "the laptop's run is one of them"
    assert {run.baseline for run in made} == {laptop.baseline}  # pyright: ignore[reportAttributeAccessIssue]


def test_the_row_without_identity_loss_says_why_its_code_is_not_detached():
    row = next(row for row in rows.ablation().rows if row.label == "without Eq. 3 and 6")
    assert "L_prim and L_fine stay" in row.note
    assert "gradient" in row.note
    assert "paper's equations" in row.note


def test_the_papers_own_settings_are_rows_of_each_table():
    default = LossConfig(), RecipeConfig()
    assert rows.labels().rows[0].change is not None
    assert changed(changes.labelled("dynamic")) == {}
    assert default[0].alpha in rows.ALPHAS
    assert changed(changes.fine_weight(default[0].alpha)) == {}
    loss = replace(PAPER.model.loss, alpha=0.7)
    other = replace(PAPER, model=replace(PAPER.model, loss=loss))
    betas = [row for row in rows.sensitivity().rows if row.label.startswith("alpha 0.2, beta ")]
    assert [row.change and row.change(other).model.loss.alpha for row in betas] == [0.2] * len(rows.BETAS)  # pyright: ignore[reportAttributeAccessIssue]
    start = PAPER.model.loss.teacher_warmup.start / PAPER.model.iterations
    assert start in rows.STARTS
    assert changed(changes.warm_until(start)) == {}
    for table in tables_of(get_args(TableName), {"a": "market1501", "b": "msmt17"}, posed=True):
        labels = [row.label for row in table.rows]
        assert table.reference in ["", *labels]
        assert max(Counter(labels).values()) == 1


def test_rows_of_the_strong_table_change_what_feeds():
    table = rows.strong(posed=True)
    found = {row.label: changed(row.change) for row in table.rows if row.change not in (None, changes.baseline)}
    assert found == {
        "without online feeding": {"recipe.online_feeding": False},
        "with, f_prim": {},
        "with": {},
        "confident pictures only": {"feed.confidence": "filter"},
        "weighted by confidence": {"feed.confidence": "weight"},
        "two pictures a structure": {"feed.pictures": 2},
        "share from 100 to 0 %": {"feed.last_share": 0.0},
        "share from 0 to 100 %": {"feed.share": 0.0},
        "structures of rare cameras": {"partners": "rare_camera"},
        "structures of rare poses": {"partners": "rare_pose"},
    }
    strong = dgnet_experiment("strong", 751, 12_936)
    models: list[Any] = [row.change(strong).model for row in table.rows if row.change is not None]
    prefixes = {prefix_of(model) for model in models[1:]}
    assert len(prefixes) == 3  # all but rare cameras and poses act from the warm-up on


def test_rare_poses_are_left_out_where_a_store_has_no_key_points(people_store: Path, tmp_path: Path):
    packed(write_market(tmp_path / "market", train=6), tmp_path / "photographs")
    for store, posed in ((people_store, True), (tmp_path / "photographs", False)):
        options = PaperTables(
            data=str(store), storage=str(tmp_path / "runs"), preset="strong", tables=("strong",), dry_run=True
        )  # fmt: skip
        console = Console(file=io.StringIO(), width=300)
        assert tables_and_show(options, console) == 0
        shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
        assert "strong: structures of rare cameras" in shown
        assert ("strong: structures of rare poses" in shown) == posed


def test_some_rows_alone_keep_what_they_are_compared_with(people_store: Path):
    names = ("ablation", "labels", "state_of_the_art")
    ablation, labels = tables_of(names, {}, posed=True, only=("without teacher", "no L_prim", "dynamic soft labels"))
    assert [row.label for row in ablation.rows] == ["both", "without teacher"]
    assert [row.label for row in labels.rows] == ["dynamic soft labels", "no L_prim"]
    assert len(planned(people_store, ablation).experiments) == 2 * 2
    with pytest.raises(RowsError, match=r"rows: 'without teachers' is no row of ablation; they have: baseline; both;"):
        tables_of(("ablation",), {}, posed=True, only=("without teachers",))


def test_nothing_is_trained_twice(people_store: Path):
    """f_prim, f_fine and both are one run, which is also the labels' dynamic row and the last table's."""
    plan = planned(people_store, *tables_of(("ablation", "labels", "state_of_the_art"), {}, posed=True))
    # both, without feeding, without generated identity, without identity, appearance; the labels pseudo, uniform, two,
    # owners, none
    assert len(plan.experiments) == 10 * 2
    assert len(plan.teachers) == 2
    assert [experiment.model.seed for experiment in plan.experiments[:2]] == [0, 1]
    assert {experiment.model.seed for experiment in plan.teachers} == {0, 1}


def test_offline_feeding_draws_with_a_run_that_another_row_trains(people_store: Path):
    plan = planned(people_store, rows.ablation())
    feeding = next(c for c in plan.cells if c.row.label == "without online feeding" and c.seed == 1)
    offline = next(c for c in plan.cells if c.row.label == "offline feeding" and c.seed == 1)
    assert offline.generator == feeding.experiment
    assert offline.experiment.data not in plan.stores
    assert offline.experiment.model in [teacher.model for teacher in plan.teachers]
    assert len(plan.offline) == len(set(plan.generators)) == 2
    assert offline.experiment not in plan.teachers


def test_people_who_do_not_exist_are_drawn_by_a_run_that_needs_no_teacher(people_store: Path):
    plan = planned(people_store, rows.generators())
    drawn = next(c for c in plan.cells if c.row.label == "LSGAN, uniform labels" and c.seed == 1)
    assert drawn.generator is not None
    assert method_of(drawn.generator.model).name == "lsgan"
    assert (drawn.generator.model.seed, drawn.generator.model.num_classes) == (1, CLASSES)
    assert (drawn.generator.data, drawn.generator.hold_out) == (str(people_store), True)
    assert drawn.generator in plan.teachers
    assert plan.experiments == []
    assert drawn.experiment in plan.offline
    assert drawn.experiment not in plan.teachers
    assert len(plan.all_experiments) == 3 * 2


def test_a_compared_generator_is_as_long_as_the_paper_has_it_beside_dg_net():
    assert generator_of(PAPER, "lsgan").model.iterations == 10_106
    half = replace(PAPER, model=PAPER.model.rescaled(50_000))
    assert generator_of(half, "lsgan").model.iterations == 5_053
    small = generator_of(dgnet_experiment("laptop", 80, 1_500, 400), "lsgan").model
    assert (small.network.height, small.iterations) == (64, 750)


def test_what_rows_share_is_shared_for_each_seed(people_store: Path):
    plan = planned(people_store, *tables_of(("ablation", "labels"), {}, posed=True))
    sharing = plan.sharing(COSTS)
    assert len(sharing.prefixes) == 3 * 2  # two rows change what comes before the warm-up
    fork = fork_of(plan.experiments[0].model)  # pyright: ignore[reportArgumentType]
    assert sharing.steps_without == 20 * 12
    assert sharing.steps_with == 20 * (12 - fork) + 6 * fork
    assert plan.sharing(COSTS, plan.experiments).steps_with == 0


def test_a_seed_is_all_of_a_runs_randomness():
    run = seeded(PAPER, 7)
    assert (run.model.seed, run.baseline.seed) == (7, 7)
    assert replace(run.model, seed=0) == PAPER.model
    assert prefix_of(run.model) != prefix_of(PAPER.model)


def test_transfer_goes_both_ways():
    table = rows.transfer({"/a": "market1501", "/b": "dukemtmc-reid"})
    assert [(row.label, row.trained_on, row.tested_on) for row in table.rows] == [
        ("market1501 -> dukemtmc-reid", "/a", "/b"), ("dukemtmc-reid -> market1501", "/b", "/a"),
    ]  # fmt: skip
    assert table.rows[0].published == {"dukemtmc-reid": (42.62, 24.25)}


def test_published_figures_name_their_publication_table_and_row():
    stores = dict(zip("abc", ("market1501", "dukemtmc-reid", "msmt17"), strict=True))
    published = [
        row for table in tables_of(get_args(TableName), stores, posed=True) for row in table.rows if row.published
    ]
    assert {row.label for row in published} >= {"f_fine", "offline feeding", "DG-Net", "PN-GAN", "market1501 -> msmt17"}
    for row in published:
        publication, _, place = row.source.partition(", ")
        assert re.fullmatch(r"\w+ et al\.|README of NVlabs/DG-Net", publication), row.source
        if row.label not in ("FD-GAN", "offline feeding"):  # whose table is not known
            assert re.search(r"\b(row|direct transfer)\b", place), row.source


def test_two_stores_of_one_data_set_and_of_one_folder_name_are_told_apart(people_store: Path):
    store = Store.open(people_store)
    names = names_of({"/a/store": store, "/b/store": store})
    assert names == {"/a/store": "people (/a/store)", "/b/store": "people (/b/store)"}
    assert len({row.label for row in rows.transfer(names).rows}) == 2
    assert names_of({"/a/store": store}) == {"/a/store": "people"}


def test_table_2_stands_beside_the_table_of_generators_alone(people_store: Path, tmp_path: Path):
    base = tiny_experiment(people_store, tmp_path)
    said = []
    for table in (rows.generators(), rows.structure()):
        report = report_of(Campaign(planned(people_store, table), tmp_path), base, "tiny", tmp_path / "compared")
        said.append(any("Table 2 and Figure 3 are missing" in note for note in report.notes))
    assert said == [True, False]


def test_each_kind_of_run_needs_room_for_its_own_checkpoints(people_store: Path, tmp_path: Path, monkeypatch):
    campaign = Campaign(planned(people_store, rows.labels()), tmp_path)
    campaign.tracked = Mock(uri="")
    asked: list[tuple[type, int]] = []
    monkeypatch.setattr(campaigns, "check_free", lambda _, model, count: asked.append((type(model), count)))
    monkeypatch.setattr(campaigns.cluster, "join_ray", Mock(side_effect=InterruptedError))
    options = CompareGenerators(out=tmp_path)
    with pytest.raises(InterruptedError):
        campaigns.train_missing(options, campaign, QUIET)
    # of two seeds each: a teacher keeps one, DG-Net two, and one more is being written
    assert asked == [(TeacherConfig, 2 * 2), (DGNetConfig, 7 * 2 * 3)]


def test_too_few_images_for_local_statistics_are_refused_before_anything_trains(people_store: Path, tmp_path: Path):
    plan = planned(people_store, rows.labels())
    local = [replace(run, model=replace(run.model, batch_norm="local")) for run in plan.wanted]
    campaign = Campaign(replace(plan, wanted=tuple(local)), tmp_path)
    campaign.tracked = Mock(uri="")
    options = CompareGenerators(out=tmp_path, workers_per_run=4)
    with pytest.raises(ExperimentError, match=r"--workers-per-run 4: with batch_norm local, .* 2 images each"):
        campaigns.train_missing(options, campaign, QUIET)


def test_a_table_without_anything_to_compare_is_refused(people_store: Path):
    with pytest.raises(ExperimentError, match="add --stores"):
        planned(people_store, rows.transfer({"/a": "market1501"}))


def test_a_store_without_query_is_refused(people_store: Path, monkeypatch: pytest.MonkeyPatch):
    store = Store.open(people_store)
    splits = {name: split for name, split in store.info.splits.items() if name != "query"}
    monkeypatch.setattr(Store, "open", lambda _: replace(store, info=replace(store.info, splits=splits)))
    table = Table(name="ablation", title="", rows=(Row(label="x", change=changes.full),))
    with pytest.raises(ExperimentError, match="has no query, which table ablation needs"):
        planned(people_store, table)


def test_tiny_classes_are_those_of_the_store(people_store: Path):
    assert planned(people_store, rows.labels()).experiments[0].model.num_classes == CLASSES
