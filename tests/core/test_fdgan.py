"""FD-GAN: its sizes, its losses by hand, its pairs, and its three stages."""

import copy
from dataclasses import replace
from typing import cast

import pytest
import torch
import torch.nn.functional as F

from dgnet_core.fdgan import step
from dgnet_core.fdgan.config import FDGANConfig, laptop, paper
from dgnet_core.fdgan.networks import Generator, Verifier, pose_discriminator
from dgnet_core.fdgan.step import _cropped, _labels, _paired, build, drawing, fdgan_step, rates, settings
from dgnet_core.learning.augment import MEAN, STD, denormalise
from dgnet_core.learning.batches import check_joints
from dgnet_core.learning.config import AugmentConfig
from dgnet_core.learning.losses import against
from dgnet_core.learning.state import State
from dgnet_core.methods import METHODS
from dgnet_core.networks.config import TrunkConfig
from tests.helpers.generators import SIZES, cost, method_batch, tiny_method


def tiny(**overrides) -> FDGANConfig:
    return cast(FDGANConfig, tiny_method(METHODS["fdgan"], **overrides))


def run(state: State, config: FDGANConfig, until: int) -> list[dict]:
    return [fdgan_step(state, method_batch(config, t), config) for t in range(state.iteration, until)]


@pytest.mark.parametrize(
    ("size", "drawn", "judged", "trunk"),
    [*zip(SIZES, ((24.4, 0.52), (55.9, 2.1)), (0.40, 1.7), (0.68, 2.7), strict=True)],
)
def test_sizes_are_the_published_ones(size, drawn, judged, trunk):
    height, width = size
    with torch.device("meta"):
        config = paper(5, network=TrunkConfig(height=height, width=width, pretrained="none"))
        assert cost(Generator(config), (2048,), (18, *size), (256,)) == pytest.approx(drawn, rel=0.02)
        assert cost(pose_discriminator(config), (21, *size)) == pytest.approx((2.78, judged), rel=0.02)
        assert cost(Verifier(config, 2), (3, *size)) == pytest.approx((23.5, trunk), rel=0.02)


def test_scores_are_30_by_14_patches():
    with torch.device("meta"):
        assert pose_discriminator(paper(5))(torch.empty(1, 21, 256, 128)).shape == (1, 1, 30, 14)


def test_presets_and_rates():
    config = paper(751)
    assert (config.batch_size, config.stage1, config.stage2, config.iterations) == (256, 20_200, 20_200, 50_500)
    assert [config.stage(t)[0] for t in (0, 20_199, 20_200, 40_399, 40_400, 50_499)] == [1, 1, 2, 2, 3, 3]
    assert [rates(config, t)["encoder"] for t in (0, 8_080, 16_160, 20_200)] == pytest.approx([0.01, 1e-3, 1e-4, 0])
    assert rates(config, 20_200)["generator"] == rates(config, 30_300)["generator"] == 1e-4
    assert rates(config, 35_350) == pytest.approx({
        "encoder": 0, "joint_encoder": 0, "generator": 5e-5, "identity_discriminator": 5e-6, "pose_discriminator": 5e-4,
    })  # fmt: skip
    assert rates(config, 40_400) == pytest.approx({
        "encoder": 0, "joint_encoder": 1e-5, "generator": 1e-5, "identity_discriminator": 1e-4,
        "pose_discriminator": 1e-4,
    })  # fmt: skip
    assert settings(config, 0)["weight/image"] == 0
    assert [settings(config, t)["weight/verification"] for t in (0, 20_200, 40_400)] == [1, 0, 10]
    small = laptop(5, iterations=100)
    assert (small.stage1, small.stage2) == (40, 40)
    with pytest.raises(ValueError, match="stage1 = 0: at least 1: stage 2 needs the encoder that stage 1 trains"):
        paper(5, stage1=0)
    with pytest.raises(ValueError, match=r"stage2 = 31000: from 1 to iterations - stage1 = 30300"):
        paper(5, stage2=31_000)
    assert (config.crop_area, config.crop_aspect) == ((0.64, 1), (2, 3))
    with pytest.raises(ValueError, match=r"crop_area = \(0, 1\): \(from, to\) with 0 < from <= to <= 1"):
        paper(5, crop_area=(0, 1))
    with pytest.raises(ValueError, match=r"crop_aspect = \(3, 2\): \(from, to\) with 0 < from <= to"):
        paper(5, crop_aspect=(3, 2))
    with pytest.raises(ValueError, match="height = 100: five levels halve it: a multiple of 32"):
        paper(5, network=TrunkConfig(height=100, width=64, pretrained="none"))


def test_stage_1_draws_no_heat_maps(monkeypatch):
    config = tiny()
    monkeypatch.setattr(step, "heat_maps", lambda *_, **__: pytest.fail("stage 1 learns from sources alone"))
    assert run(build(config), config, config.stage1)


def test_stage_1_alone_crops_and_each_side_of_a_pair_by_itself(monkeypatch):
    config = tiny(batch_size=8)
    batch = method_batch(config, 0)
    sources = _paired(batch, check_joints(batch), config).sources
    cropped = _cropped(sources, batch.position, config)
    moved = (cropped - sources).flatten(1).abs().amax(1) > 1e-6
    assert moved.sum() > 8
    again = _cropped(sources[:8].repeat(2, 1, 1, 1), batch.position, config)
    assert sum(not torch.equal(a, b) for a, b in zip(*again.chunk(2), strict=True)) > 4
    halves = []
    for rank in range(2):
        half = method_batch(config, 0, rank, 2)
        halves.append(
            _cropped(_paired(half, check_joints(half), config).sources, half.position, config).unflatten(0, (2, 4))
        )
    assert torch.equal(torch.cat(halves, dim=1).flatten(0, 1), cropped)
    later = method_batch(config, 1)
    assert not torch.equal(_cropped(sources, later.position, config), cropped)

    seen = []
    monkeypatch.setattr(step, "crop_and_resize", lambda x, *_: seen.append(x) or x)
    config = tiny()
    run(build(config), config, config.iterations)
    assert len(seen) == config.stage1
    assert laptop(5).crop_area == (1, 1)
    config = tiny(crop_area=(1.0, 1.0))
    run(build(config), config, config.stage1)
    assert len(seen) == 4


def test_every_fourth_pair_is_of_one_identity_and_shares_its_target():
    config = tiny(batch_size=8, augment=AugmentConfig(flip=0, pad=0, erase=0))
    batch = method_batch(config, 0)
    pairs = _paired(batch, check_joints(batch), config)
    first, second = pairs.targets.chunk(2)
    assert [torch.equal(a, b) for a, b in zip(first, second, strict=True)] == [True, False, False, False] * 2
    maps = pairs.poses.chunk(2)
    assert torch.equal(maps[0][0], maps[1][0])
    assert not torch.equal(pairs.sources.chunk(2)[0][0], pairs.sources.chunk(2)[1][0])
    equal = batch.labels[0] == batch.labels[1]
    assert pairs.same.tolist() == [int(k % 4 == 0 or equal[k]) for k in range(8)]
    assert pairs.shared.tolist() == [4, 0, 0, 0] * 2
    halves = [method_batch(config, 0, rank, 2) for rank in range(2)]
    parts = [_paired(half, check_joints(half), config) for half in halves]
    assert torch.equal(torch.cat([part.shared for part in parts]), pairs.shared)
    assert torch.equal(torch.cat([part.poses.chunk(2)[1] for part in parts]), maps[1])


def test_labels_are_smoothed_and_one_for_each_call():
    drawn = [_labels(0, "pose", t) for t in range(200)]
    assert all(0.7 <= real < 1 and 0 <= fake < 0.3 for real, fake in drawn)
    assert len(set(drawn)) == 200
    assert drawn[0] != _labels(0, "identity", 0)


def test_labels_are_swapped_once_in_10_001_calls(monkeypatch):
    assert pytest.approx(1 / 10_001) == step.SWAPPED
    for name, when in (("pose", 10_754), ("identity", 8_634)):  # the first ones of seed 0
        for t, swapped in ((when - 1, False), (when, True), (when + 1, False)):
            real, fake = _labels(0, name, t)
            assert (real < fake) == swapped
    straight = _labels(0, "pose", 3)
    monkeypatch.setattr(step, "SWAPPED", 1.0)
    assert _labels(0, "pose", 3) == straight[::-1]


def test_losses_by_hand():
    config = tiny(dropout=0.0, augment=AugmentConfig(flip=0, pad=0, erase=0))
    state = build(config)
    run(state, config, config.stage1)
    taken = cast(Verifier, copy.deepcopy(state.networks["encoder"]).eval())
    generator, pose = (copy.deepcopy(state.networks[name]) for name in ("generator", "pose_discriminator"))
    batch = method_batch(config, config.stage1)
    pairs = _paired(batch, check_joints(batch), config)
    (metrics,) = run(state, config, config.stage1 + 1)
    noise = batch.position.normal("noise", (4, config.noise), "cpu").double().repeat(2, 1)
    with torch.no_grad():
        fake = generator(taken(pairs.sources), pairs.poses, noise)
        patches = [pose(torch.cat([pairs.poses, x], 1)) for x in (pairs.targets, fake)]
        logits = [
            F.linear(taken.norm((taken(pairs.sources) - taken(x)).square()), taken.classifier.weight[1:],
                     taken.classifier.bias[1:])
            for x in (pairs.targets, fake)
        ]  # fmt: skip
    for name, (real, made) in {"pose": patches, "identity": logits}.items():
        labels = _labels(config.seed, name, config.stage1)
        expected = (against(real, labels[0], "nsgan") + against(made, labels[1], "nsgan")) / 2
        assert metrics[f"D_{name}"] == pytest.approx(float(expected))
    assert metrics["L_image"] == pytest.approx(float((fake - pairs.targets).abs().mean()))
    assert metrics["L_same_pose"] == pytest.approx(float((fake[0] - fake[4]).abs().mean()))
    # The generator learns from both discriminators as they are after their step.
    identity = cast(Verifier, state.networks["identity_discriminator"])
    with torch.no_grad():
        scores = F.linear(
            identity.norm((identity(pairs.sources) - identity(fake)).square()), identity.classifier.weight,
            identity.classifier.bias,
        )  # fmt: skip
        judged = state.networks["pose_discriminator"](torch.cat([pairs.poses, fake], 1))
    assert metrics["L_identity"] == pytest.approx(float(F.softplus(-scores).mean()))
    assert metrics["L_pose"] == pytest.approx(float(F.softplus(-judged).mean()))


@pytest.mark.parametrize("stage", [1, 3])
def test_verification_by_hand(stage):
    config = tiny(crop_area=(1.0, 1.0))
    state = build(config)
    start = 0 if stage == 1 else config.stage1 + config.stage2
    run(state, config, start)
    encoder = cast(Verifier, copy.deepcopy(state.networks["encoder"])).train(stage == 1)
    batch = method_batch(config, start)
    pairs = _paired(batch, check_joints(batch), config)
    (metrics,) = run(state, config, start + 1)
    with torch.no_grad():
        first, second = encoder(pairs.sources).chunk(2)
        logits = F.linear(encoder.norm((first - second).square()), encoder.classifier.weight, encoder.classifier.bias)
    different, same = logits.unbind(1)
    wrong = torch.where(pairs.same.bool(), different - same, same - different)
    assert 0 < pairs.same.sum() < len(pairs.same)
    assert metrics["L_verification"] == pytest.approx(float(F.softplus(wrong).mean()))


def test_stages_switch_at_their_iteration_and_begin_fresh():
    config = tiny()
    assert (config.stage1, config.stage2, config.iterations) == (4, 4, 9)
    state = build(config)
    first = run(state, config, 4)
    assert set(first[0]) == {"L_verification", "grad_encoder"}
    assert not state.optimizers["generator"].state
    encoder = copy.deepcopy(state.networks["encoder"].state_dict())
    second = run(state, config, 8)
    assert "L_verification" not in second[0]
    assert all(torch.equal(value, state.networks["encoder"].state_dict()[key]) for key, value in encoder.items())
    assert not state.optimizers["encoder"].state
    assert {float(memory["step"]) for memory in state.optimizers["generator"].state.values()} == {4.0}
    third = run(state, config, 9)
    assert {"L_verification", "L_image", "grad_encoder"} <= set(third[0])
    assert {float(memory["step"]) for memory in state.optimizers["generator"].state.values()} == {1.0}
    statistics = {key: value for key, value in state.networks["encoder"].state_dict().items() if "running" in key}
    assert all(torch.equal(value, encoder[key]) for key, value in statistics.items())
    moved = [key for key, value in state.networks["encoder"].named_parameters() if not torch.equal(value, encoder[key])]
    assert len(moved) == len(list(state.networks["encoder"].parameters()))


def test_its_colours_reach_all_that_there_are_unless_as_released():
    config = tiny()
    state = build(config)
    batch = method_batch(config, 0)
    joints = check_joints(batch)
    released = torch.tensor([MEAN, STD])
    for reach, (dark, bright) in {
        "fixed": torch.tensor([[0.0] * 3, [1.0] * 3]),
        "release": torch.stack([released[0] - released[1], released[0] + released[1]]),
    }.items():
        network = cast(Generator, state.networks["generator"])
        network.range = reach
        last = network.get_submodule("last.0")
        for colour, bias in ((dark, -50.0), (bright, 50.0)):
            torch.nn.init.zeros_(last.get_parameter("weight"))
            torch.nn.init.constant_(last.get_parameter("bias"), bias)
            drawn = denormalise(drawing(state, config)(batch.images[0], joints[2]))
            assert torch.allclose(drawn[0, :, 5, 5] / 255, colour, atol=0.01)


def test_stages_1_and_2_learn():
    """People of one colour each: who is who, and in which colour to draw them."""
    plain = AugmentConfig(flip=0, pad=0, erase=0)
    config = replace(tiny(augment=plain, width=4, generator_lr=1e-2, dropout=0.0, batch_size=8), iterations=120,
                     stage1=60, stage2=60)  # fmt: skip
    colours = torch.rand(5, 3, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 4 - 2
    for seed in (0, 1):
        config = replace(config, seed=seed)
        state = build(config)
        found = []
        for t in range(120):
            batch = method_batch(config, t)
            first, second = batch.labels
            shown = torch.stack([colours[who].expand(-1, 3, 32, 32) for who in (first, second, first, second, first)])
            shown = shown + 0.1 * batch.images
            found.append(fdgan_step(state, replace(batch, images=shown), config))
        verified = [float(metrics["L_verification"]) for metrics in found[:60]]
        assert sum(verified[-20:]) < 0.8 * sum(verified[:20])
        image = [float(metrics["L_image"]) for metrics in found[60:]]
        assert sum(image[-10:]) < 0.7 * sum(image[:10])
