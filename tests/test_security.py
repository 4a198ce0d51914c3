"""What attackers try, and what refuses it.

Elsewhere: archives that climb out, links, zip bombs (tests/data/test_source.py), image bombs
(tests/data/test_prepare.py), paths of manifests (tests/data/test_readers.py, tests/evaluation/test_measure.py), names
of runs (tests/runs/test_experiment.py), passwords of MLflow's server and its secrets in runs
(tests/cluster/test_mlflow_server.py), passwords in URIs (tests/tracking/test_remedies.py). docs/trouble.md has a table.
"""

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
import torch
from pyarrow import fs

from dgnet_core.dgnet.state import TrainState
from dgnet_platform.data.pack import pack
from dgnet_platform.data.readers import read_source
from dgnet_platform.data.source import open_source
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.config import GenerateConfig
from dgnet_platform.evaluation.generate import generate
from dgnet_platform.evaluation.judges import inception_features, resnet_features
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.archive import Archive
from dgnet_platform.runs.checkpoint import load_networks
from dgnet_platform.runs.exported import ExportedNetwork
from dgnet_platform.runs.loading import describe_teacher, open_teacher, open_trained
from dgnet_platform.storage.remote import RemoteError
from tests.helpers.market import snapshot, write_market
from tests.helpers.runs import ROOT
from tests.helpers.tiny import small_config

CONFIG = small_config(3)


# ----------------------------------------------------------------------------------------------------------------
# Files that run code when they are unpickled


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return (Path.touch, (self.target,))


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return checkpoint.save(TrainState.build(CONFIG), CONFIG, tmp_path)


def as_checkpoint(bomb: Path, trained: Path) -> object:
    bomb.replace(trained / "tensors.pt")
    return load_networks(trained)


def as_release(bomb: Path, trained: Path) -> object:
    folder = trained.parent / "release"
    folder.mkdir()
    for name in ("gen", "dis", "id"):
        (folder / f"{name}_00100000.pt").write_bytes(bomb.read_bytes())
    return open_trained(folder)


READERS: dict[str, Callable[[Path, Path], object]] = {
    "a checkpoint": as_checkpoint,
    "the authors' files": as_release,
    "a teacher": lambda bomb, _: open_teacher(bomb),
    "a teacher's digest": lambda bomb, _: describe_teacher(bomb),
    "the FID network": lambda bomb, _: inception_features(bomb, "table2"),
    "an ONNX file": lambda bomb, _: ExportedNetwork(bomb, torch.device("cpu")),
    "a ResNet": lambda bomb, _: resnet_features(bomb),
}


@pytest.mark.parametrize("plain", [True, False], ids=["pickle", "torch.save"])
@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_would_run_code_is_refused(reader: str, plain: bool, trained: Path, tmp_path: Path):
    file, target = tmp_path / "bomb.pth", tmp_path / "it ran"
    content = {"weight": Bomb(target)}
    if plain:
        file.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=r".+"):
        READERS[reader](file, trained)
    assert not target.exists()
    pickle.loads(pickle.dumps(content))  # it would have run
    assert target.exists()


# ----------------------------------------------------------------------------------------------------------------
# Names that lead out of a folder


def test_a_stores_file_names_lead_nowhere(trained: Path, tmp_path: Path):
    """A store whose pictures are named like files elsewhere: generated ones have names of their own."""
    store = tmp_path / "store"
    store.mkdir()
    with open_source(write_market(tmp_path / "market")) as source:
        listing = read_source("market1501", source)
        evil = [replace(record, file_name=f"../../../evil_{n}.jpg") for n, record in enumerate(listing.records)]
        pack(replace(listing, records=tuple(evil)), store, dataset="market1501", threads=1, progress=lambda *_: None)
    assert Store.open(store).index("train")["file_name"].iloc[0].startswith("../")
    out = tmp_path / "a" / "b" / "c" / "set"
    out.parent.mkdir(parents=True)
    before = snapshot(tmp_path)
    generate(GenerateConfig(checkpoint=trained, store=str(store), out=out, per_image=1), lambda *_: None)
    written = snapshot(tmp_path).keys() - before.keys()
    assert written
    assert all(path == out or out in path.parents for path in written)


@pytest.mark.parametrize("name", ["../../evil", "pictures/../../evil", "/etc/evil"])
def test_an_archives_names_that_lead_out_are_refused(name: str, tmp_path: Path):
    """An object store's keys are any text."""
    archive = Archive("s3://bucket/runs", tmp_path / "runs")
    listed = [fs.FileInfo(f"bucket/runs/run/{name}", fs.FileType.File, size=4)]
    archive.__dict__["_place"] = SimpleNamespace(get_file_info=lambda _: listed), "bucket/runs"
    with pytest.raises(RemoteError, match=r"evil', which leads out of run"):
        archive.fetch(tmp_path / "runs" / "run")
    assert not list(tmp_path.rglob("evil"))


# ----------------------------------------------------------------------------------------------------------------
# Ray's dashboard, which starts jobs


@pytest.mark.ray
@pytest.mark.slow
def test_rays_dashboard_wants_its_token():
    program = (
        "import ray; from dgnet_platform.compute.cluster import join_ray; join_ray()\n"
        "assert not ray._private.worker.get_dashboard_url(); ray.shutdown()\n"  # nothing to attack
        "ray.init('local', include_dashboard=True)\n"  # as the head of a cluster has it
        "print(ray._private.worker.get_dashboard_url(), flush=True); input()"
    )
    token = "0123456789abcdef" * 2
    environment = {
        **os.environ, "RAY_ADDRESS": "local", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token,
        "PYTHONPATH": f"{ROOT / 'platform'}{os.pathsep}{ROOT}",
    }  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address.startswith("127.0.0.1:")

        def status(query: str = "", **headers: str) -> int:
            return requests.get(f"http://{address}/api/jobs/{query}", headers=headers, timeout=60).status_code

        assert status() == 401
        assert status(Authorization="Bearer wrong") in (401, 403)
        assert status(f"?token={token}") == 401
        assert status(Authorization=f"Bearer {token}") == 200
    finally:
        process.communicate("\n")
