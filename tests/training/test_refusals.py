"""What training refuses before anything is begun, what it takes up again, and how a run fails."""

import shutil
import time
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest.mock import Mock

import pytest
from mlflow import MlflowClient
from rich.console import Console

from dgnet_platform.data.store import Store, StoreError
from dgnet_platform.errors import ExperimentError, TrackingError, TrainingError
from dgnet_platform.runs.checkpoint import CheckpointError
from dgnet_platform.runs.run import Run
from dgnet_platform.runs.tracking_uri import database_of, sqlite_uri, usable
from dgnet_platform.tracking import client as tracking
from dgnet_platform.training import plan as training_plan
from dgnet_platform.training.display import Display
from dgnet_platform.training.driver import train
from dgnet_platform.training.plan import make_plan, name_run
from tests.helpers.runs import CLASSES, QUIET, lines, tiny_experiment

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow, its database and its web server warn of each other


def test_other_settings_under_the_same_name_are_listed(finished, people_store):
    experiment = tiny_experiment(people_store, finished.run.folder.parent, name=finished.run.name)
    other = replace(experiment, model=replace(experiment.model, loss=replace(experiment.model.loss, prim=1.0)))
    with pytest.raises(
        ExperimentError, match=r"(?s)model\.loss\.prim: 2\.0 -> 1\.0.*--resume-from .*checkpoint_00000012 "
    ):
        train(other, console=QUIET)


def test_a_run_under_way_keeps_its_number_of_workers_where_it_matters(finished, people_store, tmp_path):
    experiment = tiny_experiment(people_store, tmp_path, teacher=finished.run.teacher, name="under-way")
    plan = make_plan(name_run(experiment, teacher=Path(finished.run.teacher)))
    plan.folder.mkdir()
    replace(finished.run, folder=plan.folder, experiment=experiment, identity=plan.identity.values()).save()
    for workers in ("1", "1:2"):
        make_plan(name_run(replace(experiment, workers=workers), teacher=Path(finished.run.teacher)))
    make_plan(
        name_run(replace(experiment, workers="2"), teacher=Path(finished.run.teacher))
    )  # BatchNorm is synchronised

    local = replace(experiment, model=replace(experiment.model, batch_norm="local"), name="local")
    plan = make_plan(name_run(local, teacher=Path(finished.run.teacher)))
    plan.folder.mkdir()
    replace(finished.run, folder=plan.folder, experiment=local, identity=plan.identity.values()).save()
    with pytest.raises(ExperimentError, match=r"begun with --workers 0; with 2, .* pass --workers 0, a range"):
        make_plan(name_run(replace(local, workers="2"), teacher=Path(finished.run.teacher)))
    with pytest.raises(ExperimentError, match=r"--workers 4: with batch_norm local, .* over 2 images each"):
        name_run(replace(local, workers="4"), teacher=Path(finished.run.teacher))
    any_size = replace(local, model=replace(local.model, batch_norm="local_any_size"), workers="4", name="any-size")
    name_run(any_size, teacher=Path(finished.run.teacher))


def test_a_run_only_starts_from_a_checkpoint_that_suits_it(finished, people_store, tmp_path):
    experiment, teacher = tiny_experiment(people_store, tmp_path), Path(finished.run.teacher)
    earlier = finished.run.folder / "checkpoint_00000009"
    assert make_plan(name_run(experiment, teacher=teacher, origin=earlier)).origin == earlier
    wider = replace(experiment.model.network, structure_width=4)
    adam = replace(experiment.model.optim, optimizer="adam")
    last = finished.run.last_checkpoint
    for origin, model, words in (
        (last, experiment.model, r"it has 12 iterations done, the run ends after 12: name an earlier"),
        (teacher, experiment.model, "it is of a teacher, the run of a dgnet"),
        (earlier, replace(experiment.model, network=wider), r"another one:\n  structure_width: 2 -> 4"),
        (earlier, replace(experiment.model, optim=adam), "it was trained by sgd, the run by adam: keep the optimizer"),
    ):
        with pytest.raises(ExperimentError, match=words):
            make_plan(name_run(replace(experiment, model=model), teacher=teacher, origin=origin))


def test_a_run_goes_on_when_the_checkpoint_it_started_from_is_gone(finished, people_store, tmp_path):
    experiment, teacher = tiny_experiment(people_store, tmp_path), Path(finished.run.teacher)
    origin = shutil.copytree(finished.run.folder / "checkpoint_00000009", tmp_path / "checkpoint_00000009")
    plan = make_plan(name_run(experiment, teacher=teacher, origin=origin))
    plan.folder.mkdir()
    begun = replace(finished.run, folder=plan.folder, experiment=plan.experiment, origin=str(origin))
    replace(begun, identity=plan.identity.values()).save()
    shutil.rmtree(origin)
    with pytest.raises(ExperimentError, match="does not exist; a run that was begun from it resumes by its --name"):
        make_plan(name_run(experiment, teacher=teacher, origin=origin))
    named = make_plan(name_run(replace(experiment, name=plan.folder.name), teacher=teacher))
    assert named.existing is not None
    assert (named.folder, named.origin) == (plan.folder, origin)


def test_a_plan_touches_nothing(finished, people_store, tmp_path):
    folder = shutil.copytree(finished.run.folder, tmp_path / finished.run.name)
    damaged = folder / finished.run.last_checkpoint.name / "meta.json"
    damaged.write_text("{}")
    before = sorted(path.name for path in tmp_path.rglob("*"))
    experiment = tiny_experiment(people_store, tmp_path, name=folder.name)
    longer = replace(experiment, model=replace(experiment.model, iterations=14))
    with pytest.raises(ExperimentError, match=r"--resume-from .*checkpoint_00000009 to start a new one"):
        make_plan(name_run(longer, teacher=Path(finished.run.teacher)))
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


def test_a_deleted_mlflow_run_is_named_with_the_remedy(tmp_path):
    connected, experiment = tracking.open_experiment(f"sqlite:///{tmp_path}/mlflow.db", "dgnet")
    run_id = connected.create_run(experiment).info.run_id
    connected.delete_run(run_id)
    with pytest.raises(TrackingError, match=f"was deleted: restore it with `mlflow runs restore --run-id {run_id}`"):
        tracking.is_lost(connected, f"sqlite:///{tmp_path}/mlflow.db", run_id)


def test_a_database_that_was_half_made_is_never_seen(tmp_path, monkeypatch):
    uri = sqlite_uri(tmp_path / "100 %" / "mlflow.db")
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._upgrade_db", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            tracking.open_experiment(uri, "dgnet")
    assert not database_of(uri).exists()
    _, experiment = tracking.open_experiment(uri, "dgnet")
    assert tracking.open_experiment(uri, "dgnet")[1] == experiment


def test_a_database_is_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        usable("sqlite:///mlflow.db") == usable(f"sqlite:///{tmp_path}/mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    )
    for uri in ("", "http://127.0.0.1:5000", "postgresql://host/mlflow"):
        assert usable(uri) == uri


def test_an_mlflow_run_that_was_half_made_is_completed(finished, client, tmp_path, monkeypatch):
    def killed(*_):
        raise OSError("killed")

    uri, store = finished.run.tracking_uri, Store.open(finished.run.experiment.data)
    options = {"name": "half", "folder": tmp_path, "params": {"a": 1}, "tags": {"b": "2"}}
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_inputs", killed)
        with pytest.raises(TrackingError, match=r"MLflow at .* cannot be used \(killed\)"):
            tracking.open_run(uri, store, **options)
    run_id = tracking.open_run(uri, store, **options).id
    made = client.get_run(run_id)
    assert (made.data.params["a"], made.data.tags["b"], len(made.inputs.dataset_inputs)) == ("1", "2", 1)
    assert run_id == tracking.open_run(uri, store, **options).id
    [half] = client.search_runs([finished.run.mlflow_experiment], "attributes.run_name = 'half'")
    assert half.info.run_id == run_id
    client.delete_run(run_id)


def test_a_run_starts_from_another_ones_checkpoint_with_other_settings(finished, people_store, tmp_path):
    experiment = tiny_experiment(people_store, tmp_path, teacher=finished.run.teacher)
    longer = replace(experiment, model=replace(experiment.model, iterations=14))
    forked = train(longer, console=QUIET, origin=finished.run.last_checkpoint)
    assert forked.run.name != finished.run.name
    assert forked.run.origin == str(finished.run.last_checkpoint)
    assert [line["iteration"] for line in lines(forked.run.folder)] == [13, 14]
    again = train(longer, console=QUIET, origin=finished.run.last_checkpoint)
    assert again.run.mlflow_run == forked.run.mlflow_run
    lost = replace(longer, name=forked.run.name, tracking_uri=f"sqlite:///{tmp_path}/new.db")
    by_name = train(lost, console=QUIET).run
    assert by_name.mlflow_run != forked.run.mlflow_run
    assert (by_name.identity, by_name.origin) == (forked.run.identity, forked.run.origin)


def test_what_a_run_waits_for_is_said_once(finished):
    console = Console(file=(said := StringIO()), width=200)
    with Display(finished.run, console) as display:
        display.say("waiting for workers")
        time.sleep(1.2)  # it looks at the journal, which is at its end, twice a second
        display.say("waiting for workers")
    assert said.getvalue().splitlines() == [f"{finished.run.name}: waiting for workers"]


def test_a_teacher_of_other_identities_is_refused(finished, people_store, tmp_path):
    experiment = tiny_experiment(people_store, tmp_path, teacher=finished.run.teacher, hold_out=False)
    experiment = replace(experiment, model=replace(experiment.model, num_classes=12))
    with pytest.raises(ExperimentError, match=f"knows {CLASSES} identities"):
        train(experiment, console=QUIET)
    assert not list(tmp_path.iterdir())


TINY = tiny_experiment(Path("store"), Path("runs")).model
UNTAUGHT = replace(TINY, loss=replace(TINY.loss, identity=0.0, positive_identity=0.0))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"data": "/nowhere"}, StoreError, "/nowhere holds no store"),
        ({"teacher": "/nowhere.pth"}, CheckpointError, "/nowhere.pth"),
        ({"teacher": "run:none"}, CheckpointError, "run:none"),
        ({"tracking_uri": "http://127.0.0.1:9"}, TrackingError, "http://127.0.0.1:9"),
        ({"tracking_uri": "mlflow.db"}, TrackingError, "--tracking-uri mlflow.db: name a server .* or sqlite:///FILE"),
        ({"tracking_uri": "http://me:secret@host"}, TrackingError, r"http://\.\.\.@host: without user and password"),
        ({"storage": "/proc/nowhere"}, ExperimentError, "/proc/nowhere"),
        ({"workers": "9"}, ExperimentError, "batch_size = 8"),
        (
            {"model": UNTAUGHT},
            ExperimentError,
            "appearance encoder would learn nothing .* --model.recipe.no-detach-app",
        ),
    ],
)
def test_what_cannot_work_is_refused(people_store, tmp_path, finished, change, error, words):
    experiment = tiny_experiment(people_store, tmp_path, teacher=finished.run.teacher)
    with pytest.raises(error, match=words):
        train(replace(experiment, **change), console=QUIET)


def test_what_cannot_work_is_refused_before_a_teacher_is_trained(people_store, tmp_path):
    experiment = tiny_experiment(people_store, tmp_path / "runs", teacher="auto")
    with pytest.raises(ExperimentError, match="would learn nothing"):
        train(replace(experiment, model=UNTAUGHT), console=QUIET)
    assert not (tmp_path / "runs").exists()


def test_a_full_disk_is_noticed_before(people_store, tmp_path, finished, monkeypatch):
    monkeypatch.setattr(training_plan.shutil, "disk_usage", lambda _: type("usage", (), {"free": 1000})())
    with pytest.raises(ExperimentError, match="GiB free"):
        train(tiny_experiment(people_store, tmp_path, teacher=finished.run.teacher), console=QUIET)
    again = tiny_experiment(people_store, finished.run.folder.parent)
    assert train(again, console=QUIET).outcome.ending == "finished"  # it is only looked at


def test_a_run_that_diverges_fails_with_its_reason(people_store, tmp_path, finished):
    experiment = tiny_experiment(people_store, tmp_path, teacher=finished.run.teacher, name="lost")
    optim = replace(experiment.model.optim, appearance_lr=1e30)
    with pytest.raises(TrainingError, match="not finite"):
        train(replace(experiment, model=replace(experiment.model, optim=optim)), console=QUIET)
    run = Run.read(tmp_path / "lost")
    info = MlflowClient(run.tracking_uri).get_run(run.mlflow_run)
    assert info.info.status == "FAILED"
    assert "not finite" in info.data.tags["dgnet.reason"]


def test_a_run_is_found_where_its_server_has_moved(finished, tmp_path):
    before, after, other = (f"sqlite:///{tmp_path}/{name}.db" for name in ("before", "after", "other"))
    connected, experiment_id = tracking.open_experiment(before, "dgnet")
    run_id = connected.create_run(experiment_id).info.run_id
    run = replace(finished.run, tracking_uri=before, mlflow_run=run_id)
    shutil.copy(tmp_path / "before.db", tmp_path / "after.db")
    tracking.open_experiment(other, "dgnet")
    assert tracking.uri_of(run, after) == after
    assert tracking.uri_of(run, other) == before
