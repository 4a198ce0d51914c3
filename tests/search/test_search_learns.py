"""A search finds better settings than bad ones."""

import pandas as pd
import pytest

from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.prepare import prepare
from tests.helpers.runs import job

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1200),
    pytest.mark.filterwarnings("ignore"),  # Ray, MLflow and gRPC warn of each other
]

PLANTED = """
model:
  loss:
    alpha: 4.0
    teacher_warmup: {start: 0}
    code_warmup: {start: 0}
"""
"""L_fine far too heavy, and from the first iteration on: such a run ends far below its teacher."""


def test_a_search_beats_a_planted_bad_default(tmp_path):
    store = tmp_path / "people"
    prepare(PrepareConfig(dataset="people", size="laptop", out=store))
    (tmp_path / "planted.yaml").write_text(PLANTED)
    process = job(
        "tune_market.py", "--data", str(store), "--storage", str(tmp_path), "--config", str(tmp_path / "planted.yaml"),
        "--iterations", "160", "--trials", "5", "--name", "search",
    )  # fmt: skip
    output, _ = process.communicate()
    assert process.returncode == 0, output
    board = pd.read_csv(tmp_path / "search" / "leaderboard.csv").set_index("trial")
    planted, best = board.loc[0], board.iloc[0]
    assert (planted["alpha"], planted["warmup_start"]) == (4.0, 0)
    assert best["mAP"] > planted["mAP"] + 0.15
