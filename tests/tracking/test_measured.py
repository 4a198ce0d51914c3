"""jobs/measure.py tells MLflow what it found: in the run that trained the checkpoint, or in one of its own."""

from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest.mock import Mock

import pandas as pd
import pytest
from rich.console import Console

from dgnet_core.dgnet.state import TrainState
from dgnet_platform.cli.measure import measure_and_show
from dgnet_platform.errors import TrackingError
from dgnet_platform.evaluation.config import MeasureConfig
from dgnet_platform.evaluation.measured import GENERATED, Measured
from dgnet_platform.evaluation.results import JSON, PARQUET
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.run import Run
from dgnet_platform.tracking.client import TrackedRun, open_experiment
from dgnet_platform.tracking.measured import ARTIFACTS
from tests.helpers.runs import tiny_experiment
from tests.helpers.tiny import small_config

CONFIG = small_config(6)

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow and its database warn of each other


@pytest.fixture
def one_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command finds one figure at once, and no MLflow is named."""
    row = {"figure": "kid_teacher", "compared": GENERATED, "pictures": 20, "value": 0.25, "subset": 10}
    none = pd.DataFrame()
    found = Measured(
        source="20 pictures", drawn=False, networks={"teacher": "0" * 64}, mode=None, distances=pd.DataFrame([row]),
        diversity=none, people=none, identity=none, left_out=[],
    )  # fmt: skip
    monkeypatch.setattr("dgnet_platform.cli.measure.measure", lambda *_: found)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def shown(config: MeasureConfig) -> str:
    """What the command shows."""
    console = Console(file=StringIO(), soft_wrap=True)
    assert measure_and_show(config, console) == 0
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


@pytest.mark.usefixtures("one_figure")
def test_mlflow_has_the_figures_of_a_runs_checkpoint(tmp_path: Path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    client, experiment = open_experiment(uri, "test")
    tracked = client.create_run(experiment).info.run_id
    run = Run(
        folder=tmp_path / "run", experiment=tiny_experiment(tmp_path / "store", tmp_path), identity={"kind": "dgnet"},
        tracking_uri=uri, mlflow_experiment=experiment, mlflow_run=tracked,
    )  # fmt: skip
    state = TrainState.build(CONFIG)
    state.iteration = 7
    trained = checkpoint.save(state, CONFIG, run.folder)
    run.save()
    config = MeasureConfig(store="unused", out=tmp_path / "results", checkpoint=trained)
    assert f"MLflow at {uri} has them too." in shown(config)
    (metric,) = client.get_metric_history(tracked, "test/generated/kid_teacher")
    assert (metric.value, metric.step) == (0.25, 7)
    files = [file.path for file in client.list_artifacts(tracked, ARTIFACTS)]
    assert files == [f"{ARTIFACTS}/{JSON}", f"{ARTIFACTS}/{PARQUET}"]
    assert client.get_run(tracked).info.status == "RUNNING"  # its end is its training's
    replace(run, mlflow_run="0" * 32).save()
    with pytest.raises(TrackingError, match=r"the results are in .*, but MLflow at sqlite.* has no run 0000"):
        shown(config)


@pytest.mark.usefixtures("one_figure")
def test_pictures_of_no_run_get_one_where_mlflow_is_named(
    people_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = MeasureConfig(store=str(people_store), out=tmp_path / "a generator", generated=tmp_path, tracking_uri=uri)
    with monkeypatch.context() as patch:
        patch.setattr(TrackedRun, "log", Mock(side_effect=OSError("gone")))
        with pytest.raises(
            TrackingError, match=f"the results are in .*, but MLflow at {uri} was not told .gone.: start"
        ):
            shown(config)
    assert f"MLflow at {uri} has them too." in shown(config)
    client, experiment = open_experiment(uri, "dgnet-people")
    [run] = client.search_runs([experiment])
    assert (run.info.run_name, run.info.status) == ("a generator", "FINISHED")
    assert (run.data.params["generated"], run.data.params["mode"]) == (str(tmp_path), "table2")
    assert (run.data.tags["dgnet.kind"], run.data.tags["dgnet.network.teacher"]) == ("generated", "0" * 64)
    assert run.data.metrics == {"test/generated/kid_teacher": 0.25}
    assert client.list_artifacts(run.info.run_id, ARTIFACTS)

    unnamed = replace(config, tracking_uri="")
    assert "MLflow" not in shown(unnamed)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    assert f"MLflow at {uri} has them too." in shown(unnamed)
    assert len(client.search_runs([experiment])) == 2
    with pytest.raises(TrackingError, match=r"--tracking-uri mlflow\.db: name a server"):
        shown(replace(config, tracking_uri="mlflow.db", out=tmp_path / "refused"))
    assert not (tmp_path / "refused").exists()
