"""Batches, rates, optimizers and weights of the strong recipe."""

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dgnet_core.dgnet.config import LossConfig, OptimConfig
from dgnet_core.dgnet.networks import AppearanceEncoder
from dgnet_core.dgnet.release import load_release, save_release
from dgnet_core.dgnet.schedule import learning_rates
from dgnet_core.dgnet.state import TrainState
from dgnet_core.learning.batches import PairSampler
from dgnet_core.learning.config import MetricConfig
from dgnet_core.learning.schedule import fall, rise
from dgnet_core.networks.config import NetworkConfig
from dgnet_core.networks.resnet import ResNetTrunk, load_imagenet
from dgnet_core.teacher.config import TeacherConfig
from dgnet_core.teacher.networks import Teacher
from dgnet_core.teacher.step import teacher_rate
from tests.helpers.strong import strong_config, strong_network
from tests.helpers.tiny import (
    tiny_config,
    tiny_state,
)


def test_balanced_batches_have_k_photos_of_each_of_p_identities_who_all_come_as_often() -> None:
    labels = torch.tensor([person for person in range(7) for _ in range(2 * person + 1)])  # 1, 3, ..., 13 photos
    sampler = PairSampler(labels, batch_size=12, seed=3, instances=4)
    seen = torch.zeros(7, dtype=torch.int64)
    for iteration in range(70):
        rows = sampler.batch_at(iteration)
        for batch, positives in ((rows[0], rows[2]), (rows[1], rows[3])):
            people = labels[batch].view(3, 4)
            assert (people == people[:, :1]).all()
            assert len(people[:, 0].unique()) == 3
            assert torch.equal(labels[positives], labels[batch])
            for photos, (person, *_) in zip(batch.view(3, 4), people.tolist(), strict=True):
                assert len(photos.unique()) == min(4, 2 * person + 1)  # each as rarely as may be
        seen += torch.bincount(labels[rows[0]], minlength=7)
        assert torch.equal(PairSampler(labels, 12, 3, 4).batch_at(iteration), rows)  # without history
        parts = [sampler.batch_at(iteration, places) for places in (range(5), range(5, 12))]
        assert torch.equal(torch.cat(parts, dim=1), rows)  # and on any number of ranks
    assert (seen > 4 * 3 * 70 / 7 * 0.8).all()  # 120 each, less or more by who is left over
    many = torch.cat([sampler.batch_at(t)[0] for t in range(200)])
    assert set(many.tolist()) == set(range(len(labels)))
    with pytest.raises(ValueError, match="instances = 2: a batch of 16 needs 8 identities, there are 7"):
        PairSampler(labels, 16, 3, 2)
    with pytest.raises(ValueError, match="instances = 3: a divisor of batch_size = 4"):
        tiny_config(instances=3)


@pytest.mark.parametrize("unknown", [3, 400, 1_600])
def test_balanced_batches_have_images_without_identity_as_often_as_the_data(unknown: int) -> None:
    labels = torch.cat([torch.arange(40).repeat_interleave(10), torch.full((unknown,), -1)])
    sampler = PairSampler(labels, batch_size=32, seed=3, instances=4)
    epochs = 20
    rows = torch.cat([sampler.batch_at(t)[0] for t in range(epochs * len(labels) // 32)])
    share = unknown / len(labels)
    assert (labels[rows] < 0).float().mean() == pytest.approx(share, rel=0.2 if unknown > 3 else 4)
    assert len(rows[labels[rows] < 0].unique()) == unknown  # all of them are seen
    seen = torch.bincount(labels[rows].clamp(min=0)[labels[rows] >= 0], minlength=40)
    assert (seen > 0.7 * seen.float().mean()).all()


def test_rates_rise_and_fall_along_a_cosine() -> None:
    optim = OptimConfig(warmup_iterations=10, cosine_end=110)
    assert rise(10, 0) == pytest.approx(0.1)
    assert rise(10, 5) == pytest.approx(0.55)
    assert rise(10, 10) == rise(10, 99) == rise(0, 0) == 1.0
    assert [fall(optim, t) for t in (0, 10)] == [1.0, 1.0]
    assert fall(optim, 60) == pytest.approx(0.5)
    assert fall(optim, 35) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert fall(optim, 110) == fall(optim, 200) == 0.0
    assert learning_rates(optim, 5)["appearance"] == pytest.approx(0.55 * optim.appearance_lr)
    assert learning_rates(optim, 5)["generator"] == optim.generator_lr  # only the encoder warms up
    assert learning_rates(optim, 60)["discriminator"] == pytest.approx(0.5 * optim.discriminator_lr)
    teacher = TeacherConfig(num_classes=2, iterations=100, warmup_iterations=10, cosine_end=110)
    assert teacher_rate(teacher, 60) == pytest.approx(0.5 * teacher.lr)
    longer = teacher.rescaled(1_000)
    assert (longer.warmup_iterations, longer.cosine_end) == (100, 1_100)
    assert replace(tiny_config(), optim=optim).rescaled(24).optim.cosine_end == 220
    with pytest.raises(ValueError, match="cosine_end = 5: an iteration after warmup_iterations = 10"):
        OptimConfig(warmup_iterations=10, cosine_end=5)
    with pytest.raises(ValueError, match=r"momentum = 1\.5: as Adam's first beta"):
        OptimConfig(optimizer="adam", momentum=1.5)


@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
def test_the_trunk_and_the_heads_have_the_optimizer_that_is_asked_for(kind) -> None:
    config = replace(strong_config(), optim=OptimConfig(optimizer=kind, momentum=0.8, head_lr_factor=3.0))
    optimizer = TrainState.build(config).appearance_optimizer
    assert type(optimizer) is {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind]
    trunk, heads = optimizer.param_groups
    assert heads["factor"] == 3.0
    assert trunk["momentum"] == 0.8 if kind == "sgd" else trunk["betas"] == (0.8, 0.999)
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    assert count == len(list(AppearanceEncoder(config.network, config.num_classes).parameters()))  # GeM's too


def test_the_release_and_its_tensor_names_refuse_gem_and_bnneck(tmp_path: Path) -> None:
    plain = tiny_state(tiny_config())
    save_release(plain, tmp_path)
    for changes in ({"pooling": "release"}, {"neck": "release"}):
        state = tiny_state(strong_config(network=strong_network(**changes)))
        for action in (
            lambda state=state: load_release(state, tmp_path),
            lambda state=state: save_release(state, tmp_path),
        ):
            with pytest.raises(ValueError, match="the authors' release has no GeM and no BNNeck"):
                action()


def moco(tensors: dict[str, Tensor]) -> dict:
    """As MoCo saves a run, LUPerson's included: both encoders with their projections, and the queue."""
    state = {f"module.encoder_{which}.{name}": value for which in "qk" for name, value in tensors.items()}
    projection = {"module.encoder_q.fc.0.weight": torch.zeros(4, 4), "module.queue": torch.zeros(2, 2)}
    return {"epoch": 200, "arch": "resnet50", "state_dict": state | projection}


@pytest.mark.parametrize("layout", ["torchvision", "moco", "old"])
def test_people_pretrained_weights_load_by_their_names(tmp_path: Path, layout: str) -> None:
    config = tiny_config().network
    source = ResNetTrunk(config, last_stride=2).state_dict()
    content = {"torchvision": lambda: source, "moco": lambda: moco(source)}.get(
        layout, lambda: {name: value for name, value in source.items() if not name.endswith("num_batches_tracked")}
    )()
    torch.save(content, tmp_path / "people.pth")
    trunk = ResNetTrunk(config, last_stride=1)
    load_imagenet(trunk, replace(config, pretrained=str(tmp_path / "people.pth")))
    for name, value in trunk.state_dict().items():
        assert torch.equal(value, source[name]), name


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop("layer2.0.conv1.weight"), r"it lacks tensor 'layer2\.0\.conv1\.weight' \(1 such\)"),
        (lambda t: t.update({"blocks.0.attn": torch.zeros(1)}), r"it has the foreign tensor 'blocks\.0\.attn'"),
        (lambda t: t.update({"conv1.weight": torch.zeros(1)}), r"tensor 'conv1\.weight' has shape \(1,\), not \(4, 3,"),
    ],
)
def test_foreign_weights_are_refused_by_name_and_change_nothing(tmp_path: Path, damage, message: str) -> None:
    config = tiny_config().network
    tensors = ResNetTrunk(config, last_stride=2).state_dict()
    damage(tensors)
    torch.save(tensors, tmp_path / "people.pth")
    trunk = ResNetTrunk(config, last_stride=1)
    before = deepcopy(trunk.state_dict())
    with pytest.raises(ValueError, match=message):
        load_imagenet(trunk, replace(config, pretrained=str(tmp_path / "people.pth")))
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())


def test_files_that_hold_no_tensors_are_refused(tmp_path: Path) -> None:
    config = replace(tiny_config().network, pretrained=str(tmp_path / "people.pth"))
    (tmp_path / "people.pth").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"people\.pth': no file of tensors that can be read safely"):
        load_imagenet(ResNetTrunk(config, last_stride=1), config)
    torch.save([1, 2], tmp_path / "people.pth")
    with pytest.raises(ValueError, match="tensors by their names are needed"):
        load_imagenet(ResNetTrunk(config, last_stride=1), config)


def test_nonsense_is_refused_by_name() -> None:
    for make, message in (
        (lambda: MetricConfig(triplet=-1), "triplet = -1"),
        (lambda: MetricConfig(circle_margin=1.0), "circle_margin = 1.0"),
        (lambda: tiny_config(ema=1.0), "ema = 1.0: a decay"),
        (lambda: LossConfig(label_smoothing=1.0), "label_smoothing = 1.0"),
        (lambda: TeacherConfig(num_classes=2, last_stride=3), "last_stride = 3: 1 or 2"),
        (lambda: NetworkConfig(pooling="max"), "pooling = 'max': choose one of release, gem"),  # pyright: ignore[reportArgumentType]
    ):
        with pytest.raises(ValueError, match=message):
            make()


def test_the_stride_of_the_last_stage_keeps_the_map_large() -> None:
    x = torch.zeros(2, 3, 64, 32)
    network = replace(tiny_config().network, height=64, width=32)
    maps = [Teacher(network, 5, 0.5, stride).trunk(x).shape[2:] for stride in (2, 1)]
    assert maps == [(2, 1), (4, 2)]
