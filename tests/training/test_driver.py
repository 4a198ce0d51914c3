"""What a finished run leaves: figures, pictures, checkpoints and a model in MLflow."""

import getpass
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dgnet_core.ranking.extraction import extract
from dgnet_platform.data.images import ImageSet
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.results import read
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.checkpoint import load_networks
from dgnet_platform.tracking.shipping import Shipper, _Models, ship
from dgnet_platform.training.driver import train
from tests.helpers.runs import QUIET, history, lines, tiny_experiment
from tests.helpers.servers import served

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow, its database and its web server warn of each other


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


def test_losses_lead_the_charts(finished, client):
    names = sorted(client.get_run(finished.run.mlflow_run).data.metrics)
    assert len(client.get_metric_history(finished.run.mlflow_run, names[0])) > 1
    assert min(name for name in names if "/" in name).startswith("loss/")


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


def test_a_checkpoints_model_that_was_half_made_is_made_again(finished, client, monkeypatch):
    """The server fails between a model and its figures; the shipper tries again."""
    run = finished.run
    mlflow.set_tracking_uri(run.tracking_uri)  # models are made by MLflow's functions, not by a client
    found = {"experiment_ids": [run.mlflow_experiment], "filter_string": f"source_run_id = '{run.mlflow_run}'"}
    [last] = [model for model in client.search_logged_models(**found) if model.name == run.last_checkpoint.name]
    client.delete_logged_model(last.model_id)

    def away(*_, **__):
        raise MlflowException("away")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "log_outputs", away)
        with pytest.raises(MlflowException, match="away"):
            _Models(client, run).follow()
    _Models(client, run).follow()
    [made] = [model for model in client.search_logged_models(**found) if model.name == run.last_checkpoint.name]
    assert "val/both/mAP" in {metric.key for metric in made.metrics}
    assert made.tags["dgnet.checkpoint"] == "true"


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
@pytest.mark.long  # a fresh process loads the model above
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
    """A command opens its store once, reads each file once to hash it, and loads the teacher once to train with it.

    The process that ships a run's journal ships the next one's too.
    """
    shipper = Shipper._idle
    assert shipper is not None
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
    experiment = tiny_experiment(people_store, tmp_path, teacher=finished.run.teacher)
    done = train(experiment, console=QUIET)
    assert done.outcome.ending == "finished"
    assert Shipper._idle is shipper
    assert len(hashed) == 5  # the teacher, and each of the run's four checkpoints
    assert set(hashed.values()) == {1}
    assert (
        loaded[Path(finished.run.teacher) / "tensors.pt"] == 2
    )  # training changes its statistics: evaluation starts anew
    assert opened["dgnet_platform.training.driver"] == 1
    assert opened["dgnet_platform.training.plan"] == 0
