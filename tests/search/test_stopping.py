"""Rungs on each trial's own clock, and the verdicts that trials share."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgnet_core.dgnet.config import paper
from dgnet_core.dgnet.schedule import ramp_end
from dgnet_core.learning.config import Warmup
from dgnet_platform.search.stopping import StoppingRule, Verdict, Verdicts, distances, goes_on, keeps, rungs_of
from tests.helpers.tiny import tiny_config

HALVING = StoppingRule()


def with_start(start: int):
    config = paper(751)
    warmup = Warmup(start=start)
    return replace(config, loss=replace(config.loss, code_warmup=warmup, teacher_warmup=warmup))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "asha"}, "stopping.kind = 'asha': choose one of halving, none"),
        ({"rungs": 0}, "stopping.rungs = 0: at least 1"),
        ({"eta": 1}, "stopping.eta = 1: at least 2"),
        ({"first": 0.0}, "stopping.first = 0.0: a share > 0, no rung stands before the ramp's end"),
        ({"first": -0.1}, "stopping.first = -0.1"),
        ({"first": math.nan}, "stopping.first = nan"),
        ({"rungs": 3, "first": 0.2}, "the last rung would stand at 1.8 of what is left after the ramp, beyond the end"),
    ],
)
def test_a_wrong_rule_is_named(values, message):
    with pytest.raises(ValueError, match="stopping") as error:
        StoppingRule(**values)
    assert message in str(error.value)


def test_rungs_stand_at_equal_distances_from_each_trials_own_ramp_end():
    far = distances(42_000, HALVING)
    assert far == (840, 2_520, 7_560, 22_680)
    for start in (10_000, 30_000, 50_000):
        config = with_start(start)
        assert ramp_end(config) == start + 4_000
        assert rungs_of(config, far) == tuple(start + 4_000 + distance for distance in far)


def test_the_later_group_ends_the_ramp():
    config = with_start(30_000)
    loss = replace(config.loss, code_warmup=Warmup(start=35_000, slope=0.001))
    assert ramp_end(replace(config, loss=loss)) == 37_000
    assert ramp_end(replace(config, loss=replace(loss, cycle=0.0))) == 36_000


def test_no_trial_is_judged_before_the_warm_up_is_over_or_after_the_end():
    config = with_start(30_000)
    for distance in (0, -1):
        with pytest.raises(ValueError, match=r"it must stand after the ramp's end, iteration 34,000"):
            rungs_of(config, (distance, 10))
    with pytest.raises(ValueError, match=r"a rung at iteration 100,000, .* use an earlier warm-up start"):
        rungs_of(config, (1, 66_000))
    assert rungs_of(config, (1, 65_999)) == (34_001, 99_999)
    assert rungs_of(config, ()) == ()


@pytest.mark.parametrize("remaining", [-5, 0, 1, 2, 10])
def test_a_run_too_short_for_its_rungs_is_refused(remaining):
    with pytest.raises(ValueError, match=f"{max(0, remaining)} iterations are left .* use longer runs"):
        distances(remaining, HALVING)
    assert distances(remaining, StoppingRule(kind="none")) == ()


@given(
    st.integers(2, 10**6), st.integers(1, 5), st.integers(2, 5), st.floats(0.001, 0.999, allow_nan=False)
)  # fmt: skip
def test_distances_rise_within_what_is_left(remaining, rungs, eta, share):
    try:
        found = distances(remaining, StoppingRule(rungs=rungs, eta=eta, first=share / eta ** (rungs - 1)))
    except ValueError:
        return
    assert len(found) == rungs
    assert found[0] >= 1
    assert found[-1] < remaining
    assert all(a < b for a, b in pairwise(found))


def test_halving_keeps_the_best_third_of_those_so_far():
    assert keeps(0.1, [], HALVING)  # the first
    assert keeps(0.2, [0.1], HALVING)
    assert not keeps(0.1, [0.2], HALVING)
    assert keeps(0.5, [0.5, 0.5], HALVING)  # equal ones go on together
    assert keeps(0.5, [0.6, 0.1, 0.1], HALVING)  # 4 of them: 2 go on
    assert not keeps(0.5, [0.6, 0.7, 0.1], HALVING)
    assert not keeps(math.nan, [], HALVING)
    assert keeps(0.1, [math.nan], HALVING)


def test_none_keeps_all():
    never = StoppingRule(kind="none")
    assert keeps(-1.0, [1.0, 2.0], never)
    assert keeps(math.nan, [], never)


@given(st.permutations(range(40)), st.integers(2, 4))
def test_the_best_of_all_so_far_always_go_on_and_the_worst_never(values, eta):
    """With results that agree between rungs: whoever is among the best n / eta^k of n passes rung k."""
    stopping = StoppingRule(eta=eta, rungs=3, first=0.01)
    known: list[Verdict] = []
    for trial, value in enumerate(values):
        for rung in range(3):
            passes = goes_on(trial, rung, value, known, stopping)
            known.append(Verdict(trial=trial, rung=rung, value=value, goes_on=passes))
            better, n = sum(v > value for v in values[:trial]), trial + 1
            if better < math.ceil(n / eta ** (rung + 1)):
                assert passes
            if rung == 0:
                assert passes == (better < math.ceil(n / eta))
            if not passes:
                break


def test_each_verdict_is_given_once(tmp_path):
    verdicts = Verdicts(tmp_path / "rungs.jsonl")
    assert verdicts.verdicts() == []
    assert verdicts.judge(0, 0, 0.1, HALVING)
    assert not verdicts.judge(1, 0, 0.05, HALVING)
    assert verdicts.judge(2, 0, 0.9, HALVING)
    before = verdicts.path.read_bytes()
    # A resumed trial is judged as before, whatever has come to the rung since, and whatever it says now.
    assert Verdicts(verdicts.path).judge(0, 0, 0.0, HALVING)
    assert not Verdicts(verdicts.path).judge(1, 0, 1.0, HALVING)
    assert verdicts.path.read_bytes() == before
    assert [(v.trial, v.rung, v.value, v.goes_on) for v in verdicts.verdicts()] == [
        (0, 0, 0.1, True), (1, 0, 0.05, False), (2, 0, 0.9, True),
    ]  # fmt: skip


def test_verdicts_keep_values_that_are_no_numbers(tmp_path):
    verdicts = Verdicts(tmp_path / "rungs.jsonl")
    assert not verdicts.judge(0, 0, math.nan, HALVING)
    assert not verdicts.judge(0, 0, 1.0, HALVING)
    assert verdicts.judge(1, 0, 0.1, HALVING)


@pytest.mark.parametrize("half", [b'{"trial": 7, "rung', b'{"trial": 7, "rung": 0, "value": 9.0, "goes_on": true}'])
def test_half_a_line_counts_for_nothing(tmp_path, half):
    verdicts = Verdicts(tmp_path / "rungs.jsonl")
    verdicts.judge(0, 0, 0.5, HALVING)
    with verdicts.path.open("ab") as file:
        file.write(half)
    assert len(verdicts.verdicts()) == 1
    assert verdicts.judge(1, 0, 0.6, HALVING)
    assert [json.loads(line)["trial"] for line in verdicts.path.read_text().splitlines()] == [0, 1]


def test_a_damaged_line_counts_for_nothing(tmp_path):
    verdicts = Verdicts(tmp_path / "rungs.jsonl")
    verdicts.path.write_bytes(b"\0\0\0\n[]\n{}\n\xff\n")
    assert verdicts.judge(0, 0, 0.5, HALVING)
    assert len(verdicts.verdicts()) == 1


def judging(path: Path, trials: str) -> subprocess.Popen[str]:
    """A process that asks about some trials, and prints what it hears."""
    code = (
        "from pathlib import Path; from dgnet_platform.search.stopping import Verdicts, StoppingRule\n"
        f"verdicts = Verdicts(Path({str(path)!r}))\n"
        f"for trial in {trials}: print(trial, verdicts.judge(trial, 0, float(trial % 17), StoppingRule()))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True)


def test_processes_share_verdicts(tmp_path):
    path = tmp_path / "rungs.jsonl"
    # The last two ask about the same trials: both must hear the same.
    asking = [judging(path, f"range({first}, 60, 3)") for first in (0, 1, 2, 2)]
    heard = [process.communicate(timeout=60)[0].splitlines() for process in asking]
    assert [len(lines) for lines in heard] == [20] * 4
    assert heard[2] == heard[3]
    verdicts = Verdicts(path).verdicts()
    assert sorted(verdict.trial for verdict in verdicts) == list(range(60))
    assert len(path.read_text().splitlines()) == 60
    assert {line for lines in heard for line in lines} == {f"{v.trial} {v.goes_on}" for v in verdicts}
    known: list[Verdict] = []  # each decision follows from the lines before it
    for verdict in verdicts:
        assert verdict.goes_on == goes_on(verdict.trial, 0, verdict.value, known, HALVING)
        known.append(verdict)


def test_a_killed_process_leaves_verdicts_that_others_continue(tmp_path):
    path = tmp_path / "rungs.jsonl"
    path.touch()
    for _ in range(3):
        with judging(path, "range(10**6)") as process:
            size, deadline = path.stat().st_size, time.monotonic() + 60
            while path.stat().st_size < size + 2_000 and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(signal.SIGKILL)
    verdicts = Verdicts(path)
    count = len(verdicts.verdicts())
    assert [verdict.trial for verdict in verdicts.verdicts()] == list(range(count))
    assert verdicts.judge(count, 0, 1e9, HALVING)
    assert len(verdicts.verdicts()) == count + 1


def test_tiny_runs_have_rungs_too():
    config = tiny_config()
    assert ramp_end(config) == 7
    assert rungs_of(config, distances(config.iterations - 7, StoppingRule(rungs=2, eta=2, first=0.2))) == (8, 9)
