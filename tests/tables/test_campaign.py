"""Runs of tables in this process: trained once, stopped and resumed, found again."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient

from dgnet_platform.data.store import Store
from dgnet_platform.runs.run import RECORD, RESULTS, Run
from dgnet_platform.search.trial import TrialProgress
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.tables import changes
from dgnet_platform.tables.campaign import Campaign, CampaignError
from dgnet_platform.tables.offline import pack_offline
from dgnet_platform.tables.plan import TablesPlan, plan_tables
from dgnet_platform.tables.report import JSON, write_report
from dgnet_platform.tables.results import TableResult, result_of
from dgnet_platform.tables.rows import Row, Table
from dgnet_platform.tables.summary import missing_of, report_of
from dgnet_platform.training.driver import train
from tests.helpers.machines import Here
from tests.helpers.runs import QUIET, tiny_experiment

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore"),  # Ray and MLflow warn of each other
]
TABLE = Table(
    name="ablation",
    title="Ablation",
    reference="both",
    rows=(
        Row(label="baseline", change=changes.baseline, feature="baseline"),
        Row(label="both", change=changes.full),
        Row(label="without online feeding", change=changes.without_feeding, feature="f_prim"),
    ),
)
OFFLINE = Row(label="offline", change=changes.baseline, feature="baseline", generator=changes.without_feeding)


def campaign_in(storage: Path, store: Path, *more: Row, any_code: bool = False) -> Campaign[TablesPlan]:
    base = tiny_experiment(store, storage)
    plan: TablesPlan = plan_tables(
        [replace(TABLE, rows=(*TABLE.rows, *more))],
        lambda location, _: replace(base, data=location),
        [0],
        {str(store): Store.open(store)},
    )
    (storage / "tables").mkdir(parents=True, exist_ok=True)
    return Campaign(plan, storage / "tables", any_code=any_code)


def trained(campaign: Campaign[TablesPlan], machines: Here) -> TableResult:
    tracked = campaign.open({}, campaign.plan.experiments[0])
    campaign.train(machines, lambda _: None)
    tracked.close("FINISHED")
    return result_of(campaign.plan.tables[0], campaign)


@pytest.fixture(scope="module")
def whole(people_store: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TableResult]:
    """The storage folder of a table that nothing happened to, and the table."""
    storage = tmp_path_factory.mktemp("whole")
    return storage, trained(campaign_in(storage, people_store), Here())


def test_a_table_of_finished_runs(whole: tuple[Path, TableResult], people_store: Path):
    storage, table = whole
    assert table.complete
    assert [list(row.runs) for row in table.rows] == [[0]] * 3
    assert all(row.figures["mAP"].deviation is None for row in table.rows)
    assert len({row.runs[0] for row in table.rows}) == 3
    campaign = campaign_in(storage, people_store)
    assert missing_of(campaign) == []
    [prefix] = (storage / "prefixes").glob("*/*/")  # both runs took it
    forks = [TrialProgress.read(storage / row.runs[0]).fork for row in table.rows[1:]]
    assert forks == [int(prefix.name)] * 2

    report = report_of(campaign, campaign.plan.experiments[0], "tiny")  # pyright: ignore[reportArgumentType]
    files = write_report(report, campaign.folder, "data", "code")
    text = files[0].read_text()
    assert all(row.runs[0] in text for row in table.rows)
    assert {"Figure 4: swaps with and without parts of the method", "Figure 5: appearance interpolated"} <= set(
        report.pictures
    )
    assert report.facts["iterations"].startswith("26 trained; 30 ")  # 6 of the teacher, 4 + 2 x 8; 6 + 2 x 12
    assert json.loads((campaign.folder / JSON).read_text())["tables"] == json.loads(json.dumps([table.to_dict()]))


def test_again_nothing_is_trained(whole: tuple[Path, TableResult], people_store: Path):
    machines = Here()
    assert trained(campaign_in(whole[0], people_store), machines) == whole[1]
    assert machines.trained == []


def test_stopped_and_resumed_it_is_the_same_table(whole: tuple[Path, TableResult], people_store: Path, tmp_path: Path):
    campaign = campaign_in(tmp_path, people_store)
    seen: list[Path] = []

    def stop_in_the_second(folder: Path) -> None:
        seen.append(folder)
        if len(seen) == 2:
            campaign.ask_to_stop()

    gaps = trained(campaign, Here(stop_in_the_second))
    assert not gaps.complete
    assert gaps.rows[0].runs.keys() == {0}
    assert "stopped" in gaps.rows[1].missing[0]
    assert len(missing_of(campaign)) == 2
    again = Here()
    assert trained(campaign_in(tmp_path, people_store), again) == whole[1]
    assert len(again.trained) == 2


def copied(whole: tuple[Path, TableResult], storage: Path) -> Path:
    """A second storage folder with the same runs."""
    shutil.copytree(whole[0], storage)
    for record in storage.glob(f"*/{RECORD}"):  # a copied folder is another one
        record.write_text(record.read_text().replace(str(whole[0]), str(storage)))
    return storage


def test_a_run_that_tables_stopped_is_resumed_by_itself(people_store: Path, tmp_path: Path):
    campaign = campaign_in(tmp_path, people_store)
    trained(campaign, Here(lambda _: campaign.ask_to_stop()))
    assert campaign.stop_asked
    assert train(campaign.plan.teachers[0], console=QUIET).outcome.ending == "finished"


def test_a_run_whose_results_were_moved_away_is_evaluated_again(
    whole: tuple[Path, TableResult], people_store: Path, tmp_path: Path
):
    storage, name = copied(whole, tmp_path / "moved"), whole[1].rows[1].runs[0]
    shutil.rmtree(storage / name / RESULTS)
    machines = Here()
    assert trained(campaign_in(storage, people_store), machines) == whole[1]
    assert machines.trained == [name]


def test_nothing_is_drawn_by_a_run_that_is_not_finished(
    whole: tuple[Path, TableResult], people_store: Path, tmp_path: Path
):
    class Idle(Here):
        def train(self, folders: Sequence[Path], sharing: bool, over: Callable[[Path], None]) -> None:
            self.trained += [folder.name for folder in folders]

    storage, name = copied(whole, tmp_path / "undrawn"), whole[1].rows[2].runs[0]
    shutil.rmtree(storage / name / RESULTS)
    for checkpoint in (storage / name).glob("checkpoint_*"):
        shutil.rmtree(checkpoint)
    campaign, machines = campaign_in(storage, people_store, OFFLINE), Idle()
    assert not trained(campaign, machines).complete
    assert machines.trained == [name]
    assert len(missing_of(campaign)) == 2


def test_what_is_packed_leaves_no_pictures_beside_it(people_store: Path, tmp_path: Path):
    """Killed after the store was made, and called again."""
    out = tmp_path / "offline"
    scratch = [tmp_path / ".offline.drawn", tmp_path / ".offline.all"]
    for folder in (out, *scratch):
        folder.mkdir()
    pack_offline(tmp_path / "checkpoint", str(people_store), 1, out)
    assert list(tmp_path.iterdir()) == [out]


def test_mlflow_is_told_later_what_it_missed(whole: tuple[Path, TableResult], people_store: Path):
    [prefix] = (whole[0] / "prefixes").glob("*/*/")
    missed = [Run.read(folder) for folder in (prefix, whole[0] / whole[1].rows[1].runs[0])]
    client = MlflowClient(missed[0].tracking_uri)
    for run in missed:
        client.update_run(run.mlflow_run, status="RUNNING")
    campaign_in(whole[0], people_store).catch_up()
    assert [client.get_run(run.mlflow_run).info.status for run in missed] == ["FINISHED"] * 2


def test_a_finished_run_that_was_not_tested_is_missing(whole: tuple[Path, TableResult], people_store: Path):
    here = Store.open(people_store)
    there = replace(here, info=replace(here.info, fingerprint="0" * 64))
    base = tiny_experiment(people_store, whole[0])
    table = Table(
        name="transfer",
        title="",
        rows=(Row(label="here", change=changes.full), Row(label="there", change=changes.full, tested_on="/there")),
    )
    plan = plan_tables([table], lambda *_: base, [0], {str(people_store): here, "/there": there})
    campaign = Campaign(plan, whole[0] / "tables")
    assert missing_of(campaign) == ["missing: transfer, there, seed 0: not tested on /there"]
    assert [dict(row.missing) for row in result_of(table, campaign).rows] == [{}, {0: "not tested on /there"}]


def test_what_a_search_has_trained_is_only_evaluated(
    whole: tuple[Path, TableResult], people_store: Path, tmp_path: Path
):
    storage = copied(whole, tmp_path / "searched")
    first = storage / whole[1].rows[1].runs[0]
    shutil.rmtree(first / RESULTS)
    first.rename(storage / "search-000")
    assert trained(campaign_in(storage, people_store), Here()) == whole[1]
    run = Run.read(first)
    assert [start["iteration"] for start in run.starts] == [run.experiment.model.iterations]


def test_runs_of_other_code_are_refused_unless_they_are_asked_for(
    whole: tuple[Path, TableResult], people_store: Path, tmp_path: Path
):
    storage = tmp_path / "recoded"
    shutil.copytree(whole[0], storage)
    record = storage / whole[1].rows[1].runs[0] / RECORD
    record.write_text(json.dumps(json.loads(record.read_text()) | {"code": "0000"}))
    with pytest.raises(CampaignError, match=r"was trained by other code \(0000"):
        result_of(TABLE, campaign_in(storage, people_store))
    campaign = campaign_in(storage, people_store, any_code=True)
    assert result_of(campaign.plan.tables[0], campaign) == whole[1]


def test_iterations_of_a_key_are_counted_once(whole: tuple[Path, TableResult], people_store: Path):
    """A later warm-up's prefix continues that of the others, and has its journal."""
    campaign = campaign_in(whole[0], people_store, Row(label="later", change=changes.warm_until(0.5)))
    assert trained(campaign, Here()).complete
    assert len(list((whole[0] / "prefixes").glob("*/*/"))) == 2
    report = report_of(campaign, campaign.plan.experiments[0], "tiny")  # pyright: ignore[reportArgumentType]
    assert report.facts["iterations"].startswith("34 trained; 42 ")  # 26, 2 of the prefix from 4 on, 6; 30 + 12


def test_offline_feeding_trains_on_generated_pictures(whole: tuple[Path, TableResult], people_store: Path):
    machines = Here()
    table = trained(campaign_in(whole[0], people_store, OFFLINE), machines)
    [name] = machines.trained
    assert list(table.rows[:3]) == list(whole[1].rows)
    run = Run.read(whole[0] / name)
    real, both = Store.open(people_store), Store.open(run.experiment.data)
    people = len(real.info.classes) - 2  # two are held out
    shown = real.index("train")["person_id"].tolist()
    drawn = sum(person in real.info.classes[:people] for person in shown)
    assert 0.5 * drawn < both.count("train") - real.count("train") < drawn  # structures of held-out people are left out
    assert both.index("query")["person_id"].tolist() == real.index("query")["person_id"].tolist()
    assert table.rows[3].runs == {0: name}
    assert table.rows[3].figures["mAP"].difference is not None
    assert to_dict(run.experiment.model) == to_dict(campaign_in(whole[0], people_store).plan.teachers[0].model)
