"""What retrieval refuses: features, pairs, settings."""

import math

import pytest
import torch

from dgnet_core.ranking.features import Features, descriptor, mirror_average
from dgnet_core.ranking.reranking import Reranking
from dgnet_core.ranking.retrieval import evaluate, top_matches

GOOD = {
    "prim": torch.ones(3, 2),
    "fine": torch.ones(3, 2),
    "person_ids": torch.tensor([1, 2, 3]),
    "camera_ids": torch.tensor([1, 1, 2]),
}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prim", torch.ones(3, 2).half(), r"prim: expected float32, got torch.float16; convert"),
        ("fine", torch.ones(3, 2).double(), r"fine: expected float32, got torch.float64; convert"),
        ("prim", torch.ones(3, 2, 1), r"prim: expected images x values, got shape \(3, 2, 1\); flatten"),
        (
            "prim",
            torch.tensor([[1, 1], [1, math.nan], [1, math.inf]]),
            r"prim: 2 rows hold NaN .* is row 1; check",
        ),
        ("fine", torch.full((3, 2), -math.inf), r"fine: 3 rows hold NaN or infinity"),
        ("fine", torch.ones(2, 2), r"fine: 2 rows, but prim has 3; give"),
        ("person_ids", torch.tensor([1, 2]), r"person_ids: 2 rows, but prim has 3; give"),
        ("person_ids", torch.tensor([1.0, 2, 3]), r"person_ids: expected int64, got torch.float32; convert"),
        ("camera_ids", torch.ones(3, 1).long(), r"camera_ids: expected one id per image, got shape \(3, 1\)"),
        ("person_ids", torch.tensor([1, -2, 3]), r"person_ids: -2 is below -1; number"),
    ],
)
def test_bad_features_are_named(field, value, message):
    with pytest.raises(ValueError, match=message):
        Features(**{**GOOD, field: value})


def test_empty_features_are_refused():
    with pytest.raises(ValueError, match="prim: 0 rows; a query or gallery needs at least one image"):
        Features(**{name: value[:0] for name, value in GOOD.items()})


def test_bad_pairs_are_named():
    good = Features(**GOOD)
    wide = Features(**{**GOOD, "fine": torch.ones(3, 4)})
    junk = Features(**{**GOOD, "person_ids": torch.tensor([-1, -1, -1])})
    with pytest.raises(ValueError, match=r"gallery\.fine: 4 values an image, but the query's has 2; extract"):
        evaluate(good, wide)
    with pytest.raises(ValueError, match=r"query\.person_ids: row 0 is -1"):
        evaluate(junk, good)
    with pytest.raises(ValueError, match=r"gallery\.person_ids: all 3 are -1"):
        evaluate(good, junk)


def test_bad_settings_are_named():
    good = Features(**GOOD)
    for beta in (-0.5, math.nan):
        with pytest.raises(ValueError, match="beta: must be at least 0, got"):
            evaluate(good, good, beta)
    one_head = Features(**{**GOOD, "fine": torch.ones(3, 0)})
    with pytest.raises(ValueError, match=r"beta: math\.inf ranks by the fine half, which is 0 values long"):
        evaluate(one_head, one_head, math.inf)
    with pytest.raises(ValueError, match="k: must be at least 1, got 0"):
        top_matches(good, good, 0)
    with pytest.raises(ValueError, match="max_rank: must be at least 1, got 0"):
        evaluate(good, good).cmc(0)
    with pytest.raises(ValueError, match="k1: 20 neighbours need more than the 6 images given; lower k1"):
        evaluate(good, good, reranking=Reranking())
    with pytest.raises(ValueError, match="mirrored: shape"):
        mirror_average(torch.ones(2, 3), torch.ones(3, 2))
    with pytest.raises(ValueError, match="fine: 3 rows, but prim has 2"):
        descriptor(torch.ones(2, 3), torch.ones(3, 3))
    with pytest.raises(ValueError, match="beta: must be finite"):
        descriptor(torch.ones(2, 3), torch.ones(2, 3), math.inf)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"k1": 0}, "k1: must be at least 1, got 0"),
        ({"k1": 3, "k2": 5}, "k2: must be from 1 to k1"),
        ({"original_weight": 1.5}, "original_weight: must be from 0 to 1, got 1.5"),
    ],
)
def test_bad_reranking_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        Reranking(**given)
