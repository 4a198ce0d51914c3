"""Runs that are killed, stopped, or left alone by their tracking server end as those that were not."""

import signal
import time
from dataclasses import replace

import pytest
from mlflow import MlflowClient

from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.prepare import prepare
from dgnet_platform.errors import ExperimentError
from dgnet_platform.runs.run import Run
from dgnet_platform.search.plan import check_compared
from dgnet_platform.tracking.shipping import ship
from dgnet_platform.training.driver import train
from jobs.train_market import main as train_market
from tests.helpers.market import noise
from tests.helpers.runs import QUIET, by_command_line, history, job, lines, same, tensors, tiny_experiment
from tests.helpers.servers import TrackingServer, wait_for

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow, its database and its web server warn of each other


@pytest.mark.slow
def test_a_set_without_query_and_gallery_is_trained_on(tmp_path, capsys, monkeypatch):
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
    monkeypatch.setenv("COLUMNS", "300")
    for _ in range(2):  # done, and found to be done
        assert train_market(options) == 0
        assert f"Not evaluated: {store} has no query and gallery" in capsys.readouterr().out
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
    with pytest.raises(ExperimentError, match=r"none of the 2 held-out .*: a search compares trials on such"):
        check_compared(held_out)


@pytest.mark.slow
def test_a_killed_driver_continues_bit_for_bit(finished, people_store, tmp_path, capsys):
    experiment = replace(
        tiny_experiment(people_store, tmp_path), teacher=finished.run.teacher, checkpoint_every=2, name="killed"
    )
    options = by_command_line(experiment, tmp_path / "experiment.yaml")
    process = job("train_market.py", *options)
    wait_for(lambda: (tmp_path / "killed" / "checkpoint_00000004").exists() or process.poll() is not None)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "checkpoint_00000012").exists()
    killed = Run.read(tmp_path / "killed")

    assert train_market(options) == 0
    output = capsys.readouterr().out
    assert "both, beta 0.5" in output
    assert "mlflow ui" in output
    assert same(tensors(finished.run, 12), tensors(killed, 12))
    client = MlflowClient(killed.tracking_uri)
    for name in ("iteration", "loss/L_img1"):
        assert [step for step, _ in history(client, killed, name)] == list(range(1, 13))
    assert history(client, killed, "loss/L_img1") == [
        (line["iteration"], line["metrics"]["loss/L_img1"]) for line in lines(finished.run.folder)
    ]


@pytest.mark.slow
def test_sigterm_saves_and_says_so(finished, people_store, tmp_path):
    experiment = tiny_experiment(people_store, tmp_path, teacher=finished.run.teacher, name="stopped")
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
@pytest.mark.long
def test_a_server_that_is_away_stops_nothing_and_loses_nothing(finished, people_store, tmp_path, free_port):
    server = TrackingServer(tmp_path, free_port)
    server.start()
    experiment = tiny_experiment(
        people_store, tmp_path, teacher=finished.run.teacher, name="away", tracking_uri=server.uri
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
