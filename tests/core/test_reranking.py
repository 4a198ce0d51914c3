"""Re-ranking by k-reciprocal neighbours against the paper's definition, however slow."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dgnet_core.ranking import scoring
from dgnet_core.ranking.reranking import Reranking, reranked_scores
from tests.helpers.features import assume_no_near_ties, drawn, seeds, with_integers


def slow_reranking(images: np.ndarray, queries: int, k1: int, k2: int, weight: float) -> np.ndarray:
    """The paper's definition with sets and dense vectors, in float64."""
    count = len(images)
    distance = ((images[:, None] - images[None]) ** 2).sum(2)
    order = [sorted(range(count), key=lambda j, i=i: (j != i, distance[i, j], j)) for i in range(count)]
    distance = distance / distance.max(1, keepdims=True)

    def reciprocal(i: int, k: int) -> set[int]:
        return {j for j in order[i][: k + 1] if i in order[j][: k + 1]}

    vectors = np.zeros((count, count))
    for i in range(count):
        members = reciprocal(i, k1)
        extended = set(members)
        for j in members:
            half = reciprocal(j, round(k1 / 2))
            if 3 * len(members & half) > 2 * len(half):
                extended |= half
        for j in extended:
            vectors[i, j] = np.exp(-distance[i, j])
        vectors[i] /= vectors[i].sum()
    vectors = np.stack([vectors[order[i][:k2]].mean(0) for i in range(count)])
    low = np.minimum(vectors[:queries, None], vectors[None, queries:]).sum(2)
    high = np.maximum(vectors[:queries, None], vectors[None, queries:]).sum(2)
    return weight * distance[:queries, queries:] + (1 - weight) * (1 - low / high)


@settings(max_examples=20, deadline=None)
@given(
    seed=seeds,
    k1=st.integers(1, 12),
    k2=st.integers(1, 6),
    weight=st.sampled_from([0, 0.3, 1]),
    coarse=st.booleans(),
    block_rows=st.sampled_from([512, 7, 1]),
)
def test_reranking_equals_the_slow_definition(seed, k1, k2, weight, coarse, block_rows):
    k2 = min(k2, k1 + 1)
    query, gallery = drawn(seed, 6, 5), drawn(seed + 1, 40, 5)
    if coarse:
        query, gallery = with_integers(query), with_integers(gallery)
    query, gallery = (torch.cat([part.prim, part.fine], dim=1) for part in (query, gallery))
    if not coarse:
        images = torch.cat([query, gallery])
        assume_no_near_ties(torch.cdist(images, images))
    reranking = Reranking(k1=k1, k2=k2, original_weight=weight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "BLOCK_ROWS", block_rows)
        scores = torch.cat([part for _, part in reranked_scores(query, gallery, reranking)])
    images = torch.cat([query, gallery]).double().numpy()
    expected = slow_reranking(images, len(query), k1, k2, weight)
    np.testing.assert_allclose(-scores.numpy(), expected, atol=2e-6)


@pytest.mark.parametrize(("k1", "k2"), [(1, 1), (2, 2), (5, 3)])
def test_an_image_is_its_own_first_neighbour_however_many_others_equal_it(k1, k2):
    rng = np.random.default_rng(0)
    images = rng.integers(-3, 4, (4, 3))[rng.integers(0, 4, 12)]
    query, gallery = torch.from_numpy(images).float().split([3, 9])
    ((_, scores),) = reranked_scores(query, gallery, Reranking(k1=k1, k2=k2))
    np.testing.assert_allclose(-scores.numpy(), slow_reranking(images, 3, k1, k2, 0.3), atol=2e-6)


def test_reranking_of_identical_images():
    images = torch.ones(30, 4)
    for _, scores in reranked_scores(images[:5], images[5:], Reranking()):
        assert torch.isfinite(scores).all()
