"""PG2-GAN: its sizes, its losses by hand, and its two stages."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dgnet_core.learning.augment import to_symmetric
from dgnet_core.learning.config import AugmentConfig, StepConfig
from dgnet_core.learning.poses import discs, pose_mask
from dgnet_core.learning.state import State
from dgnet_core.networks.config import ImageSize
from dgnet_core.pg2gan.config import PG2GANConfig, laptop, paper
from dgnet_core.pg2gan.networks import Discriminator, coarse_generator, initialise, refiner
from dgnet_core.pg2gan.step import build, discriminator_loss, drawing, image_losses, pg2gan_step, settings
from tests.helpers.generators import cost, posed_batch


def tiny(**overrides) -> PG2GANConfig:
    fields = {
        "network": ImageSize(height=24, width=12), "batch_size": 4, "width": 4, "code": 4, "discriminator_width": 2,
        "iterations": 6, "stage1": 3, "lr": 1e-3, "step": StepConfig(precision="float64"),
    }  # fmt: skip
    return replace(paper(5), **(fields | overrides))


def run(state: State, config: PG2GANConfig, until: int) -> list[dict]:
    return [pg2gan_step(state, posed_batch(config, 4, t), config) for t in range(state.iteration, until)]


@pytest.mark.parametrize(
    ("height", "width", "coarse", "fine", "judge"),
    [
        (128, 128, (70.8, 37.4), (6.06, 10.2), (4.32, 0.32)),
        (128, 64, (18.1, 9.4), (1.5, 2.6), (4.32, 0.32)),
        (128, 32, (4.7, 2.4), (0.4, 0.65), (4.32, 0.32)),
        (128, 16, (1.3, 0.6), (0.1, 0.17), (4.32, 0.32)),
        (256, 128, (120, 153), (6.06, 40.8), (10.9, 1.5)),
        (64, 32, (2.6, 0.56), (0.38, 0.16), (1.04, 0.055)),
    ],
)
def test_sizes_are_the_published_ones(height, width, coarse, fine, judge):
    network = ImageSize(height=height, width=height // 2)
    with torch.device("meta"):
        config = paper(5, network=network, width=width)
        assert cost(coarse_generator(config), (21, height, height // 2)) == pytest.approx(coarse, rel=0.04)
        assert cost(refiner(config), (6, height, height // 2)) == pytest.approx(fine, rel=0.05)
        assert cost(Discriminator(config), (3, height, height // 2)) == pytest.approx(judge, rel=0.02)


def test_presets():
    config = paper(751)
    assert (config.stage1, config.iterations, config.batch_size, config.lr) == (22_000, 36_000, 16, 2e-5)
    small = laptop(5, iterations=360)
    assert (small.stage1, small.width) == (220, 16)
    with pytest.raises(
        ValueError, match="stage1 = 40000: from 1, for G2 refines what G1 has learned, to iterations = 36000"
    ):
        paper(5, stage1=40_000)
    with pytest.raises(ValueError, match=r"width = 40: 5 levels halve it 4 times: a multiple of 16"):
        paper(5, network=ImageSize(height=128, width=40))


def test_outside_the_mask_pixels_weigh_1_and_inside_2():
    config = tiny()
    batch = posed_batch(config, 4, 0)
    assert batch.joints is not None
    joints, target = batch.joints[2], to_symmetric(batch.images[2])
    inside = pose_mask(joints, 24, 12)
    assert 0 < inside.mean() < 1
    for place, weight in ((inside, 2), (1 - inside, 1)):
        whole, masked = image_losses(target + 0.5 * place, target, joints, 4.0)
        assert whole + masked == pytest.approx(float(weight * 0.5 * place.mean()))


def test_weights_per_fake_by_hand():
    real, source, fake = (torch.tensor([[value]]) for value in (0.3, -0.2, 1.1))
    triplet = 0.5 * F.softplus(-real) + 0.25 * F.softplus(source) + 0.25 * F.softplus(fake)
    assert discriminator_loss(real, source, fake) == pytest.approx(float(triplet))
    assert discriminator_loss(real, None, fake) == pytest.approx(
        float(0.5 * F.softplus(-real) + 0.5 * F.softplus(fake))
    )


@pytest.mark.parametrize("discriminator", ["triplet", "pair"])
def test_stage_2_by_hand(discriminator):
    config = tiny(discriminator=discriminator)
    state = build(config)
    run(state, config, config.stage1)
    coarse, fine, judge = (copy.deepcopy(state.networks[name]) for name in ("coarse", "refiner", "discriminator"))
    batch = posed_batch(config, 4, config.stage1)
    assert batch.joints is not None
    sources, targets = to_symmetric(batch.images).chunk(2)  # of a, which G2 learns from, and of b
    poses = [2 * discs(joints, 24, 12) - 1 for joints in batch.joints[2:]]
    (metrics,) = run(state, config, config.stage1 + 1)

    def logits(generated: torch.Tensor, first: torch.Tensor, k: int) -> dict[str, torch.Tensor]:
        images = {"fake": generated, "real": targets[k], "coarse": first, "source": sources[k]}
        if discriminator == "pair":
            images = {name: torch.cat([sources[k], images[name]], 1) for name in ("fake", "real")}
        return dict(zip(images, judge(torch.cat(list(images.values()))).split(4), strict=True))

    def norm(loss: torch.Tensor, network: torch.nn.Module) -> float:
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        return float(torch.cat([gradient.flatten() for gradient in gradients]).norm())

    firsts = [coarse(torch.cat([sources[k], poses[k]], 1)).detach() for k in (0, 1)]
    generated = firsts[0] + fine(torch.cat([firsts[0], sources[0]], 1))
    difference = (generated - targets[0]).abs()
    image, mask = difference.mean(), (difference * pose_mask(batch.joints[2], 24, 12)).mean()
    adversarial = F.softplus(-logits(generated, firsts[0], 0)["fake"]).mean()
    assert metrics["L_image"] == pytest.approx(image.item())
    assert metrics["L_mask"] == pytest.approx(mask.item())
    assert metrics["L_adv"] == pytest.approx(adversarial.item())
    assert metrics["refinement"] == pytest.approx((generated - firsts[0]).abs().mean().item())
    assert metrics["grad_refiner"] == pytest.approx(norm(adversarial + 10 * (image + mask), fine))

    moved = state.networks["refiner"]  # the discriminator sees what G2 draws after its step
    generated = (firsts[1] + moved(torch.cat([firsts[1], sources[1]], 1))).detach()
    scores = logits(generated, firsts[1], 1)
    fakes = [scores[name] for name in ("fake", "source") if name in scores]
    loss = F.softplus(-scores["real"]).mean() / 2 + F.softplus(torch.cat(fakes)).mean() / 2
    assert metrics["D_adv"] == pytest.approx(loss.item())
    assert metrics["grad_discriminator"] == pytest.approx(norm(loss, judge))


@pytest.mark.parametrize("discriminator", ["triplet", "pair"])
def test_stages_switch_at_their_iteration_and_begin_fresh(discriminator):
    config = tiny(discriminator=discriminator)
    state = build(config)
    first = run(state, config, 3)
    assert set(first[0]) == {"L_image", "L_mask", "grad_coarse"}
    assert not state.optimizers["refiner"].state
    assert not state.optimizers["discriminator"].state
    coarse = copy.deepcopy(state.networks["coarse"].state_dict())
    second = run(state, config, 6)
    assert {"L_adv", "D_adv", "refinement", "grad_refiner", "grad_discriminator"} <= set(second[0])
    assert all(torch.equal(value, state.networks["coarse"].state_dict()[key]) for key, value in coarse.items())
    steps = {float(memory["step"]) for memory in state.optimizers["refiner"].state.values()}
    assert steps == {3.0}
    assert second[0]["refinement"] > 0
    assert settings(config, 2) == {"weight/image": 1.0, "weight/adversarial": 0.0, "lr/adam": 1e-3}
    assert settings(config, 3)["weight/image"] == 10.0


def test_it_resumes_across_its_stages_in_every_bit():
    config = tiny()
    whole, part = build(config), build(config)
    run(whole, config, 5)
    for stop in (2, 4):
        run(part, config, stop)
        saved = copy.deepcopy(part.state_dict())
        part = build(config)
        part.load_state_dict(saved)
    run(part, config, 5)
    for name, network in whole.networks.items():
        for key, value in network.state_dict().items():
            assert torch.equal(value, part.networks[name].state_dict()[key]), f"{name}.{key}"


def test_stage_1_learns():
    config = tiny(iterations=40, stage1=40, augment=AugmentConfig(flip=0, pad=0, erase=0), lr=3e-3)
    state = build(config)
    batch = posed_batch(config, 4, 0)
    losses = []
    for t in range(40):
        position = replace(batch.position, iteration=t)
        losses.append(float(pg2gan_step(state, replace(batch, position=position), config)["L_image"]))
    assert losses[-1] < 0.9 * losses[0]


def test_it_draws_sources_in_poses():
    config = tiny()
    state = build(config)
    batch = posed_batch(config, 4, 0)
    assert batch.joints is not None
    coarse = drawing(state, config)(batch.images[0], batch.joints[2])
    assert coarse.shape == batch.images[0].shape
    assert to_symmetric(coarse).abs().max() <= 1 + 1e-6
    run(state, config, 6)
    assert not torch.equal(drawing(state, config)(batch.images[0], batch.joints[3]), coarse)


def test_joints_are_needed():
    config = tiny()
    state = build(config)
    with pytest.raises(ValueError, match="this method needs key points, prepare the data with --keypoints"):
        pg2gan_step(state, posed_batch(config, 4, 0, posed=False), config)
    assert state.iteration == 0


def test_initial_weights():
    config = tiny(width=16, discriminator_width=16)
    coarse, judge = coarse_generator(config), Discriminator(config)
    initialise(coarse, discriminator=judge)
    weight = judge.logit.weight.detach()
    assert weight.abs().max() <= 0.02 * 3**0.5
    assert float(weight.std()) == pytest.approx(0.02, rel=0.2)
    assert (coarse.get_parameter("last.bias") == 0).all()
