"""One training iteration of LSGAN: the discriminator, then the generator.

B real images on this rank, and as many drawn from noise, which is a function of the run's seed, the iteration and the
place in the global batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dgnet_core.generation.grids import placed
from dgnet_core.learning import losses
from dgnet_core.learning.augment import from_symmetric, to_symmetric
from dgnet_core.learning.batches import Batch, check_batch
from dgnet_core.learning.health import record_fault
from dgnet_core.learning.precision import autocast, exact
from dgnet_core.learning.schedule import decay
from dgnet_core.learning.state import State, with_adams
from dgnet_core.learning.steps import ReduceGrads, keep_local, set_rate
from dgnet_core.lsgan.config import LSGANConfig
from dgnet_core.lsgan.networks import Generator, discriminator
from dgnet_core.networks.modes import evaluating, frozen

TRUNCATION = 2.0
"""Images are drawn from noise of at most this size (release)."""


def build(config: LSGANConfig, device: torch.device | str = "cpu", *, pretrained: bool = True) -> State:
    """The state before iteration 0: a pure function of the configuration; no weights are `pretrained`."""
    del pretrained
    return with_adams(
        lambda: {"generator": Generator(config), "discriminator": discriminator(config)},
        config,
        device,
        lr=config.lr,
        betas=config.betas,
        factors={"discriminator": config.discriminator_lr_factor},
    )


def settings(config: LSGANConfig, iteration: int) -> dict[str, float]:
    """The penalty's weight and the rates at a 0-based iteration."""
    rate = config.lr * decay(config.milestones, config.decay, iteration)
    return {
        "weight/gradient_penalty": config.gradient_penalty,
        "lr/generator": rate,
        "lr/discriminator": config.discriminator_lr_factor * rate,
    }


def lsgan_step(
    state: State, batch: Batch, config: LSGANConfig, *, reduce_grads: ReduceGrads = keep_local
) -> dict[str, Tensor]:
    """Advance `state` by one iteration. Non-finite numbers are met as in DG-Net's `train_step`.

    Args:
        state: changed in place.
        batch: what this rank trains on: images a.
        config: the configuration that `state` was built from.
        reduce_grads: averages gradients over ranks.

    Returns:
        Scalars without a graph: "D_adv", "D_penalty" (unweighted), "L_adv", and the gradients' norms
        "grad_discriminator" and "grad_generator".

    Raises:
        ValueError: the batch does not fit the configuration; the state is unchanged.
        FloatingPointError: a loss or gradient is not finite (CPU only).
    """
    check_batch(batch, config, config.num_classes, state.iteration, state.device, sets=1, labelled=1)
    real = to_symmetric(batch.images[0]).requires_grad_()
    generator, discriminator = state.networks["generator"], state.networks["discriminator"]
    mixed = autocast(config.step, state.device)
    for optimizer in state.optimizers.values():
        optimizer.zero_grad()
        set_rate(optimizer, config.lr * decay(config.milestones, config.decay, state.iteration))
    noise = batch.position.normal("noise", (len(real), config.noise), state.device).to(real.dtype)
    with mixed:
        generated = exact(generator(noise))

    # float32, and eager: compiled graphs have no second gradient
    real_score = discriminator.forward(real)
    with mixed:
        fake_score = exact(discriminator(generated.detach()))
    adversarial = losses.against(real_score, 1.0, "lsgan") + losses.against(fake_score, 0.0, "lsgan")
    penalty = losses.gradient_penalty([real_score], real)
    loss = adversarial + config.gradient_penalty * penalty
    loss.backward(inputs=list(discriminator.parameters()))
    metrics = {"D_adv": adversarial.detach(), "D_penalty": penalty.detach()}
    metrics["grad_discriminator"] = state.take_step("discriminator", reduce_grads)

    with frozen(discriminator):
        with mixed:
            score = exact(discriminator(generated))
        adversarial = losses.against(score, 1.0, "lsgan")
        adversarial.backward()
    metrics["L_adv"] = adversarial.detach()
    metrics["grad_generator"] = state.take_step("generator", reduce_grads)
    record_fault(state, metrics)
    state.iteration += 1
    return metrics


def truncated_noise(config: LSGANConfig, images: int, seed: int) -> Tensor:
    """Noise (images, numbers) to draw from: normal, and within TRUNCATION of 0."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.empty(images, config.noise)
    return nn.init.trunc_normal_(noise, a=-TRUNCATION, b=TRUNCATION, generator=generator)


def inventing(state: State, config: LSGANConfig) -> Callable[[int, int], Tensor]:
    """What draws people from nothing: normalised images (N, 3, H, W), of their number and a seed."""
    generator = state.networks["generator"]

    def invent(images: int, seed: int) -> Tensor:
        with evaluating(generator):
            return from_symmetric(generator(placed(truncated_noise(config, images, seed), generator)))

    return invent
