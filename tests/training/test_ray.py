"""Training on a real Ray cluster of this machine: two workers do as one; killed in turn, and the driver with them."""

import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient

from dgnet_platform.runs.run import Run
from dgnet_platform.training.driver import train
from tests.helpers.runs import QUIET, by_command_line, history, job, lines, same, tensors, tiny_experiment
from tests.helpers.servers import wait_for

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # Ray, MLflow and gRPC warn of each other
]
ITERATIONS = 60


@pytest.fixture(scope="module")
def storage(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("storage")


@pytest.fixture(scope="module")
def alone(people_store, storage) -> Run:
    """A run of one rank, in this process."""
    return train(tiny_experiment(people_store, storage), console=QUIET).run


@pytest.fixture(scope="module")
def experiment(alone, people_store, storage):
    """A run on two workers with time to be killed, whose teacher is there."""
    experiment = tiny_experiment(people_store, storage, workers="2", teacher=alone.teacher)
    return replace(
        experiment,
        model=replace(experiment.model, iterations=ITERATIONS),
        checkpoint_every=5,
        evaluate_every=ITERATIONS // 2,
        keep=20,
    )


def options(experiment, storage: Path) -> list[str]:
    return by_command_line(experiment, storage / f"{experiment.name}.yaml")


def test_two_workers_compute_what_one_does(alone, people_store, storage):
    experiment = tiny_experiment(people_store, storage, workers="2", teacher=alone.teacher, name="together")
    process = job("train_market.py", *options(experiment, storage))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    together = Run.read(storage / "together")
    one, two = (lines(run.folder)[0]["metrics"] for run in (alone, together))  # later rounding in float32 grows
    for name in one:
        if name.startswith(("loss/", "monitor/gradient_")):
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-6), name
    client = MlflowClient(together.tracking_uri)
    assert history(client, together, "iteration") == [(t, float(t)) for t in range(1, 13)]
    tags = client.get_run(together.mlflow_run).data.tags
    assert (tags["dgnet.workers"], tags["dgnet.images_a_rank"]) == ("2", "4")


@pytest.mark.long  # ranks that crash resume bit for bit in test_loop.py, a killed driver in test_interruptions.py
def test_two_workers_survive_kills_bit_for_bit(experiment, storage):
    process = job("train_market.py", *options(replace(experiment, name="whole"), storage))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    whole = Run.read(storage / "whole")

    # Kill rank 0, then the driver.
    folder = storage / "killed"
    process = job("train_market.py", *options(replace(experiment, name="killed"), storage))
    try:
        wait_for(lambda: (folder / "checkpoint_00000010").exists() or process.poll() is not None, 300)
        first = rank_0(folder)
        first.kill()
        wait_for(lambda: not first.is_running() or first.status() == psutil.STATUS_ZOMBIE)
        done = len(lines(folder))
        assert done < ITERATIONS - 10, "the worker was killed too late to tell"
        wait_for(lambda: (folder / "checkpoint_00000020").exists() or process.poll() is not None, 300)
        assert process.poll() is None, process.communicate()[0]
        assert rank_0(folder).pid != first.pid
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not (folder / f"checkpoint_{ITERATIONS:08d}").exists(), "the driver was killed too late to tell"

    process = job("train_market.py", *options(replace(experiment, name="killed"), storage))
    output, _ = process.communicate()
    assert process.returncode == 0, output
    killed = Run.read(folder)
    assert same(tensors(whole, ITERATIONS), tensors(killed, ITERATIONS))
    client = MlflowClient(killed.tracking_uri)
    assert [step for step, _ in history(client, killed, "iteration")] == list(range(1, ITERATIONS + 1))
    assert history(client, killed, "loss/L_img1") == history(client, whole, "loss/L_img1")


def rank_0(folder: Path) -> psutil.Process:
    """The worker that writes a run's journal: it has started the process that ships it."""
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        parent = process.parent() if "dgnet_platform.tracking.shipping" in command and str(folder) in command else None
        if parent is not None and parent.name().startswith("ray::"):
            return parent
    raise AssertionError("no worker ships the journal")


@pytest.mark.long  # parts are refused by the same words: tests/compute/test_parts.py
def test_more_workers_than_there_is_room_for_are_refused(experiment, storage):
    model = replace(experiment.model, batch_size=256)
    crowded = replace(experiment, name="crowded", workers="128", model=model)
    process = job("train_market.py", *options(crowded, storage))
    output, _ = process.communicate()
    assert process.returncode == 2, output
    assert "128 workers need 128 CPUs" in output
    assert "free" in output
