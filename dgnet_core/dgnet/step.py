"""One training iteration of DG-Net, top to bottom. Every backward pass is in step.py and baseline.py.

B images a batch on this rank, K identities. Two batches, a and b, are trained on at once and each loss term is the sum
of its two batch means. Passes of one network are merged: twice the mean over the merged batch is that sum.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from dgnet_core.dgnet import schedule
from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.dgnet.losses import prim, soft_label
from dgnet_core.dgnet.networks import pool_code, to_gray
from dgnet_core.dgnet.state import TrainState
from dgnet_core.learning import losses
from dgnet_core.learning.batches import Batch, Position, check_batch
from dgnet_core.learning.draws import uniform
from dgnet_core.learning.health import record_fault
from dgnet_core.learning.precision import autocast, exact, layout_of
from dgnet_core.learning.schedule import decay
from dgnet_core.learning.steps import ReduceGrads, clip, descend, dropped_logits, keep_local, set_rate
from dgnet_core.networks.modes import frozen
from dgnet_core.networks.resnet import Head


def identity_surge(state: TrainState, loss: Tensor, config: DGNetConfig) -> Tensor:
    """How far the identity loss on real images stands above its usual level: a ratio, 0 before the warm-up start.

    Above `config.watch.factor` the run is likely to be lost: the loss on real images is falling apart under what is
    learned from generated ones. Moves the state's running means by one iteration.

    Args:
        state: holds the fast and the slow running mean.
        loss: cross-entropy on real images in nats, mean of both batches.
        config: decays, floor, and the warm-up start.
    """
    watch, level = config.watch, state.identity_level
    decays = torch.tensor([watch.fast, watch.slow], dtype=level.dtype).to(level.device, non_blocking=True)
    state.identity_level = torch.where(level.isnan(), loss, decays * level + (1 - decays) * loss)
    if state.iteration < min(config.loss.code_warmup.start, config.loss.teacher_warmup.start):
        return torch.zeros_like(loss)
    fast, slow = state.identity_level.clamp(min=watch.floor)
    return fast / slow


def warning(config: DGNetConfig, metrics: Mapping[str, float]) -> str:
    """What to do about a surge of the identity loss, or nothing if there is none."""
    surge = metrics.get("identity_surge", 0.0)
    if surge <= config.watch.factor:
        return ""
    return (
        f"the identity loss on real images is {surge:.1f} times its usual level; if it stays there the run is lost:"
        " lower loss.prim or loss.alpha, or start the warm-up later"
    )


def train_step(
    state: TrainState, batch: Batch, config: DGNetConfig, *, reduce_grads: ReduceGrads = keep_local
) -> dict[str, Tensor]:
    """Advance `state` by one iteration: update the discriminator, then both encoders and the decoder.

    On the CPU a non-finite loss or gradient raises at once. On a GPU nothing waits for the device: call
    `health.raise_fault(state)` wherever the run synchronises anyway, before saving a checkpoint for one.

    Args:
        state: changed in place.
        batch: what this rank trains on; `batch.position.iteration` must be the state's.
        config: the configuration that `state` was built from.
        reduce_grads: averages gradients over ranks, so that training follows the mean loss of all ranks' batches.

    Returns:
        Scalars on the state's device, without a graph: every loss term that took part (unweighted, the sum of batches
        a and b), `grad_*` = L2 norms of the gradients before clipping, and `identity_surge` (see WatchConfig).

    Raises:
        ValueError: the batch or the state does not fit the configuration; the state is unchanged.
        FloatingPointError: a loss or gradient is not finite (CPU only).
    """
    check_inputs(state, batch, config)
    recipe, weight, position = config.recipe, config.loss, batch.position
    ramped = schedule.weights(weight, recipe, state.iteration)
    rate = decay(config.optim.milestones, config.optim.decay, state.iteration)
    mixed = autocast(config.step, state.device)
    layout = layout_of(config.step)
    appearance_encoder, structure_encoder = state.appearance_encoder, state.structure_encoder
    decoder, discriminator = state.decoder, state.discriminator
    generator_parameters = [*structure_encoder.parameters(), *decoder.parameters()]
    appearance_parameters = list(appearance_encoder.parameters())

    B = batch.images.shape[1]
    images = batch.images.flatten(0, 1).contiguous(memory_format=layout)
    real = images[: 2 * B]
    labels = batch.labels.to(state.device, non_blocking=True).flatten()  # (2B) of a, b
    swapped = labels.roll(B)  # (2B) of b, a
    terms: dict[str, Tensor] = {}

    # Encode the real images. The clean pass has a graph only where something descends through it.
    one_pass = batch.erased is None
    with mixed, torch.set_grad_enabled(one_pass or not recipe.detach_appearance):
        code = exact(appearance_encoder(images, groups=4, track=one_pass))  # (4B, C, 4)
    appearance = code.detach().requires_grad_(not recipe.detach_appearance)  # cut: its gradient is carried on below
    own, positive = appearance.chunk(2)
    other = own.roll(B, dims=0)
    with mixed:
        structure = structure_encoder(to_gray(real))  # (2B, C_s, H / 4, W / 4)

        # Generate: own appearance, a positive's, and the other batch's (x_ab: structure of a, appearance of b).
        generated = decoder(structure.repeat(3, 1, 1, 1), torch.cat([own, positive, other]))
    same, paired, crossed = exact(generated).chunk(3)  # (2B, 3, H, W) each

    # Update the discriminator (Eq. 7).
    state.discriminator_optimizer.zero_grad()
    fake = crossed.detach()
    images_with_grad = real.detach().requires_grad_()
    real_scores = discriminator.forward(images_with_grad)  # float32, and eager: compiled graphs have no second gradient
    with mixed:
        fake_scores = [exact(scores) for scores in discriminator(fake)]
    terms["D_adv"] = 2 * losses.discriminator_adversarial(fake_scores, real_scores, recipe.gan)
    terms["D_penalty"] = 2 * losses.gradient_penalty(real_scores, images_with_grad)
    discriminator_loss = weight.adversarial * terms["D_adv"] + weight.gradient_penalty * terms["D_penalty"]
    discriminator_parameters = list(discriminator.parameters())
    discriminator_loss.backward(inputs=discriminator_parameters)
    reduce_grads(discriminator_parameters)
    terms["grad_discriminator"] = clip(discriminator_parameters, config.optim.clip_norm)
    set_rate(state.discriminator_optimizer, config.optim.discriminator_lr * rate)
    state.discriminator_optimizer.step()

    # Read the crossed images back. `reread` cuts the graph: what descends to it is carried on into the decoder, while
    # L_prim and L_fine use the same pass of the appearance encoder, but descend to its parameters only.
    state.generator_optimizer.zero_grad()
    state.appearance_optimizer.zero_grad()
    feeds = ramped.prim > 0 or ramped.fine > 0
    reread = fake.requires_grad_()
    with frozen(discriminator), mixed:
        scores = [exact(scores) for scores in discriminator(reread)]
    terms["L_adv"] = 2 * losses.generator_adversarial(scores, recipe.gan)
    output_terms = [(weight.adversarial, terms["L_adv"])]
    with frozen(*() if feeds else (appearance_encoder,)):
        with mixed:
            code_back = exact(appearance_encoder(reread, groups=2))
        pooled = pool_code(code_back)
        prim_feature = appearance_encoder.prim(pooled, 2)
        terms["L_c_id"] = 2 * losses.identity(appearance_encoder.prim.logits(prim_feature), swapped)  # nothing dropped
        output_terms.append((weight.generated_identity, terms["L_c_id"]))
    if recipe.detach_appearance:
        code_back = code_back.detach()
    if ramped.appearance_code > 0:
        terms["L_code1"] = 2 * losses.code_l1(other, code_back)
        output_terms.append((ramped.appearance_code, terms["L_code1"]))
    if ramped.structure_code > 0 or ramped.cycle > 0:
        learns = _coin(config.seed, state.iteration) < recipe.reencode_probability
        with frozen(*() if learns else (structure_encoder,)), mixed:
            structure_back = structure_encoder(to_gray(reread.detach() if learns else reread))
        terms["L_code2"] = 2 * losses.code_l1(exact(structure).detach(), exact(structure_back))
        output_terms.append((ramped.structure_code, terms["L_code2"]))
        if ramped.cycle > 0:
            with mixed:
                cycled = decoder(structure_back, code_back.roll(B, dims=0))
            terms["L_cyc"] = 2 * losses.image_l1(real, exact(cycled))
            output_terms.append((ramped.cycle, terms["L_cyc"]))

    # Descend from the crossed images, then from everything the decoder made.
    leaves = [*generator_parameters, *([] if recipe.detach_appearance else [appearance])]
    descend(output_terms, inputs=[reread, *leaves], retain_graph=feeds)
    terms["L_img1"] = 2 * losses.image_l1(real, same)
    terms["L_img2"] = 2 * losses.image_l1(real, paired)
    image_terms = [(weight.image, terms["L_img1"]), (weight.image, terms["L_img2"])]
    descend(image_terms, inputs=leaves, carried=(crossed, reread.grad))

    # Feed the crossed images to the re-id heads.
    if feeds:
        fed_terms: list[tuple[float, Tensor]] = []
        if ramped.prim > 0:
            teacher_labels = None
            if recipe.needs_teacher:
                assert state.teacher is not None
                with mixed:
                    teacher_labels = state.teacher.labels(reread.detach(), groups=2)
            target = soft_label(recipe.soft_label, teacher_labels, swapped, labels, config.num_classes)
            prim_logits = dropped_logits(appearance_encoder.prim, prim_feature, 2, position, "dropout prim generated")
            terms["L_prim"] = 2 * prim(prim_logits, target)
            fed_terms.append((ramped.prim, terms["L_prim"]))
        if ramped.fine > 0:
            fine_logits = _logits(appearance_encoder.fine, pooled, 2, position, "dropout fine generated")
            terms["L_fine"] = 2 * losses.identity(fine_logits, labels)
            fed_terms.append((ramped.fine, terms["L_fine"]))
        descend(fed_terms, inputs=appearance_parameters)

    # The re-id losses on real images; BatchNorm's running statistics follow this pass, as in any re-id baseline.
    if batch.erased is not None:
        with mixed:
            erased = batch.erased.flatten(0, 1).contiguous(memory_format=layout)
            pooled = pool_code(exact(appearance_encoder(erased, groups=4, track=True)))
    else:
        pooled = pool_code(code)
    prim_logits = _logits(appearance_encoder.prim, pooled, 4, position, "dropout prim real", track=True)
    fine_logits = _logits(appearance_encoder.fine, pooled, 4, position, "dropout fine real", track=True)
    terms["L_s_id"] = 2 * losses.identity(prim_logits[: 2 * B], labels)
    terms["L_s_id_positive"] = 2 * losses.identity(prim_logits[2 * B :], labels)
    real_terms = [(weight.identity, terms["L_s_id"]), (weight.positive_identity, terms["L_s_id_positive"])]
    if ramped.fine_real > 0:
        terms["L_s_id_fine"] = 2 * losses.identity(fine_logits[: 2 * B], labels)
        real_terms.append((weight.identity * ramped.fine_real, terms["L_s_id_fine"]))
    descend(real_terms, inputs=appearance_parameters, carried=(code, appearance.grad))

    # Update both encoders and the decoder.
    for parameter in [*generator_parameters, *appearance_parameters]:
        if parameter.grad is None:  # the fine head before its warm-up: weight decay and momentum still act
            parameter.grad = torch.zeros_like(parameter)
    reduce_grads([*generator_parameters, *appearance_parameters])
    terms["grad_generator"] = clip(generator_parameters, config.optim.clip_norm)
    terms["grad_appearance"] = clip(appearance_parameters, config.optim.clip_norm)
    set_rate(state.generator_optimizer, config.optim.generator_lr * rate)
    set_rate(state.appearance_optimizer, config.optim.appearance_lr * rate)
    state.generator_optimizer.step()
    state.appearance_optimizer.step()

    metrics = {name: term.detach() for name, term in terms.items()}
    record_fault(state, metrics)
    metrics["identity_surge"] = identity_surge(state, metrics["L_s_id"] / 2, config)
    state.iteration += 1
    return metrics


def _coin(seed: int, iteration: int) -> float:
    """A uniform draw in [0, 1) that all ranks share: whether the structure encoder learns from generated images."""
    return float(uniform(seed, "re-encode", iteration, range(1), 1, "cpu"))


def _logits(head: Head, pooled: Tensor, groups: int, position: Position, purpose: str, track: bool = False) -> Tensor:
    """Logits (groups * B, K) of pooled codes, with this position's dropout."""
    return dropped_logits(head, head(pooled, groups, track), groups, position, purpose)


def check_inputs(state: TrainState, batch: Batch, config: DGNetConfig) -> None:
    """Raise a ValueError that names the field, its value and the remedy if batch, state and configuration differ."""
    if config.recipe.needs_teacher and state.teacher is None:
        raise ValueError(
            f"recipe.soft_label = {config.recipe.soft_label!r} needs a teacher: give TrainState.build one, or choose"
            " 'appearance', 'uniform', 'two_label' or 'none'"
        )
    classes = state.appearance_encoder.prim.classifier.out_features
    check_batch(batch, config, classes, state.iteration, state.device, sets=4, labelled=2)
