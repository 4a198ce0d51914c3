"""What the optimisers make of a gradient, by hand: rates, milestones, weight decay, momentum and clipping."""

import copy
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from dgnet_core.dgnet.config import OptimConfig
from dgnet_core.dgnet.step import train_step
from dgnet_core.teacher.state import TeacherState
from dgnet_core.teacher.step import teacher_step
from tests.helpers.tiny import teacher_batch, tiny_batch, tiny_config, tiny_state, tiny_teacher_config

DECAY = 0.01
MOMENTUM = 0.8


def assert_first_update(before: nn.Module, after: nn.Module, rate: float, *, adam: bool = False) -> None:
    """Every parameter has moved by the first update of Nesterov SGD, or of Adam with betas (0, 0.999)."""
    for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True):
        assert new.grad is not None
        gradient = new.grad + DECAY * old
        direction = gradient / (gradient.abs() + 1e-8) if adam else (1 + MOMENTUM) * gradient
        torch.testing.assert_close(new, old - rate * direction, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize(("iteration", "factor"), [(4, 1), (5, 0.5), (8, 0.25)])  # milestones count from 1
def test_every_network_moves_at_its_own_rate(iteration: int, factor: float) -> None:
    optim = OptimConfig(
        appearance_lr=0.01, head_lr_factor=3, generator_lr=0.02, discriminator_lr=0.05, weight_decay=DECAY,
        momentum=MOMENTUM, milestones=(6, 9), decay=0.5,
    )  # fmt: skip
    config = tiny_config(optim=optim)
    state = tiny_state(config, iteration)
    before = copy.deepcopy(state)
    train_step(state, tiny_batch(config, iteration), config)
    old, new = before.appearance_encoder, state.appearance_encoder
    assert_first_update(old.trunk, new.trunk, 0.01 * factor)
    assert_first_update(old.prim, new.prim, 0.03 * factor)
    assert_first_update(old.fine, new.fine, 0.03 * factor)
    assert_first_update(before.structure_encoder, state.structure_encoder, 0.02 * factor, adam=True)
    assert_first_update(before.decoder, state.decoder, 0.02 * factor, adam=True)
    assert_first_update(before.discriminator, state.discriminator, 0.05 * factor, adam=True)


@pytest.mark.parametrize(("iteration", "factor"), [(1, 0.325), (4, 1), (5, 0.1)])  # warm-up to 4, a milestone at 6
def test_the_teachers_trunk_and_head_move_at_their_own_rates(iteration: int, factor: float) -> None:
    config = tiny_teacher_config(lr=0.02, head_lr_factor=5, weight_decay=DECAY, momentum=MOMENTUM, warmup_iterations=4)
    state = TeacherState.build(config)
    state.iteration = iteration
    before = copy.deepcopy(state.teacher)
    teacher_step(state, teacher_batch(config, iteration), config)
    assert_first_update(before.trunk, state.teacher.trunk, 0.02 * factor)
    assert_first_update(before.head, state.teacher.head, 0.1 * factor)


def gradient_norm(*networks: nn.Module) -> Tensor:
    parameters: Iterable[nn.Parameter] = (p for network in networks for p in network.parameters())
    return torch.stack([p.grad.norm() for p in parameters if p.grad is not None]).norm()


def test_clipping_bounds_each_update_not_the_report() -> None:
    config = tiny_config(optim=OptimConfig(clip_norm=1e-3))
    state = tiny_state(config)
    metrics = train_step(state, tiny_batch(config, 0), config)
    for name, networks in {
        "grad_discriminator": [state.discriminator],
        "grad_generator": [state.structure_encoder, state.decoder],
        "grad_appearance": [state.appearance_encoder],
    }.items():
        assert metrics[name] > 2e-3
        assert gradient_norm(*networks).item() == pytest.approx(1e-3, rel=1e-3), name


def test_clipping_bounds_the_teachers_update_not_the_report() -> None:
    config = tiny_teacher_config(clip_norm=1e-3)
    state = TeacherState.build(config)
    metrics = teacher_step(state, teacher_batch(config, 0), config)
    assert metrics["grad_teacher"] > 2e-3
    assert gradient_norm(state.teacher).item() == pytest.approx(1e-3, rel=1e-3)
