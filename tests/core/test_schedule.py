"""Schedules against the release and by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgnet_core.dgnet import schedule
from dgnet_core.dgnet.config import LossConfig, OptimConfig, RecipeConfig
from dgnet_core.learning.config import Warmup
from dgnet_core.learning.schedule import decay, ramp


@pytest.mark.parametrize(
    ("iteration", "prim", "code", "cycle", "fine_real"),
    [
        (0, 0, 0, 0, 0),
        (30_000, 0, 0, 0, 0),
        (30_001, 0.0005, 0.0005, 0.0005, 0),
        (30_002, 0.001, 0.001, 0.001, 0.0001),
        (32_000, 1.0, 1.0, 1.0, 0.1999),
        (34_000, 2.0, 1.0, 2.0, 0.3999),
        (99_999, 2.0, 1.0, 2.0, 0.4),
    ],
)
def test_weights_of_the_release(iteration: int, prim: float, code: float, cycle: float, fine_real: float) -> None:
    weights = schedule.weights(LossConfig(), RecipeConfig(), iteration)
    assert weights.prim == pytest.approx(prim)
    assert weights.fine == pytest.approx(0.2 * prim)
    assert weights.appearance_code == weights.structure_code == pytest.approx(code)
    assert weights.cycle == pytest.approx(cycle)
    assert weights.fine_real == pytest.approx(fine_real)


def test_each_warm_up_ramps_its_own_terms() -> None:
    loss = LossConfig(
        appearance_code=0.3, structure_code=0.5, cycle=1.0, prim=4.0, alpha=0.25,
        code_warmup=Warmup(start=100, slope=0.01), teacher_warmup=Warmup(start=200, slope=0.1),
    )  # fmt: skip
    early, late = (vars(schedule.weights(loss, RecipeConfig(), iteration)) for iteration in (140, 210))
    fed = {"prim": 0, "fine": 0, "fine_real": 0}
    assert early == pytest.approx({"appearance_code": 0.3, "structure_code": 0.4, "cycle": 0.4, **fed})
    fed = {"prim": 1.0, "fine": 0.25, "fine_real": 0.225}
    assert late == pytest.approx({"appearance_code": 0.3, "structure_code": 0.5, "cycle": 1.0, **fed})


@given(start=st.integers(0, 1000), slope=st.floats(1e-6, 10), maximum=st.floats(0, 10), t=st.integers(0, 3000))
def test_ramp_is_zero_before_and_constant_after(start: int, slope: float, maximum: float, t: int) -> None:
    warmup = Warmup(start=start, slope=slope)
    value = ramp(warmup, maximum, t)
    assert 0 <= value <= maximum
    if t <= start:
        assert value == 0
    if t >= warmup.end(maximum):
        assert value == pytest.approx(maximum)


def test_learning_rates_fall_at_milestones() -> None:
    optim = OptimConfig()
    rates = [decay(optim.milestones, optim.decay, t) for t in (0, 59_998, 59_999, 89_998, 89_999, 104_999)]
    assert rates == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.001])
