"""Checkpoints: round trip, refusal of anything damaged or foreign, newest and prune; the authors' release."""

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dgnet_core.dgnet import release
from dgnet_core.dgnet.config import DGNetConfig, laptop
from dgnet_core.dgnet.state import TrainState
from dgnet_core.learning.state import State
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.teacher.networks import Teacher
from dgnet_platform.runs import checkpoint
from dgnet_platform.runs.checkpoint import (
    META,
    TENSORS,
    CheckpointError,
    CheckpointFormatError,
    load,
    load_networks,
    newest,
    prune,
    read_meta,
    save,
    verify,
)
from dgnet_platform.runs.loading import open_teacher, open_trained
from dgnet_platform.training.plan import checkpoint_bytes

BASE = laptop(3)
SMALL = replace(BASE.network, appearance_width=4, bottleneck=8, structure_width=4, adain_width=8, discriminator_width=4)
CONFIG = replace(BASE, network=SMALL, trunk_from_teacher=False)


def trained(seed: int = 0, iteration: int = 0, config: DGNetConfig = CONFIG) -> TrainState:
    """A state with something in its optimisers."""
    state = TrainState.build(replace(config, seed=seed))
    for parameters, optimizer in (
        (state.appearance_encoder.parameters(), state.appearance_optimizer),
        (state.discriminator.parameters(), state.discriminator_optimizer),
    ):
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, 0.1)
        optimizer.step()
    state.iteration = iteration
    return state


def same_tensors(left: State, right: State) -> bool:
    pairs = zip(left.networks.values(), right.networks.values(), strict=True)
    return all(
        torch.equal(value, other.state_dict()[name]) for one, other in pairs for name, value in one.state_dict().items()
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    metrics = {"mAP": 0.25, "loss": float("nan")}
    return save(
        trained(iteration=1234),
        CONFIG,
        tmp_path,
        dataset="people",
        fingerprint="f00",
        world_size=2,
        metrics=metrics,
    )


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def flip_a_bit(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


# ------------------------------------------------------------------------------------------------------------
# Round trip


def test_directory_and_meta(path: Path, tmp_path: Path):
    assert path == tmp_path / "checkpoint_00001234"
    assert sorted(file.name for file in path.iterdir()) == [META, TENSORS]
    assert names(tmp_path) == [path.name]
    meta = read_meta(path)
    assert (meta.config, meta.iteration, meta.dataset, meta.fingerprint) == (CONFIG, 1234, "people", "f00")
    assert (meta.world_size, meta.metrics, meta.torch) == (2, {"mAP": 0.25, "loss": None}, torch.__version__)
    assert meta.code.startswith("0.")
    assert verify(path) == meta
    torch.load(path / TENSORS, weights_only=True)


def test_everything_comes_back(path: Path):
    saved, restored = trained(iteration=1234), TrainState.build(replace(CONFIG, seed=5))
    assert not same_tensors(saved, restored)
    load(path, restored)
    assert same_tensors(saved, restored)
    assert restored.iteration == 1234
    momentum = saved.appearance_optimizer.state_dict()["state"]
    for number, found in restored.appearance_optimizer.state_dict()["state"].items():
        assert torch.equal(found["momentum_buffer"], momentum[number]["momentum_buffer"])


def test_networks_alone_are_built_from_the_checkpoint(path: Path):
    state, meta = load_networks(path)
    assert isinstance(state, TrainState)
    assert same_tensors(state, trained())
    assert state.iteration == meta.iteration == 1234
    assert not state.appearance_optimizer.state


def test_networks_of_a_run_with_graphs_need_no_graphs(path: Path, tmp_path: Path):
    """A run on a GPU replays graphs; a CPU evaluates and draws by its checkpoints."""
    meta = checkpoint.read_meta(path)
    state, _ = checkpoint.load_networks(path)
    captured = replace(meta.config, step=replace(meta.config.step, graph=True))
    written = checkpoint.save(state, captured, tmp_path, dataset=meta.dataset, fingerprint=meta.fingerprint)
    again, found = checkpoint.load_networks(written)
    assert found.config.step.graph
    for name, network in state.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(again.networks[name].state_dict()[key], value)
    assert checkpoint_bytes(captured) == checkpoint_bytes(meta.config)


def test_networks_of_a_compiled_run_are_not_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    saved = save(trained(), replace(CONFIG, step=replace(CONFIG.step, compile=True)), tmp_path)
    monkeypatch.setattr(torch.nn.Module, "compile", lambda *_: pytest.fail("compiled"))
    load_networks(saved)


def test_the_same_iteration_is_replaced(path: Path, tmp_path: Path):
    assert save(trained(seed=1, iteration=1234), replace(CONFIG, seed=1), tmp_path) == path
    assert names(tmp_path) == [path.name]
    assert verify(path).config.seed == 1


def test_a_failed_save_leaves_what_was_there(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: object) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(checkpoint.torch, "save", full)
    with pytest.raises(OSError, match="is the disk full"):
        save(trained(seed=1, iteration=1234), CONFIG, tmp_path)
    assert names(tmp_path) == [path.name]
    assert verify(path).fingerprint == "f00"


def test_what_a_killed_run_left_is_no_checkpoint(tmp_path: Path):
    partial = tmp_path / ".checkpoint_00000007.partial"
    partial.mkdir()
    (partial / TENSORS).write_bytes(b"half")
    assert newest(tmp_path) is None
    save(trained(iteration=7), CONFIG, tmp_path)
    assert names(tmp_path) == ["checkpoint_00000007"]


# ------------------------------------------------------------------------------------------------------------
# Refusal


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.999])
def test_a_flipped_bit_of_the_tensors_is_refused(path: Path, share: float):
    flip_a_bit(path / TENSORS, int(share * (path / TENSORS).stat().st_size))
    for read in (verify, load_networks, lambda p: load(p, trained())):
        with pytest.raises(CheckpointError, match=rf"{TENSORS} was changed .*: copy it again"):
            read(path)


def test_any_flipped_bit_of_the_meta_is_refused(path: Path):
    content = (path / META).read_bytes()
    for position in range(0, len(content), 17):
        (path / META).write_bytes(content)
        flip_a_bit(path / META, position)
        if json_equal((path / META).read_bytes(), content):  # white space
            continue
        with pytest.raises(CheckpointError, match=META):
            read_meta(path)


def json_equal(one: bytes, other: bytes) -> bool:
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def test_truncated_and_incomplete_ones_are_refused(path: Path):
    tensors = (path / TENSORS).read_bytes()
    (path / TENSORS).write_bytes(tensors[:-1])
    with pytest.raises(CheckpointError, match=rf"{TENSORS} has [\d,]+ bytes, [\d,]+ were written: copy it again"):
        read_meta(path)
    (path / TENSORS).unlink()
    with pytest.raises(CheckpointError, match=f"it has no {TENSORS}"):
        read_meta(path)
    (path / TENSORS).write_bytes(tensors)
    (path / META).write_bytes((path / META).read_bytes()[:100])
    with pytest.raises(CheckpointError, match=META):
        read_meta(path)
    (path / META).unlink()
    with pytest.raises(CheckpointError, match=f"it has no {META}"):
        read_meta(path)


def test_missing_foreign_and_other_formats_are_refused(path: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_meta(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no whole checkpoint"):
        read_meta(path / META)
    for text in ("[]", "3", '{"model": "resnet"}', "{}"):
        (path / META).write_text(text)
        with pytest.raises(CheckpointError, match="damaged or no checkpoint"):
            read_meta(path)
    (path / META).write_text('{"format": 99, "digest": ""}')
    with pytest.raises(CheckpointFormatError, match="format 99, this code reads 2"):
        read_meta(path)


def test_a_configuration_this_code_does_not_know(path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(checkpoint, "to_dict", lambda config: {"num_classes": 3, "new_switch": True})
    meta = read_meta(path)
    (path / META).write_text(meta.to_json())
    with pytest.raises(CheckpointError, match=r"unknown key 'new_switch'.*read it with that version"):
        read_meta(path)


def test_a_state_of_another_configuration(path: Path):
    other = TrainState.build(replace(CONFIG, num_classes=9))
    with pytest.raises(CheckpointError, match=r"tensors.pt: the training state is of another configuration"):
        load(path, other)


# ------------------------------------------------------------------------------------------------------------
# A run's checkpoints


def test_newest_sets_damaged_ones_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    paths = [save(trained(iteration=n), CONFIG, tmp_path) for n in (5, 10, 200, 100_000_000)]
    (tmp_path / "checkpoint_latest").mkdir()
    assert newest(tmp_path) == paths[3]
    flip_a_bit(paths[3] / TENSORS, 1000)
    (paths[2] / META).unlink()
    shutil.copytree(paths[2], tmp_path / "damaged_00000200")
    with caplog.at_level(logging.WARNING):
        assert newest(tmp_path) == paths[1]
    assert [record.message.count("Set aside as damaged_") for record in caplog.records] == [1, 1]
    assert "checkpoint_100000000/tensors.pt was changed" in caplog.text
    assert names(tmp_path) == [
        "checkpoint_00000005",
        "checkpoint_00000010",
        "checkpoint_latest",
        "damaged_00000200",
        "damaged_00000200_",
        "damaged_100000000",
    ]
    assert newest(tmp_path / "nothing") is None


def test_newest_does_not_pass_over_another_format(tmp_path: Path):
    save(trained(iteration=1), CONFIG, tmp_path)
    other = save(trained(iteration=2), CONFIG, tmp_path)
    (other / META).write_text('{"format": 99, "digest": ""}')
    with pytest.raises(CheckpointFormatError):
        newest(tmp_path)
    assert other.exists()


def test_prune_keeps_the_last_and_the_best(tmp_path: Path):
    scores = {1: 0.5, 2: 0.7, 3: 0.7, 4: 0.1, 5: 0.2, 6: None}
    paths = {
        n: save(trained(iteration=n), CONFIG, tmp_path, metrics={} if score is None else {"mAP": score})
        for n, score in scores.items()
    }
    assert prune(tmp_path, keep_last=4, keep_best="mAP") == [paths[1], paths[2]]
    assert prune(tmp_path, keep_last=2, keep_best="mAP") == [paths[4]]
    assert prune(tmp_path, keep_last=2, keep_best="unheard of") == [paths[3]]
    assert names(tmp_path) == [paths[5].name, paths[6].name]
    assert prune(tmp_path, keep_last=1) == [paths[5]]


# ------------------------------------------------------------------------------------------------------------
# The authors' release

RELEASED = NetworkConfig(
    appearance_layers=(1, 2, 1, 1),
    appearance_width=4,
    bottleneck=8,
    pretrained="none",
    structure_width=4,
    residual_blocks=3,
    adain_width=8,
    discriminator_width=4,
    discriminator_scales=2,
)


def test_a_release_folder_tells_its_sizes(tmp_path: Path):
    state = trained(config=replace(CONFIG, num_classes=7, network=RELEASED))
    older = trained(seed=1, iteration=90, config=replace(CONFIG, num_classes=7, network=RELEASED))
    state.iteration = 1000
    release.save_release(older, tmp_path)
    release.save_release(state, tmp_path)
    opened = open_trained(tmp_path)
    assert opened.network == RELEASED
    assert same_tensors(opened.state, state)
    assert "iteration 1,000, 7 identities" in opened.source
    assert opened.fingerprint is None
    (tmp_path / "dis_00001000.pt").unlink()
    with pytest.raises(CheckpointError, match=r"dis_00001000\.pt"):
        open_trained(tmp_path)
    (tmp_path / "dis_00001000.pt").write_bytes(b"no tensors")
    with pytest.raises(CheckpointError, match=r"dis_00001000\.pt is no PyTorch file"):
        open_trained(tmp_path)
    torch.save({"a": {}}, tmp_path / "dis_00001000.pt")
    with pytest.raises(CheckpointError, match="is missing from the dis file"):
        open_trained(tmp_path)


def test_a_release_teacher_tells_its_sizes(tmp_path: Path):
    teacher = Teacher(RELEASED, 11)
    torch.save(release.release_state_dicts({"teacher": teacher})["teacher"], tmp_path / "net_last.pth")
    opened = open_teacher(tmp_path / "net_last.pth")
    assert isinstance(opened.network, NetworkConfig)
    assert opened.network.appearance_layers == (1, 2, 1, 1)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, opened.state.networks["teacher"].state_dict()[name])
    with pytest.raises(CheckpointError, match=r"net_first\.pth"):
        open_teacher(tmp_path / "net_first.pth")


def test_what_is_no_checkpoint_is_named(path: Path, tmp_path: Path):
    assert open_trained(path).dataset == "people"
    with pytest.raises(CheckpointError, match=r"name one such as .*checkpoint_00001234"):
        open_trained(tmp_path)
    with pytest.raises(CheckpointError, match=f"{META} is a file: name a checkpoint's directory"):
        open_trained(path / META)
    with pytest.raises(CheckpointError, match="does not exist"):
        open_trained(tmp_path / "nothing")
