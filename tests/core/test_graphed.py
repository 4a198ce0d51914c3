"""What a CUDA graph needs of the step, as far as a machine without CUDA can prove it."""

import copy
import itertools
from dataclasses import replace
from functools import cache
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from dgnet_core.dgnet.config import DGNetConfig, RecipeConfig
from dgnet_core.dgnet.graphed import as_tensors, copy_batch, copy_iteration, own_batch
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import _iterate, iteration_at, train_step
from dgnet_core.learning import draws, health
from dgnet_core.learning.augment import training_batch
from dgnet_core.learning.batches import Batch, Position
from dgnet_core.learning.config import StepConfig
from dgnet_core.learning.steps import keep_local, set_rate
from dgnet_core.methods import METHODS, build
from dgnet_platform.training import learner
from jobs.bench_step import Count
from tests.helpers.generators import tiny_method
from tests.helpers.tiny import (
    RAMPED,
    START,
    assert_same,
    tiny_batch,
    tiny_config,
    tiny_pictures,
    tiny_state,
    tiny_teacher,
)

RECIPES = {
    "default": RecipeConfig(),
    "release": RecipeConfig(teacher_dropout=True, release_statistics=True, soft_label="owners"),
    "attached": RecipeConfig(detach_appearance=False, gan="nsgan"),
    "code teaches decoder": RecipeConfig(code_teaches_decoder=True),
}


class Trace(TorchDispatchMode):
    """The operators that were dispatched, in order, with the shapes that they were given."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[tuple[str, tuple]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operators.append((str(func), tuple(arg.shape for arg in args if isinstance(arg, Tensor))))
        return func(*args, **(kwargs or {}))


def trained(config: DGNetConfig, until: int) -> TrainState:
    state = tiny_state(config)
    for t in range(until):
        train_step(state, tiny_batch(config, t), config)
    return state


class NoWaiting(TorchDispatchMode):
    """Refuses copies to another device that the host waits for."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket is torch.ops.aten._to_copy and out.device != args[0].device:
            assert kwargs.get("non_blocking"), f"{tuple(out.shape)} to {out.device}: the host waits"
        return out


@pytest.mark.parametrize("recipe", list(RECIPES))
@pytest.mark.parametrize("iteration", [0, START, START + 1, RAMPED])
def test_an_iteration_never_waits_for_the_device(recipe: str, iteration: int, monkeypatch) -> None:
    """Fake tensors have no values: .item(), bool() and shapes that depend on values raise at once."""
    config = tiny_config(recipe=RECIPES[recipe], ema=0.9)
    state, (pixels, labels) = tiny_state(config, iteration), tiny_pictures(config)
    batch, told = tiny_batch(config, iteration), iteration_at(config, iteration)
    _iterate(copy.deepcopy(state), config, keep_local, batch, told)  # constants are made once in a process
    monkeypatch.setattr(health, "raise_fault", lambda state: None)  # which looks at once, on the CPU only
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(mode):
        fake, seen, known = copy.deepcopy(state), copy.deepcopy(pixels[:16]), copy.deepcopy(labels[:8])
    with mode:
        inputs = training_batch(seen.unflatten(0, (4, 4)), known.view(2, 4), batch.position, config)
        metrics = _iterate(fake, config, keep_local, inputs, as_tensors(told, inputs.images))
        fake.move_averages(config.ema)
        assert {"L_img1", "D_adv", "grad_generator", "grad_appearance"} <= set(metrics)
        for waiting in (float, bool):
            with pytest.raises(DataDependentOutputException):
                waiting(metrics["L_img1"])


def test_augmentation_never_waits_for_the_device(monkeypatch) -> None:
    """On a CUDA device that is not there, in sizes that pictures are resized to, with joints."""
    for name in ("_constants", "_streams"):  # what is fake stays in caches of this test
        monkeypatch.setattr(draws, name, cache(getattr(draws, name).__wrapped__))
    config = tiny_config()
    with FakeTensorMode():
        pixels = torch.empty(4, 4, 3, 30, 20, dtype=torch.uint8, device="cuda")
        labels, joints = torch.zeros(2, 4, dtype=torch.int64), torch.zeros(4, 4, 18, 3, device="cuda")
        training_batch(pixels, labels, Position(seed=0, iteration=0), config, joints)  # constants are made once
        with NoWaiting():
            batch = training_batch(pixels, labels, Position(seed=0, iteration=1), config, joints)
    assert batch.images.is_cuda
    assert batch.joints is not None


@pytest.mark.parametrize(("iterations", "most"), [((0, 1), 1560), ((RAMPED, RAMPED + 2), 2260)])
def test_iterations_of_one_phase_dispatch_the_same_operators(iterations: tuple[int, int], most: int) -> None:
    """`most` is 5 % above what was counted, as jobs/bench_step.py counts: 1,485 and 2,154."""
    config = tiny_config(recipe=RecipeConfig(reencode_probability=1.0))
    state, traces, counts = trained(config, 1), [], []  # the optimisers have their memory
    for iteration in (iterations[0], *iterations):
        state.iteration = iteration
        batch = tiny_batch(config, iteration)
        with Count() as count, Trace() as trace:
            train_step(state, batch, config)
        traces.append(trace.operators)
        counts.append(count.operators)
    assert iteration_at(config, iterations[0]).phase == iteration_at(config, iterations[1]).phase
    _, *traces = traces  # the first made constants, once in a process
    assert traces[0] == traces[1]
    assert len(traces[0]) > 1000
    assert counts[1] <= most, "launches bound small batches: docs/speed.md says how operators were saved"


def test_phases() -> None:
    config = tiny_config()
    phases = [iteration_at(config, t).phase for t in range(40)]
    assert len(set(phases[:START])) == 1
    assert len(set(phases)) <= 7  # before; at its start; then with or without re-encoding, twice as fine_real lags
    assert len(set(phases[START + 2 :])) == 2  # the coin


def addresses(state: TrainState) -> dict[str, int]:
    """Where everything lies that a replay reads and writes."""
    found = {"fault": state.fault.data_ptr(), "level": state.identity_level.data_ptr()}
    for name, network in {**state.networks, "teacher": state.teacher}.items():
        assert network is not None
        tensors = itertools.chain(network.named_parameters(), network.named_buffers())
        found |= {f"{name} {key}": tensor.data_ptr() for key, tensor in tensors}
    for name, optimizer in state.optimizers.items():
        for number, memory in enumerate(optimizer.state.values()):
            found |= {f"{name} {number} {key}": value.data_ptr() for key, value in memory.items()}
    return found


def test_what_a_replay_reads_and_writes_stays_where_it_is() -> None:
    config = tiny_config()
    state = trained(config, 1)
    before = addresses(state)
    for t in range(1, RAMPED + 2):
        train_step(state, tiny_batch(config, t), config)
    assert addresses(state) == before


def test_tensors_tell_an_iteration_what_numbers_do() -> None:
    config = tiny_config()
    batch = tiny_batch(config, 0)
    held, told = own_batch(batch), as_tensors(iteration_at(config, RAMPED), batch.images)
    states = trained(config, RAMPED), trained(config, RAMPED)
    for t in (RAMPED, RAMPED + 1):
        batch, iteration = tiny_batch(config, t), iteration_at(config, t)
        copy_batch(held, batch)
        copy_iteration(told, iteration)
        numbers = _iterate(states[0], config, keep_local, batch, iteration)
        position = replace(held.position, iteration=t)
        tensors = _iterate(
            states[1], config, keep_local, replace(held, position=position), replace(told, learns=iteration.learns)
        )
        assert numbers.keys() == tensors.keys()
        for name, value in numbers.items():
            assert torch.equal(tensors[name], value), name
    assert_same(*states)


def test_rates_change_in_place_where_they_are_tensors() -> None:
    rate = torch.tensor(1.0)
    optimizer = torch.optim.Adam([{"params": [nn.Parameter(torch.zeros(1))], "factor": 0.5}], lr=rate, capturable=True)
    set_rate(optimizer, 0.25)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate == 0.125


def test_graphs_are_refused_where_none_can_be(monkeypatch) -> None:
    config = tiny_config(step=StepConfig(graph=True))
    with pytest.raises(ValueError, match=r"step\.graph = True: only a CUDA device replays graphs, .* is on cpu"):
        TrainState.build(config, pretrained=False)
    other = tiny_method(METHODS["lsgan"])
    with pytest.raises(ValueError, match="LSGAN's step is not written for CUDA graphs"):
        build(replace(other, step=replace(other.step, graph=True)))
    monkeypatch.setattr(learner, "ranks", lambda: (0, 2))
    with pytest.raises(ValueError, match=r"step\.graph = True with 2 workers: .* train with one, or set step\.graph"):
        learner.Learner(config, Mock(), torch.device("cpu"))  # before it looks at the images


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_replays_equal_eager_iterations_bit_for_bit(precision: str) -> None:
    eager = tiny_config(step=StepConfig(precision=precision))  # pyright: ignore[reportArgumentType]
    graphed = replace(eager, step=replace(eager.step, graph=True))
    states, found = [], []
    for config in (eager, graphed):
        state = TrainState.build(config, "cuda", teacher=tiny_teacher(config))
        batches = (on_cuda(tiny_batch(config, t)) for t in range(12))
        found.append([train_step(state, batch, config) for batch in batches])
        states.append(state)
    for one, other in zip(*found, strict=True):
        assert {name: value.item() for name, value in one.items()} == {n: v.item() for n, v in other.items()}
    for left, right in zip(*(state.networks.values() for state in states), strict=True):
        for name, value in left.state_dict().items():
            assert torch.equal(value, right.state_dict()[name]), name


def on_cuda(batch: Batch) -> Batch:
    assert batch.erased is not None
    return replace(batch, images=batch.images.cuda(), erased=batch.erased.cuda())
