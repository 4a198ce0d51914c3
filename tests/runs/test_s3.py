"""Stores and MLflow's artifacts on S3, the cache of stores on the node, and places that cannot be used."""

import os
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from pyarrow import fs

from dgnet_platform.data import cache
from dgnet_platform.data.cache import cached
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.pose_files import PoseError
from dgnet_platform.data.poses import KeyPoints, drawn_keypoints
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store, StoreError
from dgnet_platform.storage.remote import RemoteError, check_writable, open_place
from tests.helpers.remote import empty_cache, names, upload
from tests.helpers.servers import answers, stop, wait_for

pytestmark = pytest.mark.filterwarnings("ignore")  # MLflow, its database and its web server warn of each other


# ----------------------------------------------------------------------------------------------------------------
# Stores


@pytest.fixture
def node(tmp_path, monkeypatch):
    return empty_cache(tmp_path, monkeypatch)


def rows(store: Store) -> list[dict]:
    return [row for table in store.row_groups("query") for row in table.to_pylist()]


def test_a_data_set_is_packed_to_s3(s3, people_store):
    config = PrepareConfig(dataset="people", size="tiny", out=f"{s3}/packed", threads=1)
    assert prepare(config).outcome == "packed"
    assert Store.open(f"{s3}/packed").info == Store.open(people_store).info
    assert names(f"{s3}/packed") == sorted(file.name for file in people_store.iterdir())
    assert prepare(config).outcome == "already packed"
    with pytest.raises(StoreError, match=r"s3://bucket/packed holds other pictures of people"):
        prepare(replace(config, seed=1))
    filesystem, root = open_place(f"{s3}/packed")
    filesystem.delete_file(f"{root}/train.parquet")  # as after an upload that was killed
    with pytest.raises(StoreError, match=r"train.parquet is missing"):
        Store.open(f"{s3}/packed")
    with pytest.raises(StoreError, match=r"is no whole store .*remove it"):
        prepare(config)


def test_a_store_is_downloaded_once(s3, people_store, node):
    store, told = upload(people_store, f"{s3}/once"), []
    kept = cached(store, lambda done, total: told.append((done, total)))
    size = sum(file.stat().st_size for file in people_store.glob("*.parquet"))
    assert told[-1] == (size, size)
    assert isinstance(kept.filesystem, fs.LocalFileSystem)
    assert rows(kept) == rows(store) == rows(Store.open(people_store))
    assert (kept.location, kept.info) == (store.location, store.info)
    again = cached(Store.open(f"{s3}/once"), lambda *_: pytest.fail("it was downloaded again"))
    assert again.root == kept.root
    local = Store.open(people_store)
    assert cached(local) is local


def test_key_points_of_a_cached_store_are_downloaded_once_for_each_digest(s3, people_store, node, monkeypatch):
    store = upload(people_store, f"{s3}/posed")
    kept, came, get = cached(store), [], cache.get
    monkeypatch.setattr(
        cache, "get", lambda filesystem, source, *rest: (came.append(source), get(filesystem, source, *rest))
    )
    first = [KeyPoints.open(kept) for _ in range(2)]
    assert {points.digest for points in first} == {KeyPoints.open(Store.open(people_store)).digest}
    assert came == ["bucket/posed/keypoints.feather"]
    drawn_keypoints(store, estimated=True, threads=1).save(store)  # the pictures stay, and so does the cached store
    again = [KeyPoints.open(cached(Store.open(f"{s3}/posed"))) for _ in range(2)]
    assert {points.digest for points in again} == {KeyPoints.open(store).digest} != {first[0].digest}
    assert len(came) == 2
    filesystem, root = open_place(f"{s3}/posed")
    filesystem.delete_file(f"{root}/keypoints.feather")
    with pytest.raises(PoseError, match=r"has no key points .*run jobs/prepare_data.py again"):
        KeyPoints.open(kept)


def test_one_process_downloads_while_others_wait(s3, people_store, node):
    upload(people_store, f"{s3}/shared")
    code = (
        "import sys; from dgnet_platform.data.store import Store; from dgnet_platform.data.cache import *;"
        "told = []; cached(Store.open(sys.argv[1]), lambda *_: told.append(1)); print(len(told))"
    )
    command = [sys.executable, "-c", code, f"{s3}/shared"]
    found = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = [int(process.communicate()[0]) for process in found]
    assert sorted(told) == [0, 0, len(list(people_store.glob("*.parquet")))]


def test_stores_longest_unused_make_room_but_never_one_in_use(s3, people_store, node, monkeypatch):
    size = sum(file.stat().st_size for file in people_store.glob("*.parquet"))
    monkeypatch.setenv("DGNET_CACHE_GIB", str(2.5 * size / 2**30))
    first, second = (Path(cached(upload(people_store, f"{s3}/{name}")).root) for name in ("a", "b"))
    os.utime(first, (1, 1))
    third = Path(cached(upload(people_store, f"{s3}/c")).root)
    assert first.exists()
    assert second.exists()  # all are in use: the limit has to wait
    os.utime(second, (2, 2))
    for folder in (first, second):
        cache._used.pop(folder).close()
    Path(cached(upload(people_store, f"{s3}/d")).root)
    assert not first.exists()
    assert not second.exists()
    assert third.exists()
    monkeypatch.setenv("DGNET_CACHE_GIB", "much")
    with pytest.raises(StoreError, match="DGNET_CACHE_GIB is 'much'"):
        cached(upload(people_store, f"{s3}/e"))


def test_a_store_that_does_not_fit_is_refused(s3, people_store, node, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: type("usage", (), {"free": 1000})())
    with pytest.raises(StoreError, match=r"GiB free, the store takes .*DGNET_CACHE"):
        cached(upload(people_store, f"{s3}/large"))
    assert not [path for path in node.iterdir() if path.is_dir()]


# ----------------------------------------------------------------------------------------------------------------
# Refusals, within seconds


@pytest.fixture
def silent():
    """The address of a server that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(20)
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("location", "environment", "words"),
    [
        ("s3://none-such/runs", {}, "s3://none-such/runs cannot be used .*there is no such bucket: make it"),
        ("s3://bucket/runs", {"AWS_ACCESS_KEY_ID": "reader"}, "s3://bucket/runs .*permission is missing"),
        ("s3://bucket/runs", {"AWS_ACCESS_KEY_ID": "nobody"}, "credentials are not known there.*AWS_ACCESS_KEY_ID"),
        ("s3://bucket/runs", {"AWS_SECRET_ACCESS_KEY": "wrong"}, "credentials are wrong"),
        ("s3://bucket/runs", {"AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None}, "there are no credentials"),
        ("s3://bucket/runs", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "AWS_ENDPOINT_URL, http://127.0.0.1:9, does"),
        ("s3://bucket/runs", {"AWS_ENDPOINT_URL": "silent"}, "does not answer: check the address and the network"),
        ("s3://", {}, "s3:// names no bucket"),
        ("s4://bucket/runs", {}, "s4://bucket/runs is no place pyarrow can read"),
        ("s3://key:hidden@bucket/runs", {}, "holds credentials, which would be shown"),
        ("/proc/runs", {}, "/proc/runs cannot be used"),
    ],
)
def test_a_place_that_cannot_be_used_is_named_with_the_remedy(s3, silent, location, environment, words, monkeypatch):
    for name, value in environment.items():
        if value is None:
            monkeypatch.delenv(name)
        else:
            monkeypatch.setenv(name, silent if value == "silent" else value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nowhere")
    begin = time.monotonic()
    with pytest.raises(RemoteError, match=words) as raised:
        check_writable(location)
    assert time.monotonic() - begin < 20
    assert "hidden" not in str(raised.value)


@pytest.mark.parametrize(
    ("location", "words"),
    [
        ("s3://bucket/nothing", "s3://bucket/nothing holds no store .*run jobs/prepare_data.py --out s3://bucket/noth"),
        ("s3://none-such/store", "s3://none-such/store cannot be read .*there is no such bucket"),
        ("s4://bucket/store", "s4://bucket/store is no place pyarrow can read"),
    ],
)
def test_a_store_that_is_not_there_is_named_with_the_remedy(s3, location, words):
    with pytest.raises(StoreError, match=words):
        Store.open(location)


# ----------------------------------------------------------------------------------------------------------------
# MLflow's artifacts


@pytest.mark.slow
@pytest.mark.long
def test_mlflow_keeps_artifacts_on_s3_for_clients_that_know_only_http(s3, tmp_path, free_port, monkeypatch):
    uri = f"http://127.0.0.1:{free_port}"
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(free_port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{tmp_path}/server.db", "--artifacts-destination", f"{s3}/mlflow",
    ]  # fmt: skip
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "PYTHONWARNINGS": "ignore"}
    with (tmp_path / "log").open("wb") as log:
        server = psutil.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        wait_for(lambda: answers(uri))
        for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)  # only the server may need them
        client = MlflowClient(uri)
        run = client.create_run(client.create_experiment("artifacts")).info.run_id
        (tmp_path / "picture.bin").write_bytes(os.urandom(6 * 2**20))
        client.log_artifact(run, str(tmp_path / "picture.bin"))
        found = Path(client.download_artifacts(run, "picture.bin", str(tmp_path)))
        assert found.read_bytes() == (tmp_path / "picture.bin").read_bytes()
        monkeypatch.undo()
        assert [name for name in names(f"{s3}/mlflow") if name.endswith(f"{run}/artifacts/picture.bin")]
    finally:
        stop(server)
