"""One training iteration of FD-GAN, whose stage is a function of the iteration.

Stage 1 trains the encoder to verify identities, stage 2 the generator against its discriminators of identity and pose
with the encoder frozen, stage 3 all of them. B pairs on this rank; both sides of a pair are sources, each drawn in the
pose of another image of its identity. In every fourth place of the global batch both sides are of one identity, and
share one target.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dgnet_core.fdgan.config import FDGANConfig
from dgnet_core.fdgan.networks import Generator, Verifier, pose_discriminator, start_identity_discriminator
from dgnet_core.generation.grids import placed
from dgnet_core.learning import losses
from dgnet_core.learning.augment import ATTEMPTS, crop_and_resize
from dgnet_core.learning.batches import Batch, Position, check_batch, check_joints
from dgnet_core.learning.draws import uniform
from dgnet_core.learning.health import record_fault
from dgnet_core.learning.poses import heat_maps
from dgnet_core.learning.precision import autocast, exact
from dgnet_core.learning.state import State, no_fault
from dgnet_core.learning.steps import ReduceGrads, keep_local, set_rate, to_device
from dgnet_core.networks.modes import evaluating, frozen
from dgnet_core.networks.resnet import load_imagenet

PAIRS = 4
"""One pair in so many is of one identity."""
SWAPPED = 1 / 10_001
"""Chance that a discriminator is told that real is fake (release)."""


def build(config: FDGANConfig, device: torch.device | str = "cpu", *, pretrained: bool = True) -> State:
    """The state before iteration 0: a pure function of the configuration.

    Args:
        config: the run.
        device: where the networks live.
        pretrained: load what `config.network.pretrained` names; False when a checkpoint will be loaded anyway.

    Raises:
        ValueError, FileNotFoundError, RuntimeError: the ImageNet weights are not to be had (see load_imagenet).
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder, identity = Verifier(config, 2), Verifier(config, 1)
        networks: dict[str, nn.Module] = {
            "encoder": encoder,
            "generator": Generator(config),
            "identity_discriminator": identity,
            "pose_discriminator": pose_discriminator(config),
        }
    if pretrained:
        load_imagenet(encoder.trunk, config.network)
    for network in networks.values():
        to_device(network, config.step, device)
    parameters = {name: list(network.parameters()) for name, network in networks.items()}

    def sgd(name: str, lr: float, decay: float) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters[name], lr=lr, momentum=0.9, weight_decay=decay, fused=True)

    def adam(name: str) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters[name], lr=config.generator_lr, betas=(0.5, 0.999), fused=True)

    optimizers = {
        "encoder": sgd("encoder", config.encoder_lr, 5e-4),
        "joint_encoder": adam("encoder"),
        "generator": adam("generator"),
        "identity_discriminator": sgd("identity_discriminator", config.identity_lr, 1e-4),
        "pose_discriminator": sgd("pose_discriminator", config.pose_lr, 1e-4),
    }
    return State(networks=networks, optimizers=optimizers, fault=no_fault(device))


def encoder_of(state: State) -> Verifier:
    """The encoder, whose features re-identify people."""
    return cast(Verifier, state.networks["encoder"])


def verifying(state: State) -> Callable[[Tensor, Tensor], Tensor]:
    """What says how alike two features (N, 2048) are: the verifier's logit for one identity minus that for two, (N)."""
    encoder = encoder_of(state)

    def compare(first: Tensor, second: Tensor) -> Tensor:
        with evaluating(encoder):
            different, same = encoder.compare(placed(first, encoder), placed(second, encoder)).unbind(1)
        return same - different

    return compare


def rates(config: FDGANConfig, iteration: int) -> dict[str, float]:
    """Learning rates by optimiser at a 0-based iteration; 0 for those that rest."""
    stage, done = config.stage(iteration)
    falling = min(1.0, 2 * (1 - done))
    found = dict.fromkeys(
        ("encoder", "joint_encoder", "generator", "identity_discriminator", "pose_discriminator"), 0.0
    )
    if stage == 1:
        return found | {"encoder": config.encoder_lr * 0.1 ** int(done / 0.4)}
    if stage == 2:
        first = config.generator_lr, config.identity_lr, config.pose_lr
    else:
        first = config.joint_lr, config.joint_discriminator_lr, config.joint_discriminator_lr
        found["joint_encoder"] = config.joint_lr * falling
    names = "generator", "identity_discriminator", "pose_discriminator"
    return found | {name: lr * falling for name, lr in zip(names, first, strict=True)}


def settings(config: FDGANConfig, iteration: int) -> dict[str, float]:
    """Loss weights and rates at a 0-based iteration."""
    stage, _ = config.stage(iteration)
    draws = float(stage > 1)
    return {
        "weight/image": config.image * draws,
        "weight/same_pose": config.same_pose * draws,
        "weight/adversarial": draws,
        "weight/verification": {1: 1.0, 2: 0.0, 3: config.verification}[stage],
        **{f"lr/{name}": rate for name, rate in rates(config, iteration).items()},
    }


def fdgan_step(
    state: State, batch: Batch, config: FDGANConfig, *, reduce_grads: ReduceGrads = keep_local
) -> dict[str, Tensor]:
    """Advance `state` by one iteration. Non-finite numbers are met as in DG-Net's `train_step`.

    Args:
        state: changed in place.
        batch: what this rank trains on, with joints: images a and b, their positives, and other positives of a.
        config: the configuration that `state` was built from.
        reduce_grads: averages gradients over ranks.

    Returns:
        Scalars without a graph. Stages 1 and 3: "L_verification" and "grad_encoder". Stages 2 and 3: "D_identity",
        "D_pose", "L_identity", "L_pose", "L_image", "L_same_pose" (unweighted), and the gradients' norms.

    Raises:
        ValueError: the batch does not fit the configuration or has no joints; the state is unchanged.
        FloatingPointError: a loss or gradient is not finite (CPU only).
    """
    check_batch(batch, config, config.num_classes, state.iteration, state.device, sets=5, labelled=2)
    joints = check_joints(batch)
    stage, _ = config.stage(state.iteration)
    if state.iteration in config.later_stages:
        for optimizer in state.optimizers.values():
            optimizer.state.clear()  # each stage begins afresh
    encoder, identity = (cast(Verifier, state.networks[name]) for name in ("encoder", "identity_discriminator"))
    if state.iteration == config.stage1:
        start_identity_discriminator(identity, encoder)
    encoder.train(stage == 1)  # later its BatchNorm keeps the statistics of stage 1, and so does the discriminator's
    identity.eval()
    for name, rate in rates(config, state.iteration).items():
        set_rate(state.optimizers[name], rate)
    pairs = _paired(batch, joints, config)
    if stage == 1:
        sources = _cropped(pairs.sources, batch.position, config)
        with autocast(config.step, state.device):
            first, second = exact(encoder(sources)).chunk(2)
        loss = F.cross_entropy(encoder.compare(first, second), pairs.same)
        encoder.zero_grad()
        loss.backward()
        metrics = {"L_verification": loss.detach(), "grad_encoder": state.take_step("encoder", reduce_grads)}
    else:
        metrics = _drawn(state, pairs, batch.position, config, reduce_grads, joint=stage == 3)
    record_fault(state, metrics)
    state.iteration += 1
    return metrics


# ----------------------------------------------------------------------------------------------------------------
# What the step is made of


@dataclass(frozen=True, kw_only=True)
class _Pairs:
    """Both sides of B pairs, all first ones before all second ones."""

    sources: Tensor
    """(2B, 3, H, W)"""
    targets: Tensor
    """(2B, 3, H, W)"""
    joints: Tensor
    """Of the targets, (2B, 18, 3)."""
    sigmas: Tensor
    """Deviations of the targets' heat maps, (2B), pixels at a height of 128."""
    same: Tensor
    """(B) int64: 1 where both sides show one identity."""
    shared: Tensor
    """(B): whether both sides share one target, divided by the share of such pairs in the global batch."""

    @cached_property
    def poses(self) -> Tensor:
        """Heat maps of the targets, (2B, 18, H, W); stage 1 needs none."""
        return heat_maps(self.joints, *self.targets.shape[-2:], sigma=self.sigmas[:, None, None, None])


def _paired(batch: Batch, joints: Tensor, config: FDGANConfig) -> _Pairs:
    images, position = batch.images, batch.position
    sources = images if batch.erased is None else batch.erased
    places = torch.arange(images.shape[1]) + position.first
    total = images.shape[1] if position.total is None else position.total
    positive = places % PAIRS == 0
    same = (positive | (batch.labels[0] == batch.labels[1])).long().to(images.device)
    chosen = positive.to(images.device)
    shared = chosen.to(images.dtype) * (total / -(-total // PAIRS))

    def second(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(chosen.view(-1, *[1] * (one.ndim - 1)), one, other)

    draws = position.uniform("sigma", (images.shape[1], 2), images.device)
    draws = torch.where(chosen[:, None], draws[:, :1], draws).T.flatten()  # one pose, one map
    sigmas = torch.tensor(config.sigmas).to(images)[(draws * len(config.sigmas)).long()]
    return _Pairs(
        sources=torch.cat([sources[0], second(sources[4], sources[1])]),
        targets=torch.cat([images[2], second(images[2], images[3])]),
        joints=torch.cat([joints[2], second(joints[2], joints[3])]),
        sigmas=sigmas,
        same=same,
        shared=shared,
    )


def _cropped(sources: Tensor, position: Position, config: FDGANConfig) -> Tensor:
    """Sources (2B, 3, H, W) as stage 1 sees them."""
    if config.crop_area == (1.0, 1.0):
        return sources
    draws = position.uniform("crop", (len(sources) // 2, 2, 4 * ATTEMPTS), sources.device)
    return crop_and_resize(sources, draws.transpose(0, 1).flatten(0, 1), config.crop_area, config.crop_aspect)


def _drawn(
    state: State, pairs: _Pairs, position: Position, config: FDGANConfig, reduce_grads: ReduceGrads, *, joint: bool
) -> dict[str, Tensor]:
    """Stages 2 and 3: both discriminators, then the generator, with the encoder if all is trained."""
    encoder, identity = (cast(Verifier, state.networks[name]) for name in ("encoder", "identity_discriminator"))
    generator, pose = (cast(Generator, state.networks["generator"]), state.networks["pose_discriminator"])
    B = len(pairs.same)
    noise = position.normal("noise", (B, config.noise), state.device).to(pairs.sources.dtype).repeat(2, 1)
    dropped = [_dropout(position, level, B, shape, state.device) for level, shape in enumerate(generator.shapes)]
    with autocast(config.step, state.device):
        with torch.set_grad_enabled(joint):
            features = exact(encoder(pairs.sources))
        fake = exact(generator(features, pairs.poses, noise, dropped if config.dropout else None))

    metrics: dict[str, Tensor] = {}
    for name, network, judge in (
        ("identity", identity, lambda x: identity.compare(identity(pairs.sources), identity(x))),
        ("pose", pose, lambda x: pose(torch.cat([pairs.poses, x], dim=1))),
    ):
        real_label, fake_label = _labels(config.seed, name, state.iteration)
        network.zero_grad()
        with autocast(config.step, state.device):
            real_score, fake_score = exact(judge(pairs.targets)), exact(judge(fake.detach()))
        terms = losses.against(real_score, real_label, "nsgan"), losses.against(fake_score, fake_label, "nsgan")
        loss = (terms[0] + terms[1]) / 2
        loss.backward()
        metrics[f"D_{name}"] = loss.detach()
        metrics[f"grad_{name}_discriminator"] = state.take_step(f"{name}_discriminator", reduce_grads)

    with frozen(identity, pose):
        with autocast(config.step, state.device):
            scores = exact(identity.compare(identity(pairs.sources), identity(fake)))
            patches = exact(pose(torch.cat([pairs.poses, fake], dim=1)))
        first, second = fake.chunk(2)
        terms = {
            "L_identity": (1.0, losses.against(scores, 1.0, "nsgan")),
            "L_pose": (1.0, losses.against(patches, 1.0, "nsgan")),
            "L_image": (config.image, losses.image_l1(pairs.targets, fake)),
            "L_same_pose": (config.same_pose, ((first - second).abs().mean(dim=(1, 2, 3)) * pairs.shared).mean()),
        }
        if joint:
            logits = encoder.compare(*features.chunk(2))
            terms["L_verification"] = config.verification, F.cross_entropy(logits, pairs.same)
        generator.zero_grad()
        encoder.zero_grad()
        torch.stack([weight * term for weight, term in terms.values()]).sum().backward()
    metrics |= {name: term.detach() for name, (_, term) in terms.items()}
    metrics["grad_generator"] = state.take_step("generator", reduce_grads)
    if joint:
        metrics["grad_encoder"] = state.take_step("encoder", reduce_grads, optimizer="joint_encoder")
    return metrics


def _dropout(position: Position, level: int, pairs: int, shape: tuple[int, int, int], device: torch.device) -> Tensor:
    """Uniform draws (2 * pairs, *shape), all first sides before all second ones."""
    draws = position.uniform(f"dropout {level}", (pairs, 2, *shape), device)
    return draws.transpose(0, 1).flatten(0, 1)


def _labels(seed: int, name: str, iteration: int) -> tuple[float, float]:
    """What a discriminator is told of real and of fake images: smoothed, and now and then swapped (release)."""
    real, fake, swap = uniform(seed, f"labels {name}", iteration, range(1), 3, "cpu")[0].tolist()
    real, fake = 0.7 + 0.3 * real, 0.3 * fake
    return (fake, real) if swap < SWAPPED else (real, fake)


def drawing(state: State, config: FDGANConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """What draws people: normalised images (N, 3, H, W) of normalised sources and target joints (N, 18, 3).

    The noise is at its mean, 0: a picture is a function of source and pose.
    """
    encoder, generator = state.networks["encoder"], state.networks["generator"]
    sigma = config.sigmas[len(config.sigmas) // 2]

    def draw(sources: Tensor, joints: Tensor) -> Tensor:
        poses = heat_maps(placed(joints, generator), config.network.height, config.network.width, sigma=sigma)
        with evaluating(encoder, generator):
            feature = encoder(placed(sources, encoder))
            return generator(feature, poses, feature.new_zeros(len(feature), config.noise))

    return draw
