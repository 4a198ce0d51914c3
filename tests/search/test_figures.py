"""Leaderboards and pictures of searches: ordinary ones, and those with nothing much to show."""

import io
import logging
import math
import random
from dataclasses import replace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dgnet_platform.search.report.figures import figures
from dgnet_platform.search.report.leaderboard import (
    TrialRow,
    against_preset,
    front,
    leaderboard,
    leaderboard_table,
    ranked,
)
from dgnet_platform.search.space import Space

SPACE = Space({
    "prim": {"low": 0, "high": 4}, "alpha": {"low": 0.05, "high": 1, "log": True},
    "warmup_start": {"low": 10_000, "high": 50_000, "step": 5_000}, "soft_label": {"choices": ["dynamic", "none"]},
})  # fmt: skip
ALL = ["importances", "parallel_coordinates", "slices", "history", "alpha_beta", "iterations"]


def search(count: int, **fixed: object) -> list[TrialRow]:
    """Random trials; every fourth was stopped, every seventh failed. `fixed` parameters have one value."""
    rng, rows = random.Random(0), []
    for number in range(count):
        values = {
            "prim": rng.uniform(0, 4), "alpha": math.exp(rng.uniform(math.log(0.05), 0)),
            "warmup_start": 5_000 * rng.randint(2, 10), "soft_label": rng.choice(["dynamic", "none"]),
        } | fixed  # fmt: skip
        score = 0.6 - 0.05 * (float(values["prim"]) - 2) ** 2 + rng.uniform(0, 0.01)  # pyright: ignore[reportArgumentType]
        state = "failed" if number % 7 == 6 else "stopped" if number % 4 == 3 else "finished"
        if state == "failed":
            rows.append(TrialRow(number=number, name=f"t{number}", state=state, reason="no GPU", values=values))
            continue
        by_beta = {beta / 10: score - (beta / 10 - 0.5) ** 2 / 10 for beta in range(11)} | {math.inf: 0.1}
        rows.append(
            TrialRow(
                number=number, name=f"t{number}", state=state, values=values, objective=by_beta[0.5], best_beta=0.5,
                iterations=100_000 if state == "finished" else 60_000, shared_iterations=int(values["warmup_start"]),  # pyright: ignore[reportArgumentType]
                reason="not among the best" if state == "stopped" else "", by_beta=by_beta,
            )
        )  # fmt: skip
    return rows


def printed(rows: list[TrialRow], most: int | None = None) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(leaderboard_table(rows, most))
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


def check(pictures: dict[str, Image.Image]) -> None:
    for name, picture in pictures.items():
        assert picture.mode == "RGB", name
        assert 300 <= picture.height <= 1200
        assert 600 <= picture.width <= 1800
        assert np.asarray(picture).std() > 5, name  # something is drawn


def test_an_ordinary_search_has_every_picture():
    pictures = figures(SPACE, search(30))
    assert list(pictures) == ALL
    check(pictures)


def test_pictures_touch_no_global_state():
    before = {name: value for name, value in mpl.rcParams.items() if name != "backend"}
    figures(SPACE, search(8))
    assert {name: value for name, value in mpl.rcParams.items() if name != "backend"} == before
    assert plt.get_fignums() == []


def test_a_single_trial_has_what_it_can_have(caplog):
    caplog.set_level(logging.INFO)
    pictures = figures(SPACE, search(1))
    assert list(pictures) == ["history", "alpha_beta", "iterations"]
    check(pictures)
    assert "No picture of importances: 1 trials are finished, at least 4 are needed." in caplog.text
    assert "No picture of slices: no parameter varies among the trials with a result." in caplog.text


@pytest.mark.parametrize("count", [2, 3, 4, 5, 64])
def test_any_number_of_trials_is_drawn(count):
    check(figures(SPACE, search(count)))


def test_nothing_at_all_has_no_pictures(caplog):
    caplog.set_level(logging.INFO)
    failed = [TrialRow(number=n, name=f"t{n}", state="failed", reason="lost") for n in range(3)]
    assert figures(SPACE, []) == figures(SPACE, failed) == {}
    assert "No picture of iterations: no trial has trained." in caplog.text
    for rows in ([], failed):
        assert list(leaderboard(rows)["mAP"].dropna()) == []
        assert "Leaderboard" in printed(rows)


def test_constant_parameters_are_left_out():
    rows = search(12, alpha=0.2, soft_label="none", warmup_start=30_000)
    pictures = figures(SPACE, rows)
    assert list(pictures) == ALL
    check(pictures)
    assert "all: alpha 0.2, warmup_start 30,000, soft_label none" in printed(rows)
    rows = search(12, alpha=0.2, soft_label="none", warmup_start=30_000, prim=2.0)
    assert list(figures(SPACE, rows)) == ["history", "alpha_beta", "iterations"]


def test_equal_results_are_drawn(caplog):
    caplog.set_level(logging.INFO)
    rows = []
    for number in range(6):
        values = {"prim": float(number) / 2, "alpha": 0.1, "warmup_start": 10_000, "soft_label": "none"}
        row = TrialRow(number=number, name="t", state="finished", values=values, objective=0.5, iterations=10)
        rows.append(row)
    assert list(figures(SPACE, rows)) == ["parallel_coordinates", "slices", "history", "iterations"]
    assert "No picture of importances: all results are equal." in caplog.text
    assert "No picture of alpha_beta: no trial has mAP over beta and an alpha." in caplog.text


def test_odd_rows_are_drawn():
    """Results that are NaN, a state of its own, one beta only, a setting outside the space, parameters of no space."""
    rows = [
        TrialRow(number=0, name="a", state="finished", values={"alpha": 3.0, "prim": 1.0}, objective=0.2, iterations=5,
                 by_beta={0.5: 0.2}),
        TrialRow(number=1, name="b", state="running", values={"alpha": 0.3, "prim": 3.0}, objective=math.nan),
        TrialRow(number=2, name="c", state="running", values={"alpha": 0.3, "prim": 2.0, "x": None}, objective=0.3,
                 by_beta={0.5: math.nan, 2.0: 0.1}),
    ]  # fmt: skip
    pictures = figures(SPACE, rows)
    assert list(pictures) == ["parallel_coordinates", "slices", "history", "iterations"]
    assert "nan" not in printed(rows).lower()


def test_trials_that_all_stopped_early_are_drawn():
    stopped = [replace(row, state="stopped") for row in search(6)]
    pictures = figures(SPACE, stopped)
    assert list(pictures) == ALL[1:]
    check(pictures)


def test_a_search_of_two_objectives_is_drawn():
    rows = [replace(row, second=row.objective and 1 - row.objective) for row in search(20)]
    pictures = figures(SPACE, rows)
    assert list(pictures) == [*ALL[:4], "front", *ALL[4:]]
    check(pictures)


def test_the_best_compromises():
    def row(number: int, score: float | None, second: float | None, state: str = "finished") -> TrialRow:
        return TrialRow(number=number, name=str(number), state=state, objective=score, second=second)

    rows = [
        row(0, 0.5, 0.5), row(1, 0.6, 0.4), row(2, 0.4, 0.4), row(3, 0.6, 0.3), row(4, 0.3, 0.7), row(5, 0.5, 0.5),
        row(6, 0.9, 0.9, "failed"), row(7, 0.9, None), row(8, math.nan, 0.9),
    ]  # fmt: skip
    assert [row.number for row in front(rows)] == [1, 0, 4]
    table = leaderboard(rows)
    assert list(table["trial"][table["front"]]) == [1, 0, 4]
    assert list(table.columns[3:7]) == ["winner", "mAP", "SSIM", "front"]
    text = printed(rows)
    assert text.count("*") == 3 + 1  # and the note
    assert "SSIM" in text
    assert not front(search(8))
    assert "SSIM" not in leaderboard(search(8))


def test_the_leaderboard_has_finished_trials_first_and_failed_ones_last():
    rows = search(16)
    best = ranked(rows)
    states = [row.state for row in best]
    assert states == sorted(states, key=["finished", "stopped", "failed"].index)
    scores = [row.score for row in best if row.state == "finished"]
    assert scores == sorted(scores, key=lambda score: -(score or 0))
    table = leaderboard(rows)
    assert list(table["trial"]) == [row.number for row in best]
    assert list(table.columns) == [
        "trial", "name", "state", "winner", "mAP", "beta", "gain", "difference", "difference_low", "difference_high",
        "confirmed", "confirmed_sd", "confirmed_seeds", "confirmed_difference", "confirmed_low", "confirmed_high",
        "prim", "alpha",
        "warmup_start", "soft_label", "iterations", "shared_iterations", "reason",
    ]  # fmt: skip
    assert len(table["mAP"].dropna()) == 16 - states.count("failed")
    assert table["reason"].iloc[-1] == "no GPU"


def test_the_leaderboard_is_printed():
    rows = search(16)
    text = printed(rows)
    assert f"{100 * (ranked(rows)[0].objective or 0):.2f}" in text
    assert "warmup" in text
    assert "trial 6 failed: no GPU" in text
    short = printed(rows, 5)
    assert "and 11 more" in short
    assert len(short) < len(text)


def test_the_best_trial_is_compared_with_the_preset():
    def row(number: int, score: float | None, state: str = "finished", *, preset: bool = False) -> TrialRow:
        return TrialRow(number=number, name="t", state=state, objective=score, is_preset=preset)

    preset, better, worse = row(0, 0.50, preset=True), row(1, 0.5231), row(2, 0.4)
    assert against_preset([preset, worse, better]) == (
        "Trial 1 is 2.31 points of mAP above the preset (trial 0), one run each. The best of many is too good by"
        " chance: --confirm 3 trains it again with other seeds."
    )
    assert "2.31 points of mAP above" in printed([preset, worse, better])
    assert against_preset([preset, worse]) == "No trial is better than the preset (trial 0)."
    assert against_preset([preset, row(1, 0.5)]) == "No trial is better than the preset (trial 0)."
    stopped = row(0, 0.3, "stopped", preset=True)
    assert "The preset (trial 0) did not finish (stopped)" in against_preset([stopped, better])
    failed = row(0, None, "failed", preset=True)  # and was tried again
    assert "above the preset (trial 4)" in against_preset([failed, better, row(4, 0.5, preset=True)])
    assert against_preset([preset, better][1:]) == against_preset([row(0, None, "trains", preset=True)]) == ""
