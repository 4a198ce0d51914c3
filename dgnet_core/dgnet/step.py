"""One training iteration of DG-Net, top to bottom. All of its backward passes are here.

B images a batch on this rank, K identities. Two batches, a and b, are trained on at once and each loss term is the sum
of its two batch means. Passes of one network are merged: twice the mean over the merged batch is that sum.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, lru_cache, partial

import torch
from torch import Tensor

from dgnet_core.dgnet import schedule
from dgnet_core.dgnet.config import DGNetConfig
from dgnet_core.dgnet.losses import fed_weights, prim, soft_label
from dgnet_core.dgnet.networks import to_gray
from dgnet_core.dgnet.state import TrainState
from dgnet_core.learning import losses
from dgnet_core.learning.batches import Batch, Position, check_batch
from dgnet_core.learning.draws import uniform
from dgnet_core.learning.health import record_fault
from dgnet_core.learning.precision import autocast, exact, layout_of
from dgnet_core.learning.steps import (
    ReduceGrads,
    clip,
    descend,
    dropout_noise,
    fill_missing,
    keep_local,
    metric_terms,
    set_rate,
)
from dgnet_core.networks.modes import frozen
from dgnet_core.networks.resnet import Head


def identity_surge(state: TrainState, loss: Tensor, config: DGNetConfig, watched: bool = True) -> Tensor:
    """How far the identity loss on real images stands above its usual level: a ratio, 0 before the warm-up start.

    Above `config.watch.factor` the run is likely to be lost: the loss on real images is falling apart under what is
    learned from generated ones. Moves the state's running means by one iteration.

    Args:
        state: holds the fast and the slow running mean.
        loss: cross-entropy on real images in nats, mean of both batches.
        config: decays and floor.
        watched: False before the warm-up start.

    Returns:
        The fast running mean over the slow one, a scalar; 0 if not `watched`.
    """
    watch, level = config.watch, state.identity_level
    decays = _decays(watch.fast, watch.slow, level.dtype, level.device)
    level.copy_(torch.where(level.isnan(), loss, decays * level + (1 - decays) * loss))
    if not watched:
        return torch.zeros_like(loss)
    fast, slow = state.identity_level.clamp(min=watch.floor)
    return fast / slow


@cache
def _decays(fast: float, slow: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Both as a tensor, made once: a tensor made of numbers stalls a GPU."""
    return torch.tensor([fast, slow], dtype=dtype, device=device)


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
    iteration = iteration_at(config, state.iteration)
    for name, rate in schedule.learning_rates(config.optim, state.iteration).items():
        set_rate(state.optimizers[f"{name}_optimizer"], rate)
    batch = replace(batch, labels=batch.labels.to(state.device, non_blocking=True))
    iterate = partial(_iterate, state, config, reduce_grads)
    metrics = state.graphs.run(iterate, batch, iteration) if config.step.graph else iterate(batch, iteration)
    state.move_averages(config.ema)
    state.iteration += 1
    return metrics


def iteration_at(config: DGNetConfig, iteration: int) -> schedule.Iteration:
    """What a 0-based iteration is told besides its batch."""
    ramped = schedule.weights(config.loss, config.recipe, iteration)
    return schedule.Iteration(
        number=iteration,
        acts=ramped,
        ramped=ramped,
        learns=bool(ramped.structure_code > 0 or ramped.cycle > 0)
        and _coin(config.seed, iteration) < config.recipe.reencode_probability,
        share=schedule.fed_share(config, iteration),
        watched=iteration >= min(config.loss.code_warmup.start, config.loss.teacher_warmup.start),
    )


def _iterate(
    state: TrainState, config: DGNetConfig, reduce_grads: ReduceGrads, batch: Batch, iteration: schedule.Iteration
) -> dict[str, Tensor]:
    """The device's part of an iteration: it waits for nothing, and which branches it takes is a function of
    `iteration.phase` alone."""
    # `acts`: which terms take part (numbers). `ramped`: what they weigh (tensors in a graph).
    recipe, weight, acts, ramped = config.recipe, config.loss, iteration.acts, iteration.ramped
    position = replace(batch.position, iteration=iteration.number)
    mixed = autocast(config.step, state.device)
    layout = layout_of(config.step)
    appearance_encoder, structure_encoder = state.appearance_encoder, state.structure_encoder
    decoder, discriminator = state.decoder, state.discriminator
    generator_parameters = [*structure_encoder.parameters(), *decoder.parameters()]
    appearance_parameters = list(appearance_encoder.parameters())

    B = batch.images.shape[1]
    images = batch.images.flatten(0, 1).contiguous(memory_format=layout)
    real = images[: 2 * B]
    labels = batch.labels.flatten()  # (2B) of a, b
    swapped = labels.roll(B)  # (2B) of b, a
    terms: dict[str, Tensor] = {}

    noise = dropout_noise(_dropping_passes(state, config, acts), B, position)

    # Encode the real images. The clean pass has a graph only where something descends through it.
    one_pass, release_statistics = batch.erased is None, recipe.release_statistics
    with mixed, torch.set_grad_enabled(one_pass or not recipe.detach_appearance):
        code = exact(appearance_encoder(images, groups=4, track=one_pass or release_statistics))  # (4B, C, 4)
    appearance = code.detach().requires_grad_(not recipe.detach_appearance)  # cut: its gradient is carried on below
    own, positive = appearance.chunk(2)
    other = own.roll(B, dims=0)
    negative = _negatives(position, B, state.device) if recipe.structure_negatives else None
    with mixed:
        structure = structure_encoder(to_gray(real, negative))  # (2B, C_s, H / 4, W / 4)

        # Generate: own appearance, a positive's, and the other batch's (x_ab: structure of a, appearance of b).
        generated = decoder(structure.repeat(3, 1, 1, 1), torch.cat([own, positive, other]))
    same, paired, crossed = exact(generated).chunk(3)  # (2B, 3, H, W) each

    # Update the discriminator (Eq. 7).
    state.discriminator_optimizer.zero_grad()
    fake = crossed.detach()
    images_with_grad = real.detach().requires_grad_()
    real_scores = discriminator.forward(images_with_grad)  # float32, and eager: compiled graphs have no second gradient
    fake_scores = discriminator(fake)  # float32 too: it must not tell its two classes apart by their rounding
    of_fake, of_real = losses.discriminator_adversarial(fake_scores, real_scores, recipe.gan)
    terms["D_adv"] = 2 * (of_fake + of_real)
    terms["D_penalty"] = 2 * losses.gradient_penalty(real_scores, images_with_grad)
    discriminator_parameters = list(discriminator.parameters())
    descend([(2 * weight.adversarial, of_fake)], inputs=discriminator_parameters)
    penalised = [(2 * weight.adversarial, of_real), (weight.gradient_penalty, terms["D_penalty"])]
    descend(penalised, inputs=discriminator_parameters)
    fill_missing(discriminator_parameters)
    reduce_grads(discriminator_parameters)
    terms["grad_discriminator"] = clip(discriminator_parameters, config.optim.clip_norm)
    state.discriminator_optimizer.step()

    def real_features() -> tuple[Tensor, Tensor, Tensor]:
        """Of the real images (4B, bottleneck), what metric losses compare, f_prim and f_fine; BatchNorm's running
        statistics follow this pass."""
        seen = code
        if batch.erased is not None:
            if release_statistics:  # its heads read every image that its trunk reads
                with torch.no_grad():
                    for head in (appearance_encoder.prim, appearance_encoder.fine):
                        head(appearance_encoder.pool(code), 4, track=True)
            with mixed:
                erased = batch.erased.flatten(0, 1).contiguous(memory_format=layout)
                seen = exact(appearance_encoder(erased, groups=4, track=True))
        pooled = appearance_encoder.pool(seen)
        compared, prim_feature = appearance_encoder.prim.both_sides(pooled, 4, track=True)
        return compared, prim_feature, appearance_encoder.fine(pooled, 4, track=True)

    # The release reads the real images before the generated ones, and its running statistics can tell.
    features = real_features() if release_statistics else None

    # Read the crossed images back. `reread` cuts the graph: what descends to it is carried on into the decoder, while
    # L_prim and L_fine use the same pass of the appearance encoder, but descend to its parameters only.
    state.generator_optimizer.zero_grad()
    state.appearance_optimizer.zero_grad()
    feeds = bool(acts.prim > 0 or acts.fine > 0)
    reread = fake.requires_grad_()
    with frozen(discriminator), mixed:
        scores = [exact(scores) for scores in discriminator(reread)]
    terms["L_adv"] = 2 * losses.generator_adversarial(scores, recipe.gan)
    output_terms: list[tuple[float | Tensor, Tensor]] = [(weight.adversarial, terms["L_adv"])]
    with frozen(*() if feeds else (appearance_encoder,)):
        follow = release_statistics and feeds
        with mixed:
            code_back = exact(appearance_encoder(reread, groups=2, track=follow))
        pooled = appearance_encoder.pool(code_back)
        prim_feature = appearance_encoder.prim(pooled, 2, track=follow)
        terms["L_c_id"] = 2 * losses.identity(appearance_encoder.prim.logits(prim_feature), swapped)  # nothing dropped
        output_terms.append((weight.generated_identity, terms["L_c_id"]))
    if recipe.detach_appearance and not recipe.code_teaches_decoder:
        code_back = code_back.detach()
    if acts.appearance_code > 0:
        terms["L_code1"] = 2 * losses.code_l1(other, code_back)
        output_terms.append((ramped.appearance_code, terms["L_code1"]))
    if acts.structure_code > 0 or acts.cycle > 0:
        learns = iteration.learns
        with frozen(*() if learns else (structure_encoder,)), mixed:
            structure_back = structure_encoder(to_gray(reread.detach() if learns else reread, negative))
        terms["L_code2"] = 2 * losses.code_l1(exact(structure).detach(), exact(structure_back))
        output_terms.append((ramped.structure_code, terms["L_code2"]))
        if acts.cycle > 0:
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
        fed, groups = reread.detach(), 2
        fed_terms: list[tuple[float | Tensor, Tensor]] = []
        if config.feed.pictures == 2:
            with mixed, torch.no_grad():
                second = exact(decoder(structure, positive.roll(B, dims=0)))
            with mixed:
                second_code = exact(appearance_encoder(second, groups=2, track=follow))
            second_pooled = appearance_encoder.pool(second_code)
            prim_feature = torch.cat([prim_feature, appearance_encoder.prim(second_pooled, 2, track=follow)])
            fed, pooled, groups = torch.cat([fed, second]), torch.cat([pooled, second_pooled]), 4
        owners, givers = swapped.repeat(groups // 2), labels.repeat(groups // 2)  # of appearances, of structures
        teacher_labels = None
        if config.asks_teacher:
            assert state.teacher is not None
            with mixed:
                teacher_labels = state.teacher.labels(fed, groups=groups, noise=noise["dropout teacher labels"])
        draws = None
        if config.feed.selects:
            draws = position.uniform("fed", (B, groups), fed.device).T.flatten().to(fed.dtype)
        weights = fed_weights(config.feed, iteration.share, teacher_labels, draws)
        if acts.prim > 0:
            target = soft_label(recipe.soft_label, teacher_labels, owners, givers, config.num_classes)
            prim_logits = appearance_encoder.prim.logits(prim_feature, noise["dropout prim generated"])
            terms["L_prim"] = 2 * prim(prim_logits, target, weights)
            fed_terms.append((ramped.prim, terms["L_prim"]))
        if acts.fine > 0:
            fine_feature = appearance_encoder.fine(pooled, groups, track=follow)
            fine_logits = appearance_encoder.fine.logits(fine_feature, noise["dropout fine generated"])
            terms["L_fine"] = 2 * losses.identity(fine_logits, givers, weights=weights)
            fed_terms.append((ramped.fine, terms["L_fine"]))
        if weights is not None:
            terms["fed_weight"] = weights.mean()
        descend(fed_terms, inputs=appearance_parameters)

    # The re-id losses on real images.
    compared, prim_feature, fine_feature = features or real_features()
    prim_logits = appearance_encoder.prim.logits(prim_feature, noise["dropout prim real"])
    smoothing = weight.label_smoothing
    terms["L_s_id"] = 2 * losses.identity(prim_logits[: 2 * B], labels, smoothing)
    terms["L_s_id_positive"] = 2 * losses.identity(prim_logits[2 * B :], labels, smoothing)
    real_terms: list[tuple[float | Tensor, Tensor]] = [
        (weight.identity, terms["L_s_id"]),
        (weight.positive_identity, terms["L_s_id_positive"]),
    ]
    if acts.fine_real > 0:
        fine_logits = appearance_encoder.fine.logits(fine_feature, noise["dropout fine real"])
        terms["L_s_id_fine"] = 2 * losses.identity(fine_logits[: 2 * B], labels, smoothing)
        real_terms.append((weight.identity * ramped.fine_real, terms["L_s_id_fine"]))
    people = labels.view(2, B).repeat(2, 1)
    for name, metric_weight, value in metric_terms(compared.unflatten(0, (4, B)), people, config.metric, position):
        terms[name] = 2 * value
        real_terms.append((metric_weight, terms[name]))
    descend(real_terms, inputs=appearance_parameters, carried=(code, appearance.grad))

    # Update both encoders and the decoder.
    fill_missing([*generator_parameters, *appearance_parameters])  # the fine head before its warm-up
    reduce_grads([*generator_parameters, *appearance_parameters])
    terms["grad_generator"] = clip(generator_parameters, config.optim.clip_norm)
    terms["grad_appearance"] = clip(appearance_parameters, config.optim.clip_norm)
    state.generator_optimizer.step()
    state.appearance_optimizer.step()

    metrics = {name: term.detach() for name, term in terms.items()}
    record_fault(state, metrics, iteration.number)
    metrics["identity_surge"] = identity_surge(state, metrics["L_s_id"] / 2, config, iteration.watched)
    return metrics


def _coin(seed: int, iteration: int) -> float:
    """A uniform draw in [0, 1) that all ranks share: whether the structure encoder learns from generated images."""
    return _coins(seed, iteration // 1024)[iteration % 1024]


@lru_cache(maxsize=2)
def _coins(seed: int, block: int) -> list[float]:
    """The draws of 1,024 iterations."""
    return uniform(seed, "re-encode", block, range(1024), 1, "cpu")[:, 0].tolist()


def _dropping_passes(state: TrainState, config: DGNetConfig, acts: schedule.Weights) -> dict[str, tuple[Head, int]]:
    """The iteration's passes with dropout: purpose of its draws, head, and batches that it sees."""
    prim, fine = state.appearance_encoder.prim, state.appearance_encoder.fine
    fed = 2 * config.feed.pictures
    passes = {"dropout prim real": (prim, 4)}
    if acts.fine_real > 0:
        passes["dropout fine real"] = (fine, 4)
    if acts.fine > 0:
        passes["dropout fine generated"] = (fine, fed)
    if acts.prim > 0:
        passes["dropout prim generated"] = (prim, fed)
    if (acts.prim > 0 or acts.fine > 0) and config.asks_teacher and config.recipe.teacher_dropout:
        assert state.teacher is not None
        passes["dropout teacher labels"] = (state.teacher.head, 2 * fed)  # the fed batches, and their mirror images
    return passes


def _negatives(position: Position, images: int, device: torch.device) -> Tensor:
    """Which images (2B) of a and b the structure encoder reads as negatives: each with an even chance."""
    return (position.uniform("negative", (images, 2), device) < 0.5).T.flatten()


def check_inputs(state: TrainState, batch: Batch, config: DGNetConfig) -> None:
    """Raise a ValueError that names the field, its value and the remedy if batch, state and configuration differ."""
    if config.asks_teacher and state.teacher is None:
        raise ValueError(
            f"recipe.soft_label = {config.recipe.soft_label!r} with feed.confidence = {config.feed.confidence!r} needs"
            " a teacher: give TrainState.build one, or choose 'appearance', 'uniform', 'two_label' or 'none' with 'all'"
        )
    classes = state.appearance_encoder.prim.classifier.out_features
    check_batch(batch, config, classes, state.iteration, state.device, sets=4, labelled=2)
