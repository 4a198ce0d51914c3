"""Rungs on each trial's own clock, and the verdicts that trials share."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dgnet_core.dgnet.config import DGNetConfig, paper
from dgnet_core.dgnet.schedule import ramp_end
from dgnet_core.learning.config import Warmup
from dgnet_platform.runs.journal import Journal
from dgnet_platform.search import stopping
from dgnet_platform.search.stopping import (
    RungJudge,
    StoppingRule,
    Verdict,
    Verdicts,
    distances,
    goes_on,
    keeps,
    rates_at,
    rungs_of,
)
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
        ({"by": "mAP"}, "stopping.by = 'mAP': choose one of gain, metric"),
        ({"rungs": 0}, "stopping.rungs = 0: at least 1"),
        ({"eta": 1}, "stopping.eta = 1: at least 2"),
        ({"first": 0.0}, "stopping.first = 0.0: at least 0.1, earlier nothing is learned yet of what trials differ in"),
        ({"first": 0.09}, "stopping.first = 0.09: at least 0.1"),
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
    assert far == (8_400, 25_200)
    for start in (10_000, 30_000, 50_000):
        config = with_start(start)
        assert ramp_end(config) == start + 4_000
        assert rungs_of(config, far) == tuple(start + 4_000 + distance for distance in far)
        evaluated = rungs_of(config, distances(42_000, HALVING, 5_000), 5_000)
        assert [rung % 5_000 for rung in evaluated] == [0, 0]
        assert all(0 <= r - (start + 4_000 + d) < 5_000 for r, d in zip(evaluated, far, strict=True))


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


@pytest.mark.parametrize("remaining", [-5, 0, 1, 2])
def test_a_run_too_short_for_its_rungs_is_refused(remaining):
    with pytest.raises(ValueError, match=f"{max(0, remaining)} iterations are left .* use longer runs"):
        distances(remaining, HALVING)
    assert distances(remaining, StoppingRule(kind="none")) == ()


@given(
    st.integers(2, 10**6), st.integers(1, 3), st.integers(2, 5), st.floats(0.1, 0.999), st.integers(1, 1000),
    st.integers(0, 10**6),
)  # fmt: skip
def test_rungs_rise_within_what_is_left(remaining, rungs, eta, first, every, start):
    try:
        found = distances(remaining, StoppingRule(rungs=rungs, eta=eta, first=first), every)
    except ValueError:
        return
    assert len(found) == rungs
    assert found[0] >= 0.1 * remaining
    config = with_start(start)
    at = rungs_of(replace(config, iterations=start + 4_000 + remaining), found, every)
    assert all(a < b for a, b in pairwise((start + 4_000, *at, start + 4_000 + remaining)))


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
    rule = StoppingRule(eta=eta, rungs=1)
    known: list[Verdict] = []
    for trial, value in enumerate(values):
        for rung in range(3):
            passes = goes_on(trial, rung, value, known, rule)
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


# ----------------------------------------------------------------------------------------------------------------
# What trials are judged by


METRIC = "val/best/mAP"


def journal_of(folder: Path, curve) -> Path:
    """A run's journal with a figure at each iteration."""
    folder.mkdir()
    journal = Journal(folder, 0)
    for iteration, figure in curve:
        journal.write(iteration, {METRIC: figure})
    journal.close()
    return folder


def judge_of(tmp_path: Path, config: DGNetConfig, trial: int, far: tuple[int, ...], rule=HALVING) -> RungJudge:
    rungs = rungs_of(config, far)
    return RungJudge(
        book=tmp_path / "verdicts.jsonl", control=tmp_path / "control", stop_file=tmp_path / "stop", trial=trial,
        rungs=rungs, rates=rates_at(config, rungs), rule=rule, metric=METRIC,
    )  # fmt: skip


MEASURED = {
    40: {44: (18.6, -0.4), 51: (17.8, -1.3), 71: (20.8, -0.3), 131: (23.2, 0.3), 400: (26.8, 2.4)},
    120: {124: (23.7, 0.7), 131: (23.2, 0.3), 151: (23.9, 0.4), 211: (25.2, 2.2), 400: (26.8, 2.4)},
    200: {204: (22.6, -0.1), 211: (22.5, -0.5), 231: (22.8, -0.5), 291: (25.2, 1.7), 400: (26.4, 1.9)},
}
"""mAP of 240 people, and its gain over no feeding, by warm-up start and iteration: the rungs stand 4, 11, 31 and 91
iterations after the start of tune's own length (docs/searching.md)."""


def test_measured_curves_are_ordered_by_gain_as_at_the_end():
    """At 18 % of what is left; raw mAP has the best start last, there and at 54 %."""
    [end, *_] = zip(*(curve[400] for curve in MEASURED.values()), strict=True)
    at = [curve[start + 31] for start, curve in MEASURED.items()]
    raw, gain = zip(*at, strict=True)
    assert spearman(raw, end) == pytest.approx(0, abs=1e-9)
    assert spearman(gain, end) == pytest.approx(0.866, abs=1e-3)
    late_raw, late_gain = zip(*(curve[start + 91] for start, curve in MEASURED.items()), strict=True)
    assert spearman(late_raw, end) == pytest.approx(-0.5)
    assert spearman(late_gain, end) == pytest.approx(0, abs=1e-9)


def spearman(one, other) -> float:
    """Rank correlation, ties by mean rank."""
    return float(pd.Series(one).corr(pd.Series(other), method="spearman")) if len(set(one)) > 1 else 0.0


def planted(seed: int, count: int = 24) -> list[tuple[DGNetConfig, float]]:
    """Trials of paper size with warm-up starts from 10K to 50K, each with the points that feeding gains it by the end:
    the earlier it starts, the more."""
    rng = random.Random(seed)
    starts = [rng.randrange(10_000, 50_001, 5_000) for _ in range(count)]
    return [(with_start(start), rng.uniform(0, 3) + 2 * (50_000 - start) / 40_000) for start in starts]


def control_at(iteration: int) -> float:
    """Real pictures alone: it rises, and jumps at the milestones 60K and 90K."""
    return 60 + 15 * (1 - math.exp(-iteration / 30_000)) + 8 * (iteration >= 60_000) + 2 * (iteration >= 90_000)


def figure_at(config: DGNetConfig, gain: float, iteration: int) -> float:
    share = max(0, iteration - ramp_end(config)) / (config.iterations - ramp_end(config))
    return control_at(iteration) + gain * share**0.5


def test_planted_trials_are_ordered_as_at_the_end_and_the_best_start_goes_on(tmp_path):
    """Raw mAP, the clock before, prefers late starts: it stops what is best at the end."""
    far, by_gain, by_figure, kept, kept_before = distances(42_000, HALVING), [], [], 0, 0
    for seed in range(20):
        trials = planted(seed)
        ends = [figure_at(*trial, 100_000) for trial in trials]
        first = [rungs_of(config, far)[0] for config, _ in trials]
        raw = [figure_at(*trial, t) for trial, t in zip(trials, first, strict=True)]
        by_figure.append(spearman(raw, ends))
        by_gain.append(spearman([r - control_at(t) for r, t in zip(raw, first, strict=True)], ends))
        folder = tmp_path / str(seed)
        folder.mkdir()
        journal_of(folder / "control", [(t, control_at(t)) for t in range(1, 100_001) if t % 100 == 0])
        goes = [trial_goes_on(folder, trial, number, far) for number, trial in enumerate(trials)]
        kept += goes[ends.index(max(ends))]
        journal_of(folder / "nothing", [(t, 0.0) for t in range(1, 100_001) if t % 100 == 0])
        before = [trial_goes_on(folder, trial, number, far, "nothing") for number, trial in enumerate(trials)]
        kept_before += before[ends.index(max(ends))]
    assert sum(by_figure) / 20 < 0
    assert sum(by_gain) / 20 > 0.9
    assert kept >= 19
    assert kept_before <= 2


def trial_goes_on(
    folder: Path, trial: tuple[DGNetConfig, float], number: int, far: tuple[int, ...], control: str = "control"
) -> bool:
    judge = judge_of(folder, trial[0], number, far)
    if control != "control":  # raw figures, all compared
        judge = replace(judge, control=folder / control, book=folder / "before.jsonl", rates=())
    return all(judge(rung, {METRIC: figure_at(*trial, rung)}) == "" for rung in judge.rungs)


def test_the_best_start_is_kept_that_raw_figures_would_stop(tmp_path):
    journal_of(tmp_path / "control", [(40, 0.18), (200, 0.23)])
    early, late = (replace(with_start(0), iterations=i) for i in (10_000, 10_000))
    judges = [
        replace(judge_of(tmp_path, config, trial, (5_000,)), rungs=(at,), rates=(0,))
        for trial, (config, at) in enumerate(((late, 200), (early, 40)))
    ]
    assert judges[0](200, {METRIC: 0.235}) == ""  # half a point of gain, five points of mAP more
    assert judges[1](40, {METRIC: 0.20}) == ""
    reason = replace(judges[1], trial=2)(40, {METRIC: 0.184})
    assert reason == "gain of +0.40 points of val/best/mAP over no feeding at iteration 40, rung 1 of 1"
    assert judges[1](41, {METRIC: 0.0}) == ""  # no rung
    raw = [replace(judge, control=None, book=tmp_path / "raw.jsonl") for judge in judges]
    assert raw[0](200, {METRIC: 0.235}) == ""
    assert raw[1](40, {METRIC: 0.20}) == "20.00 points of val/best/mAP at iteration 40, rung 1 of 1"


def test_none_is_compared_across_a_milestone(tmp_path):
    far = distances(42_000, HALVING)
    configs = [with_start(start) for start in (10_000, 45_000, 50_000)]
    assert [rates_at(config, rungs_of(config, far)) for config in configs] == [(0, 0), (0, 1), (1, 1)]
    cosine = replace(configs[2], optim=replace(configs[2].optim, cosine_end=100_000))  # has no milestones
    assert rates_at(cosine, rungs_of(cosine, far)) == (0, 0)
    verdicts = Verdicts(tmp_path / "rungs.jsonl")
    assert verdicts.judge(0, 0, 9.0, HALVING, (1, 1))
    assert verdicts.judge(1, 0, 1.0, HALVING, (0, 0))  # the first of those before the milestone
    assert not verdicts.judge(2, 0, 0.5, HALVING, (0, 0))
    assert not verdicts.judge(3, 0, 5.0, HALVING, (1, 1))
    assert [verdict.rates for verdict in verdicts.verdicts()] == [(1, 1), (0, 0), (0, 0), (1, 1)]


def test_a_trial_waits_for_its_control(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "WAIT", 0.01)
    judge = replace(judge_of(tmp_path, with_start(10_000), 0, (50_000,)), rungs=(30,))
    folder = journal_of(tmp_path / "control", [(29, 0.1)])

    def later():
        journal = Journal(folder, 29)
        journal.write(30, {METRIC: 0.2})
        journal.close()

    threading.Timer(0.2, later).start()
    assert judge(30, {METRIC: 0.3}) == ""
    [verdict] = Verdicts(judge.book).verdicts()
    assert verdict.value == pytest.approx(0.1)


def test_a_trial_that_waits_for_its_control_can_be_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "WAIT", 0.01)
    judge = judge_of(tmp_path, with_start(10_000), 0, (50_000,))
    threading.Timer(0.2, judge.stop_file.touch).start()
    assert judge(judge.rungs[0], {METRIC: 0.3}) is None
    assert Verdicts(judge.book).verdicts() == []
