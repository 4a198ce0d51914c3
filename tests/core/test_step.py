"""The training step: exact, resumable, distributed, in every precision; what it refuses changes nothing."""

import copy
import logging
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from dgnet_core.dgnet.config import LossConfig, OptimConfig, RecipeConfig, laptop
from dgnet_core.dgnet.networks import to_gray
from dgnet_core.dgnet.plain_step import separate_passes_step
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import train_step
from dgnet_core.learning.batches import Batch, Position
from dgnet_core.learning.config import AugmentConfig, StepConfig, Warmup
from dgnet_core.learning.health import raise_fault
from tests.helpers.servers import free_ports
from tests.helpers.tiny import (
    E_A,
    E_S,
    RAMPED,
    START,
    D,
    G,
    assert_same,
    flat,
    run,
    small_config,
    tiny_batch,
    tiny_config,
    tiny_state,
)

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


def test_the_structure_encoder_reads_half_of_the_images_as_negatives() -> None:
    config = tiny_config(recipe=RecipeConfig(structure_negatives=True))
    batch = tiny_batch(config, RAMPED)
    state = tiny_state(config, RAMPED)
    read: list[torch.Tensor] = []
    made: list[torch.Tensor] = []
    state.structure_encoder.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].detach()))
    state.decoder.register_forward_hook(lambda _, inputs, output: made.append(output.detach()))
    train_step(state, batch, config)
    gray = to_gray(batch.images[:2].flatten(0, 1))
    drawn = batch.position.uniform("negative", (batch.images.shape[1], 2), "cpu") < 0.5
    signs = torch.where(torch.cat([drawn[:, 0], drawn[:, 1]]), -1, 1).view(-1, 1, 1, 1)
    assert set(signs.unique().tolist()) == {-1, 1}
    torch.testing.assert_close(read[0], signs * gray)
    # What was generated in the structure of a negative is read back as one: both codes of L_code2 are of one kind.
    crossed = made[0].chunk(3)[2]
    torch.testing.assert_close(read[1], signs * to_gray(crossed))
    chances = [
        (Position(seed=3, iteration=i, total=64).uniform("negative", (64, 2), "cpu") < 0.5).float().mean()
        for i in range(20)
    ]
    assert torch.stack(chances).mean().item() == pytest.approx(0.5, abs=0.05)


def test_memory_format_changes_rounding_only() -> None:
    config = tiny_config()
    other = replace(config, step=replace(config.step, channels_last=False))
    states = tiny_state(config, RAMPED), tiny_state(other, RAMPED)
    for state, c in zip(states, (config, other), strict=True):
        train_step(state, tiny_batch(c, RAMPED), c)
    for (path, a), b in zip(flat(states[0]).items(), flat(states[1]).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9, equal_nan=True, msg=path)


@pytest.mark.slow
@pytest.mark.long
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


def test_the_discriminator_sees_real_and_generated_images_in_the_same_precision(monkeypatch) -> None:
    config = tiny_config(step=StepConfig(precision="bfloat16"))
    state, seen = tiny_state(config, 0), []
    forward = type(state.discriminator).forward

    def spied(self, x):
        seen.append((torch.is_autocast_enabled("cpu"), all(p.requires_grad for p in self.parameters())))
        return forward(self, x)

    monkeypatch.setattr(type(state.discriminator), "forward", spied)
    train_step(state, tiny_batch(config, 0), config)
    assert [mixed for mixed, learns in seen if learns] == [False, False]
    assert len(seen) == 3  # and once to teach the generator


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
    spawn(_rank, (free_ports(1)[0], tmp_path), nprocs=2)

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
