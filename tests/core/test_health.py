"""Whether a run is well: faults are named and stay on record, surges of the identity loss are seen."""

from dataclasses import replace

import pytest
import torch

from dgnet_core.dgnet.config import WatchConfig
from dgnet_core.dgnet.state import TrainState
from dgnet_core.dgnet.step import identity_surge, iteration_at, train_step
from dgnet_core.learning.config import Warmup
from dgnet_core.learning.health import raise_fault
from tests.helpers.tiny import START, tiny_batch, tiny_config, tiny_state


def test_non_finite_term_is_named() -> None:
    config = tiny_config()
    state = tiny_state(config)
    with torch.no_grad():
        state.decoder.refine.get_parameter("2.conv.bias").fill_(float("inf"))
    with pytest.raises(FloatingPointError, match=r"iteration 0: D_adv is not finite"):
        train_step(state, tiny_batch(config, 0), config)


def test_first_fault_stays_on_record() -> None:
    config = tiny_config()
    state = tiny_state(config)
    with torch.no_grad():
        state.appearance_encoder.prim.classifier.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="iteration 0: L_c_id"):
        train_step(state, tiny_batch(config, 0), config)
    state.iteration = 1
    with pytest.raises(FloatingPointError, match="iteration 0: L_c_id"):
        train_step(state, tiny_batch(config, 1), config)
    with pytest.raises(FloatingPointError, match="iteration 0: L_c_id"):
        raise_fault(state)


@pytest.mark.parametrize("starts", [(3, 5), (5, 3)])
@pytest.mark.parametrize(
    ("iteration", "floor", "surge"),
    [(2, 0.1, 0.0), (3, 0.1, 2.0 / 1.2), (3, 1.6, 2.0 / 1.6), (3, 2.5, 1.0)],
)
def test_surge_by_hand(starts: tuple[int, int], iteration: int, floor: float, surge: float) -> None:
    code, teacher = (Warmup(start=start) for start in starts)
    config = tiny_config(watch=WatchConfig(fast=0.5, slow=0.9, floor=floor))
    config = replace(config, loss=replace(config.loss, code_warmup=code, teacher_warmup=teacher))
    state = tiny_state(config, iteration)
    state.identity_level.fill_(1.0)
    watched = iteration_at(config, iteration).watched
    assert identity_surge(state, torch.tensor(3.0), config, watched).item() == pytest.approx(surge)
    assert state.identity_level.tolist() == pytest.approx([2.0, 1.2])  # halfway to 3, a tenth of the way


def test_surge_of_the_identity_loss_is_reported() -> None:
    config = tiny_config(watch=WatchConfig(fast=0.5, slow=0.9, factor=1.5))

    def run(state: TrainState, until: int) -> list[dict]:
        return [train_step(state, tiny_batch(config, t), config) for t in range(state.iteration, until)]

    state = tiny_state(config)
    (first,) = run(state, 1)
    mean_of_both_batches = first["L_s_id"].item() / 2
    assert state.identity_level.tolist() == pytest.approx([mean_of_both_batches] * 2)
    surges = [first["identity_surge"].item()] + [m["identity_surge"].item() for m in run(state, 8)]
    assert surges[:START] == [0.0] * START
    assert all(0 < surge < config.watch.factor for surge in surges[START:])
    with torch.no_grad():
        state.appearance_encoder.prim.classifier.weight.mul_(1000)
    after = [m["identity_surge"].item() for m in run(state, 10)]
    assert max(after) > config.watch.factor
