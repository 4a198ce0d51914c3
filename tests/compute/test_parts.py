"""Parts made by Ray's actors on a real Ray cluster of this machine: killed, refused, the same in every byte."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import ray
import torch

from dgnet_core.dgnet.state import TrainState
from dgnet_core.teacher.config import laptop_teacher
from dgnet_core.teacher.state import TeacherState
from dgnet_platform.compute import cluster as machines
from dgnet_platform.compute.parts import Part, make_parts, missing, owned, parts_of
from dgnet_platform.data.store import StoreError
from dgnet_platform.errors import ExperimentError
from dgnet_platform.evaluation.config import GenerateConfig, MeasureConfig
from dgnet_platform.evaluation.generate import MANIFEST, generate
from dgnet_platform.evaluation.measure import measure
from dgnet_platform.evaluation.measured import TABLES
from dgnet_platform.runs import checkpoint
from jobs.evaluate import main as evaluate
from tests.helpers.runs import job
from tests.helpers.servers import wait_for
from tests.helpers.sets import CONFIG, contents, options

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore"),  # Ray and gRPC warn of each other
    pytest.mark.usefixtures("one_thread"),
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    return checkpoint.save(TrainState.build(CONFIG), CONFIG, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "local")
        machines.join_ray()
        yield
        ray.shutdown()


def test_a_killed_set_is_finished_by_other_workers(people_store, trained, tmp_path, request):
    config = GenerateConfig(
        checkpoint=trained, store=str(people_store), out=tmp_path / "whole", per_image=8, batch_size=4, threads=1
    )
    generate(config, lambda *_: None)
    killed = replace(config, out=tmp_path / "killed", workers=1)
    process = job("generate.py", *options(killed))
    wait_for(lambda: (killed.out / "train-00001").exists() or process.poll() is not None, 300)
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate()
    assert (killed.out / "train-00001").exists(), output
    assert not (killed.out / MANIFEST).exists(), "it was killed too late to tell"

    request.getfixturevalue("cluster")
    made = generate(replace(killed, workers=2), lambda *_: None).made
    assert 0 < made < 144 * 8
    assert contents(killed.out) == contents(tmp_path / "whole")


def test_a_distributed_evaluation_is_the_same(people_store, trained, tmp_path, cluster, monkeypatch):
    monkeypatch.setattr("dgnet_platform.evaluation.extraction.PART", 64)
    arguments = ["--checkpoint", trained, "--store", people_store, "--swap-pairs", "2", "--batch-size", "32"]
    for out, more in (("here", []), ("there", ["--distributed", "--workers", "2"])):
        assert evaluate([*map(str, arguments), "--out", str(tmp_path / out), *more]) == 0
    here, there = (contents(tmp_path / out) for out in ("here", "there"))
    values, others = (json.loads(files.pop("results.json")) for files in (here, there))
    assert [row.pop("pictures") for row in values.pop("extraction")] == [48 + 192 + 96]
    assert [row.pop("pictures") for row in others.pop("extraction")] == [48 + 192 + 96]
    assert others == values
    assert there == here
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]


@pytest.mark.long
def test_a_stopped_measurement_is_finished_by_workers(people_store, trained, tmp_path, cluster, monkeypatch):
    monkeypatch.setattr("dgnet_platform.evaluation.measure.PART", 64)
    generated = tmp_path / "set"
    generate(
        GenerateConfig(checkpoint=trained, store=str(people_store), out=generated, per_image=1, threads=1),
        lambda *_: None,
    )
    torch.manual_seed(0)
    network = replace(CONFIG.network, appearance_width=1)
    config = replace(laptop_teacher(12, 144), network=network)
    teacher = checkpoint.save(TeacherState.build(config), config, tmp_path / "teacher")
    here = MeasureConfig(
        generated=generated, teacher=teacher, store=str(people_store), out=tmp_path / "here", people=40, threads=1,
        diversity_pairs=2, diversity_rounds=2,
    )  # fmt: skip
    whole = measure(here, lambda *_: None)

    def stop(what: str, done: int, total: int) -> None:
        if what == "DSSIM" and done:
            raise KeyboardInterrupt

    there = replace(here, out=tmp_path / "there")
    with pytest.raises(KeyboardInterrupt):
        measure(there, stop)
    seen: dict[str, list[tuple[int, int]]] = {}
    finished = measure(replace(there, workers=2), lambda what, *at: seen.setdefault(what, []).append(at))
    for name in TABLES:
        pd.testing.assert_frame_equal(getattr(finished, name), getattr(whole, name), check_exact=True)
    assert set(seen) == {"features", "DSSIM", "drawn people"}
    assert all(at[-1][0] == at[-1][1] for at in seen.values())
    assert len(seen["features"]) == 1  # nothing was left to do
    assert 0 < seen["DSSIM"][0][0] < seen["DSSIM"][0][1]


class Work:
    """Gives parts of one file; dies at the second part, once."""

    def __init__(self, *, device: torch.device, marker: Path, refuses: int) -> None:
        self._text, self._marker, self._refuses = str(device), marker, refuses

    def __call__(self, part: Part) -> dict[str, bytes]:
        if part.first == 2 and not self._marker.exists():
            self._marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if part.first == self._refuses:
            raise StoreError(f"rows {part.first} to {part.stop}: prepare the store again")
        return {"device": self._text.encode(), "rows": f"{part.first} {part.stop}".encode()}


def test_a_lost_worker_is_replaced_and_a_refusal_is_the_workers_own(tmp_path, cluster):
    parts, written, out = parts_of("train", 9, 2), [], tmp_path / "out"
    arguments = {"marker": tmp_path / "died", "refuses": -1}
    with owned(out, {}):
        make_parts(out, parts, Work, arguments, workers=2, gpus=None, progress=written.append)
        assert (tmp_path / "died").exists()
        assert sorted(part.first for part in written) == [0, 2, 4, 6, 8]
        assert missing(out, parts) == []
        assert (out / "train-00004" / "rows").read_bytes() == b"8 9"
    other = tmp_path / "other"
    with owned(other, {}):
        with pytest.raises(StoreError) as refused:
            make_parts(other, parts, Work, arguments | {"refuses": 2}, workers=1, gpus=False, progress=written.append)
        assert str(refused.value) == "rows 2 to 4: prepare the store again"
        assert not (other / "train-00001").exists()
        with pytest.raises(ExperimentError, match="--workers 128: 128 workers need 128 CPUs; this cluster has"):
            make_parts(other, parts, Work, arguments, workers=128, gpus=False, progress=written.append)
