"""One training iteration of PN-GAN: the generator, then the discriminator.

B pairs on this rank: a source image, and another image of the same identity, whose pose is given: the target.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from dgnet_core.generation.grids import placed
from dgnet_core.learning import losses
from dgnet_core.learning.augment import from_symmetric, to_symmetric
from dgnet_core.learning.batches import Batch, check_batch, check_joints
from dgnet_core.learning.health import record_fault
from dgnet_core.learning.poses import heat_maps, stick_figures
from dgnet_core.learning.precision import autocast, exact
from dgnet_core.learning.state import State, with_adams
from dgnet_core.learning.steps import ReduceGrads, keep_local, set_rate
from dgnet_core.networks.modes import evaluating, frozen
from dgnet_core.pngan.config import PNGANConfig
from dgnet_core.pngan.networks import discriminator, generator


def build(config: PNGANConfig, device: torch.device | str = "cpu", *, pretrained: bool = True) -> State:
    """The state before iteration 0: a pure function of the configuration; no weights are `pretrained`."""
    del pretrained
    return with_adams(
        lambda: {"generator": generator(config), "discriminator": discriminator(config)},
        config,
        device,
        lr=config.lr,
        betas=config.betas,
    )


def rate(config: PNGANConfig, iteration: int) -> float:
    """Adam's rate: constant in the first half of the run, then in a straight line to 0."""
    half = config.iterations / 2
    return config.lr * min(1.0, (config.iterations - iteration) / half)


def settings(config: PNGANConfig, iteration: int) -> dict[str, float]:
    """Loss weights and the rate at a 0-based iteration."""
    return {"weight/image": config.image, "weight/adversarial": 1.0, "lr/adam": rate(config, iteration)}


def pngan_step(
    state: State, batch: Batch, config: PNGANConfig, *, reduce_grads: ReduceGrads = keep_local
) -> dict[str, Tensor]:
    """Advance `state` by one iteration. Non-finite numbers are met as in DG-Net's `train_step`.

    Args:
        state: changed in place.
        batch: what this rank trains on: images a and their positives, with joints.
        config: the configuration that `state` was built from.
        reduce_grads: averages gradients over ranks.

    Returns:
        Scalars without a graph: "L_adv", "L_image", "D_adv", and the gradients' norms "grad_generator" and
        "grad_discriminator".

    Raises:
        ValueError: the batch does not fit the configuration or has no joints; the state is unchanged.
        FloatingPointError: a loss or gradient is not finite (CPU only).
    """
    check_batch(batch, config, config.num_classes, state.iteration, state.device, sets=2, labelled=1)
    joints = check_joints(batch)[1]
    source, target = to_symmetric(batch.images)
    generator, discriminator = state.networks["generator"], state.networks["discriminator"]
    mixed = autocast(config.step, state.device)
    for optimizer in state.optimizers.values():
        optimizer.zero_grad()
        set_rate(optimizer, rate(config, state.iteration))

    with mixed:
        generated = exact(generator(torch.cat([source, pose_image(joints, config)], dim=1)))
    with frozen(discriminator):
        with mixed:
            score = exact(discriminator(generated))
        adversarial, image = losses.against(score, 1.0, "lsgan"), losses.image_l1(target, generated)
        (adversarial + config.image * image).backward()
    metrics = {"L_adv": adversarial.detach(), "L_image": image.detach()}
    metrics["grad_generator"] = state.take_step("generator", reduce_grads)

    real = source if config.real == "source" else target
    with mixed:
        real_score, fake_score = exact(discriminator(real)), exact(discriminator(generated.detach()))
    loss = losses.against(real_score, 1.0, "lsgan") + losses.against(fake_score, 0.0, "lsgan")
    loss.backward()
    metrics["D_adv"] = loss.detach()
    metrics["grad_discriminator"] = state.take_step("discriminator", reduce_grads)
    record_fault(state, metrics)
    state.iteration += 1
    return metrics


def pose_image(joints: Tensor, config: PNGANConfig) -> Tensor:
    """What the generator sees of a pose (B, 18, 3): (B, 3, H, W) or (B, 18, H, W) in [-1, 1]."""
    size = config.network.height, config.network.width
    if config.pose == "sticks":
        return stick_figures(joints, *size)
    return 2 * heat_maps(joints, *size, sigma=config.sigma) - 1


def render(generator: nn.Module, config: PNGANConfig, sources: Tensor, joints: Tensor) -> Tensor:
    """Normalised images (N, 3, H, W) of normalised sources in the poses of joints (N, 18, 3)."""
    source, pose = to_symmetric(placed(sources, generator)), pose_image(placed(joints, generator), config)
    with evaluating(generator):
        return from_symmetric(generator(torch.cat([source, pose], dim=1)))


def drawing(state: State, config: PNGANConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """What draws people: normalised images (N, 3, H, W) of normalised sources and target joints (N, 18, 3)."""
    return partial(render, state.networks["generator"], config)
