"""What every method of the table must do: train, save, resume, be watched, share its work, describe and draw."""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dgnet_core.learning.config import MethodConfig
from dgnet_core.learning.health import WATCHED, record_fault
from dgnet_core.learning.state import State
from dgnet_core.methods import METHODS, Method, build, method_of
from dgnet_core.networks.modes import evaluating
from tests.helpers.generators import LENGTH, method_batch, tiny_method, upright
from tests.helpers.tiny import assert_same, tiny_config, tiny_teacher

pytestmark = pytest.mark.usefixtures("one_thread")
each_method = pytest.mark.parametrize("method", METHODS.values(), ids=list(METHODS))


def start(config: MethodConfig) -> State:
    return build(config, teacher=tiny_teacher(tiny_config()))


def run(state: State, config: MethodConfig, until: int) -> list[dict[str, Tensor]]:
    step = method_of(config).step
    return [step(state, method_batch(config, t), config) for t in range(state.iteration, until)]


@each_method
def test_it_saves_and_resumes_in_every_bit(method: Method, tmp_path: Path) -> None:
    config = tiny_method(method)
    whole, state = start(config), start(config)
    before = copy.deepcopy(whole.state_dict()["networks"])
    metrics = run(whole, config, LENGTH)
    for name, network in whole.networks.items():
        assert any(not torch.equal(value, before[name][key]) for key, value in network.state_dict().items()), name

    for stop in (1, 4, 7):
        torch.manual_seed(stop)  # the global generator plays no part
        run(state, config, stop)
        torch.save(state.state_dict(), tmp_path / "state.pt")
        state = start(config)
        state.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    rest = run(state, config, LENGTH)
    assert_same(whole, state)
    for one, other in zip(metrics[7:], rest, strict=True):
        assert {name: value.item() for name, value in one.items()} == {name: v.item() for name, v in other.items()}


@each_method
def test_every_loss_and_gradient_is_watched(method: Method) -> None:
    config = tiny_method(method)
    state = start(config)
    for metrics in run(state, config, LENGTH):
        assert all(value.shape == () and not value.requires_grad for value in metrics.values())
        terms = [name for name in metrics if name.startswith(WATCHED)]
        assert tuple(terms) in state.watched
        for term in terms:
            planted = copy.copy(state)
            planted.fault = state.fault.clone()
            with pytest.raises(FloatingPointError, match=rf"iteration {LENGTH}: {term} is not finite"):
                record_fault(planted, {**metrics, term: metrics[term] * float("nan")})
    assert set(method.shown) <= {name for names in state.watched for name in names}


@each_method
def test_a_network_that_is_lost_is_noticed(method: Method) -> None:
    config = tiny_method(method)
    for name in start(config).networks:
        state = start(config)
        run(state, config, LENGTH - 1)  # by now all of them take part
        with torch.no_grad():
            next(state.networks[name].parameters()).fill_(float("nan"))
        with pytest.raises(FloatingPointError, match="is not finite"):
            run(state, config, LENGTH)


@each_method
def test_two_ranks_follow_the_mean_of_their_gradients(method: Method) -> None:
    config = tiny_method(method)
    turn = Barrier(2, timeout=60)
    sent: list[dict[int, list[Tensor]]] = [{}, {}]

    states = [start(config) for _ in range(2)]

    def train(rank: int) -> None:
        state, calls = states[rank], iter(range(1000))

        def average(parameters: list[nn.Parameter]) -> None:
            call = next(calls)
            sent[rank][call] = [p.grad.clone() for p in parameters if p.grad is not None]
            turn.wait()
            mine = [p for p in parameters if p.grad is not None]
            for parameter, one, other in zip(mine, sent[0][call], sent[1][call], strict=True):
                parameter.grad = (one + other) / 2

        for iteration in range(LENGTH):
            method.step(state, method_batch(config, iteration, rank, 2), config, reduce_grads=average)
            turn.wait()

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, range(2)))
    first, second = states
    for name, network in first.networks.items():
        for key, value in network.named_parameters():
            assert torch.equal(value, second.networks[name].get_parameter(key)), f"{name}.{key}"
    assert any(not torch.equal(a, b) for a, b in zip(sent[0][0], sent[1][0], strict=True))  # each had its own images


@each_method
def test_it_describes_and_draws_what_it_says(method: Method) -> None:
    config = tiny_method(method)
    state = start(config)
    images = method_batch(config, 0).images[0]
    features = method.features(config, config.iterations)
    assert (method.describe is None) == (not features)
    if method.describe is not None:
        network = method.describe(state)
        assert any(network is trained for trained in state.networks.values())
        with evaluating(network):
            prim, fine = network.describe(images)
        assert prim.shape[0] == len(images)
        assert (fine.shape == prim.shape) == (len(features) > 1)
    if method.draw is not None:
        joints = upright(*images.shape[2:], count=len(images)).to(images)
        drawn = method.draw(state, config)(images, joints if method.posed else images.flip(0))
        assert drawn.shape == images.shape
        assert drawn.isfinite().all()
    if method.invent is not None:
        run(state, config, 2)
        invented = method.invent(state, config)(3, 0)
        assert invented.shape == (3, *images.shape[1:])
        assert not torch.equal(invented[0], invented[1])


@each_method
def test_its_settings_follow_its_clock(method: Method) -> None:
    config = tiny_method(method)
    settings = [method.settings(config, iteration) for iteration in range(LENGTH)]
    assert all(set(now) == set(settings[0]) for now in settings)
    assert all(name.startswith(("weight/", "lr/")) for name in settings[0])
    weights = [[value for name, value in now.items() if name.startswith("weight/")] for now in settings]
    if method.clock is None:
        assert method.name in STAGED or all(now == weights[0] for now in weights)
        return
    clock = method.clock(config)
    assert 0 < clock.start < clock.end < LENGTH
    assert not any(any(now) for now in weights[: clock.start])
    assert all(now == weights[-1] for now in weights[clock.end + 1 :])
    assert clock.phase(clock.start) == f"before warm-up (until {clock.start})"
    assert clock.phase(clock.end - 1) == ("ramp" if clock.end - 1 > clock.start else clock.phase(clock.start))
    assert clock.phase(clock.end) == "full weights"


STAGED = {"pg2gan", "fdgan"}
"""Methods whose weights change from one stage to the next."""

KEYS: dict[str, tuple[set[str], set[str], set[str]]] = {
    "dgnet": (
        {"iteration", "identity_level", "networks", "optimizers"},
        {"appearance_encoder", "structure_encoder", "decoder", "discriminator"},
        {"appearance_optimizer", "generator_optimizer", "discriminator_optimizer"},
    ),
    "teacher": ({"iteration", "networks", "optimizers"}, {"teacher"}, {"optimizer"}),
}
"""Keys of a checkpoint, of its networks and of its optimisers, as they have been from the beginning."""


@pytest.mark.parametrize("name", KEYS)
def test_a_checkpoint_of_before_still_loads(name: str) -> None:
    config = tiny_method(METHODS[name])
    saved = start(config).state_dict()
    assert (set(saved), set(saved["networks"]), set(saved["optimizers"])) == KEYS[name]


@each_method
def test_another_methods_state_is_refused(method: Method) -> None:
    saved: dict[str, Any] = start(tiny_method(method)).state_dict()
    for other in METHODS.values():
        if other is not method:
            with pytest.raises(ValueError, match="training state"):
                start(tiny_method(other)).load_state_dict(copy.deepcopy(saved))


def test_a_configuration_names_its_method() -> None:
    for name, method in METHODS.items():
        assert method.name == name
        assert method_of(tiny_method(method)) is method
