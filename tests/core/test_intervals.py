"""Intervals over identities: by hand, and how often they hold the truth."""

import math

import pytest
import torch

from dgnet_core.ranking.features import Features
from dgnet_core.ranking.intervals import Estimate, estimate, seed_margin
from dgnet_core.ranking.retrieval import evaluate
from tests.helpers.features import drawn


def test_two_identities_by_hand():
    """Drawn with replacement: a twice, b twice, or both; a's three queries weigh three times b's one."""
    values, people = torch.tensor([0.2, 0.3, 0.4, 0.9]), torch.tensor([5, 5, 5, 8])
    found = estimate(values, people, draws=400)
    assert found.value == pytest.approx(0.45)
    assert found.interval == pytest.approx((0.3, 0.9))


def test_no_spread_is_no_width():
    found = estimate(torch.full((6,), 0.5), torch.tensor([1, 1, 2, 2, 3, 3]))
    assert found == Estimate(value=0.5, interval=(0.5, 0.5))


def test_one_identity_has_no_interval():
    found = estimate(torch.tensor([0.2, 0.8]), torch.tensor([4, 4]))
    assert found == Estimate(value=pytest.approx(0.5), interval=None)  # pyright: ignore[reportArgumentType]
    assert found.verdict == "undecided"
    features = Features(
        prim=torch.eye(2), fine=torch.eye(2), person_ids=torch.tensor([1, 1]), camera_ids=torch.tensor([1, 2])
    )
    assert evaluate(features, features).intervals() == {}


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.1, 0.2), "better"), ((-0.2, -0.1), "worse"), ((-0.1, 0.2), "undecided"), ((0.0, 0.2), "undecided")],
)
def test_an_interval_that_holds_zero_calls_no_row_better(interval: tuple[float, float], verdict: str):
    assert Estimate(value=0.1, interval=interval).verdict == verdict


def test_seeds_widen_by_students_t():
    """Three seeds whose means are 0.4, 0.5, 0.6: deviation 0.1, t 4.303, so 0.2484; identities differ by nothing."""
    runs = torch.tensor([0.4, 0.5, 0.6])[:, None].expand(3, 4)
    margin = 4.303 * 0.1 / math.sqrt(3)
    assert seed_margin(runs.mean(dim=1)) == pytest.approx(margin, rel=1e-5)
    found = estimate(runs, torch.tensor([1, 2, 3, 4]))
    assert found.value == pytest.approx(0.5)
    assert found.interval == pytest.approx((0.5 - margin, 0.5 + margin), rel=1e-5)
    assert seed_margin(torch.tensor([0.7])) == 0


def test_the_same_seed_draws_the_same_identities():
    values, people = torch.rand(40, generator=torch.Generator().manual_seed(1)), torch.arange(40) // 4
    assert estimate(values, people, seed=3) == estimate(values, people, seed=3)
    assert estimate(values, people, seed=3) != estimate(values, people, seed=4)


@pytest.mark.parametrize(("values", "people"), [((0,), (0,)), ((2, 0), (0,)), ((3,), (2,))])
def test_figures_without_their_identities_are_refused(values: tuple[int, ...], people: tuple[int, ...]):
    with pytest.raises(ValueError, match="each query's figure and identity"):
        estimate(torch.zeros(values), torch.zeros(people, dtype=torch.int64))


def coverage(seeds: int, identities: int, *, by_query: bool = False) -> float:
    """How often the interval of a difference of two rows holds the true one, of 500 drawn test sets and trainings."""
    truth, held, generator = 0.05, 0, torch.Generator().manual_seed(7)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    for repetition in range(500):
        people = torch.arange(identities).repeat_interleave(torch.randint(1, 8, (identities,), generator=generator))
        gains = truth + 0.3 * normal(identities)[people] + 0.2 * normal(seeds, len(people))
        if seeds > 1:
            gains += 0.05 * normal(seeds, 1)
        other = normal(seeds, len(people))  # hard queries are hard for both rows
        groups = torch.arange(len(people)) if by_query else people
        interval = estimate((other + gains) - other, groups, seed=repetition, draws=800).interval
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    return held / 500


def test_paired_intervals_hold_the_truth():
    assert coverage(1, 120) == pytest.approx(0.95, abs=0.02)
    assert coverage(5, 120) == pytest.approx(0.95, abs=0.02)


def test_queries_of_one_person_are_not_independent():
    """As if each query were a person of its own, the interval is far too narrow."""
    assert coverage(1, 120, by_query=True) < 0.8


def test_rows_are_paired_by_query():
    query, gallery = drawn(1, 200, 20), drawn(2, 400, 20)
    known = query.person_ids >= 0
    query = Features(
        prim=query.prim[known], fine=query.fine[known], person_ids=query.person_ids[known],
        camera_ids=query.camera_ids[known],
    )  # fmt: skip
    both, prim = evaluate(query, gallery, 0.5), evaluate(query, gallery, 0.0)
    difference = both.minus(prim)["mAP"]
    assert difference.value == pytest.approx(both.mean_average_precision - prim.mean_average_precision)
    assert difference.interval is not None
    ends = both.intervals()
    assert ends["mAP_low"] < both.mean_average_precision < ends["mAP_high"]
    assert difference.interval[1] - difference.interval[0] < ends["mAP_high"] - ends["mAP_low"]
    assert both.minus(both)["rank1"] == Estimate(value=0.0, interval=(0.0, 0.0))
    with pytest.raises(ValueError, match="its queries are others"):
        both.minus(evaluate(gallery_of(query), gallery))


def gallery_of(query: Features) -> Features:
    """The same queries in another order."""
    order = torch.arange(len(query)).flip(0)
    return Features(
        prim=query.prim[order], fine=query.fine[order], person_ids=query.person_ids[order],
        camera_ids=query.camera_ids[order],
    )  # fmt: skip
