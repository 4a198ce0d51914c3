"""What searches' winners are worth beside the best trial of all."""

import numpy as np
import pandas as pd
import pytest

from dgnet_core.ranking.retrieval import SWEEP
from dgnet_platform.search.report import regret
from dgnet_platform.search.report.regret import RegretError, regrets

PEOPLE = np.repeat(np.arange(30), 4)
HARD = np.random.default_rng(0).random(len(PEOPLE)) / 2


def queries(mean: float, feature: str = "both") -> pd.DataFrame:
    rows = pd.DataFrame({"person_id": PEOPLE, "mAP": HARD + mean - HARD.mean(), "rank1": 1.0})
    rows = rows.assign(feature=feature, query="single", reranked=False)
    other = rows.assign(mAP=0.0, query="multi")
    return pd.concat([rows, other, rows.assign(mAP=0.0, reranked=True)], ignore_index=True)


@pytest.fixture
def searches(tmp_path, monkeypatch):
    """Two searches; what their trials are worth on query and gallery."""
    worth = {"a-000": 0.3, "a-001": 0.4, "b-000": 0.3, "b-001": 0.35, "b-002": 0.32}
    asked = []

    def found(run, beta, store, out, progress):
        asked.append((run.name, beta))
        return queries(worth[run.name], "f_prim" if run.name == "b-001" else "both")

    monkeypatch.setattr(regret, "_queries", found)
    for name, count, winner in (("a", 2, 0), ("b", 3, 1)):
        folder = tmp_path / name
        folder.mkdir()
        states = ["finished"] * count + ["stopped"]
        table = pd.DataFrame({"trial": range(count + 1), "name": [f"{name}-{n:03d}" for n in range(count + 1)]})
        table = table.assign(state=states, winner=[n == winner for n in range(count + 1)], beta=SWEEP[3])
        table.to_csv(folder / "leaderboard.csv", index=False)
    return [tmp_path / "a", tmp_path / "b"], asked, tmp_path


def test_a_winner_is_compared_with_the_best_trial_of_all_searches(searches):
    folders, asked, out = searches
    one, other = regrets(folders, "store", out, lambda *_: None)
    assert asked == [(name, 0.3) for name in ("a-000", "a-001", "b-000", "b-001", "b-002")]  # none that was stopped
    assert (one.search, one.winner, one.best) == ("a", 0, "a-001")
    assert one.mean.value == pytest.approx(0.3)
    assert one.regret.value == pytest.approx(0.1)
    assert one.regret.interval is not None
    assert one.regret.interval == pytest.approx((0.1, 0.1))  # paired: how hard queries are drops out
    assert (other.search, other.winner) == ("b", 1)
    assert other.regret.value == pytest.approx(0.05)


def test_a_search_of_an_earlier_version_is_won_by_its_first_row(searches):
    folders, _, out = searches
    table = pd.read_csv(folders[1] / "leaderboard.csv").drop(columns="winner")
    table.to_csv(folders[1] / "leaderboard.csv", index=False)
    assert regrets(folders[1:], "store", out, lambda *_: None)[0].winner == 0


def test_a_search_that_is_not_over_is_named(searches):
    folders, _, out = searches
    (folders[0] / "leaderboard.csv").unlink()
    with pytest.raises(RegretError, match=r"a has no leaderboard.csv"):
        regrets(folders, "store", out, lambda *_: None)
