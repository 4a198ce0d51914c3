"""Tables from nothing on a Ray cluster of this machine: killed and resumed, with gaps, of other code and data."""

import json
import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.prepare import prepare
from dgnet_platform.evaluation.results import QUERIES
from dgnet_platform.runs.run import RECORD, RESULTS, Run
from dgnet_platform.runs.tracking_uri import default_uri
from dgnet_platform.storage.serialize import to_dict
from jobs.paper_tables import main
from tests.helpers.runs import job, lines, tiny_experiment
from tests.helpers.servers import wait_for

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore"),  # Ray, MLflow and gRPC warn of each other
]


@pytest.fixture(scope="module")
def options(people_store: Path, tmp_path_factory: pytest.TempPathFactory) -> "Options":
    """Gives the options of the smallest table, in a storage folder of its own."""
    return Options(tmp_path_factory.mktemp("tables"), people_store)


class Options:
    """Gives the options of the smallest table in a storage folder of its own, below `root`."""

    def __init__(self, root: Path, store: Path):
        self.root, self.store = root, store
        values = to_dict(tiny_experiment(store, root))
        for name in ("data", "storage"):
            del values[name]
        (root / "base.yaml").write_text(yaml.safe_dump(values))

    def __call__(self, storage: str, *more: str, tables: str = "state_of_the_art") -> list[str]:
        return [
            "--data", str(self.store), "--storage", str(self.root / storage), "--config", str(self.root / "base.yaml"),
            "--seeds", "2", "--tables", tables, *more,
        ]  # fmt: skip


def made(arguments: list[str], status: int = 0) -> str:
    output, _ = (process := job("paper_tables.py", *arguments)).communicate()
    assert process.returncode == status, output
    return output


def tables_in(storage: Path) -> dict:
    return json.loads((storage / "tables" / "tables.json").read_text())


@pytest.fixture(scope="module")
def whole(options: Options) -> Path:
    """The storage folder of a table that nothing happened to."""
    made(options("whole"))
    return options.root / "whole"


def runs_in(storage: Path, kind: str) -> list[Run]:
    return [Run.read(path.parent) for path in sorted(storage.glob(f"people-{kind}-*/{RECORD}"))]


def test_a_table_is_reported_and_tracked(whole: Path):
    [table] = tables_in(whole)["tables"]
    ours = table["rows"][-1]
    assert ours["runs"].keys() == {"0", "1"}
    assert set(ours["runs"].values()) == {run.name for run in runs_in(whole, "dgnet")}
    assert {run.experiment.model.seed for run in runs_in(whole, "dgnet")} == {0, 1}
    assert len(runs_in(whole, "teacher")) == 2
    figure = ours["figures"]["mAP"]
    assert figure["interval"][0] <= figure["mean"] <= figure["interval"][1]
    assert figure["deviation"] > 0
    html = (whole / "tables" / "report.html").read_text()
    assert "Figure 5" in html
    for run in runs_in(whole, "dgnet"):
        assert f'<a href="#run-{run.name}">' in html
        assert f'<td id="run-{run.name}">' in html
        assert f"/runs/{run.mlflow_run}/" in html
        assert run.identity["fingerprint"] in html
    client = MlflowClient(default_uri(str(whole)))
    [experiment] = [e for e in client.search_experiments() if e.name.startswith("dgnet-")]
    [parent] = client.search_runs([experiment.experiment_id], "tags.`dgnet.kind` = 'tables'")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["state_of_the_art/ours/mAP"] == pytest.approx(figure["mean"])
    assert parent.info.run_name == "tables"
    assert "| ours | " in parent.data.tags["mlflow.note.content"]
    assert {"report.html", "report.md", "tables.json"} <= {
        file.path for file in client.list_artifacts(parent.info.run_id)
    }
    for run in runs_in(whole, "dgnet"):
        child = client.get_run(run.mlflow_run)
        assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert child.info.status == "FINISHED"
        assert "test/both/mAP_low" in child.data.metrics


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("concurrent", [1, 2])
def test_killed_and_resumed_it_is_the_same_table(whole: Path, options: Options, concurrent: int):
    """Killed while a teacher trains, while DG-Net trains, and after a number of iterations drawn from a seed."""
    name = f"killed{concurrent}"
    arguments, storage = options(name, "--concurrent", str(concurrent)), options.root / name

    def trains(kind: str, iterations: int) -> bool:
        return any(len(lines(path.parent)) >= iterations for path in storage.glob(f"people-{kind}-*/metrics.jsonl"))

    def done() -> int:
        return sum(len(lines(path.parent)) for path in storage.glob("people-*/metrics.jsonl"))

    def kill_when(moment: Callable[[], bool]) -> None:
        process = job("paper_tables.py", *arguments)
        wait_for(lambda: moment() or process.poll() is not None, 400)
        assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGKILL)
        process.communicate()

    kill_when(lambda: trains("teacher", 3))
    kill_when(lambda: trains("dgnet", 7))
    last = sum(len(lines(run.folder)) for run in runs_in(whole, "*"))
    target = random.Random(concurrent).randint(min(done() + 1, last - 1), last - 1)
    kill_when(lambda: done() >= target)
    made(arguments)
    assert tables_in(storage) == tables_in(whole)


def test_again_nothing_is_trained(whole: Path, options: Options):
    before = {run.name: len(run.starts) for run in runs_in(whole, "*")}
    made(options("whole"))
    assert {run.name: len(run.starts) for run in runs_in(whole, "*")} == before


def test_what_a_search_has_trained_is_only_evaluated(whole: Path, options: Options):
    storage = options.root / "searched"
    shutil.copytree(whole, storage)
    first, _ = runs_in(storage, "dgnet")
    shutil.rmtree(first.folder / RESULTS)
    first.folder.rename(storage / "search-000")
    made(options("searched"))
    assert tables_in(storage) == tables_in(whole)
    assert [start["iteration"] for start in Run.read(first.folder).starts] == [first.experiment.model.iterations]


def test_other_tables_have_gaps_until_they_are_trained(whole: Path, options: Options, capsys):
    before = [run.name for run in runs_in(whole, "*")]
    assert main(options("whole", "--partial", "--name", "gaps", tables="labels")) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "missing: labels, hard pseudo labels, seed 1: not started" in shown
    [table] = json.loads((whole / "gaps" / "tables.json").read_text())["tables"]
    assert [len(row["runs"]) for row in table["rows"]] == [2, 0, 0, 0, 0, 0]
    assert [run.name for run in runs_in(whole, "*")] == before


def test_runs_of_other_code_are_refused_unless_they_are_asked_for(whole: Path, options: Options, capsys):
    storage = options.root / "recoded"
    shutil.copytree(whole, storage)
    record = runs_in(storage, "dgnet")[0].folder / RECORD
    record.write_text(record.read_text().replace('"code": "', '"code": "0000'))
    assert main(options("recoded", "--partial")) == 2
    assert "was trained by other code (0000" in capsys.readouterr().out
    assert main(options("recoded", "--partial", "--any-code")) == 0


def test_a_report_on_other_data_is_not_replaced(whole: Path, options: Options, tmp_path: Path, capsys):
    prepare(PrepareConfig(dataset="people", size="tiny", seed=1, out=tmp_path / "others", threads=1))
    arguments = options("whole", "--partial")
    arguments[1] = str(tmp_path / "others")
    before = tables_in(whole)
    assert main(arguments) == 2
    assert "holds tables of other data" in capsys.readouterr().out
    assert tables_in(whole) == before


def test_results_of_an_earlier_version_are_named(whole: Path, options: Options, capsys):
    storage = options.root / "earlier"
    shutil.copytree(whole, storage)
    for run in runs_in(storage, "dgnet"):
        (run.folder / RESULTS / QUERIES).unlink()
    assert main(options("earlier", "--partial")) == 2
    assert f"has no {QUERIES}" in capsys.readouterr().out
