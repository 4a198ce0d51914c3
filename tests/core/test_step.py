"""The training step: exact, resumable, distributed - and only the intended networks learn from each term."""

import copy
import logging
import socket
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from dgnet_core.dgnet.config import LossConfig, OptimConfig, RecipeConfig, laptop
from dgnet_core.dgnet.plain_step import separate_passes_step
from dgnet_core.dgnet.schedule import weights
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import _coin, train_step
from dgnet_core.learning.batches import Batch, Position
from dgnet_core.learning.config import AugmentConfig, StepConfig, Warmup
from dgnet_core.learning.health import raise_fault
from dgnet_core.learning.steps import dropped_logits
from dgnet_core.networks.resnet import Head
from tests.helpers.tiny import START, assert_same, flat, small_config, tiny_batch, tiny_config, tiny_state

RAMPED = START + 3


def run(state: TrainState, config, until: int) -> list[dict]:
    return [train_step(state, tiny_batch(config, t), config) for t in range(state.iteration, until)]


# ----------------------------------------------------------------------------------------------------------------
# Exactness


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_two_runs_are_equal_in_every_bit(precision: str) -> None:
    config = tiny_config(step=StepConfig(precision=precision))  # pyright: ignore[reportArgumentType]
    first, second = tiny_state(config), tiny_state(config)
    torch.manual_seed(123)  # the global generator plays no part
    a = run(first, config, 7)
    torch.manual_seed(321)
    b = run(second, config, 7)
    assert_same(first, second)
    assert [{k: v.item() for k, v in m.items()} for m in a] == [{k: v.item() for k, v in m.items()} for m in b]


@pytest.mark.parametrize("saved_at", [2, START, START + 1, 6])
def test_resumed_run_equals_the_uninterrupted_one(saved_at: int, tmp_path: Path) -> None:
    config = tiny_config(optim=OptimConfig(milestones=(6,)))  # across the warm-up start and a milestone
    whole = tiny_state(config)
    metrics = run(whole, config, 9)

    state = tiny_state(config)
    run(state, config, saved_at)
    torch.save(state.state_dict(), tmp_path / "state.pt")
    resumed = tiny_state(replace(config, seed=config.seed), iteration=0)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = run(resumed, config, 9)

    assert_same(whole, resumed)
    assert [m["L_s_id"].item() for m in rest] == [m["L_s_id"].item() for m in metrics[saved_at:]]


def test_a_run_goes_on_in_another_memory_layout() -> None:
    config = tiny_config(step=StepConfig(precision="float64", channels_last=True))
    other = replace(config, step=replace(config.step, channels_last=False))
    whole, resumed = tiny_state(config), tiny_state(other)
    run(whole, config, START + 1)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    run(whole, config, START + 3)
    run(resumed, other, START + 3)
    for name, net in whole.networks.items():
        for left, right in zip(net.parameters(), resumed.networks[name].parameters(), strict=True):
            torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-9)


def test_a_run_goes_on_with_the_optimisers_that_it_asks_for() -> None:
    config = tiny_config()
    state = tiny_state(config)
    run(state, config, 2)
    optim = replace(config.optim, weight_decay=0.1, momentum=0.5, adam_betas=(0.5, 0.9))
    forked = tiny_state(replace(config, optim=optim))
    forked.load_state_dict(state.state_dict())
    assert {group["weight_decay"] for group in forked.appearance_optimizer.param_groups} == {0.1}
    assert {group["momentum"] for group in forked.appearance_optimizer.param_groups} == {0.5}
    assert {group["betas"] for group in forked.generator_optimizer.param_groups} == {(0.5, 0.9)}
    before, after = state.generator_optimizer.state_dict(), forked.generator_optimizer.state_dict()
    assert before["state"].keys() == after["state"].keys()
    for number, memory in before["state"].items():
        assert all(torch.equal(value, after["state"][number][name]) for name, value in memory.items())


def test_runs_that_differ_only_later_share_their_first_part() -> None:
    config = tiny_config()
    loss = config.loss
    late = {"teacher_warmup": Warmup(start=5, slope=0.01), "code_warmup": Warmup(start=4, slope=2)}
    later = replace(loss, alpha=0.9, prim=1.0, cycle=0.3, **late)
    others = [
        replace(config, loss=later),
        replace(config, recipe=RecipeConfig(soft_label="uniform", features="prim", reencode_probability=0.0)),
    ]
    first = tiny_state(config)
    run(first, config, START + 1)  # iterations 0 to START, the last one with all ramped weights at 0
    states = [tiny_state(other) for other in others]
    for other, state in zip(others, states, strict=True):
        run(state, other, START + 1)
        assert_same(first, state)
    run(first, config, START + 2)
    for other, state in zip(others, states, strict=True):
        run(state, other, START + 2)
        with pytest.raises(AssertionError):
            assert_same(first, state)


@pytest.mark.parametrize("iteration", [0, RAMPED])
@pytest.mark.parametrize("reencode", [0.0, 1.0])
@pytest.mark.parametrize("erase", [0.0, 0.5])
def test_merged_passes_equal_separate_ones(iteration: int, reencode: float, erase: float) -> None:
    warmup = Warmup(start=START, slope=0.5)  # 1.5 at RAMPED, 1 before
    loss = LossConfig(
        image=4.0, identity=0.7, positive_identity=1.3, generated_identity=0.4, adversarial=0.8, gradient_penalty=0.02,
        structure_code=0.6, cycle=1.7, prim=1.2, alpha=0.3, code_warmup=warmup, teacher_warmup=warmup,
    )  # fmt: skip
    config = tiny_config(
        loss=loss, recipe=RecipeConfig(reencode_probability=reencode), augment=AugmentConfig(pad=1, erase=erase)
    )
    batch = tiny_batch(config, iteration)
    merged, separate = tiny_state(config, iteration), tiny_state(config, iteration)
    ours = train_step(merged, batch, config)
    plain = separate_passes_step(separate, batch, config)
    for name in plain.keys() & ours.keys():
        assert ours[name].item() == pytest.approx(plain[name].item(), rel=1e-9), name
    assert set(ours) - set(plain) == {"grad_discriminator", "grad_generator", "grad_appearance", "identity_surge"}
    assert set(plain) - set(ours) <= {"L_s_id_fine"}  # computed in vain before the warm-up
    a, b = flat(merged), flat(separate)
    for path, value in a.items():
        if path not in ("/identity_level/0", "/identity_level"):
            torch.testing.assert_close(value, b[path], rtol=1e-7, atol=1e-9, equal_nan=True, msg=path)


def test_memory_format_changes_rounding_only() -> None:
    config = tiny_config()
    other = replace(config, step=replace(config.step, channels_last=False))
    states = tiny_state(config, RAMPED), tiny_state(other, RAMPED)
    for state, c in zip(states, (config, other), strict=True):
        train_step(state, tiny_batch(c, RAMPED), c)
    for (path, a), b in zip(flat(states[0]).items(), flat(states[1]).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, equal_nan=True, msg=path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_step_equals_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    # The whole tracing and its autograd, without minutes of code generation.
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "propagate", False)  # pytest would collect all of it
    config = tiny_config(step=StepConfig(precision="float64", compile=True))
    eager = replace(config, step=replace(config.step, compile=False))
    states = tiny_state(config, RAMPED), tiny_state(eager, RAMPED)
    compiled, plain = (train_step(s, tiny_batch(c, RAMPED), c) for s, c in zip(states, (config, eager), strict=True))
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-6, atol=1e-9, msg=name)
    assert states[0].state_dict()["networks"].keys() == states[1].state_dict()["networks"].keys()


# ----------------------------------------------------------------------------------------------------------------
# Who is trained where

E_A, E_S, G, D = "appearance_encoder", "structure_encoder", "decoder", "discriminator"
NOTHING = {
    "image": 0.0, "identity": 0.0, "positive_identity": 0.0, "generated_identity": 0.0, "adversarial": 0.0,
    "gradient_penalty": 0.0, "appearance_code": 0.0, "structure_code": 0.0, "cycle": 0.0, "prim": 0.0,
}  # fmt: skip


@pytest.mark.parametrize(
    ("term", "recipe", "learners"),
    [
        ({"image": 5.0}, {}, {E_S, G}),
        ({"image": 5.0}, {"detach_appearance": False}, {E_A, E_S, G}),
        ({"identity": 1.0}, {}, {E_A}),
        ({"positive_identity": 1.0}, {}, {E_A}),
        ({"generated_identity": 0.5}, {}, {E_S, G}),
        ({"generated_identity": 0.5}, {"detach_appearance": False}, {E_A, E_S, G}),
        ({"adversarial": 1.0}, {}, {E_S, G, D}),
        ({"gradient_penalty": 0.01}, {}, {D}),
        ({"appearance_code": 1.0}, {}, set()),
        ({"appearance_code": 1.0}, {"detach_appearance": False}, {E_A, E_S, G}),
        ({"structure_code": 1.0}, {"reencode_probability": 1.0}, {E_S}),
        ({"structure_code": 1.0}, {"reencode_probability": 0.0}, {E_S, G}),
        ({"cycle": 2.0}, {"reencode_probability": 1.0}, {E_S, G}),
        ({"cycle": 2.0}, {"reencode_probability": 0.0}, {E_S, G}),
        ({"prim": 2.0, "alpha": 0.0}, {}, {E_A}),
        ({"prim": 2.0}, {"features": "fine"}, {E_A}),
    ],
)
def test_only_the_intended_networks_learn(term: dict, recipe: dict, learners: set) -> None:
    config = tiny_config(
        loss=replace(tiny_config().loss, **(NOTHING | term)),
        recipe=RecipeConfig(**recipe),
        optim=OptimConfig(weight_decay=0),
    )
    state = tiny_state(config, RAMPED)
    before = copy.deepcopy({name: net.state_dict() for name, net in state.networks.items()})
    train_step(state, tiny_batch(config, RAMPED), config)
    learned = {
        name
        for name, net in state.networks.items()
        if any(p.grad is not None and bool(p.grad.any()) for p in net.parameters())
    }
    assert learned == learners
    for name, net in state.networks.items():
        changed = any(not torch.equal(value, before[name][key]) for key, value in net.named_parameters())
        assert changed == (name in learners)


@pytest.mark.parametrize(
    ("recipe", "present", "absent"),
    [
        ({}, {"L_prim", "L_fine"}, set()),
        ({"online_feeding": False}, set(), {"L_prim", "L_fine", "L_s_id_fine"}),
        ({"features": "prim"}, {"L_prim"}, {"L_fine", "L_s_id_fine"}),
        ({"features": "fine"}, {"L_fine", "L_s_id_fine"}, {"L_prim"}),
        ({"soft_label": "none"}, {"L_fine"}, {"L_prim"}),
        *[({"soft_label": s}, {"L_prim", "L_fine"}, set()) for s in ("pseudo", "appearance", "uniform", "two_label")],
        ({"gan": "nsgan", "detach_appearance": False}, {"L_prim", "L_fine"}, set()),
    ],
)
def test_recipes_and_ablations(recipe: dict, present: set, absent: set) -> None:
    config = tiny_config(recipe=RecipeConfig(**recipe))
    state = tiny_state(config, RAMPED)
    metrics = train_step(state, tiny_batch(config, RAMPED), config)
    assert present <= set(metrics)
    assert not absent & set(metrics)


@pytest.mark.parametrize(
    ("head", "terms"),
    [("prim", {"L_prim", "L_s_id", "L_s_id_positive"}), ("fine", {"L_fine", "L_s_id_fine"})],
)
def test_each_dropout_acts_on_its_own_terms(head: str, terms: set[str]) -> None:
    """And the generator's identity loss, L_c_id, reads f_prim without any."""
    metrics = []
    for dropout in (0.0, 0.3):
        config = tiny_config(network=replace(tiny_config().network, **{f"{head}_dropout": dropout}))
        metrics.append(train_step(tiny_state(config, RAMPED), tiny_batch(config, RAMPED), config))
    without, dropped = metrics
    assert {"L_c_id"} | terms <= set(without)
    assert {name for name in without if name[:2] == "L_" and without[name] != dropped[name]} == terms


def test_dropout_is_that_of_the_image_however_many_ranks_share_the_batch() -> None:
    head = Head(3, 6, 6, dropout=0.3)
    torch.nn.init.eye_(head.classifier.weight)
    B, groups = 4, 2
    whole = Position(seed=0, iteration=5)
    draws = whole.uniform("a", (B, groups, 6), "cpu")
    kept = dropped_logits(head, torch.ones(groups * B, 6), groups, whole, "a").view(groups, B, 6) > 0
    for group in range(groups):
        for image in range(B):
            assert torch.equal(kept[group, image], draws[image, group] >= 0.3)
    part = Position(seed=0, iteration=5, first=2, total=B)
    half = dropped_logits(head, torch.ones(groups * 2, 6), groups, part, "a").view(groups, 2, 6) > 0
    assert torch.equal(half, kept[:, 2:])


def test_generated_images_are_labelled_by_their_appearance() -> None:
    """Then L_prim is a cross-entropy and, without dropout, the one that teaches the generator."""
    network = replace(tiny_config().network, prim_dropout=0.0)
    config = tiny_config(network=network, recipe=RecipeConfig(soft_label="appearance"))
    batch = tiny_batch(config, RAMPED)
    assert not torch.equal(*batch.labels)
    state = tiny_state(config, RAMPED)
    torch.nn.init.normal_(state.appearance_encoder.prim.classifier.weight)
    metrics = train_step(state, batch, config)
    assert metrics["L_prim"].item() == pytest.approx(metrics["L_c_id"].item())


def test_the_coin_is_fair_and_tossed_anew() -> None:
    tosses = {seed: torch.tensor([_coin(seed, t) for t in range(1000)]) for seed in (0, 1)}
    for toss in tosses.values():
        assert toss.unique().numel() > 990
        assert [float((toss < p).float().mean()) for p in (0.2, 0.5, 0.8)] == pytest.approx([0.2, 0.5, 0.8], abs=0.05)
    assert not torch.equal(tosses[0], tosses[1])


def test_ranks_share_the_coin_that_lets_the_structure_encoder_learn() -> None:
    loss = replace(tiny_config().loss, **(NOTHING | {"structure_code": 1.0}))
    config = tiny_config(loss=loss, recipe=RecipeConfig(reencode_probability=0.3))

    def learns(iteration: int, rank: int) -> bool:
        state = tiny_state(config, iteration)
        train_step(state, tiny_batch(config, iteration, rank, 2), config)
        return not any(bool(p.grad.any()) for p in state.decoder.parameters() if p.grad is not None)

    iterations = range(RAMPED, RAMPED + 4)
    expected = [_coin(config.seed, t) < 0.3 for t in iterations]
    assert 0 < sum(expected) < 4
    for rank in range(2):
        assert [learns(t, rank) for t in iterations] == expected


def test_recipes_without_teacher_labels_need_no_teacher() -> None:
    config = tiny_config(recipe=RecipeConfig(soft_label="uniform"))
    state = TrainState.build(config)
    state.iteration = RAMPED
    assert "L_prim" in train_step(state, tiny_batch(config, RAMPED), config)


def test_paper_gradient_is_that_of_the_whole_objective() -> None:
    """With the code attached, E_a's gradient through the generator equals a finite difference of the pixel losses."""
    config = tiny_config(
        loss=replace(tiny_config().loss, **(NOTHING | {"image": 5.0})),
        recipe=RecipeConfig(detach_appearance=False),
        optim=OptimConfig(weight_decay=0),
    )
    batch = tiny_batch(config, 0)

    def loss_at(shift: float) -> tuple[float, float]:
        state = tiny_state(config)
        weight = state.appearance_encoder.trunk.conv1.weight
        with torch.no_grad():
            weight[0, 0, 3, 3] += shift
        metrics = train_step(state, batch, config)
        assert weight.grad is not None
        return 5 * float(metrics["L_img1"] + metrics["L_img2"]), float(weight.grad[0, 0, 3, 3])

    step = 1e-6
    slope = (loss_at(step)[0] - loss_at(-step)[0]) / (2 * step)
    assert loss_at(0.0)[1] == pytest.approx(slope, rel=1e-4)


def test_it_learns() -> None:
    config = tiny_config(
        network=replace(tiny_config().network, structure_width=4), optim=OptimConfig(generator_lr=2e-3),
        augment=AugmentConfig(flip=0, pad=0, erase=0), step=StepConfig(),
    )  # fmt: skip
    never = Warmup(start=10_000)
    loss = replace(config.loss, adversarial=0.0, code_warmup=never, teacher_warmup=never)  # no game: losses must fall
    config = replace(config, loss=loss)
    state = tiny_state(config)
    batch = tiny_batch(config, 0)
    metrics = [
        train_step(state, replace(batch, position=replace(batch.position, iteration=t)), config) for t in range(40)
    ]
    # Seeds 0 to 5: at most 0.07 and 0.91; where nothing is learned about 1.00.
    last = {name: torch.stack([m[name] for m in metrics[-5:]]).mean() for name in metrics[0]}
    assert last["L_s_id"] < 0.3 * metrics[0]["L_s_id"]
    assert last["L_img1"] < 0.95 * metrics[0]["L_img1"]


# ----------------------------------------------------------------------------------------------------------------
# Data-parallel


def _rank(rank: int, port: int, folder: Path) -> None:
    torch.distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    config = _two_rank_config()

    def average(parameters: list[torch.nn.Parameter]) -> None:
        for parameter in parameters:
            assert parameter.grad is not None
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad.div_(2)

    state = tiny_state(config, RAMPED)
    train_step(state, tiny_batch(config, RAMPED, rank, 2), config, reduce_grads=average)
    torch.save({name: net.state_dict() for name, net in state.networks.items()}, folder / f"{rank}.pt")
    torch.save([p.grad for net in state.networks.values() for p in net.parameters()], folder / f"gradients{rank}.pt")
    torch.distributed.destroy_process_group()


def _two_rank_config():
    return tiny_config(batch_size=4, augment=AugmentConfig(pad=1, erase=0.5))


def test_two_processes_follow_the_mean_of_both_losses(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_rank, (port, tmp_path), nprocs=2)

    config = _two_rank_config()
    gradients = []
    for rank in range(2):  # each half alone, with its own BatchNorm statistics
        state = tiny_state(config, RAMPED)
        # The discriminator that the second part of the step meets is the one both ranks updated together.
        step = train_step(state, tiny_batch(config, RAMPED, rank, 2), config, reduce_grads=_inject(tmp_path, state))
        assert step
        gradients.append([p.grad for net in state.networks.values() for p in net.parameters()])
    together = torch.load(tmp_path / "gradients0.pt", weights_only=True)
    for mean, first, second in zip(together, *gradients, strict=True):
        torch.testing.assert_close(mean, (first + second) / 2, rtol=1e-7, atol=1e-9)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in (E_A, E_S, G, D):
        for key, value in ranks[0][name].items():
            if "running" not in key:
                torch.testing.assert_close(value, ranks[1][name][key], rtol=0, atol=0, msg=key)


def _inject(folder: Path, state: TrainState):
    """Reduce by hand: the discriminator's update uses the other process's result, all else stays local."""
    together = torch.load(folder / "gradients0.pt", weights_only=True)
    discriminator = list(state.discriminator.parameters())
    local: list = []

    def reduce_grads(parameters: list[torch.nn.Parameter]) -> None:
        if parameters[0] is discriminator[0]:
            local.extend(p.grad for p in parameters)
            for parameter, gradient in zip(parameters, together[-len(discriminator) :], strict=True):
                parameter.grad = gradient.clone()
        else:
            for parameter, gradient in zip(discriminator, local, strict=True):
                parameter.grad = gradient

    return reduce_grads


# ----------------------------------------------------------------------------------------------------------------
# Precision and device


@pytest.mark.slow
def test_bfloat16_follows_float32() -> None:
    """100 steps across the warm-up start: all finite, and mean losses within a band of float32's.

    What is descended is compared at the end of the run (25 % + 0.1), the adversarial game, which amplifies any
    rounding, over its first 20 steps (10 %).
    """
    runs = {}
    for precision in ("float32", "bfloat16"):
        config = laptop(8, iterations=100, batch_size=4, step=StepConfig(precision=precision))
        config = replace(config, network=small_config(8).network)
        runs[precision] = run(tiny_state(config), config, config.iterations)
        assert all(torch.isfinite(torch.stack(list(m.values()))).all() for m in runs[precision])

    def gap_and_level(name: str, steps: slice) -> tuple[float, float]:
        exact, rounded = (float(torch.stack([m[name] for m in runs[p][steps]]).mean()) for p in runs)
        return abs(rounded - exact), exact

    for name in ("L_s_id", "L_img1", "L_code2", "L_prim"):
        gap, level = gap_and_level(name, slice(-30, None))
        assert gap <= 0.25 * level + 0.1, name
    for name in ("L_adv", "D_adv"):
        gap, level = gap_and_level(name, slice(20))
        assert gap <= 0.1 * level, name


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_step_on_the_gpu_never_waits_for_it(precision: str) -> None:
    config = tiny_config(step=StepConfig(precision=precision))  # pyright: ignore[reportArgumentType]
    state = TrainState.build(config, "cuda", teacher=tiny_state(config).teacher)
    metrics = {}
    for t in range(8):
        batch = tiny_batch(config, t)
        erased = None if batch.erased is None else batch.erased.cuda()
        batch = replace(batch, images=batch.images.cuda(), erased=erased)
        torch.cuda.set_sync_debug_mode("error" if t else "default")
        try:
            metrics = train_step(state, batch, config)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    raise_fault(state)
    assert all(bool(value.isfinite()) for value in metrics.values())


# ----------------------------------------------------------------------------------------------------------------
# Bad input


def _with(batch: Batch, **changes) -> Batch:
    return replace(batch, **changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: _with(b, images=b.images[:3]), r"batch.images has shape \(3, 4, 3, 24, 12\)"),
        (lambda b: _with(b, images=b.images[..., :7]), r"\(4, B, 3, 24, 12\) is needed"),
        (lambda b: _with(b, images=b.images.float()), "batch.images is torch.float32"),
        (lambda b: _with(b, erased=b.erased.float()), "batch.erased is torch.float32"),
        (lambda b: _with(b, images=b.images * 255), "pass normalised images"),
        (lambda b: _with(b, images=b.images / 0), "not finite"),
        (lambda b: _with(b, images=b.images.to("meta")), "batch.images is on meta"),
        (lambda b: _with(b, images=b.images[:, :1], erased=None), "BatchNorm needs at least 2"),
        (lambda b: _with(b, labels=b.labels + 3), "num_classes = 5 allows 0 to 4"),
        (lambda b: _with(b, labels=b.labels - 5), "holds -"),
        (lambda b: _with(b, labels=b.labels.int()), "batch.labels is torch.int32"),
        (lambda b: _with(b, labels=b.labels[:, :2]), r"batch.labels has shape \(2, 2\)"),
        (lambda b: _with(b, position=replace(b.position, iteration=9)), "batch.position.iteration = 9"),
    ],
)
def test_bad_batches_are_refused_before_anything_changes(change, message: str) -> None:
    config = tiny_config()
    state, untouched = tiny_state(config), tiny_state(config)
    with pytest.raises(ValueError, match=message):
        train_step(state, change(tiny_batch(config, 0)), config)
    assert_same(state, untouched)


def test_state_and_configuration_must_belong_together() -> None:
    config = tiny_config()
    with pytest.raises(ValueError, match="num_classes = 6, the state was built for 5"):
        train_step(tiny_state(config), tiny_batch(config, 0), replace(config, num_classes=6))
    with pytest.raises(ValueError, match="needs a teacher"):
        train_step(TrainState.build(config), tiny_batch(config, 0), config)
    with pytest.raises(ValueError, match="the teacher knows 5 identities, the training set has 6"):
        TrainState.build(replace(config, num_classes=6), teacher=tiny_state(config).teacher)
    with pytest.raises(ValueError, match="another configuration"):
        tiny_state(replace(config, num_classes=6)).load_state_dict(tiny_state(config).state_dict())
    with pytest.raises(ValueError, match="not a training state of this method: its keys"):
        tiny_state(config).load_state_dict({"model": {}})


def test_weights_match_the_terms_that_are_computed() -> None:
    config = tiny_config()
    state = tiny_state(config)
    for t, metrics in enumerate(run(state, config, 6)):
        ramped = weights(config.loss, config.recipe, t)
        assert ("L_prim" in metrics) == (ramped.prim > 0)
        assert ("L_cyc" in metrics) == (ramped.cycle > 0)
        assert ("L_s_id_fine" in metrics) == (ramped.fine_real > 0)
