"""Exported files run by onnxruntime, by PyTorch, by MLflow and by evaluation: they give the checkpoint's descriptors.

Bounds: 1e-4 of a descriptor's length in float32, a cosine above 0.999 in float16.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch

from dgnet_core.fdgan.config import laptop as fdgan_laptop
from dgnet_core.learning.state import State
from dgnet_core.lsgan.config import laptop as lsgan_laptop
from dgnet_core.methods import build, described
from dgnet_core.networks.modes import evaluating
from dgnet_core.teacher.config import TeacherConfig
from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.decode import decode
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import write_market
from dgnet_platform.data.people.sizes import Size
from dgnet_platform.data.prepare import prepare
from dgnet_platform.data.store import Store
from dgnet_platform.evaluation.config import EvaluateConfig
from dgnet_platform.evaluation.results import read
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.exported import metadata as exported_metadata
from dgnet_platform.runs.loading import open_trained
from jobs import evaluate, export
from tests.helpers.servers import served
from tests.helpers.tiny import small_config

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = Size(
    train_identities=3, test_identities=6, cameras=2,
    train=8, queries=12, gallery=30, distractors=2, junk=2, hand_drawn=2,
)  # fmt: skip
DGNET = small_config(3)
STRONG = replace(DGNET, network=replace(DGNET.network, pooling="gem", neck="bnneck"), ema=0.9, beta=0.8)
TEACHER = TeacherConfig(
    num_classes=3, network=STRONG.network, batch_size=4, iterations=4, milestones=(3,), warmup_iterations=0,
)  # fmt: skip
FDGAN = fdgan_laptop(3, iterations=4)
CONFIGS: dict[str, Any] = {"dgnet": DGNET, "strong": STRONG, "teacher": TEACHER, "fdgan": FDGAN}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    write_market(People(1), folder / "people", SIZE)
    prepare(PrepareConfig(dataset="people", source=folder / "people", out=folder / "store", threads=1))
    return folder / "store"


def trained(config: Any, store: Path, folder: Path) -> tuple[State, Path]:
    """A checkpoint whose networks, averages and statistics all differ from those they started with."""
    torch.manual_seed(3)
    state = build(config, pretrained=False)
    for network in (*state.networks.values(), *state.averages.values()):
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                value.add_(0.05 * torch.rand_like(value) if "running_var" in name else 0.05 * torch.randn_like(value))
    state.iteration = config.iterations
    info = Store.open(store).info
    path = checkpoint.save(state, config, folder / "run", dataset=info.dataset, fingerprint=info.fingerprint)
    return state, path


def run(job: Any, *arguments: object) -> int:
    return job.main([str(argument) for argument in arguments])


def expected(state: State, config: Any, pixels: torch.Tensor) -> np.ndarray:
    network = described(state, config)
    with evaluating(network):
        return network(pixels).numpy()


@pytest.fixture(scope="module", params=CONFIGS)
def exported(request: pytest.FixtureRequest, store: Path, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A checkpoint and its files."""
    config, folder = CONFIGS[request.param], tmp_path_factory.mktemp(request.param)
    state, path = trained(config, store, folder)
    formats = ("onnx", "pt2", "mlflow") if config is STRONG else ("onnx", "pt2")  # MLflow takes its time
    assert run(export, "--checkpoint", path, "--out", folder / "files", "--formats", *formats) == 0
    size = config.network
    pixels = torch.randint(256, (5, 3, size.height, size.width), dtype=torch.uint8)
    return SimpleNamespace(
        config=config, checkpoint=path, files=folder / "files", pixels=pixels, store=store,
        expected=expected(state, config, pixels),
    )  # fmt: skip


@pytest.mark.parametrize(("iteration", "beta"), [(0, 0.0), (DGNET.iterations, 0.5)])
def test_a_half_that_has_not_learned_has_no_part(store: Path, tmp_path: Path, iteration: int, beta: float):
    state = build(DGNET, pretrained=False)
    state.iteration = iteration
    assert described(state, DGNET).beta == beta
    info = Store.open(store).info
    path = checkpoint.save(state, DGNET, tmp_path / "run", dataset=info.dataset, fingerprint=info.fingerprint)
    assert exported_metadata(open_trained(path), path)["beta"] == f"{beta:g}"
    assert run(evaluate, "--checkpoint", path, "--store", store, "--out", tmp_path / "out", "--swap-pairs", 0) == 0
    assert set(read(tmp_path / "out").retrieval["feature"]) == ({"f_prim", "f_fine", "both"} if beta else {"f_prim"})


def agree(found: np.ndarray, expected: np.ndarray, half: bool) -> None:
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    if half:
        assert (found * expected).sum(axis=1).min() > 0.999
    else:
        assert np.linalg.norm(found - expected, axis=1).max() < 1e-4  # of length 1


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_onnxruntime_gives_our_descriptors_for_any_batch(exported: SimpleNamespace, half: bool):
    path = exported.files / f"descriptors{'_float16' if half else ''}.onnx"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(value.name, value.shape[0]) for value in (*session.get_inputs(), *session.get_outputs())] == [
        ("pixels", "pictures"), ("descriptors", "pictures"),
    ]  # fmt: skip
    for count in (1, 2, 5):
        (found,) = session.run(["descriptors"], {"pixels": exported.pixels[:count].numpy()})
        agree(np.asarray(found), exported.expected[:count], half)
    about, size = session.get_modelmeta().custom_metadata_map, exported.config.network
    assert (about["height"], about["width"]) == (str(size.height), str(size.width))
    assert about["fingerprint"] == Store.open(exported.store).info.fingerprint
    assert (about["run"], about["checkpoint"]) == ("run", exported.checkpoint.name)
    assert about["precision"] == ("float16" if half else "float32")
    assert about["version"] == checkpoint.read_meta(exported.checkpoint).code


@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_the_program_gives_our_descriptors_for_any_batch(exported: SimpleNamespace, half: bool):
    whole = exported.files / "descriptors.pt2"
    path = exported.files / "descriptors_float16.pt2" if half else whole
    extra = {"metadata.json": ""}
    program = torch.export.load(path, extra_files=extra).module()
    for count in (1, 2, 5):
        agree(program(exported.pixels[:count]).numpy(), exported.expected[:count], half)
    assert json.loads(extra["metadata.json"])["run"] == "run"
    if half:
        kinds = {value.dtype for value in torch.export.load(path).state_dict.values()}
        assert torch.float16 in kinds


def queries(exported: SimpleNamespace) -> tuple[list[bytes], np.ndarray]:
    """Files of pictures, and the descriptors of the checkpoint."""
    rows = next(iter(Store.open(exported.store).row_groups("query")))["image"].to_pylist()[:3]
    pixels = torch.stack([torch.from_numpy(decode(row).transpose(2, 0, 1).copy()) for row in rows])
    state, meta = checkpoint.load_networks(exported.checkpoint)
    return rows, expected(state, meta.config, pixels)


def test_mlflow_is_asked_for(exported: SimpleNamespace):
    assert (exported.files / "descriptors_mlflow").exists() == (exported.config is STRONG)


@pytest.mark.parametrize("exported", ["strong"], indirect=True)
@pytest.mark.parametrize("half", [False, True], ids=["float32", "float16"])
def test_mlflow_loads_the_program(exported: SimpleNamespace, half: bool):
    rows, ours = queries(exported)
    model = mlflow.pyfunc.load_model(str(exported.files / f"descriptors{'_float16' if half else ''}_mlflow"))
    agree(model.predict(pd.DataFrame({"image": rows})), ours, half)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("exported", ["strong"], indirect=True)
def test_mlflow_serves_the_program_over_http(exported: SimpleNamespace, tmp_path: Path):
    """By the same predict, whose answer is float32 in either precision."""
    rows, ours = queries(exported)
    with served(str(exported.files / "descriptors_float16_mlflow"), tmp_path) as describe:
        agree(describe(rows), ours, half=True)


def test_evaluation_of_a_file_has_the_checkpoints_figures(exported: SimpleNamespace, tmp_path: Path):
    arguments = ["--store", exported.store, "--swap-pairs", 0, "--queries-shown", 0]
    which = "--teacher" if exported.config is TEACHER else "--checkpoint"
    assert run(evaluate, which, exported.checkpoint, *arguments, "--out", tmp_path / "ours") == 0
    file = exported.files / "descriptors.onnx"
    assert run(evaluate, "--checkpoint", file, *arguments, "--out", tmp_path / "theirs") == 0
    ours, theirs = (read(tmp_path / name).retrieval for name in ("ours", "theirs"))
    assert list(theirs["feature"]) == ["descriptor", "descriptor"]
    best = ours[~ours["feature"].str.endswith("verified")].groupby("query").last()
    for row in theirs.to_dict("records"):
        ours = best.loc[row["query"]]
        assert row["trained_on"] == ours["trained_on"] == row["store"]
        for figure in ("rank1", "rank5", "mAP", "mINP"):
            assert row[figure] == pytest.approx(ours[figure], abs=1e-6)


def test_what_cannot_be_exported_or_read_is_refused(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    _, path = trained(DGNET, store, tmp_path)
    _, blind = trained(lsgan_laptop(3, iterations=4), store, tmp_path / "lsgan")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("mine")
    (tmp_path / "damaged.onnx").write_bytes(b"no protocol buffer")
    evaluated = ["--store", store, "--out", tmp_path / "results", "--checkpoint"]

    def refused(job: Any, *arguments: object) -> str:
        try:
            assert run(job, *arguments) == 2
        except ValueError as error:  # of a configuration
            return str(error)
        return " ".join(capsys.readouterr().out.split())

    new = tmp_path / "new"
    assert "LSGAN describes no people" in refused(export, "--checkpoint", blind, "--out", new)
    assert "full is not empty: name a new folder" in refused(export, "--checkpoint", path, "--out", tmp_path / "full")
    assert "damaged.onnx is no whole ONNX file" in refused(evaluate, *evaluated, tmp_path / "damaged.onnx")
    assert "missing.onnx is no file" in refused(evaluate, *evaluated, tmp_path / "missing.onnx")
    for package, job, arguments in (
        ("onnxscript", export, ["--checkpoint", path, "--out", new]),
        ("onnxruntime", evaluate, [*evaluated, tmp_path / "damaged.onnx"]),
    ):
        with monkeypatch.context() as lost:
            lost.setitem(sys.modules, package, None)  # as if it were not installed
            said = refused(job, *arguments)
            assert f"the package {package} is missing: run uv sync --extra export" in said
    assert not new.exists()


@pytest.mark.parametrize(
    ("file", "options", "said"),
    [
        ("a.pt2", {}, "PyTorch runs code as it reads it: name the ONNX file"),
        ("a.onnx", {"beta": 0.2}, "--beta cannot be had of an exported file"),
        ("a.onnx", {"distributed": True}, "--distributed cannot be had of an exported file"),
        ("a.onnx", {"export_release": Path("out")}, "--export-release cannot be had of an exported file"),
        ("a.onnx", {"precision": "bfloat16"}, "--precision cannot be had of an exported file"),
    ],
)
def test_options_that_need_networks_are_refused_of_a_file(file: str, options: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        EvaluateConfig(store=("store",), out=Path("out"), checkpoint=Path(file), **options)
