"""Training from the driver: tracked in MLflow, resumed after kills, refused when it cannot work."""

import getpass
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest.mock import Mock

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console

from dgnet_core.ranking.extraction import extract
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.images import ImageSet
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store, StoreError
from dgnet_platform.errors import ExperimentError, TrackingError, TrainingError
from dgnet_platform.evaluation.results import read
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.checkpoint import CheckpointError, load_networks
from dgnet_platform.runs.run import Run
from dgnet_platform.runs.tracking_uri import database_of, sqlite_uri, usable
from dgnet_platform.tracking import client as tracking
from dgnet_platform.tracking.shipping import ship
from dgnet_platform.training import plan as training_plan
from dgnet_platform.training.display import Display
from dgnet_platform.training.driver import train
from dgnet_platform.training.plan import make_plan, name_run
from tests.helpers.market import noise
from tests.helpers.runs import CLASSES, QUIET, by_command_line, history, job, lines, same, tensors, tiny_experiment
from tests.helpers.servers import TrackingServer, served, wait_for

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow, its database and its web server warn of each other


@pytest.fixture(scope="module")
def finished(people_store, tmp_path_factory):
    """A run that went from nothing to the registry."""
    storage = tmp_path_factory.mktemp("finished")
    return train(tiny_experiment(people_store, storage), console=QUIET, register="tiny")


@pytest.fixture(scope="module")
def client(finished):
    return MlflowClient(finished.run.tracking_uri)


# ----------------------------------------------------------------------------------------------------------------
# What a finished run leaves


def test_the_run_is_tracked(finished, client):
    run = client.get_run(finished.run.mlflow_run)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == finished.run.name
    assert run.data.params["model.loss.teacher_warmup.start"] == "4"
    tags = run.data.tags
    assert tags["dgnet.workers"] == "0"
    assert tags["dgnet.images_a_rank"] == "8"
    assert len(tags["dgnet.data_fingerprint"]) == 64
    assert {"dgnet.code", "dgnet.dirty", "dgnet.hosts", "dgnet.device", "dgnet.teacher"} <= tags.keys()
    [data] = run.inputs.dataset_inputs
    assert data.dataset.name == "people"
    assert tags["dgnet.data_fingerprint"].startswith(data.dataset.digest)


def test_mlflow_shows_who_ran_what_and_a_report(finished, client):
    run = client.get_run(finished.run.mlflow_run)
    tags = run.data.tags
    assert tags["mlflow.user"] == getpass.getuser()
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == (sys.argv[0], "LOCAL")
    assert tags["mlflow.source.git.commit"] == tags["dgnet.code"].partition("+")[2].removesuffix("-dirty")
    note = tags["mlflow.note.content"]
    table = read(finished.results).retrieval
    both = table[table["feature"] == "both"].iloc[0]
    assert f"| both, beta 0.5 | {100 * both['rank1']:.2f} |" in note
    assert "| `model.network.height` | 64 | 24 |" in note  # differs from the laptop preset
    assert "`checkpoint_every`" in note
    assert "`storage`" not in note
    assert f"in `{finished.run.folder}`" in note
    picture = re.search(r"\*swaps\* of step \d+ \(`(.*)` in", note)
    assert picture is not None
    assert (finished.run.folder / picture[1]).exists()


def test_no_final_figure_leads_the_charts(finished, client):
    names = sorted(client.get_run(finished.run.mlflow_run).data.metrics)
    assert len(client.get_metric_history(finished.run.mlflow_run, names[0])) > 1


def test_every_iteration_is_there_once(finished, client):
    for line in lines(finished.run.folder):
        assert line["metrics"].items() >= {"weight/prim": line["metrics"]["weight/prim"]}.items()
    assert history(client, finished.run, "iteration") == [(t, float(t)) for t in range(1, 13)]
    journal = [(line["iteration"], line["metrics"]["loss/L_img1"]) for line in lines(finished.run.folder)]
    assert history(client, finished.run, "loss/L_img1") == journal
    assert [step for step, _ in history(client, finished.run, "val/both/mAP")] == [6, 12]
    figures = client.get_run(finished.run.mlflow_run).data.metrics
    assert {"test/both/mAP", "test/prim/rank1", "test/baseline/mAP", "test/swap_unseen/SSIM"} <= figures.keys()
    for row in ("both", "baseline"):
        assert figures[f"test/{row}/mAP_low"] <= figures[f"test/{row}/mAP"] <= figures[f"test/{row}/mAP_high"]
    gain = figures["test/both/mAP"] - figures["test/baseline/mAP"]
    assert figures["test/both_minus_baseline/mAP"] == pytest.approx(gain)
    assert figures["test/both_minus_baseline/mAP_low"] <= gain <= figures["test/both_minus_baseline/mAP_high"]


def test_pictures_have_a_step(finished, client):
    images = [artifact.path for artifact in client.list_artifacts(finished.run.mlflow_run, "images")]
    for name in ("swaps", "ranked"):
        steps = {int(path.split("step+")[1].split("+")[0]) for path in images if path.startswith(f"images/{name}")}
        assert steps == {6, 12}


def test_checkpoints_are_models(finished, client):
    found = client.search_logged_models(
        [finished.run.mlflow_experiment], f"source_run_id = '{finished.run.mlflow_run}'"
    )
    models = {model.name: model for model in found if model.name.startswith("checkpoint")}
    assert models.keys() == {path.name for path in finished.run.folder.glob("checkpoint_*")}
    last = models["checkpoint_00000012"]
    assert last.params["iteration"] == "12"
    assert {metric.key: metric.step for metric in last.metrics}["val/both/mAP"] == 12
    assert Path(last.tags["dgnet.path"]).is_dir()


def test_the_results_compare_baseline_and_features(finished, client):
    table = read(finished.results).retrieval
    assert list(table[table["query"] == "single"]["feature"]) == ["baseline", "f_prim", "f_fine", "both"]
    assert set(read(finished.results).swaps["identities"]) == {"seen", "unseen"}
    names = {artifact.path for artifact in client.list_artifacts(finished.run.mlflow_run, "results")}
    assert {"results/results.json", "results/results.parquet"} <= names
    for start in ("swaps_", "interpolated_appearance_", "interpolated_structure_", "failures_"):
        assert any(name.startswith(f"results/{start}") for name in names), start


def test_the_model_gives_evaluations_descriptors_in_a_fresh_process(finished, client, people_store, tmp_path):
    table = Store.open(people_store)
    rows = next(iter(table.row_groups("query")))["image"].to_pylist()[:5]
    pd.DataFrame({"image": rows}).to_pickle(tmp_path / "pictures.pkl")
    code = """
import sys, mlflow, numpy, pandas
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
numpy.save("descriptors.npy", model.predict(pandas.read_pickle("pictures.pkl")))
"""
    # -S without site-packages' .pth files would lose the libraries too: hide only this repository.
    hide = "import sys; sys.path[:] = [p for p in sys.path if 'site-packages' in p or 'lib/python' in p]\n"
    check = "\nimport dgnet_core; assert 'code' in dgnet_core.__file__, dgnet_core.__file__"
    command = [sys.executable, "-c", hide + code + check, finished.run.tracking_uri, finished.model_uri]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = np.load(tmp_path / "descriptors.npy")

    state, meta = load_networks(finished.run.last_checkpoint)
    images = ImageSet.load(table, "query", height=24, width=12, threads=1)
    network = state.appearance_encoder  # pyright: ignore[reportAttributeAccessIssue]
    sizes = meta.config.network
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in _decoded(rows)]))
    features = extract(
        network, pixels, images.person_ids[:5], images.camera_ids[:5], height=sizes.height, width=sizes.width
    )
    similarity = features.prim @ features.prim.T + 0.5 * features.fine @ features.fine.T
    assert found.shape == (5, 32)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(found @ found.T * 1.5, similarity.numpy(), atol=1e-5)


def _decoded(rows: list[bytes]) -> list[np.ndarray]:
    from dgnet_platform.data.decode import decode

    return [decode(row).transpose(2, 0, 1) for row in rows]


def test_the_model_names_a_row_that_is_no_picture(finished, client):
    mlflow.set_tracking_uri(finished.run.tracking_uri)
    model = mlflow.pyfunc.load_model(finished.model_uri)
    with pytest.raises(Exception, match="row 0, column 'image'"):
        model.predict(pd.DataFrame({"image": [b"no picture"]}))


def test_the_model_is_registered_once(finished, client, people_store):
    experiment = tiny_experiment(people_store, finished.run.folder.parent)
    again = train(experiment, console=QUIET, register="tiny")
    assert again.run.mlflow_run == finished.run.mlflow_run
    assert again.model_uri == finished.model_uri
    versions = client.search_model_versions("name = 'tiny'")
    assert [version.version for version in versions] in ([1], ["1"])


@pytest.mark.slow
def test_the_registered_model_is_served_over_http(finished, people_store, tmp_path):
    rows = next(iter(Store.open(people_store).row_groups("query")))["image"].to_pylist()[:3]
    mlflow.set_tracking_uri(finished.run.tracking_uri)
    expected = mlflow.pyfunc.load_model(finished.model_uri).predict(pd.DataFrame({"image": rows}))
    with served("models:/tiny/1", tmp_path, MLFLOW_TRACKING_URI=finished.run.tracking_uri) as describe:
        np.testing.assert_allclose(describe(rows), expected, atol=1e-6)


def test_shipping_again_sends_nothing_twice(finished, client):
    assert ship(finished.run, lambda: True)
    assert history(client, finished.run, "iteration") == [(t, float(t)) for t in range(1, 13)]


def test_once_is_enough(finished, people_store, tmp_path, monkeypatch):
    """A command opens its store once, reads each file once to hash it, and loads the teacher once to train with it."""
    hashed, loaded, opened = Counter(), Counter(), Counter()

    def digest(file, name, hash_it=checkpoint.hashlib.file_digest):
        if Path(file.name).name == checkpoint.TENSORS:
            stat = os.fstat(file.fileno())
            hashed[stat.st_ino, stat.st_mtime_ns] += 1
        return hash_it(file, name)

    def load(path, load_it=torch.load, **options):
        loaded[path] += 1
        return load_it(path, **options)

    def open_store(location, open_it=Store.open):
        opened[sys._getframe(1).f_globals["__name__"]] += 1
        return open_it(location)

    monkeypatch.setattr(checkpoint, "_digests", {})
    monkeypatch.setattr(checkpoint.hashlib, "file_digest", digest)
    monkeypatch.setattr(torch, "load", load)
    monkeypatch.setattr(Store, "open", open_store)
    experiment = tiny_experiment(people_store, tmp_path, teacher=str(teacher_of(finished)))
    done = train(experiment, console=QUIET)
    assert done.outcome.ending == "finished"
    assert len(hashed) == 5  # the teacher, and each of the run's four checkpoints
    assert set(hashed.values()) == {1}
    assert loaded[teacher_of(finished) / "tensors.pt"] == 2  # training changes its statistics: evaluation starts anew
    assert opened["dgnet_platform.training.driver"] == 1
    assert opened["dgnet_platform.training.plan"] == 0


# ----------------------------------------------------------------------------------------------------------------
# Kills


@pytest.mark.slow
def test_a_set_without_query_and_gallery_is_trained_on(tmp_path):
    """Own data of one camera: nothing can be evaluated, which is said, and pictures are drawn all the same."""
    for person in range(1, 8):
        for number in range(3):
            file = tmp_path / "own" / "train" / str(person) / f"x_c1_{number}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(noise(24, 12, seed=10 * person + number))
    store = tmp_path / "store"
    prepare(PrepareConfig(dataset="folder", source=tmp_path / "own", out=store))
    experiment = tiny_experiment(store, tmp_path, hold_out=False)
    experiment = replace(
        experiment,
        model=replace(experiment.model, num_classes=7),
        baseline=replace(experiment.baseline, num_classes=7),
    )
    options = by_command_line(experiment, tmp_path / "experiment.yaml")
    for _ in range(2):  # done, and found to be done
        process = job("train_market.py", *options)
        output, _ = process.communicate()
        assert process.returncode == 0, output
        assert f"Not evaluated: {store} has no query and gallery" in output
    run = Run.read(next(tmp_path.glob("folder-dgnet-*")))
    assert not run.evaluated_at_end
    assert (run.folder / "pictures" / "swaps" / "00000012.png").exists()
    assert "train/reconstruction/SSIM" in lines(run.folder)[-1]["metrics"]

    held_out = replace(
        experiment,
        hold_out=True,
        model=replace(experiment.model, num_classes=5),
        baseline=replace(experiment.baseline, num_classes=5),
    )
    with pytest.raises(ExperimentError, match=r"none of the 2 held-out identities .*: pass --no-hold-out"):
        train(held_out, console=QUIET)


@pytest.mark.slow
def test_a_killed_driver_continues_bit_for_bit(finished, people_store, tmp_path):
    experiment = replace(
        tiny_experiment(people_store, tmp_path), teacher=str(teacher_of(finished)), checkpoint_every=2, name="killed"
    )
    options = by_command_line(experiment, tmp_path / "experiment.yaml")
    process = job("train_market.py", *options)
    wait_for(lambda: (tmp_path / "killed" / "checkpoint_00000004").exists() or process.poll() is not None)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "checkpoint_00000012").exists()
    killed = Run.read(tmp_path / "killed")

    process = job("train_market.py", *options)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "both, beta 0.5" in output
    assert "mlflow ui" in output
    assert same(tensors(finished.run, 12), tensors(killed, 12))
    client = MlflowClient(killed.tracking_uri)
    for name in ("iteration", "loss/L_img1"):
        assert [step for step, _ in history(client, killed, name)] == list(range(1, 13))
    assert history(client, killed, "loss/L_img1") == [
        (line["iteration"], line["metrics"]["loss/L_img1"]) for line in lines(finished.run.folder)
    ]


def teacher_of(finished) -> Path:
    return Path(finished.run.teacher)


@pytest.mark.slow
def test_sigterm_saves_and_says_so(finished, people_store, tmp_path):
    experiment = tiny_experiment(people_store, tmp_path, teacher=str(teacher_of(finished)), name="stopped")
    model = replace(experiment.model, iterations=4000)
    options = by_command_line(
        replace(experiment, model=model, checkpoint_every=4000, evaluate_every=4000), tmp_path / "experiment.yaml"
    )
    process = job("train_market.py", *options)
    folder = tmp_path / "stopped"
    wait_for(lambda: (folder / "metrics.jsonl").exists() and len(lines(folder)) > 3)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "the same command resumes" in output
    [saved] = folder.glob("checkpoint_*")
    assert int(saved.name[-8:]) == lines(folder)[-1]["iteration"]
    run = Run.read(folder)
    assert MlflowClient(run.tracking_uri).get_run(run.mlflow_run).info.status == "KILLED"


@pytest.mark.slow
def test_a_server_that_is_away_stops_nothing_and_loses_nothing(finished, people_store, tmp_path, free_port):
    server = TrackingServer(tmp_path, free_port)
    server.start()
    experiment = tiny_experiment(
        people_store, tmp_path, teacher=str(teacher_of(finished)), name="away", tracking_uri=server.uri
    )
    model = replace(experiment.model, iterations=200)
    experiment = replace(experiment, model=model, checkpoint_every=50, evaluate_every=100)
    options = by_command_line(experiment, tmp_path / "experiment.yaml")
    process = job("train_market.py", *options)
    folder = tmp_path / "away"
    try:
        wait_for(lambda: (folder / "metrics.jsonl").exists() and len(lines(folder)) > 30)
        server.stop()
        before = len(lines(folder))
        time.sleep(20)
        during = len(lines(folder)) - before
        assert during > 20 or process.poll() is not None, "training waits for the server"
        server.start()
        output, _ = process.communicate()
        assert process.returncode == 0, output
        run = Run.read(folder)
        assert ship(run, lambda: True)
        client = MlflowClient(server.uri)
        steps = [metric.step for metric in client.get_metric_history(run.mlflow_run, "loss/L_img1")]
        assert steps == list(range(1, 201))
        assert client.list_artifacts(run.mlflow_run, "images")
    finally:
        server.stop()
        if process.poll() is None:
            process.kill()
            process.communicate()


# ----------------------------------------------------------------------------------------------------------------
# Refusals: before anything is begun


def test_other_settings_under_the_same_name_are_listed(finished, people_store):
    experiment = tiny_experiment(people_store, finished.run.folder.parent, name=finished.run.name)
    other = replace(experiment, model=replace(experiment.model, loss=replace(experiment.model.loss, prim=1.0)))
    with pytest.raises(
        ExperimentError, match=r"(?s)model\.loss\.prim: 2\.0 -> 1\.0.*--resume-from .*checkpoint_00000012 "
    ):
        train(other, console=QUIET)


def test_a_run_under_way_keeps_its_number_of_workers_where_it_matters(finished, people_store, tmp_path):
    experiment = tiny_experiment(people_store, tmp_path, teacher=str(teacher_of(finished)), name="under-way")
    plan = make_plan(name_run(experiment, teacher=teacher_of(finished)))
    plan.folder.mkdir()
    replace(finished.run, folder=plan.folder, experiment=experiment, identity=plan.identity.values()).save()
    for workers in ("1", "1:2"):
        make_plan(name_run(replace(experiment, workers=workers), teacher=teacher_of(finished)))
    make_plan(name_run(replace(experiment, workers="2"), teacher=teacher_of(finished)))  # BatchNorm is synchronised

    local = replace(experiment, model=replace(experiment.model, batch_norm="local"), name="local")
    plan = make_plan(name_run(local, teacher=teacher_of(finished)))
    plan.folder.mkdir()
    replace(finished.run, folder=plan.folder, experiment=local, identity=plan.identity.values()).save()
    with pytest.raises(ExperimentError, match=r"begun with --workers 0; with 2, .* pass --workers 0, a range"):
        make_plan(name_run(replace(local, workers="2"), teacher=teacher_of(finished)))
    with pytest.raises(ExperimentError, match=r"--workers 4: with batch_norm local, .* over 2 images each"):
        name_run(replace(local, workers="4"), teacher=teacher_of(finished))
    any_size = replace(local, model=replace(local.model, batch_norm="local_any_size"), workers="4", name="any-size")
    name_run(any_size, teacher=teacher_of(finished))


def test_a_run_only_starts_from_a_checkpoint_that_suits_it(finished, people_store, tmp_path):
    experiment, teacher = tiny_experiment(people_store, tmp_path), teacher_of(finished)
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
    experiment, teacher = tiny_experiment(people_store, tmp_path), teacher_of(finished)
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
        make_plan(name_run(longer, teacher=teacher_of(finished)))
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
        with pytest.raises(OSError, match="killed"):
            tracking.open_run(uri, store, **options)
    run_id = tracking.open_run(uri, store, **options).id
    made = client.get_run(run_id)
    assert (made.data.params["a"], made.data.tags["b"], len(made.inputs.dataset_inputs)) == ("1", "2", 1)
    assert run_id == tracking.open_run(uri, store, **options).id
    [half] = client.search_runs([finished.run.mlflow_experiment], "attributes.run_name = 'half'")
    assert half.info.run_id == run_id
    client.delete_run(run_id)


def test_a_run_starts_from_another_ones_checkpoint_with_other_settings(finished, people_store, tmp_path):
    experiment = tiny_experiment(people_store, tmp_path, teacher=str(teacher_of(finished)))
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
    experiment = tiny_experiment(people_store, tmp_path, teacher=str(teacher_of(finished)), hold_out=False)
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
    experiment = tiny_experiment(people_store, tmp_path, teacher=str(teacher_of(finished)))
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
        train(tiny_experiment(people_store, tmp_path, teacher=str(teacher_of(finished))), console=QUIET)
    again = tiny_experiment(people_store, finished.run.folder.parent)
    assert train(again, console=QUIET).outcome.ending == "finished"  # it is only looked at


def test_a_run_that_diverges_fails_with_its_reason(people_store, tmp_path, finished):
    experiment = tiny_experiment(people_store, tmp_path, teacher=str(teacher_of(finished)), name="lost")
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
