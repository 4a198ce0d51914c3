"""The best trials under other seeds, intervals of differences to the preset, and who is then named."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from dgnet_core.ranking.intervals import Estimate
from dgnet_platform.cli.experiments import base_experiment
from dgnet_platform.cli.options import TuneMarket
from dgnet_platform.runs.journal import Journal
from dgnet_platform.search.config import BETA, METRIC, SearchConfig
from dgnet_platform.search.confirmation import Confirmation, chosen, confirmations, confirmed
from dgnet_platform.search.plan import SearchPlan, plan_search
from dgnet_platform.search.report.leaderboard import (
    TrialRow,
    against_preset,
    leaderboard,
    leaderboard_table,
    unconfirmed,
    winner_of,
)
from dgnet_platform.search.report.results import Results
from dgnet_platform.search.sharing import prefix_of
from dgnet_platform.search.space import Space
from dgnet_platform.search.stopping import StoppingRule
from dgnet_platform.search.study import Study
from dgnet_platform.search.trial import TrialProgress
from dgnet_platform.storage.serialize import to_dict
from dgnet_platform.training.validation import save_queries
from tests.helpers.runs import tiny_experiment
from tests.helpers.studies import opened

PEOPLE = torch.arange(40).repeat_interleave(5)
NOISE = torch.rand(len(PEOPLE), generator=torch.Generator().manual_seed(0)).double() / 2


def finish(plan: SearchPlan, folder: Path, mean: float, seed: int = 0) -> None:
    """A run that is over, with queries of which each is as hard in all runs."""
    folder.mkdir()
    wobble = torch.rand(len(PEOPLE), generator=torch.Generator().manual_seed(seed)).double() / 20
    values = NOISE + wobble
    values += mean - values.mean()
    last = plan.base.model.iterations
    journal = Journal(folder, 0)
    journal.write(last, {METRIC: mean, BETA: 0.3})
    journal.close()
    save_queries({"person_ids": PEOPLE, "own": values, "best": values}, folder, last)
    TrialProgress(folder=folder).update(ending="finished", iteration=last, phase="over")


@pytest.fixture
def searched(people_store, tmp_path):
    """A search of five trials that are over; the preset has 50 %."""
    base = tiny_experiment(people_store, tmp_path)
    space = Space.default(base.model).overridden({"warmup_start": 4, "ramp": 1})
    config = SearchConfig(stopping=StoppingRule(kind="none"), confirm=2)
    plan = plan_search(base, space, config, teacher=None)
    plan.folder.mkdir()
    study = opened(plan.folder, identity=plan.identity, space=space, base=base.model)
    study.set_target(5)
    for mean in (0.5, 0.52, 0.4, 0.56, 0.54):
        number = study.ask()
        finish(plan, plan.trial_folder(number), mean, seed=number)
        study.note(number, beta=number / 10 if number else 0.3)
        study.tell(number, "complete", values=[mean])
    return plan, study


def again(plan: SearchPlan, study: Study, means: dict[int, tuple[float, float]]) -> None:
    """All runs with other seeds are over."""
    for (number, seed), sibling in confirmations(plan, study).items():
        finish(plan, plan.sibling_folder(sibling), means[number][seed - 1], seed=100 * number + seed)


def best(results: Results) -> int | None:
    winner = winner_of(results.rated_rows())
    return None if winner is None else winner.number


def test_the_preset_and_the_best_three_are_trained_again(searched):
    plan, study = searched
    assert chosen(study.trials) == [0, 3, 4, 1]
    runs = confirmations(plan, study)
    assert list(runs) == [(number, seed) for number in (0, 3, 4, 1) for seed in (1, 2)]
    for (number, seed), run in runs.items():
        beta = study.notes(number)["beta"]
        assert run.model == replace(plan.model(study.values(number)), seed=seed, beta=beta)
    # Those of one seed have one prefix, which no other seed has.
    assert len({prefix_of(run.model) for run in runs.values()}) == 2
    study.set_target(6)
    assert not confirmations(plan, study)  # another trial may be better


def test_runs_with_other_seeds_that_have_not_begun_are_counted(searched):
    plan, study = searched
    results = Results(plan, study)
    assert results.runs_to_confirm == 8
    runs = list(confirmations(plan, study).values())
    plan.sibling_folder(runs[0]).mkdir()
    assert results.runs_to_confirm == 7
    study.set_target(6)  # another trial may be better
    assert results.runs_to_confirm == 8
    assert Results(replace(plan, config=replace(plan.config, confirm=0)), study).runs_to_confirm == 0


def test_a_search_of_few_trials_confirms_few(searched, tmp_path):
    plan, _ = searched
    (tmp_path / "other").mkdir()
    study = opened(tmp_path / "other")
    study.set_target(3)
    assert Results(plan, study).runs_to_confirm == 6


def test_the_leaderboard_has_the_interval_of_each_difference_to_the_preset(searched):
    plan, study = searched
    rows = Results(replace(plan, config=replace(plan.config, confirm=0)), study).rated_rows()
    assert rows[0].difference is None
    found = rows[3].difference
    assert found is not None
    assert found.interval is not None
    low, high = found.interval
    assert found.value == pytest.approx(0.06)
    assert 0.05 < low < 0.06 < high < 0.07  # paired: how hard queries are drops out
    table = leaderboard(rows).set_index("trial")
    assert table.loc[3, "difference_low"] == low
    assert math.isnan(table.loc[0, "difference"])
    text = against_preset(rows)
    assert text.startswith("Trial 3 is 6.00 points of mAP above the preset (trial 0), one run each, 95 % interval")
    assert "--confirm 3" in text


def test_a_winner_is_named_by_other_seeds(searched):
    plan, study = searched
    results = Results(plan, study)
    assert not results.complete
    assert best(results) == 3
    again(plan, study, {0: (0.5, 0.51), 3: (0.49, 0.5), 4: (0.53, 0.55), 1: (0.5, 0.52)})
    assert results.complete
    assert best(results) == 4  # 3 was the best by chance
    found = confirmed(plan, study)
    assert found[4].mean == pytest.approx(0.54)
    assert found[4].deviation == pytest.approx(0.02 / math.sqrt(2))
    assert found[4].difference is not None
    assert found[4].difference.value == pytest.approx(0.035)
    assert found[0].difference is None
    text = against_preset(results.rated_rows())
    assert "Trial 4 is the best under 2 other seeds: mAP 54.0 ± 1.4, +3.5 [" in text
    assert leaderboard(results.rated_rows()).set_index("trial").loc[4, "confirmed_sd"] == pytest.approx(
        0.01414, abs=1e-4
    )


def test_a_lucky_seed_beside_failed_ones_names_no_winner(searched):
    plan, study = searched
    again(plan, study, {0: (0.5, 0.51), 3: (0.9, 0.5), 4: (0.53, 0.55), 1: (0.5, 0.52)})
    runs = {key: plan.sibling_folder(run) for key, run in confirmations(plan, study).items()}
    TrialProgress(folder=runs[3, 2]).update(ending="failed", phase="over", reason="a loss is not finite")
    for seed in (1, 2):
        TrialProgress(folder=runs[1, seed]).update(phase="trains")
    results = Results(plan, study)
    rows = results.rated_rows()
    assert confirmed(plan, study)[3].scores == {1: pytest.approx(0.9)}
    assert best(results) == 4
    failed = "trial 3 does not compete under other seeds: seed 2 failed: a loss is not finite"
    unfinished = "trial 1 does not compete under other seeds: seed 1 not finished; seed 2 not finished"
    assert unconfirmed(rows) == [unfinished, failed]
    assert failed in results.note(rows)
    console = Console(record=True, width=200)
    console.print(leaderboard_table(rows))
    shown = console.export_text()
    assert failed in shown
    assert unfinished in shown
    assert math.isnan(leaderboard(rows).set_index("trial").loc[1, "confirmed"])


def test_the_preset_may_win(searched):
    plan, study = searched
    again(plan, study, {0: (0.6, 0.6), 3: (0.49, 0.5), 4: (0.53, 0.55), 1: (0.5, 0.52)})
    results = Results(plan, study)
    assert best(results) == 0
    assert "No trial is better than the preset (trial 0) under 2 other seeds" in against_preset(results.rated_rows())


def test_a_difference_within_its_noise_is_undecided():
    found = Confirmation(scores={1: 0.5, 2: 0.6}, difference=Estimate(value=0.05, interval=(-0.1, 0.2)))
    rows = [
        TrialRow(number=0, name="a", state="finished", is_preset=True,
                 confirmation=Confirmation(scores={1: 0.5, 2: 0.5}, difference=None)),
        TrialRow(number=1, name="b", state="finished", confirmation=found),
    ]  # fmt: skip
    assert against_preset(rows).endswith("+5.0 [-10.0, 20.0] points above the preset (95 % interval), undecided.")


def test_one_seed_gives_no_verdict():
    found = Confirmation(scores={1: 0.5}, difference=Estimate(value=0.05, interval=(0.01, 0.09)))
    rows = [
        TrialRow(number=0, name="a", state="finished", is_preset=True,
                 confirmation=Confirmation(scores={1: 0.45}, difference=None)),
        TrialRow(number=1, name="b", state="finished", confirmation=found),
    ]  # fmt: skip
    assert against_preset(rows).endswith("(95 % interval), over identities alone: one seed gives no verdict.")


def test_the_best_settings_have_the_weight_of_f_fine_that_was_the_best(searched):
    plan, study = searched
    assert "beta: 0.1" in Results(plan, study)._settings_yaml(1)
    assert Results(plan, study).settings(3).beta == 0.3


def test_the_best_settings_are_the_trials_at_whatever_length_they_are_laid_over(people_store, tmp_path):
    options = TuneMarket(data=str(people_store), preset="paper", storage=tmp_path, iterations=100_000)
    base = replace(base_experiment(options), data=str(people_store), storage=str(tmp_path))  # the preset's own length
    space = Space.default(base.model)
    plan = plan_search(base, space, SearchConfig(stopping=StoppingRule(kind="none")), preset="paper", teacher=None)
    plan.folder.mkdir()
    study = opened(plan.folder, identity=plan.identity, space=space, base=base.model)
    study.ask()
    file = tmp_path / "best.yaml"
    file.write_text(Results(plan, study)._settings_yaml(0))
    again = base_experiment(replace(options, iterations=None, config=file))
    assert to_dict(again.model) == to_dict(plan.model(study.values(0)))
