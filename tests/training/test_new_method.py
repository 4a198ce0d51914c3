"""docs/methods.md adds a method with one module and one row: the platform trains it as it trains all others."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from dgnet_core.learning.config import AugmentConfig
from dgnet_core.methods import METHODS, method_of
from dgnet_core.networks.config import ImageSize
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.experiment import Experiment, identity_of
from dgnet_platform.runs.run import Run
from dgnet_platform.training import loop
from dgnet_platform.training.worker import build_rank
from tests.helpers.runs import CLASSES, ROOT, lines, untracked

PAGE = (ROOT / "docs" / "methods.md").read_text()


@pytest.fixture
def autoencoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The page's module, with its row in the table."""
    code = re.search(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)
    assert code is not None
    (tmp_path / "autoencoder.py").write_text(code[1])
    spec = importlib.util.spec_from_file_location("autoencoder", tmp_path / "autoencoder.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "autoencoder", module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(METHODS, module.ROW.name, module.ROW)
    return module


@pytest.mark.usefixtures("one_thread")
def test_the_loop_trains_the_pages_method(autoencoder, people_store, tmp_path, monkeypatch):
    model = autoencoder.AutoencoderConfig(
        num_classes=CLASSES, iterations=6, network=ImageSize(height=24, width=12), augment=AugmentConfig(pad=1), lr=0.01
    )
    experiment = Experiment(
        data=str(people_store), storage=str(tmp_path), model=model, log_every=1, evaluate_every=3, checkpoint_every=3
    )
    identity = identity_of(experiment, dataset="people", fingerprint="f", teacher=None, origin=None)
    assert identity.name.startswith("people-autoencoder-")
    folder = tmp_path / "run"
    untracked(experiment, folder).save()
    run = Run.read(folder)
    assert run.experiment == experiment
    monkeypatch.setattr(loop.ray.train, "get_preemption_info", lambda: None)
    reports = []
    learner, validator = build_rank(run, torch.device("cpu"))
    assert loop.run_loop(run, learner, validator, report=reports.append).ending == "finished"

    journal = [line["metrics"] for line in lines(folder)]
    assert journal[-1]["loss/L_image"] < journal[0]["loss/L_image"]
    assert {"monitor/gradient_autoencoder", "lr/adam", validator.objective, "val/swap/SSIM"} <= journal[-1].keys()
    assert [report["iteration"] for report in reports] == [3, 6]
    state, meta = checkpoint.load_networks(checkpoint.checkpoints(folder)[-1])
    assert method_of(meta.config) is autoencoder.ROW
    for name, value in learner.state.networks["autoencoder"].state_dict().items():
        assert torch.equal(value, state.networks["autoencoder"].state_dict()[name])


def test_the_page_is_short():
    assert len(PAGE.splitlines()) <= 60
