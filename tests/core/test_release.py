"""The authors' checkpoints: read into our networks and written back."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgnet_core.dgnet.release import load_release, open_teacher, release_name, release_state_dicts, save_release
from dgnet_core.dgnet.state import TrainState
from tests.helpers.tiny import assert_same, tiny_config, tiny_state, tiny_teacher


def test_round_trip(tmp_path: Path) -> None:
    config = tiny_config()
    saved = tiny_state(config, iteration=100)
    save_release(saved, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dis_00000100.pt", "gen_00000100.pt", "id_00000100.pt"]
    loaded = tiny_state(replace(config, seed=9), iteration=100)
    load_release(loaded, tmp_path)
    loaded.optimizers["appearance_optimizer"].load_state_dict(saved.appearance_optimizer.state_dict())
    assert_same(loaded, saved)


def test_the_newest_or_the_wanted_iteration_is_loaded(tmp_path: Path) -> None:
    config = tiny_config()
    states = {n: tiny_state(replace(config, seed=n), iteration=n) for n in (1, 2)}
    for state in states.values():
        save_release(state, tmp_path)
    for wanted, expected in ((None, 2), (1, 1)):
        state = tiny_state(config)
        load_release(state, tmp_path, wanted)
        assert torch.equal(state.decoder.up1.conv.weight, states[expected].decoder.up1.conv.weight)
    with pytest.raises(FileNotFoundError, match=r"gen_00000007\.pt"):
        load_release(tiny_state(config), tmp_path, 7)


def test_teacher_round_trip(tmp_path: Path) -> None:
    config = tiny_config()
    teacher = tiny_teacher(config)
    torch.save(release_state_dicts({"teacher": teacher})["teacher"], tmp_path / "net_last.pth")
    state, found = open_teacher(tmp_path / "net_last.pth")
    assert found.num_classes == config.num_classes
    for name, value in teacher.state_dict().items():
        assert torch.equal(state.teacher.state_dict()[name], value.float()), name


def damage(tmp_path: Path, change) -> TrainState:
    config = tiny_config()
    save_release(tiny_state(config), tmp_path)
    path = tmp_path / "id_00000000.pt"
    content = torch.load(path, weights_only=True)
    change(content["a"])
    torch.save(content, path)
    return tiny_state(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("classifier2.classifier.0.bias"), "'classifier2.classifier.0.bias' is missing"),
        (lambda t: t.update({"model.layer9.weight": torch.zeros(1)}), "unknown tensor 'model.layer9.weight'"),
        (lambda t: t.update({"model.conv1.weight": torch.zeros(3)}), r"'model.conv1.weight' has shape \(3,\)"),
        (lambda t: t.update({"classifier1.classifier.0.weight": torch.zeros(702, 16)}), "set num_classes = 702"),
        (lambda t: t.update({"model.conv1.weight": [1, 2]}), "expected a state dict"),
    ],
)  # fmt: skip
def test_files_that_do_not_fit_are_refused_and_nothing_is_changed(tmp_path: Path, change, message: str) -> None:
    state = damage(tmp_path, change)
    untouched = tiny_state(tiny_config())
    with pytest.raises(ValueError, match=message):
        load_release(state, tmp_path)
    assert_same(state, untouched)


def test_old_files_without_batch_counters_load(tmp_path: Path) -> None:
    def drop(tensors: dict) -> None:
        for name in [n for n in tensors if n.endswith("num_batches_tracked")]:
            del tensors[name]

    load_release(damage(tmp_path, drop), tmp_path)


def test_unreadable_and_absent_files(tmp_path: Path) -> None:
    state = tiny_state(tiny_config())
    with pytest.raises(FileNotFoundError, match=r"no id_\*.pt"):
        load_release(state, tmp_path)
    save_release(state, tmp_path)
    (tmp_path / "dis_00000000.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=r"dis_00000000\.pt is no PyTorch file"):
        load_release(state, tmp_path)
    with pytest.raises(FileNotFoundError):
        open_teacher(tmp_path / "none.pth")
    with pytest.raises(KeyError):
        release_name("decoder.unknown.weight")
