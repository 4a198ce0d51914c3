"""Retrieval against the release's numbers, figures computed by hand, slow definitions, and properties."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from dgnet_core.ranking import scoring
from dgnet_core.ranking.features import Features, descriptor, mirror_average, multi_query
from dgnet_core.ranking.reranking import Reranking
from dgnet_core.ranking.retrieval import RetrievalResult, evaluate, sweep_beta, top_matches
from dgnet_core.ranking.scoring import _count_with_numpy, _count_with_torch, largest, ragged
from tests.core.reference.formulas import ranking_inputs
from tests.helpers.features import assume_no_near_ties, drawn, seeds, with_integers

REFERENCE = json.loads(Path(__file__).with_name("reference").joinpath("ranking.json").read_text())


def one_headed(prim, person_ids, camera_ids) -> Features:
    prim = torch.as_tensor(prim, dtype=torch.float32)
    return Features(
        prim=prim,
        fine=prim.new_empty(len(prim), 0),
        person_ids=torch.as_tensor(person_ids),
        camera_ids=torch.as_tensor(camera_ids),
    )


def toy(scores, person_ids, camera_ids) -> tuple[Features, Features]:
    """One query, of person 1 under camera 1, that finds the gallery images similar by `scores`."""
    return one_headed([[1.0]], [1], [1]), one_headed([[s] for s in scores], person_ids, camera_ids)


def take(features: Features, index: torch.Tensor) -> Features:
    return Features(
        prim=features.prim[index],
        fine=features.fine[index],
        person_ids=features.person_ids[index],
        camera_ids=features.camera_ids[index],
    )


def drawn_pair(seed: int) -> tuple[Features, Features]:
    query = drawn(seed, 25, 8)
    return take(query, query.person_ids >= 0), drawn(seed + 1, 90, 8)


def assert_same(left: RetrievalResult, right: RetrievalResult) -> None:
    assert torch.equal(left.num_matches, right.num_matches)
    assert torch.equal(left.first_match_rank, right.first_match_rank)
    torch.testing.assert_close(left.average_precision, right.average_precision, rtol=1e-12, atol=0)
    torch.testing.assert_close(left.inverse_negative_penalty, right.inverse_negative_penalty, rtol=1e-12, atol=0)


# The release's numbers


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: f"seed{case['arguments']['seed']}")
def test_reproduces_the_release(case):
    inputs = {key: torch.from_numpy(value) for key, value in ranking_inputs(**case["arguments"]).items()}
    for key, checksum in case["checksums"].items():
        assert inputs[key].abs().sum().item() == pytest.approx(checksum, rel=1e-5)
    np.testing.assert_allclose(inputs["q_f"][0, :4], case["first_query_feature"], rtol=1e-6)

    def features(part: str) -> Features:
        prim, fine = inputs[f"{part}_f"].split(512, dim=1)
        ids, cameras = inputs[f"{part}_id"].long(), inputs[f"{part}_cam"].long()
        return Features(prim=prim, fine=fine, person_ids=ids, camera_ids=cameras)

    query, gallery = features("q"), features("g")
    prim_only, both, fine_only = sweep_beta(query, gallery, [0, 0.5, math.inf])
    results = {
        "prim_only": prim_only,
        "beta_0.5": both,
        "fine_only": fine_only,
        "multi_query_beta_0.5": evaluate(multi_query(query, features("m")), gallery, 0.5),
    }
    assert results.keys() == case["expected"].keys()
    for name, expected in case["expected"].items():
        summary = results[name].summary()
        assert {key: round(summary[key], 4) for key in expected} == expected, name


# By hand


def test_junk_and_distractors():
    scores = [0.95, 0.9, 0.8, 0.7, 0.6, 0.5]
    persons = [-1, 1, 2, 1, 0, 1]  # junk, same camera: junk, wrong, match, distractor: wrong, match
    query, gallery = toy(scores, persons, [2, 1, 1, 2, 2, 3])
    market = evaluate(query, gallery)
    assert market.average_precision.item() == pytest.approx(((0 + 1 / 2) / 2 + (1 / 3 + 2 / 4) / 2) / 2)
    assert market.first_match_rank.item() == 2
    assert market.num_matches.item() == 2
    assert market.mean_inverse_negative_penalty == pytest.approx(2 / 4)
    assert market.cmc(4).tolist() == [0, 1, 1, 1]

    lists = top_matches(query, gallery, 5)
    assert lists.gallery_index.tolist() == [[2, 3, 4, 5, -1]]
    assert lists.is_match.tolist() == [[False, True, False, True, False]]
    torch.testing.assert_close(lists.score[0], torch.tensor([0.8, 0.7, 0.6, 0.5, -math.inf]))


def test_first_place_counts_fully():
    result = evaluate(*toy([0.9, 0.8, 0.7], [1, 1, 2], [2, 2, 2]))
    assert result.average_precision.item() == 1
    assert result.inverse_negative_penalty.item() == 1
    assert result.cmc(2).tolist() == [1, 1]


def test_query_without_a_match_counts_as_zero():
    query = one_headed([[1.0], [1.0], [1.0]], [1, 7, 2], [1, 1, 1])  # 7 is not there, 2 only as junk
    gallery = one_headed([[0.9], [0.8]], [1, 2], [2, 1])
    result = evaluate(query, gallery)
    assert result.num_without_match == 2
    assert result.num_matches.tolist() == [1, 0, 0]
    assert result.first_match_rank.tolist() == [1, 0, 0]
    assert result.average_precision.tolist() == [1, 0, 0]
    assert result.summary() == {
        "rank1": pytest.approx(1 / 3),
        "rank5": pytest.approx(1 / 3),
        "rank10": pytest.approx(1 / 3),
        "mAP": pytest.approx(1 / 3),
        "mINP": pytest.approx(1 / 3),
        "queries": 3,
        "queries_without_match": 2,
    }


def test_no_query_has_a_match():
    result = evaluate(*toy([0.5], [2], [2]))
    assert result.mean_average_precision == 0
    assert result.num_without_match == 1


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 3, 0, 2]])
def test_wrong_goes_first_among_equals(order):
    scores, persons = np.array([0.5, 0.5, 0.5, 0.25]), np.array([1, 2, 1, 3])
    query, gallery = toy(scores[order], persons[order], [2, 2, 2, 2])
    result = evaluate(query, gallery)
    assert result.first_match_rank.item() == 2
    assert result.average_precision.item() == pytest.approx(((0 + 1 / 2) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    assert top_matches(query, gallery, 4).is_match.tolist() == [[False, True, True, False]]


def test_beta_weighs_the_fine_half():
    query = Features(
        prim=torch.tensor([[1.0]]),
        fine=torch.tensor([[1.0]]),
        person_ids=torch.tensor([1]),
        camera_ids=torch.tensor([1]),
    )
    gallery = Features(
        prim=torch.tensor([[0.6], [0.9]]),  # the wrong one leads by 0.3 in one half
        fine=torch.tensor([[0.9], [0.5]]),  # and is behind by 0.4 in the other
        person_ids=torch.tensor([1, 2]),
        camera_ids=torch.tensor([2, 2]),
    )
    betas = [0, 0.5, 0.8, 1, math.inf]
    results = sweep_beta(query, gallery, betas)
    assert [r.first_match_rank.item() for r in results] == [2, 2, 1, 1, 1]
    assert [r.beta for r in results] == betas
    assert top_matches(query, gallery, 1, beta=0.5).gallery_index.item() == 1
    assert top_matches(query, gallery, 1, beta=1).gallery_index.item() == 0


def test_mirror_average_and_descriptor():
    feature, mirrored = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 10.0]])
    mean = mirror_average(feature, mirrored)  # (0.6, 0.8) + (0, 1)
    torch.testing.assert_close(mean, torch.tensor([[0.6, 1.8]]) / math.hypot(0.6, 1.8))
    joined = descriptor(feature, mirrored, 0.5)
    torch.testing.assert_close(joined, torch.tensor([[0.6, 0.8, 0.0, 0.5]]))


def test_descriptor_on_the_query_side_gives_the_same_similarity():
    query, gallery = drawn_pair(3)
    product = descriptor(query.prim, query.fine, 0.5) @ descriptor(gallery.prim, gallery.fine, 1).T
    product[:, gallery.person_ids == -1] = -math.inf
    product[
        (query.person_ids[:, None] == gallery.person_ids) & (query.camera_ids[:, None] == gallery.camera_ids)
    ] = -math.inf
    assert torch.equal(top_matches(query, gallery, 5, 0.5).gallery_index, product.topk(5).indices)


def test_multi_query_is_the_mean_of_person_and_camera():
    query = one_headed([[9.0, 9.0], [9.0, 9.0]], [5, 5], [2, 1])
    photos = one_headed([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0], [7.0, 7.0]], [5, 5, 5, 6], [1, 1, 2, 1])
    pooled = multi_query(query, photos)
    assert pooled.prim.tolist() == [[0, 4], [2, 0]]
    assert pooled.camera_ids.tolist() == [2, 1]
    with pytest.raises(ValueError, match=r"photos: none of person 5 under camera 2, which query 0 needs"):
        multi_query(query, take(photos, torch.tensor([0, 3])))


# Slow definitions


def slow_query(scores: np.ndarray, persons, cameras, person: int, camera: int) -> tuple[float, int, float]:
    """Trapezoid AP, rank of the first match and INP, from a sorted list without ties."""
    order = [g for g in np.argsort(-scores) if persons[g] != -1]
    order = [g for g in order if not (persons[g] == person and cameras[g] == camera)]
    correct = np.array([persons[g] == person for g in order])
    if not correct.any():
        return 0, 0, 0
    precision = correct.cumsum() / np.arange(1, len(correct) + 1)
    before = np.concatenate([[1], precision[:-1]])
    places = np.flatnonzero(correct)
    trapezoid = ((precision + before) / 2)[correct].mean()
    return trapezoid, places[0] + 1, len(places) / (places[-1] + 1)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, beta=st.sampled_from([0, 0.3, 2, math.inf]))
def test_equals_the_slow_definition(seed, beta):
    query, gallery = drawn_pair(seed)
    prim, fine = query.prim @ gallery.prim.T, query.fine @ gallery.fine.T
    scores = fine if beta == math.inf else prim + beta * fine
    assume_no_near_ties(scores)
    persons, cameras = gallery.person_ids.numpy(), gallery.camera_ids.numpy()
    expected = [
        slow_query(row, persons, cameras, person, camera)
        for row, person, camera in zip(
            scores.numpy(), query.person_ids.tolist(), query.camera_ids.tolist(), strict=True
        )
    ]
    average, first, penalty = (torch.tensor(column) for column in zip(*expected, strict=True))
    result = evaluate(query, gallery, beta)
    torch.testing.assert_close(result.average_precision, average.double())
    torch.testing.assert_close(result.inverse_negative_penalty, penalty.double())
    assert torch.equal(result.first_match_rank, first.long())


def test_reranking_keeps_junk_in_the_neighbourhood_and_out_of_the_list():
    query, gallery = drawn_pair(5)
    reranking = Reranking(k1=10, k2=3)
    plain, reranked = evaluate(query, gallery, 1), evaluate(query, gallery, 1, reranking=reranking)
    assert torch.equal(plain.num_matches, reranked.num_matches)
    assert reranked.mean_average_precision > plain.mean_average_precision
    lists = top_matches(query, gallery, 30, 1, reranking=reranking)
    assert (gallery.person_ids[lists.gallery_index] >= 0).all()
    first = lists.is_match.int().argmax(dim=1) + 1
    found = lists.is_match.any(dim=1)
    assert torch.equal(first[found], reranked.first_match_rank[found])
    without_junk = evaluate(query, take(gallery, gallery.person_ids >= 0), 1, reranking=reranking)
    assert not torch.equal(without_junk.average_precision, reranked.average_precision)


# Properties


@settings(max_examples=25, deadline=None)
@given(seed=seeds, coarse=st.booleans())
def test_invariant_to_gallery_order(seed, coarse):
    query, gallery = drawn_pair(seed)
    if coarse:
        query, gallery = with_integers(query), with_integers(gallery)
    else:
        assume_no_near_ties(query.prim @ gallery.prim.T + 0.5 * query.fine @ gallery.fine.T)
    shuffled = take(gallery, torch.from_numpy(np.random.default_rng(seed).permutation(len(gallery))))
    assert_same(evaluate(query, gallery), evaluate(query, shuffled))


@settings(max_examples=25, deadline=None)
@given(seed=seeds, exponent=st.integers(-12, 12))
def test_invariant_to_the_scale_of_features(seed, exponent):
    query, gallery = drawn_pair(seed)
    assume_no_near_ties(query.prim @ gallery.prim.T + 0.5 * query.fine @ gallery.fine.T)

    def scaled(features: Features, factor: float | torch.Tensor) -> Features:
        return Features(
            prim=factor * features.prim,
            fine=factor * features.fine,
            person_ids=features.person_ids,
            camera_ids=features.camera_ids,
        )

    assert_same(evaluate(query, gallery), evaluate(scaled(query, 2.0**exponent), scaled(gallery, 3.0)))

    # Each image by its own factor, before the normalisation that makes the descriptor.
    factor = torch.from_numpy(np.random.default_rng(seed).uniform(0.01, 100, (len(gallery), 1))).float()
    raw = scaled(gallery, factor)
    normalised = Features(
        prim=mirror_average(raw.prim, raw.prim),
        fine=mirror_average(raw.fine, raw.fine),
        person_ids=raw.person_ids,
        camera_ids=raw.camera_ids,
    )
    assert_same(evaluate(query, gallery), evaluate(query, normalised))


@settings(max_examples=25, deadline=None)
@given(seed=seeds, persons=st.integers(2, 12))
def test_perfect_features_score_one(seed, persons):
    rng = np.random.default_rng(seed)
    ids = torch.cat([torch.arange(persons), torch.from_numpy(rng.integers(-1, persons, 40))])
    gallery = one_headed(F.one_hot(ids + 1, persons + 1), ids, torch.full_like(ids, 2))
    query_ids = torch.arange(persons)
    query = one_headed(F.one_hot(query_ids + 1, persons + 1), query_ids, torch.full_like(query_ids, 1))
    result = evaluate(query, gallery)
    assert result.mean_average_precision == pytest.approx(1, abs=1e-12)
    assert result.mean_inverse_negative_penalty == 1
    assert result.cmc(1).item() == 1


def test_constant_features_score_worst():
    query, gallery = drawn_pair(11)
    constant = one_headed(torch.ones(len(gallery), 1), gallery.person_ids, gallery.camera_ids)
    result = evaluate(one_headed(torch.ones(len(query), 1), query.person_ids, query.camera_ids), constant)
    labelled = int((gallery.person_ids >= 0).sum())
    same_camera = (query.person_ids[:, None] == gallery.person_ids) & (query.camera_ids[:, None] == gallery.camera_ids)
    last_places = labelled - same_camera.sum(1) - result.num_matches + 1
    found = result.num_matches > 0
    assert torch.equal(result.first_match_rank[found], last_places[found])


@settings(max_examples=15, deadline=None)
@given(seed=seeds, block_rows=st.integers(5, 40), reranked=st.booleans())
def test_blocks_do_not_change_the_result(seed, block_rows, reranked):
    query, gallery = (with_integers(part) for part in drawn_pair(seed))
    reranking = Reranking(k1=5, k2=2) if reranked else None
    whole = evaluate(query, gallery, reranking=reranking)
    lists = top_matches(query, gallery, reranking=reranking)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "BLOCK_ROWS", block_rows)
        assert_same(whole, evaluate(query, gallery, reranking=reranking))
        assert torch.equal(lists.gallery_index, top_matches(query, gallery, reranking=reranking).gallery_index)


@settings(max_examples=25, deadline=None)
@given(seed=seeds, coarse=st.booleans())
def test_lists_and_figures_agree(seed, coarse):
    query, gallery = drawn_pair(seed)
    if coarse:
        query, gallery = with_integers(query), with_integers(gallery)
    result, lists = evaluate(query, gallery), top_matches(query, gallery, len(gallery) + 3)
    first = torch.where(lists.is_match.any(dim=1), lists.is_match.int().argmax(dim=1) + 1, 0)
    assert torch.equal(result.first_match_rank, first)
    assert torch.equal(result.num_matches, lists.is_match.sum(dim=1))
    assert (lists.score.diff(dim=1).nan_to_num(0) <= 0).all()


def test_sweep_equals_single_evaluations():
    query, gallery = drawn_pair(4)
    betas = [0, 0.25, 0.5, 1, math.inf]
    for beta, result in zip(betas, sweep_beta(query, gallery, betas), strict=True):
        assert_same(result, evaluate(query, gallery, beta))


def test_ranges_concatenate():
    owner, element = ragged(torch.tensor([5, 9, 0]), torch.tensor([2, 0, 3]))
    assert owner.tolist() == [0, 0, 2, 2, 2]
    assert element.tolist() == [5, 6, 0, 1, 2]


def test_largest_orders_all_floats():
    scores = torch.tensor([[-0.0, 3e38, -1e-40, 0.0, -math.inf, -2.0, math.inf, 1e-40, 0.0]])
    assert largest(scores, 9).tolist() == [[6, 1, 7, 0, 3, 8, 2, 5, 4]]
    assert largest(scores, 4, torch.tensor([[0], [0]])).tolist() == [[6, 1, 7, 3]]


def test_both_ways_to_count_agree():
    scores = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))
    thresholds, ends = scores[:, :3].flatten()[:7], [3, 3, 6, 7]
    by_torch = _count_with_torch(scores, ends, thresholds)
    assert by_torch.tolist() == _count_with_numpy(scores.numpy(), ends, thresholds.numpy()).tolist()
    assert by_torch[0] == (scores[0] >= thresholds[0]).sum()


@pytest.mark.gpu
def test_cuda_gives_the_same():
    query, gallery = drawn_pair(2)

    def on_gpu(features: Features) -> Features:
        return Features(**{name: value.cuda() for name, value in vars(features).items()})

    for reranking in (None, Reranking(k1=8, k2=3)):
        expected = evaluate(query, gallery, reranking=reranking).summary()
        assert evaluate(on_gpu(query), on_gpu(gallery), reranking=reranking).summary() == pytest.approx(expected)
        lists = top_matches(query, gallery, reranking=reranking).gallery_index
        assert torch.equal(top_matches(on_gpu(query), on_gpu(gallery), reranking=reranking).gallery_index.cpu(), lists)
    photos = multi_query(on_gpu(query), on_gpu(query)).prim.cpu()
    torch.testing.assert_close(photos, multi_query(query, query).prim)
