"""README's tables of the first run, from an evaluation by hand."""

from pathlib import Path

import pandas as pd

from dgnet_platform.evaluation.results import Evaluation, write
from dgnet_platform.runs.run import RESULTS
from jobs.bench_first_run import tables


def test_tables_are_of_single_queries_without_reranking_and_of_unseen_people(tmp_path: Path) -> None:
    row = {"store": "people", "query": "single", "reranked": False, "rank1": 0.5, "mAP_low": 0.3, "mAP_high": 0.4126}
    minus = row | {"minus": "teacher", "mAP": 0.094, "mAP_low": 0.075, "mAP_high": 0.111, "mAP_verdict": "better"}
    rows = [
        row | {"feature": "teacher", "mAP": 0.392, "beta": None},
        row | {"feature": "f_prim", "mAP": 0.426, "beta": None, "query": "multi"},
        row | {"feature": "f_prim", "mAP": 0.426, "beta": None, "reranked": True},
        row | {"feature": "both", "mAP": 0.486, "beta": 0.5},
    ]
    figures = {"person_L1": 0.1414, "person_SSIM": 0.344, "upper_colour": 12.22, "lower_colour": 11.0}
    swap = {"picture": "G(a_i, s_j)", "identities": "unseen", "transfer": 0.27, "sharpness": 0.48, **figures}
    (tmp_path / RESULTS).mkdir()
    evaluation = Evaluation(
        source="", drawn=True, retrieval=pd.DataFrame(rows), sweep=pd.DataFrame(),
        differences=pd.DataFrame([minus | {"feature": "both"}]), queries=pd.DataFrame(),
        swaps=pd.DataFrame([swap, swap | {"identities": "seen"}]), extraction=pd.DataFrame(),
    )  # fmt: skip
    write(evaluation, tmp_path / RESULTS)
    assert tables(tmp_path).splitlines() == [
        "| | Rank@1 | mAP | 95 % interval | against the teacher, paired by query |",
        "| --- | --: | --: | --- | --- |",
        "| teacher | 50.0 | 39.2 | 30.0 to 41.3 |  |",
        "| both, beta 0.5 | 50.0 | 48.6 | 30.0 to 41.3 | +9.4 [+7.5, +11.1] better |",
        "",
        "| | L1 | SSIM | upper | lower | transfer | sharp |",
        "| --- | --: | --: | --: | --: | --: | --: |",
        "| G(a_i, s_j) | 0.141 | 0.34 | 12.2 | 11.0 | 0.27 | 0.48 |",
    ]
