"""Each method trains on an accelerator as on the CPU; a run there validates, saves, and resumes."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.learning.config import MethodConfig
from dgnet_core.methods import METHODS, Method
from dgnet_platform.data.images import ImageSet
from dgnet_platform.runs import checkpoint
from dgnet_platform.training import worker
from dgnet_platform.training.learner import Learner
from dgnet_platform.training.loop import run_loop
from tests.helpers.accelerator import DEVICE, There, accelerator, fetched
from tests.helpers.generators import LENGTH, tiny_method, upright
from tests.helpers.runs import lines, same, tiny_experiment, untracked
from tests.helpers.tiny import tiny_config, tiny_pictures, tiny_teacher

CPU = torch.device("cpu")


def pictures(config: MethodConfig) -> ImageSet:
    """A training set of a method's size."""
    pixels, labels = tiny_pictures(tiny_config())
    height, width = config.network.height, config.network.width
    return ImageSet(
        images=F.interpolate(pixels, (height, width)),
        person_ids=labels,
        camera_ids=torch.arange(len(labels)) % 3,
        file_names=tuple(f"{row:04d}.jpg" for row in range(len(labels))),
        joints=upright(height, width, len(labels)),
    )


def learner(config: MethodConfig, device: torch.device) -> Learner:
    teacher = tiny_teacher(config).to(device) if isinstance(config, DGNetConfig) else None
    return Learner(config, pictures(config), device, teacher)


def test_the_accelerator_tells_tensors_that_stay_behind():
    with accelerator():
        there, here = torch.ones(3, device=DEVICE), torch.ones(3)
        assert isinstance(there + 1, There)
        assert fetched(there * torch.tensor(2.0)).tolist() == [2, 2, 2]
        assert there[torch.tensor([0, 2])].sum().item() == 2
        with pytest.raises(RuntimeError, match=r"aten.add.Tensor: tensors of shapes \[\(3,\)\] are on the CPU"):
            torch.add(there, here)
        with pytest.raises(RuntimeError, match="on the CPU"):
            torch.take(here, there.long())
        with pytest.raises(TypeError, match="fetch it"):
            there.numpy()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_run_on_an_accelerator_is_the_same(method: Method, one_thread: None):
    config = tiny_method(method)
    expected = learner(config, CPU)
    with accelerator():
        found = learner(config, DEVICE)
        assert isinstance(found._images.images, There)
    for _ in range(LENGTH):
        wanted = {name: float(value) for name, value in expected.advance().items()}
        with accelerator():
            metrics = found.advance()
        assert {name: float(value) for name, value in fetched(metrics).items()} == pytest.approx(wanted, rel=1e-6)


def test_a_run_on_an_accelerator_validates_saves_and_resumes(
    people_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
):
    experiment = tiny_experiment(people_store, tmp_path)
    run = untracked(experiment, tmp_path / "run", teacher="here")
    for until in (6, None):
        with accelerator():
            teacher = tiny_teacher(experiment.model).to(DEVICE)
            monkeypatch.setattr(worker, "load_teacher", lambda *_, teacher=teacher: teacher)
            part = replace(run, until=until)
            found, validator = worker.build_rank(part, DEVICE)
            worker._restore(part, found)
            assert found.state.iteration == (0 if until else 6)
            outcome = run_loop(part, found, validator, report=lambda *_: None, leaving=lambda: False)
        assert (outcome.ending, outcome.iteration) == ("finished", until or 12)
    assert [line["iteration"] for line in lines(run.folder)] == list(range(1, 13))
    assert {"val/both/mAP", "val/swap/SSIM"} <= lines(run.folder)[-1]["metrics"].keys()
    state, _ = checkpoint.load_networks(run.last_checkpoint)  # on the CPU
    assert same(fetched(found.state.networks["decoder"].state_dict()), state.networks["decoder"].state_dict())
