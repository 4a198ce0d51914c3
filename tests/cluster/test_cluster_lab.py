"""A real `ray up` on several hosts: a search of trials on two of them, cut off, killed, and gone on with."""

import subprocess
from functools import partial
from pathlib import Path

import pytest

from tests.cluster.lab import ADDRESSES, HEAD, WORKERS, lab, wait_for
from tests.cluster.lab_cluster import (
    EVERY,
    ITERATIONS,
    SEARCH,
    START,
    Cluster,
    done,
    furnish,
    hosts_of,
    starts,
    wait_while,
)
from tests.helpers.runs import lines

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore"),  # Ray, MLflow and gRPC warn of each other
]


@pytest.fixture(scope="module")
def cluster(people_store, tmp_path_factory):
    """A cluster that is up, and what a tiny search needs in its shared folder."""
    with lab() as hosts:
        furnish(hosts.shared, people_store, tmp_path_factory.mktemp("cluster"))
        cluster = Cluster(hosts)
        cluster.up()
        yield cluster


@pytest.fixture(scope="module")
def whole(cluster):
    """The storage folder of a search that nothing happened to."""
    succeed(cluster.submit(f"{SEARCH} --storage /shared/whole"))
    return cluster.lab.shared / "whole"


def succeed(job: subprocess.Popen[str]) -> str:
    output, _ = job.communicate()
    assert job.returncode == 0, output
    return output


def curves(folder: Path) -> list[dict[str, float]]:
    return [
        {name: value for name, value in line["metrics"].items() if not name.startswith("speed/")}
        for line in lines(folder)
    ]


def the_prefix(storage: Path) -> Path:
    [folder] = (storage / "prefixes").glob("*/*/")
    return folder


def test_each_trial_has_two_hosts_and_is_tracked(cluster, whole):
    folders = [the_prefix(whole), whole / "search-000", whole / "search-001"]
    for folder in folders:
        [start] = starts(folder)
        assert len(set(hosts_of(start))) == 2, start
        assert set(hosts_of(start)) < set(WORKERS)
    [experiment] = cluster.mlflow("experiments/search", max_results=10, filter="name = 'dgnet-people'")["experiments"]
    runs = cluster.mlflow("runs/search", experiment_ids=[experiment["experiment_id"]])["runs"]
    found = {run["info"]["run_name"]: run for run in runs}
    for folder in folders[1:]:
        run = found[folder.name]
        assert run["info"]["status"] == "FINISHED"
        tags = {tag["key"]: tag["value"] for tag in run["data"]["tags"]}
        assert tags["dgnet.hosts"] == ", ".join(starts(folder)[0]["hosts"])
        assert all(ADDRESSES[name] in tags["dgnet.hosts"] for name in hosts_of(starts(folder)[0]))
        metrics = {metric["key"]: metric["value"] for metric in run["data"]["metrics"]}
        assert metrics["iteration"] == ITERATIONS
        assert metrics["loss/L_img1"] == lines(folder)[-1]["metrics"]["loss/L_img1"]


def test_strangers_are_refused(cluster):
    status = "curl -s -o /dev/null -w '%{http_code}'"
    search = f"http://{ADDRESSES[HEAD]}:5000/api/2.0/mlflow/experiments/search"
    assert cluster.run(f"{status} '{search}?max_results=1'") == "401"
    assert cluster.run(f"{status} -u admin:wrong '{search}?max_results=1'") == "401"
    assert cluster.run(f"{status} http://localhost:8265/api/jobs/") == "401"
    refused = cluster.run("HOME=/tmp RAY_AUTH_MODE=disabled ray job submit -- touch /shared/stranger", status=1)
    assert "Unauthorized" in refused
    assert not (cluster.lab.shared / "stranger").exists()
    cluster.run(f"curl -s http://{ADDRESSES[HEAD]}:8265", status=7)  # only the head itself gets there


def test_an_elastic_run_goes_on_with_fewer_workers_and_again_with_all(cluster):
    lab, folder = cluster.lab, cluster.lab.shared / "runs" / "elastic"
    job = cluster.submit(
        "train_market.py --name elastic --data /shared/people --teacher /shared/teacher --config /shared/base.yaml"
        f" --workers 1:3 --model.iterations 100000 --evaluate-every 100000 --checkpoint-every {EVERY}",
        "--submission-id elastic",
    )
    follow = partial(wait_while, job)
    follow(lambda: done(folder) > EVERY, "iterations on three hosts")
    lost = hosts_of(starts(folder)[0])[0]
    lab.off(lost)
    follow(lambda: len(starts(folder)) == 2, "workers on two hosts")
    follow(lambda: done(folder) > starts(folder)[1]["iteration"] + EVERY, "iterations on two hosts")
    lab.on(lost)
    follow(lambda: len(starts(folder)) == 3, "workers on three hosts again")
    follow(lambda: done(folder) > starts(folder)[2]["iteration"] + EVERY, "iterations on three hosts again")
    cluster.run("ray job stop elastic")
    job.communicate()
    assert [set(hosts_of(start)) for start in starts(folder)] == [{*WORKERS}, {*WORKERS} - {lost}, {*WORKERS}]
    assert [line["iteration"] for line in lines(folder)] == list(range(1, done(folder) + 1))
    assert (folder / f"checkpoint_{done(folder):08d}").exists()


def test_a_search_survives_its_hosts_and_its_driver(cluster, whole):
    lab, storage = cluster.lab, cluster.lab.shared / "broken"
    command = f"{SEARCH} --storage /shared/broken"
    job = cluster.submit(command)

    follow = partial(wait_while, job)

    # A host of the prefix is cut off.
    follow(lambda: list((storage / "prefixes").glob("*/*/")), "the prefix")
    prefix = the_prefix(storage)
    follow(lambda: done(prefix) > EVERY, "iterations of the prefix")
    lost = hosts_of(starts(prefix)[0])[1]
    lab.cut(lost)
    assert done(prefix) < START, "cut off too late to tell"
    follow(lambda: len(starts(prefix)) == 2, "workers on other hosts")
    assert lost not in hosts_of(starts(prefix)[1])
    lab.mend(lost)

    # One of the first trial is killed for good; the other one is back.
    first = storage / "search-000"
    follow(lambda: done(first) > START + EVERY, "iterations of the first trial")
    dead = hosts_of(starts(first)[0])[0]
    lab.off(dead)
    assert done(first) < ITERATIONS, "killed too late to tell"
    follow(lambda: len(starts(first)) == 2, "workers on other hosts")
    assert set(hosts_of(starts(first)[1])) == {*WORKERS} - {dead}

    # The driver is killed, and the job submitted again.
    second = storage / "search-001"
    follow(lambda: done(second) > START + EVERY, "iterations of the second trial")
    lab.run(HEAD, "pkill -KILL -f '^python jobs/tune_market.py'")
    assert done(second) < ITERATIONS, "killed too late to tell"
    job.communicate()
    assert job.returncode
    succeed(cluster.submit(command))

    # All is as if nothing had happened.
    names = ("search/leaderboard.csv", "search/best.yaml")
    assert [(storage / name).read_text() for name in names] == [(whole / name).read_text() for name in names]
    for name in ("search-000", "search-001"):
        assert curves(storage / name) == curves(whole / name)
    assert curves(prefix) == curves(the_prefix(whole))
    # Each interruption cost no more than what came after a checkpoint, and no finished prefix was trained again.
    assert [start["iteration"] for start in starts(prefix)] == [0, EVERY]
    for folder in (first, second):
        assert [start["iteration"] for start in starts(folder)] == [START, START + EVERY]


def test_ray_down_leaves_nothing(cluster, whole):  # workers are up, or ray down would race with their start
    cluster.down()
    cluster.lab.run(HEAD, ". dgnet/environment.sh; python dgnet/mlflow_server.py stop")
    left = "ps -eo args | grep -E 'ray|mlflow|python' | grep -vE 'grep|lab_host.sh' || true"
    for name in cluster.lab.names:
        try:
            wait_for(lambda name=name: not cluster.lab.run(name, left), 90, f"end of Ray on {name}")
        except AssertionError as error:
            raise AssertionError(f"{error}: {cluster.lab.run(name, left)}") from None
