"""PN-GAN: its sizes, its losses recomputed, its rate, and what it draws."""

import copy
from dataclasses import replace

import pytest
import torch

from dgnet_core.learning.augment import to_symmetric
from dgnet_core.learning.config import StepConfig
from dgnet_core.networks.config import ImageSize
from dgnet_core.pngan.config import PNGANConfig, laptop, paper
from dgnet_core.pngan.networks import discriminator, generator
from dgnet_core.pngan.step import build, drawing, pngan_step, pose_image, rate
from tests.helpers.generators import SIZES, cost, posed_batch


def tiny(**overrides) -> PNGANConfig:
    network = ImageSize(height=64, width=56)
    fields = {
        "network": network, "batch_size": 2, "width": 2, "residual_blocks": 1, "discriminator_width": 2,
        "iterations": 4, "step": StepConfig(precision="float64"),
    }  # fmt: skip
    return replace(paper(5), **(fields | overrides))


@pytest.mark.parametrize(
    ("size", "gmac", "heat", "judge"), [*zip(SIZES, (6.3, 25.1), (6.66, 26.6), (0.277, 1.35), strict=True)]
)
def test_sizes_are_the_published_ones(size, gmac, heat, judge):
    network = ImageSize(height=size[0], width=size[1])
    with torch.device("meta"):
        config = paper(5, network=network)
        assert cost(generator(config), (6, *size)) == pytest.approx((11.39, gmac), rel=0.01)
        assert cost(generator(replace(config, pose="heatmaps")), (21, *size)) == pytest.approx((11.43, heat), rel=0.01)
        assert cost(discriminator(config), (3, *size)) == pytest.approx((2.76, judge), rel=0.01)


def test_scores_are_26_by_10_patches():
    with torch.device("meta"):
        scores = discriminator(paper(5))(torch.empty(1, 3, 256, 128))
    assert scores.shape == (1, 1, 26, 10)


def test_presets_and_rate():
    config = paper(751)
    assert (config.batch_size, config.lr, config.image, config.real, config.pose) == (32, 2e-4, 10, "source", "sticks")
    assert rate(config, 0) == rate(config, 92_800) == 2e-4
    assert rate(config, 139_200) == pytest.approx(1e-4)
    assert rate(config, config.iterations) == 0
    assert laptop(5, iterations=7).iterations == 7
    with pytest.raises(ValueError, match=r"width = 40: the discriminator needs at least 56 pixels"):
        paper(5, network=ImageSize(height=128, width=40))
    with pytest.raises(ValueError, match=r"height = 126: the generator halves and doubles it twice: a multiple of 4"):
        paper(5, network=ImageSize(height=126, width=64))


@pytest.mark.parametrize("real", ["source", "target"])
@pytest.mark.parametrize("pose", ["sticks", "heatmaps"])
def test_losses_by_hand(real, pose):
    config = tiny(real=real, pose=pose)
    state = build(config)
    before = {name: copy.deepcopy(network) for name, network in state.networks.items()}
    batch = posed_batch(config, 2, 0)
    assert batch.joints is not None
    metrics = pngan_step(state, batch, config)
    source, target = to_symmetric(batch.images)
    with torch.no_grad():
        image = before["generator"](torch.cat([source, pose_image(batch.joints[1], config)], 1))
        fake, true = before["discriminator"](image), before["discriminator"](source if real == "source" else target)
    assert metrics["L_adv"] == pytest.approx(float((fake - 1).square().mean()))
    assert metrics["L_image"] == pytest.approx(float((image - target).abs().mean()))
    assert metrics["D_adv"] == pytest.approx(float(fake.square().mean() + (true - 1).square().mean()))
    assert metrics["grad_generator"] > 0
    assert metrics["grad_discriminator"] > 0


def test_it_resumes_in_every_bit():
    config = tiny()
    whole, part = build(config), build(config)
    for state in (whole, part):
        for t in range(2):
            pngan_step(state, posed_batch(config, 2, t), config)
    again = build(config)
    again.load_state_dict(copy.deepcopy(part.state_dict()))
    for state in (whole, again):
        pngan_step(state, posed_batch(config, 2, 2), config)
    for name, network in whole.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, again.networks[name].state_dict()[key]), f"{name}.{key}"


def test_it_draws_sources_in_poses():
    config = tiny()
    batch = posed_batch(config, 2, 0)
    assert batch.joints is not None
    draw = drawing(build(config), config)
    drawn, turned = draw(batch.images[0], batch.joints[1]), draw(batch.images[0], batch.joints[0])
    assert drawn.shape == batch.images[0].shape
    assert to_symmetric(drawn).abs().max() <= 1 + 1e-6
    assert not torch.equal(drawn, turned)
