"""LSGAN: its sizes, its losses recomputed, its noise by position, and what it draws."""

import copy
from dataclasses import replace

import pytest
import torch

from dgnet_core.learning.augment import from_symmetric, to_symmetric
from dgnet_core.learning.config import StepConfig
from dgnet_core.lsgan.config import LSGANConfig, laptop, paper
from dgnet_core.lsgan.networks import Generator, discriminator
from dgnet_core.lsgan.step import build, inventing, lsgan_step, settings, truncated_noise
from dgnet_core.networks.config import ImageSize
from dgnet_core.networks.modes import evaluating
from tests.helpers.generators import SIZES, cost, posed_batch


def tiny(**overrides) -> LSGANConfig:
    network = ImageSize(height=64, width=32)
    fields = {
        "network": network, "batch_size": 4, "noise": 6, "width": 2, "discriminator_width": 2, "iterations": 6,
        "milestones": (3,), "step": StepConfig(precision="float64"),
    }  # fmt: skip
    return replace(LSGANConfig(num_classes=5), **(fields | overrides))


@pytest.mark.parametrize(
    ("size", "drawn", "judged"), [*zip(SIZES, ((5.03, 1.40), (6.26, 5.6)), (0.115, 0.46), strict=True)]
)
def test_sizes_are_the_published_ones(size, drawn, judged):
    network = ImageSize(height=size[0], width=size[1])
    with torch.device("meta"):
        config = replace(LSGANConfig(num_classes=5), network=network)
        assert cost(Generator(config), (100,)) == pytest.approx(drawn, rel=0.01)
        assert cost(discriminator(config), (3, *size)) == pytest.approx((0.1965, judged), rel=0.02)


def test_scores_are_8_by_4_patches():
    with torch.device("meta"):
        scores = discriminator(LSGANConfig(num_classes=5))(torch.empty(1, 3, 128, 64))
    assert scores.shape == (1, 1, 8, 4)


def test_presets_and_rates():
    config = paper(751, 12_936)
    assert (config.iterations, config.milestones, config.betas) == (10_106, (4_042, 8_085), (0.0, 0.999))
    assert settings(config, 0) == {
        "weight/gradient_penalty": 1e-4, "lr/generator": 3e-4, "lr/discriminator": 6e-4,
    }  # fmt: skip
    assert settings(config, 4_041)["lr/generator"] == 1.5e-4
    assert laptop(5, iterations=100).milestones == (40, 80)
    with pytest.raises(ValueError, match="height = 72: five levels double it: a multiple of 32"):
        tiny(network=ImageSize(height=72, width=64))


def test_losses_by_hand():
    config = tiny()
    state = build(config)
    before = {name: copy.deepcopy(network) for name, network in state.networks.items()}
    batch = posed_batch(config, 1, 0, posed=False)
    metrics = lsgan_step(state, batch, config)
    real = to_symmetric(batch.images[0]).requires_grad_()
    noise = batch.position.normal("noise", (4, 6), "cpu").double()
    fake = before["generator"](noise)
    true_score, fake_score = before["discriminator"](real), before["discriminator"](fake)
    adversarial = (true_score - 1).square().mean() + fake_score.square().mean()
    (gradient,) = torch.autograd.grad(true_score.sum(), real)
    assert metrics["D_adv"] == pytest.approx(float(adversarial.detach()))
    assert metrics["D_penalty"] == pytest.approx(float(gradient.square().sum(dim=(1, 2, 3)).mean()))
    with torch.no_grad():
        score = state.networks["discriminator"].train()(fake)  # the generator descends the new discriminator
    assert metrics["L_adv"] == pytest.approx(float((score - 1).square().mean()))


def test_it_resumes_in_every_bit():
    config = tiny()
    whole, part = build(config), build(config)
    for t in range(4):
        lsgan_step(whole, posed_batch(config, 1, t, posed=False), config)
    for t in range(2):
        lsgan_step(part, posed_batch(config, 1, t, posed=False), config)
    again = build(config)
    again.load_state_dict(copy.deepcopy(part.state_dict()))
    for t in (2, 3):
        lsgan_step(again, posed_batch(config, 1, t, posed=False), config)
    for name, network in whole.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, again.networks[name].state_dict()[key]), f"{name}.{key}"


def test_it_draws_from_truncated_noise_with_running_statistics():
    config = tiny()
    state = build(config)
    for t in range(4):  # statistics to draw with
        lsgan_step(state, posed_batch(config, 1, t, posed=False), config)
    noise = truncated_noise(config, 500, seed=1)
    assert noise.shape == (500, 6)
    assert 1.8 < noise.abs().max() <= 2
    invent = inventing(state, config)
    drawn = invent(4, 1)
    assert drawn.shape == (4, 3, 64, 32)
    assert to_symmetric(drawn).abs().max() <= 1 + 1e-6
    assert torch.equal(invent(4, 1), drawn)
    assert not torch.equal(invent(4, 2), drawn)
    with evaluating(state.networks["generator"]):  # alone as among others: running statistics
        alone = from_symmetric(state.networks["generator"](truncated_noise(config, 4, 1)[:1].double()))
    assert torch.allclose(alone, drawn[:1], atol=1e-5)
    assert state.networks["generator"].training
