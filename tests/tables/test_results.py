"""Cells of tables by hand, and how they are shown."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from PIL import Image

from dgnet_platform.evaluation.compare import Comparison, write
from dgnet_platform.tables.campaign import CampaignError
from dgnet_platform.tables.report import Report, as_html, as_markdown, grid_of
from dgnet_platform.tables.results import SWAPS, Figure, RowResult, Score, TableResult, figures_of, swaps_of
from dgnet_platform.tables.summary import beside_generators

PEOPLE = torch.tensor([1, 1, 2, 3])


def score(seed: int, values: Sequence[float], people: torch.Tensor | None = PEOPLE) -> Score:
    return Score(run=f"run{seed}", figures={"mAP": torch.tensor(values, dtype=torch.float64)}, person_ids=people)


def row(label: str, figures: dict[str, Figure] | None = None, **overrides) -> RowResult:
    fields = {
        "label": label, "note": "", "source": "", "published": None, "published_elsewhere": {},
        "figures": figures or {}, "swaps": {}, "runs": {0: "run0"}, "missing": {},
    }  # fmt: skip
    return RowResult(**(fields | overrides))


def report(*rows: RowResult, reference: str = "") -> Report:
    table = TableResult(name="ablation", title="Ablation", reference=reference, held_out=False, rows=rows)
    picture = {"Figure 5": Image.new("RGB", (4, 4))}
    return Report(
        title="Tables", facts={"code": "<1>"}, notes=["Not whole: 1 run is missing."], tables=[table],
        pictures=picture, runs=[{"run": "run0", "seed": "0"}], settings={"model": {"batch_size": 8}},
    )  # fmt: skip


def test_mean_and_deviation_by_hand():
    """Seeds' means are 0.5, 0.6 and 0.7: mean 0.6, sample deviation 0.1."""
    scores = {0: score(0, [0.4, 0.6, 0.5, 0.5]), 1: score(1, [0.6] * 4), 2: score(2, [0.7] * 4)}
    figure = figures_of(scores, {})["mAP"]
    assert figure.mean == pytest.approx(0.6)
    assert figure.deviation == pytest.approx(0.1)
    assert figure.difference is None
    assert figure.interval is not None
    assert figure.interval[1] - 0.6 >= 4.303 * 0.1 / math.sqrt(3) - 1e-5


def test_differences_are_paired_by_seed():
    """Rows differ by 0.1 in each query of each seed, though seeds differ by 0.4: the difference has no spread."""
    reference = {0: score(0, [0.1, 0.2, 0.3, 0.4]), 1: score(1, [0.5, 0.6, 0.7, 0.8])}
    better = {seed: score(seed, (found.figures["mAP"] + 0.1).tolist()) for seed, found in reference.items()}
    figure = figures_of(better, reference)["mAP"]
    assert figure.difference == pytest.approx(0.1)
    assert figure.difference_interval == pytest.approx((0.1, 0.1))
    assert figure.verdict == "better"


def test_one_common_seed_is_no_verdict():
    """The same difference in each query, but of one seed: others may differ in the other direction."""
    figures = figures_of({0: score(0, [0.6] * 4), 1: score(1, [0.6] * 4)}, {1: score(1, [0.5] * 4)})
    assert figures["mAP"].difference_interval == pytest.approx((0.1, 0.1))
    assert figures["mAP"].verdict == "one seed"
    shown = grid_of(report(row("a", figures), row("b"), reference="b").tables[0], 2)
    assert shown.rows[0][4] == "+10.00 [+10.00, +10.00] one seed"


def test_differences_are_over_the_seeds_that_both_rows_have():
    reference = {1: score(1, [0.5] * 4)}
    figure = figures_of({0: score(0, [0.0] * 4), 1: score(1, [0.6] * 4)}, reference)["mAP"]
    assert figure.difference == pytest.approx(0.1)
    assert figure.mean == pytest.approx(0.3)


def test_one_seed_has_no_deviation_and_it_is_said():
    figure = figures_of({0: score(0, [0.1, 0.2, 0.3, 0.4])}, {})["mAP"]
    assert figure.deviation is None
    assert figure.interval is not None  # over identities
    shown = grid_of(report(row("both", {"mAP": figure})).tables[0], 1)
    assert shown.rows[0][2] == "25.00 (one seed)"
    assert "± 0" not in as_markdown(report(row("both", {"mAP": figure})))


def test_held_out_identities_have_intervals_over_seeds_alone():
    scores = {seed: score(seed, [value], None) for seed, value in enumerate((0.4, 0.5, 0.6))}
    figure = figures_of(scores, {})["mAP"]
    margin = 4.303 * 0.1 / math.sqrt(3)
    assert figure.interval == pytest.approx((0.5 - margin, 0.5 + margin), rel=1e-5)
    assert figures_of({0: scores[0]}, {})["mAP"].interval is None


def test_one_identity_has_no_interval():
    one = torch.tensor([7, 7])
    figure = figures_of({s: score(s, [0.1, 0.3], one) for s in (0, 1)}, {})["mAP"]
    assert figure.interval is None
    assert grid_of(report(row("both", {"mAP": figure})).tables[0], 2).rows[0][3] == "-"


def test_runs_on_other_queries_are_refused():
    with pytest.raises(CampaignError, match="run0 and run1 were evaluated on other queries"):
        figures_of({0: score(0, [0.1] * 4), 1: score(1, [0.1] * 3, torch.tensor([1, 2, 3]))}, {})
    with pytest.raises(CampaignError, match="other queries"):
        figures_of({0: score(0, [0.1] * 4)}, {0: score(1, [0.1] * 4, torch.tensor([1, 2, 2, 3]))})


def test_a_difference_whose_interval_holds_zero_is_undecided():
    reference = {seed: score(seed, [0.5, 0.5, 0.5, 0.5]) for seed in (0, 1)}
    figure = figures_of({seed: score(seed, [0.9, 0.9, 0.2, 0.6]) for seed in (0, 1)}, reference)["mAP"]
    assert figure.difference is not None
    assert figure.difference > 0
    assert figure.verdict == "undecided"
    shown = grid_of(report(row("a", {"mAP": figure}), row("b"), reference="b").tables[0], 2)
    assert shown.rows[0][4].endswith("undecided")
    assert shown.rows[1][4] == "reference"


def test_what_is_missing_is_shown():
    text = as_markdown(report(row("both", runs={}, missing={0: "diverged", 1: "not started"})))
    assert "2 of 2 missing" in text
    assert "Missing: both, seed 0 (diverged)." in text
    assert "Missing: both, seed 1 (not started)." in text


def test_published_figures_stand_beside_ours_with_their_source():
    rows = [
        row("ours", published=(94.8, 86.0), source="a paper, table 1, row ours"),
        row("theirs", runs={}, published_elsewhere={"market1501": (None, 74.5)}),
    ]
    shown = grid_of(report(*rows).tables[0], 1)
    assert [cells[-2:] for cells in shown.rows] == [
        ["94.8 / 86.0", "run0"], ["market1501 - / 74.5", "published"],
    ]  # fmt: skip
    assert "ours: a paper, table 1, row ours." in shown.notes


def test_the_html_needs_no_other_file_and_escapes_what_it_is_given():
    text = as_html(report(row("<b>&", note="a note")))
    assert "&lt;b&gt;&amp; [1]" in text
    assert "<b>&" not in text
    assert "&lt;1&gt;" in text
    assert "src=" in text
    assert "http" not in text
    assert text.count('src="data:image/png;base64,') == text.count("src=") == 1


def test_a_rows_runs_lead_to_what_is_said_of_them():
    """Of three runs two are listed; what is no run is no link."""
    table = report(row("both", runs={0: "run0", 1: "run1", 2: "run2"}, missing={3: "not started"}))
    page = "http://127.0.0.1:5000/#/experiments/1/runs/abc/model-metrics"
    text = as_html(replace(table, runs=[{"run": "run0", "MLflow": page}, {"run": "run1", "MLflow": "-"}]))
    first, second = '<a href="#run-run0">run0</a>', '<a href="#run-run1">run1</a>'
    assert f'<td class="runs">{first}, {second}, run2, 1 of 4 missing</td>' in text
    assert f'<td id="run-run0">run0</td><td><a href="{page}">{page}</a></td>' in text
    assert text.count('href="#') == text.count("id=") == 2


def test_a_table_survives_json():
    figure = figures_of({0: score(0, [0.1, 0.2, 0.3, 0.4])}, {})["mAP"]
    table = report(row("both", {"mAP": figure})).tables[0]
    assert json.loads(json.dumps(table.to_dict()))["rows"][0]["figures"]["mAP"]["mean"] == figure.mean


def test_table_2_and_figure_3_stand_in_the_report_if_they_are_of_its_data(tmp_path: Path):
    assert "jobs/compare_generators.py --out" in beside_generators(tmp_path, "abc").notes[0]
    rows = [{"generator": "real", "seed": None, "DSSIM": 0.321}, {"generator": "PN-GAN", "seed": 0, "DSSIM": 0.266}]
    table = pd.DataFrame(rows).astype({"seed": "Int64"})
    figure = Image.new("RGB", (2, 2))
    write(Comparison(source="PN-GAN", data="abc", drawn=True, table=table, left_out=[], figure=figure), tmp_path)
    assert "is of other data (fingerprint abc)" in beside_generators(tmp_path, "other").notes[0]

    found = beside_generators(tmp_path, "abc")
    assert not found.notes
    [caption] = found.pictures
    whole = replace(report(row("baseline")), grids=found.grids, pictures=found.pictures)
    assert "| PN-GAN | 0.266 |" in as_markdown(whole)
    assert "<td>PN-GAN</td><td>0.266</td>" in as_html(whole)
    assert f"<h2>{caption}</h2>" in as_html(whole)


def test_swaps_have_their_mean_deviation_and_columns():
    measured = [dict.fromkeys(SWAPS, value) for value in (10.0, 12.0, 14.0)]
    scores = [Score(run=f"run{n}", figures={}, swaps=swaps) for n, swaps in enumerate(measured)]
    assert swaps_of(scores) == dict.fromkeys(SWAPS, (12.0, 2.0))
    assert swaps_of(scores[:1]) == dict.fromkeys(SWAPS, (10.0, None))
    assert swaps_of([score(0, [0.5] * 4)]) == {}
    rows = (
        row("gray", swaps=dict.fromkeys(SWAPS, (12.0, 2.0))),
        row("none"),
        row("one", swaps={"transfer": (0.25, None)}),
    )
    table = TableResult(name="structure", title="", reference="", held_out=False, swaps=True, rows=rows)
    grid = grid_of(table, 3)
    place = grid.header.index("transfer")
    assert [cells[place] for cells in grid.rows] == ["12.0 ± 2.0", "-", "0.250"]
    assert any("CIE Lab" in note for note in grid.notes)
    assert "transfer" not in grid_of(replace(table, swaps=False), 3).header
