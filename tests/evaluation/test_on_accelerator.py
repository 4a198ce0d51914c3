"""What trained networks can do is the same on an accelerator as on the CPU."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dgnet_core.teacher.config import laptop_teacher
from dgnet_core.teacher.state import TeacherState
from dgnet_platform.evaluation import results
from dgnet_platform.evaluation.config import EvaluateConfig, GenerateConfig, MeasureConfig
from dgnet_platform.evaluation.evaluate import evaluate
from dgnet_platform.evaluation.generate import generate
from dgnet_platform.evaluation.measure import measure
from dgnet_platform.runs import checkpoint
from tests.helpers.accelerator import DEVICE, accelerator
from tests.helpers.evaluations import CONFIG

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = replace(laptop_teacher(3, 8), network=replace(CONFIG.network, appearance_width=1))
    return checkpoint.save(TeacherState.build(config), config, tmp_path_factory.mktemp("teacher"))


@pytest.fixture
def both(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[str], object]], list[object]]:
    """What a function returns on the CPU, and on the accelerator."""

    def called(function: Callable[[str], object]) -> list[object]:
        found = [function("cpu")]
        used: list[bool] = []
        with monkeypatch.context() as patched, accelerator():
            for place in ("compute.parts", "evaluation.evaluate"):
                patched.setattr(f"dgnet_platform.{place}.own_device", lambda gpu: (used.append(gpu), DEVICE)[1])
            found.append(function("there"))
        assert any(used)
        return found

    return called


def test_evaluation(store: Path, trained: Path, teacher: Path, tmp_path: Path, both):
    def figures(name: str) -> list[float]:
        out = tmp_path / name
        config = EvaluateConfig(store=(str(store),), out=out, checkpoint=trained, teacher=teacher, swap_pairs=4)
        with results.replacing(out) as folder:
            results.write(evaluate(config, lambda *_: None), folder)
        return list(results.read(out).retrieval["mAP"])

    here, there = both(figures)
    assert len(here) == 8  # single and multi-query
    assert there == pytest.approx(here, rel=1e-6)


def test_generation_and_measures(store: Path, trained: Path, teacher: Path, tmp_path: Path, both):
    def made(name: str) -> list[bytes]:
        generate(
            GenerateConfig(checkpoint=trained, store=str(store), out=tmp_path / name, per_image=1, batch_size=4),
            lambda *_: None,
        )
        return [path.read_bytes() for path in sorted((tmp_path / name).rglob("*.jpg"))]

    here, there = both(made)
    assert len(here) == 8
    assert here == there

    def distances(name: str) -> list[float]:
        config = MeasureConfig(
            generated=tmp_path / "cpu", store=str(store), out=tmp_path / f"{name}-measured", teacher=teacher, people=4,
            threads=1,
        )  # fmt: skip
        measured = measure(config, lambda *_: None)
        tables = measured.distances, measured.people, measured.diversity
        return [float(value) for table in tables for value in table.select_dtypes("number").to_numpy().flat]

    here, there = both(distances)
    assert len(here) > 20
    assert there == pytest.approx(here, rel=1e-4, abs=1e-6, nan_ok=True)
