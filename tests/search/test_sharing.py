"""Runs that differ only after their warm-up start share what comes before it, bit for bit."""

import io
from copy import deepcopy
from dataclasses import fields, replace

import pytest
from rich.console import Console

from dgnet_core.dgnet.config import DGNetConfig, FeedConfig, RecipeConfig, paper
from dgnet_core.dgnet.schedule import ramp_end
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import train_step
from dgnet_core.learning.config import AugmentConfig, MetricConfig, Warmup
from dgnet_core.networks.config import NetworkConfig
from dgnet_platform.search.sharing import NEVER_ENDS, Costs, fork_of, plan_sharing, prefix_of, simulated_ends
from dgnet_platform.search.space import Space
from dgnet_platform.search.stopping import StoppingRule
from tests.helpers.tiny import START, assert_same, tiny_batch, tiny_config, tiny_state

COSTS = Costs(1.0, 2.0)


def with_start(config: DGNetConfig, code: int, teacher: int | None = None) -> DGNetConfig:
    loss = config.loss
    code_warmup = replace(loss.code_warmup, start=code)
    teacher_warmup = replace(loss.teacher_warmup, start=code if teacher is None else teacher)
    return replace(config, loss=replace(loss, code_warmup=code_warmup, teacher_warmup=teacher_warmup))


def trained(state: TrainState, config: DGNetConfig, iterations: int) -> TrainState:
    while state.iteration < iterations:
        train_step(state, tiny_batch(config, state.iteration), config)
    return state


def different_later() -> DGNetConfig:
    """Differs from the tiny configuration in everything that comes after the warm-up start."""
    config = tiny_config(iterations=40)
    loss = replace(
        config.loss, appearance_code=3.0, structure_code=4.0, cycle=5.0, prim=6.0, alpha=0.7,
        code_warmup=Warmup(start=START, slope=9.0), teacher_warmup=Warmup(start=START + 4, slope=1e-3),
    )  # fmt: skip
    recipe = replace(
        config.recipe,
        reencode_probability=1.0,
        soft_label="uniform",
        features="fine",
        teacher_dropout=True,
        code_teaches_decoder=True,
    )
    feed = FeedConfig(confidence="weight", least_confidence=0.1, pictures=2, share=0.3, last_share=0.9)
    watch = replace(config.watch, factor=9.0, floor=0.5)
    return replace(config, loss=loss, recipe=recipe, beta=0.9, feed=feed, watch=watch)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("paper_recipe", [False, True])
def test_the_shared_part_is_the_same_in_every_bit(paper_recipe):
    a, b = tiny_config(), different_later()
    if paper_recipe:  # appearance code attached, no erasing, another GAN
        a, b = (
            replace(
                c,
                recipe=replace(c.recipe, detach_appearance=False, gan="nsgan"),
                augment=AugmentConfig(pad=1, erase=0.0),
            )
            for c in (a, b)
        )
    prefix = prefix_of(a)
    assert a != b
    assert prefix == prefix_of(b)
    fork = fork_of(a)
    assert fork == fork_of(b) == START

    states = [trained(tiny_state(config), config, fork) for config in (a, b)]
    assert not prefix.needs_teacher
    states.append(trained(TrainState.build(prefix), prefix, fork))  # without a teacher
    for state in states[1:]:
        assert_same(states[0], state)

    # And a run goes on from the prefix as from its own beginning.
    forked = tiny_state(a)
    forked.load_state_dict(deepcopy(states[2].state_dict()))
    whole, forked = (trained(state, a, fork + 3) for state in (states[0], forked))
    assert_same(whole, forked)
    assert_same(trained(TrainState.build(prefix), prefix, fork + 3), trained(states[2], prefix, fork + 3))
    with pytest.raises(AssertionError):
        assert_same(whole, trained(states[1], b, fork + 3))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "ablation",
    [{"online_feeding": False}, {"soft_label": "none"}, {"features": "prim"}, {"soft_label": "pseudo"}],
)
def test_ablations_share_the_prefix(ablation):
    a = tiny_config()
    b = replace(a, recipe=RecipeConfig(**ablation))
    assert prefix_of(a) == prefix_of(b)
    assert_same(trained(tiny_state(a), a, START), trained(tiny_state(b), b, START))


@pytest.mark.usefixtures("one_thread")
def test_what_acts_from_the_start_is_kept():
    """Every other change makes another prefix, and those of the weights another state."""
    a = tiny_config()
    loss, optim = a.loss, a.optim
    others = [
        *(replace(a, loss=replace(loss, **{name: 3.0})) for name in (
            "image", "identity", "positive_identity", "generated_identity", "adversarial", "gradient_penalty",
        )),
        replace(a, loss=replace(loss, label_smoothing=0.5)),
        *(replace(a, metric=MetricConfig(**{name: 1.0})) for name in ("triplet", "circle")),
        replace(a, ema=0.9),
        replace(a, optim=replace(optim, optimizer="adamw")),
        replace(a, optim=replace(optim, warmup_iterations=2)),
        replace(a, optim=replace(optim, cosine_end=4)),
        *(replace(a, optim=replace(optim, **{name: 0.005})) for name in (
            "appearance_lr", "head_lr_factor", "momentum", "generator_lr", "discriminator_lr", "weight_decay",
            "clip_norm",
        )),
        replace(a, optim=replace(optim, adam_betas=(0.5, 0.999))),
        replace(a, optim=replace(optim, milestones=(2,))),
        replace(a, recipe=replace(a.recipe, gan="nsgan")),
        replace(a, recipe=replace(a.recipe, detach_appearance=False)),
        replace(a, recipe=replace(a.recipe, release_statistics=True)),
        replace(a, network=replace(a.network, release_bottleneck=True)),
        replace(a, augment=AugmentConfig(pad=1, erase=0.0)),
        replace(a, watch=replace(a.watch, fast=0.5)),
        replace(a, seed=1),
    ]  # fmt: skip
    reference = trained(tiny_state(a), a, START)
    for other in others:
        assert prefix_of(other) != prefix_of(a)
        with pytest.raises(AssertionError):
            assert_same(trained(tiny_state(other), other, START), reference)
    for name, value in (
        ("batch_size", 5), ("num_classes", 6), ("trunk_from_teacher", True), ("instances", 2),
        ("partners", "rare_camera"),
    ):  # fmt: skip
        assert prefix_of(replace(a, **{name: value})) != prefix_of(a)
    assert prefix_of(replace(a, network=NetworkConfig())) != prefix_of(a)
    assert prefix_of(replace(a, step=replace(a.step, channels_last=False))) != prefix_of(a)


def test_a_prefix_is_its_own_and_has_no_end():
    prefix = prefix_of(different_later())
    assert prefix_of(prefix) == prefix
    assert fork_of(prefix) == NEVER_ENDS == prefix.iterations
    assert prefix_of(replace(tiny_config(), trunk_from_teacher=True)).needs_teacher


def test_the_fork_is_the_earlier_start_within_the_run():
    config = paper(751)
    assert fork_of(config) == 30_000
    assert fork_of(with_start(config, 20_000, 40_000)) == fork_of(with_start(config, 40_000, 20_000)) == 20_000
    assert fork_of(with_start(config, 200_000)) == 100_000
    assert fork_of(with_start(config, 0)) == 0


def test_a_plan_counts_every_shared_iteration_once():
    base = paper(751)
    other = replace(base, loss=replace(base.loss, generated_identity=1.0))
    configs = [
        base, with_start(base, 10_000), replace(base, loss=replace(base.loss, alpha=0.9)), other,
        with_start(other, 50_000), with_start(base, 50_000),
    ]  # fmt: skip
    ends = [100_000, 20_000, 40_000, 35_000, 60_000, 5_000]  # the last one failed before its fork
    found = plan_sharing(configs, ends, COSTS)
    assert [[(fork.iteration, fork.trials) for fork in prefix.forks] for prefix in found.prefixes] == [
        [(5_000, (5,)), (10_000, (1,)), (30_000, (0, 2))],
        [(30_000, (3,)), (50_000, (4,))],
    ]
    assert [prefix.iterations for prefix in found.prefixes] == [30_000, 50_000]
    assert [prefix.trials for prefix in found.prefixes] == [(0, 1, 2, 5), (3, 4)]
    assert found.steps_without == sum(ends)
    assert found.steps_before == 5_000 + 10_000 + 3 * 30_000 + 50_000
    assert found.steps_with == 30_000 + 50_000 + sum(ends) - found.steps_before
    assert found.cost_without == found.steps_before + 2 * found.steps_after
    assert found.cost_with == 80_000 + 2 * found.steps_after
    assert found.ratio == found.cost_without / found.cost_with


def test_nothing_is_saved_where_nothing_is_shared():
    base = paper(751)
    for configs, ends in (([base], [100_000]), ([], []), ([with_start(base, 0)] * 3, [100_000] * 3)):
        found = plan_sharing(configs, ends, COSTS)
        assert found.steps_with == found.steps_without
        assert found.ratio == 1


def test_equal_trials_share_only_what_comes_before_the_fork():
    found = plan_sharing([paper(751)] * 3, [100_000] * 3, COSTS)
    assert found.steps_with == 30_000 + 3 * 70_000


def test_wrong_plans_are_refused():
    with pytest.raises(ValueError, match="1 ends for 2 trials"):
        plan_sharing([paper(751)] * 2, [5], COSTS)
    with pytest.raises(ValueError, match="trial 1 ends at iteration 100001: its run has 100000"):
        plan_sharing([paper(751)] * 2, [5, 100_001], COSTS)
    for wrong in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"Costs.after = .*: must be positive and finite"):
            Costs(1.0, wrong)


def drawn(count: int, seed: int = 0) -> list[DGNetConfig]:
    base = paper(751)
    space = Space.default(base)
    return [base, *(space.apply(base, values) for values in space.draw(count - 1, seed))]


def test_simulated_trials_end_at_rungs_or_at_the_end():
    configs, stopping = drawn(64), StoppingRule()
    ends = simulated_ends(configs, stopping, 0)
    assert ends == simulated_ends(configs, stopping, 0)
    assert ends != simulated_ends(configs, stopping, 1)
    assert ends[0] == 100_000  # nobody was there before it
    far = [end - ramp_end(config) for config, end in zip(configs, ends, strict=True) if end < config.iterations]
    assert len(set(far)) <= stopping.rungs
    assert 32 <= far.count(min(far)) <= 48  # about two thirds of 64 end at the first rung
    assert sum(end == 100_000 for end in ends) <= 20  # those at other learning rates are not compared
    assert simulated_ends(configs, StoppingRule(kind="none"), 0) == [100_000] * 64
    assert simulated_ends([], stopping, 0) == []
    assert {end - ramp_end(c) for c, end in zip(configs, simulated_ends(configs, stopping, 0, (5,)), strict=True)} >= {
        5
    }


def test_the_paper_size_plan_saves_a_third():
    configs = drawn(64)
    found = plan_sharing(configs, simulated_ends(configs, StoppingRule(), 0), Costs(1.0, 1.32))
    assert len(found.prefixes) == 1  # nothing that acts from the first iteration on is searched
    assert 1.5 < found.ratio < 2


@pytest.mark.parametrize(("seconds", "heading"), [(True, "GPU-hours"), (False, "relative cost")])
def test_a_plan_is_printed(seconds, heading):
    configs = drawn(8)
    found = plan_sharing(configs, [100_000] * 8, Costs(0.5, 1.0, seconds))
    console = Console(file=io.StringIO(), width=100)
    console.print(found)
    text = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    assert heading in text
    for prefix in found.prefixes:
        assert all(f"{fork.iteration:,}" in text for fork in prefix.forks)
    assert f"{found.steps_with:,}" in text
    assert f"{found.ratio:.2f}" in text


def test_no_field_is_forgotten():
    """A new field of the loss is either ramped, and canonical, or acts from the start, and is kept."""
    changed = {
        f.name for f in fields(tiny_config().loss)
        if getattr(prefix_of(different_later()).loss, f.name) != getattr(different_later().loss, f.name)
    }  # fmt: skip
    ramped = {"appearance_code", "structure_code", "cycle", "prim", "alpha", "code_warmup", "teacher_warmup"}
    assert changed == ramped
