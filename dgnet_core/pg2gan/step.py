"""One training iteration of PG2-GAN: stage 1 trains G1, stage 2 trains G2 against the discriminator, G1 frozen.

B pairs on this rank: a source image, and another image of the same identity, whose pose is given: the target.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from dgnet_core.generation.grids import placed
from dgnet_core.learning.augment import from_symmetric, to_symmetric
from dgnet_core.learning.batches import Batch, check_batch, check_joints
from dgnet_core.learning.health import record_fault
from dgnet_core.learning.losses import against
from dgnet_core.learning.poses import discs, pose_mask
from dgnet_core.learning.precision import autocast, exact
from dgnet_core.learning.state import State, with_adams
from dgnet_core.learning.steps import ReduceGrads, keep_local
from dgnet_core.networks.modes import evaluating, frozen
from dgnet_core.pg2gan.config import PG2GANConfig
from dgnet_core.pg2gan.networks import networks


def build(config: PG2GANConfig, device: torch.device | str = "cpu", *, pretrained: bool = True) -> State:
    """The state before iteration 0: a pure function of the configuration; no weights are `pretrained`."""
    del pretrained
    return with_adams(
        partial(networks, config),
        config,
        device,
        lr=config.lr,
        betas=config.betas,
    )


def image_losses(generated: Tensor, target: Tensor, joints: Tensor, radius: float) -> tuple[Tensor, Tensor]:
    """Mean absolute difference, and that within the pose mask of the target, both means over all pixels (Eq. 3).

    Their sum weighs pixels outside the mask 1 and pixels inside it 2.

    Args:
        generated: (B, 3, H, W).
        target: (B, 3, H, W).
        joints: of the target, (B, 18, 3).
        radius: of the mask around limbs.
    """
    difference = (generated - target).abs()
    mask = pose_mask(joints, *target.shape[-2:], radius=radius)
    return difference.mean(), (difference * mask).mean()


def discriminator_loss(real: Tensor, source: Tensor | None, fake: Tensor) -> Tensor:
    """Cross-entropy of the discriminator: real images weigh as much as all fakes together.

    Args:
        real: logits of the target, or of the target beside the source.
        source: logits of the source image as a fake, half of the fakes (release); None: pairs are judged (paper).
        fake: logits of G2's image, or of it beside the source.
    """
    made = against(fake, 0.0, "nsgan")
    fakes = made if source is None else (made + against(source, 0.0, "nsgan")) / 2
    return (against(real, 1.0, "nsgan") + fakes) / 2


def pg2gan_step(
    state: State, batch: Batch, config: PG2GANConfig, *, reduce_grads: ReduceGrads = keep_local
) -> dict[str, Tensor]:
    """Advance `state` by one iteration. Non-finite numbers are met as in DG-Net's `train_step`.

    Args:
        state: changed in place.
        batch: what this rank trains on: images a, b and their positives with joints. G1 and G2 learn from a, the
            discriminator from b.
        config: the configuration that `state` was built from.
        reduce_grads: averages gradients over ranks.

    Returns:
        Scalars without a graph: "L_image" and "L_mask" of the image that the stage makes, "grad_..." before any
        clipping, and in stage 2 "D_adv", "L_adv" and "refinement", the mean absolute difference that G2 adds to G1.

    Raises:
        ValueError: the batch does not fit the configuration or has no joints; the state is unchanged.
        FloatingPointError: a loss or gradient is not finite (CPU only).
    """
    check_batch(batch, config, config.num_classes, state.iteration, state.device, sets=4, labelled=2)
    joints = check_joints(batch)
    images = to_symmetric(batch.images)
    stage = _coarse if state.iteration < config.stage1 else _refined
    metrics = stage(state, images, joints, config, reduce_grads)
    record_fault(state, metrics)
    state.iteration += 1
    return metrics


def _coarse(
    state: State, images: Tensor, joints: Tensor, config: PG2GANConfig, reduce_grads: ReduceGrads
) -> dict[str, Tensor]:
    """Stage 1: G1 learns from the positives of a."""
    network = state.networks["coarse"]
    generated = _draw_coarse(network, images[0], joints[2], config)
    whole, masked = image_losses(generated, images[2], joints[2], config.radius)
    gradient = _update(state, "coarse", whole + masked, reduce_grads)
    return {"L_image": whole.detach(), "L_mask": masked.detach(), "grad_coarse": gradient}


def _refined(
    state: State, images: Tensor, joints: Tensor, config: PG2GANConfig, reduce_grads: ReduceGrads
) -> dict[str, Tensor]:
    """Stage 2: G2 learns from the positives of a, then the discriminator from those of b."""
    coarse, fine, discriminator = (state.networks[name] for name in ("coarse", "refiner", "discriminator"))
    with evaluating(coarse):
        first, other = (_draw_coarse(coarse, images[k], joints[k + 2], config) for k in (0, 1))

    difference = _draw_difference(fine, first, images[0], config)
    generated = first + difference
    whole, masked = image_losses(generated, images[2], joints[2], config.radius)
    with frozen(discriminator):
        scores = _scores(discriminator, images[2], images[0], first, generated, config)
        adversarial = against(scores[2], 1.0, "nsgan")
        gradient = _update(state, "refiner", adversarial + config.image * (whole + masked), reduce_grads)
    metrics = {"L_adv": adversarial.detach(), "L_image": whole.detach(), "L_mask": masked.detach()}
    metrics |= {"grad_refiner": gradient, "refinement": difference.detach().abs().mean()}

    with torch.no_grad():
        generated = other + _draw_difference(fine, other, images[1], config)
    real, source, fake = _scores(discriminator, images[3], images[1], other, generated, config)
    loss = discriminator_loss(real, source, fake)
    metrics["D_adv"] = loss.detach()
    metrics["grad_discriminator"] = _update(state, "discriminator", loss, reduce_grads)
    return metrics


def _update(state: State, name: str, loss: Tensor, reduce_grads: ReduceGrads) -> Tensor:
    """Descend a loss in one network; returns its gradient's norm."""
    state.optimizers[name].zero_grad()
    loss.backward(inputs=list(state.networks[name].parameters()))
    return state.take_step(name, reduce_grads)


def _draw_coarse(network: nn.Module, source: Tensor, joints: Tensor, config: PG2GANConfig) -> Tensor:
    pose = 2 * discs(joints, *source.shape[-2:], radius=config.radius) - 1
    with autocast(config.step, source.device):
        return exact(network(torch.cat([source, pose], dim=1)))


def _draw_difference(network: nn.Module, coarse: Tensor, source: Tensor, config: PG2GANConfig) -> Tensor:
    with autocast(config.step, source.device):
        return exact(network(torch.cat([coarse, source], dim=1)))


def _scores(
    network: nn.Module, target: Tensor, source: Tensor, coarse: Tensor, generated: Tensor, config: PG2GANConfig
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Logits of the target, of the source (None for pairs) and of G2's image: one pass, whose BatchNorm mixes them."""
    if config.discriminator == "pair":
        joined = torch.cat([torch.cat([source, target], 1), torch.cat([source, generated], 1)])
    else:
        joined = torch.cat([target, source, coarse, generated])  # G1's image only takes part in the statistics
    with autocast(config.step, source.device):
        parts = list(exact(network(joined)).split(len(source)))
    return parts[0], parts[1] if len(parts) > 2 else None, parts[-1]


def settings(config: PG2GANConfig, iteration: int) -> dict[str, float]:
    """Loss weights and rates at a 0-based iteration."""
    refines = iteration >= config.stage1
    return {
        "weight/image": config.image if refines else 1.0,
        "weight/adversarial": float(refines),
        "lr/adam": config.lr,
    }


def drawing(state: State, config: PG2GANConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """What draws people: normalised images (N, 3, H, W) of normalised sources and target joints (N, 18, 3)."""
    coarse, fine = state.networks["coarse"], state.networks["refiner"]

    def draw(sources: Tensor, joints: Tensor) -> Tensor:
        source = to_symmetric(placed(sources, coarse))
        with evaluating(coarse, fine):
            image = _draw_coarse(coarse, source, placed(joints, coarse), config)
            if state.iteration > config.stage1:
                image = image + _draw_difference(fine, image, source, config)
            return from_symmetric(image.clamp(-1, 1))

    return draw
