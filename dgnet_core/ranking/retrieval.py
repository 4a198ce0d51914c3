"""Retrieval: CMC, mAP and mINP, a sweep over beta, ranked lists.

Images are compared by f_prim . f_prim' + beta * f_fine . f_fine' (see `features`): beta 0 ranks by f_prim
alone, `math.inf` by f_fine alone, and a sweep over beta needs neither another extraction nor another
matrix product.

What counts (Zheng et al., "Scalable Person Re-identification: A Benchmark", ICCV 2015): gallery images of
the query's own person *and* camera are junk, and so is person -1; junk is taken out of the ranked list.
Other images of the query's person are matches, everything else is wrong, including the distractors
(person 0 in Market-1501).

Ties: a wrong image goes before a match of equal score. Every figure is then independent of the gallery's
order, and constant descriptors score worst, not best. (The scores of exact duplicates can still differ in
the last bit of a matrix product.)

Average precision is the area under the precision-recall curve by trapezoids, as in the Market-1501 kit; most
toolboxes take the mean of the precisions at the matches, which is higher.

Queries without a match count as 0 in every average, as in the Market-1501 kit, and are counted.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dgnet_core.ranking.features import JUNK, Features, check_comparable
from dgnet_core.ranking.intervals import Estimate, estimate
from dgnet_core.ranking.reordering import Reordering, reordered
from dgnet_core.ranking.reranking import Reranking, reranked_scores
from dgnet_core.ranking.scoring import count_at_least, dot_products, largest, ragged, row_blocks

SWEEP = tuple(tenth / 10 for tenth in range(11))
"""Weights of f_fine that are tried."""


@dataclass(frozen=True, kw_only=True, eq=False)
class RetrievalResult:
    """How well a gallery answers Q queries; the averages are over all queries. Tensors are on the CPU."""

    beta: float
    """Weight of the fine half."""

    average_precision: Tensor
    """float64, Q; 0 for a query without a match."""

    inverse_negative_penalty: Tensor
    """float64, Q: number of matches / rank of the last one (Ye et al., TPAMI 2021); 0 without a match."""

    first_match_rank: Tensor
    """int64, Q: place of the first match in the ranked list, from 1; 0 for a query without a match."""

    num_matches: Tensor
    """int64, Q."""

    person_ids: Tensor
    """int64, Q: whom each query shows."""

    @property
    def mean_average_precision(self) -> float:
        """mAP, in [0, 1]."""
        return float(self.average_precision.mean())

    @property
    def mean_inverse_negative_penalty(self) -> float:
        """mINP, in [0, 1]."""
        return float(self.inverse_negative_penalty.mean())

    @property
    def num_without_match(self) -> int:
        """Queries that have no match in the gallery."""
        return int((self.num_matches == 0).sum())

    def cmc(self, max_rank: int = 50) -> Tensor:
        """Share of the queries with a match among the first 1, 2, ... images; float64, max_rank."""
        if max_rank < 1:
            raise ValueError(f"max_rank: must be at least 1, got {max_rank}")
        hits = torch.bincount(self.first_match_rank.clamp(max=max_rank + 1), minlength=max_rank + 2)
        return hits[1 : max_rank + 1].cumsum(0).double() / len(self.first_match_rank)

    def summary(self) -> dict[str, float]:
        """The figures of a results table by name."""
        cmc = self.cmc(10).tolist()
        return {
            "rank1": cmc[0],
            "rank5": cmc[4],
            "rank10": cmc[9],
            "mAP": self.mean_average_precision,
            "mINP": self.mean_inverse_negative_penalty,
            "queries": len(self.num_matches),
            "queries_without_match": self.num_without_match,
        }

    def by_query(self) -> dict[str, Tensor]:
        """The figures that are means over queries and have intervals, of each query: float64, Q."""
        return {"rank1": (self.first_match_rank == 1).double(), "mAP": self.average_precision}

    def intervals(self) -> dict[str, float]:
        """Ends of the 95 % intervals over identities, as `mAP_low` and `mAP_high`; none for one identity."""
        return {
            f"{figure}_{end}": value
            for figure, values in self.by_query().items()
            for end, value in zip(("low", "high"), estimate(values, self.person_ids).interval or (), strict=False)
        }

    def minus(self, other: "RetrievalResult") -> dict[str, Estimate]:
        """How much better this is than another result on the same queries, by figure, paired by query.

        Raises:
            ValueError: the queries are others.
        """
        if not torch.equal(self.person_ids, other.person_ids):
            raise ValueError("other: its queries are others, or in another order; compare results of one query set")
        there = other.by_query()
        return {figure: estimate(here - there[figure], self.person_ids) for figure, here in self.by_query().items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class RankedLists:
    """The first k images of each query's ranked list, junk taken out; on the device of the features."""

    gallery_index: Tensor
    """int64, Q x k; -1 where a list is shorter than k."""

    score: Tensor
    """float32, Q x k, descending; -infinity where a list is shorter than k."""

    is_match: Tensor
    """bool, Q x k."""


def evaluate(
    query: Features,
    gallery: Features,
    beta: float = 0.5,
    *,
    reranking: Reranking | Reordering | None = None,
) -> RetrievalResult:
    """CMC, mAP and mINP for one beta; `sweep_beta` says the rest."""
    results = sweep_beta(query, gallery, [beta], reranking=reranking)
    return results[0]


@torch.no_grad()
def sweep_beta(
    query: Features,
    gallery: Features,
    betas: Sequence[float],
    *,
    reranking: Reranking | Reordering | None = None,
) -> list[RetrievalResult]:
    """CMC, mAP and mINP for several weights of the fine half, from one pass over the descriptors.

    Memory beyond the features: a copy of the gallery's features if it holds person -1, and three blocks of
    scores of at most 512 MiB each. Re-ranking holds the descriptors once more, and the soft lists.

    Args:
        query: Q queries.
        gallery: G images, on the same device.
        betas: weights from 0 (f_prim alone) to `math.inf` (f_fine alone).
        reranking: re-rank by k-reciprocal neighbours, or the nearest by what compares fine halves, before scoring; None
            ranks by similarity.

    Returns:
        A result for each of `betas`, in their order.

    Raises:
        ValueError: query and gallery are not comparable, a query is junk, the gallery is nothing but
            junk, or a beta is negative.
    """
    pairs = _same_person_pairs(query, gallery)
    owners = pairs.rows[pairs.correct].cpu().numpy()
    wrong_ahead: list[list[Tensor]] = [[] for _ in betas]
    for index, block, scores in _score_blocks(query, gallery, pairs.kept, betas, reranking):
        wrong_ahead[index].append(_wrong_ahead(scores, *pairs.of_block(block)))
    return [
        _result(torch.cat(parts).cpu().numpy(), owners, query.person_ids.cpu(), beta)
        for beta, parts in zip(betas, wrong_ahead, strict=True)
    ]


@torch.no_grad()
def top_matches(
    query: Features,
    gallery: Features,
    k: int = 10,
    beta: float = 0.5,
    *,
    reranking: Reranking | Reordering | None = None,
) -> RankedLists:
    """The first k gallery images of each query, junk taken out, in the order that `evaluate` scores.

    Images of equal score: wrong ones first, then by gallery index.

    Args:
        query: Q queries.
        gallery: G images, on the same device.
        k: length of the lists.
        beta: weight of the fine half, from 0 to `math.inf`.
        reranking: as for `sweep_beta`.

    Raises:
        ValueError: as `sweep_beta`, or k is not positive.
    """
    if k < 1:
        raise ValueError(f"k: must be at least 1, got {k}")
    pairs = _same_person_pairs(query, gallery)
    index = torch.full((len(query), k), -1, device=query.prim.device)
    score = torch.full((len(query), k), -math.inf, device=query.prim.device)
    for _, block, scores in _score_blocks(query, gallery, pairs.kept, [beta], reranking):
        rows, columns, correct = pairs.of_block(block)
        scores[rows[~correct], columns[~correct]] = -math.inf
        best = largest(scores, min(k, scores.shape[1]), torch.stack([rows[correct], columns[correct]]))
        score[block, : best.shape[1]] = scores.gather(1, best)
        index[block, : best.shape[1]] = pairs.kept[best]
    index[score == -math.inf] = -1
    is_match = (gallery.person_ids[index] == query.person_ids[:, None]) & (index >= 0)
    return RankedLists(gallery_index=index, score=score, is_match=is_match)


@dataclass(frozen=True)
class _Pairs:
    """Pairs of a query (row) and a gallery image of the same person (column), ordered by row; lengths P."""

    kept: Tensor  # gallery indices of the columns: all images but those of person -1
    rows: Tensor
    columns: Tensor
    correct: Tensor  # bool: another camera, hence a match; otherwise junk

    def of_block(self, block: slice) -> tuple[Tensor, Tensor, Tensor]:
        """The pairs of some queries: rows counted from the block's first, columns, correct."""
        first, last = torch.searchsorted(self.rows, self.rows.new_tensor([block.start, block.stop])).tolist()
        return self.rows[first:last] - block.start, self.columns[first:last], self.correct[first:last]


def _same_person_pairs(query: Features, gallery: Features) -> _Pairs:
    """All matches and all same-camera junk, found in the sorted ids, without a query x gallery table."""
    check_comparable(query, gallery, "gallery")
    junk = (query.person_ids == JUNK).nonzero()[:, 0]
    if len(junk):
        raise ValueError(f"query.person_ids: row {int(junk[0])} is -1, which marks junk; leave such images out")
    kept = (gallery.person_ids != JUNK).nonzero()[:, 0]
    if not len(kept):
        raise ValueError(f"gallery.person_ids: all {len(gallery)} are -1, which marks junk; add labelled images")
    sorted_ids, order = gallery.person_ids[kept].sort(stable=True)
    start = torch.searchsorted(sorted_ids, query.person_ids)
    end = torch.searchsorted(sorted_ids, query.person_ids, right=True)
    rows, places = ragged(start, end - start)
    columns = order[places]
    correct = gallery.camera_ids[kept[columns]] != query.camera_ids[rows]
    return _Pairs(kept, rows, columns, correct)


def _score_blocks(
    query: Features,
    gallery: Features,
    kept: Tensor,
    betas: Sequence[float],
    reranking: Reranking | Reordering | None,
) -> Iterator[tuple[int, slice, Tensor]]:
    """Yields (index of the beta, queries, their scores against the kept images, free to be overwritten)."""
    for beta in betas:
        if not beta >= 0:
            raise ValueError(f"beta: must be at least 0, got {beta}; 0 is f_prim alone, math.inf f_fine")
        if beta == math.inf and not query.fine.shape[1]:
            raise ValueError("beta: math.inf ranks by the fine half, which is 0 values long; use 0")
    if isinstance(reranking, Reranking):
        # Re-ranking looks at the whole gallery: which images are junk is known to the judge only.
        for index, beta in enumerate(betas):
            blocks = reranked_scores(_weighted(query, beta), _weighted(gallery, beta), reranking)
            for block, scores in blocks:
                yield index, block, scores[:, kept]
        return

    prim, fine = gallery.prim, gallery.fine
    if len(kept) < len(gallery):
        prim, fine = prim.index_select(0, kept), fine.index_select(0, kept)
    blocks = list(row_blocks(len(query), len(kept)))
    buffer = prim.new_empty(blocks[0].stop, len(kept))
    for block in blocks:
        scores = buffer[: block.stop - block.start]
        prim_scores = dot_products(query.prim[block], prim)
        fine_scores = dot_products(query.fine[block], fine)
        for index, beta in enumerate(betas):
            if beta == math.inf:
                scores.copy_(fine_scores)
            else:
                torch.add(prim_scores, fine_scores, alpha=beta, out=scores)
            if reranking is None:
                yield index, block, scores
            else:
                yield index, block, reordered(scores, query.fine[block], fine, reranking)
        del prim_scores, fine_scores  # before the next are made


def _weighted(features: Features, beta: float) -> Tensor:
    """One vector an image, N x (D + D'), whose dot product with another is their similarity."""
    if beta == math.inf:
        return features.fine
    return torch.cat([features.prim, math.sqrt(beta) * features.fine], dim=1)


def _wrong_ahead(scores: Tensor, rows: Tensor, columns: Tensor, correct: Tensor) -> Tensor:
    """For each match, how many wrong images score as much or more; int64. Overwrites the pairs' scores."""
    cells = rows * scores.shape[1] + columns
    flat = scores.view(-1)
    matches = flat.index_select(0, cells.masked_select(correct))
    flat.scatter_(0, cells, -math.inf)  # matches and junk leave the list, wrong images remain
    return count_at_least(scores, rows.masked_select(correct), matches)


def _result(wrong_ahead: np.ndarray, owners: np.ndarray, person_ids: Tensor, beta: float) -> RetrievalResult:
    """Per-query figures from the wrong images ahead of each match, and the query of each match, ascending."""
    num_queries = len(person_ids)
    count = np.bincount(owners, minlength=num_queries)
    start = count.cumsum() - count
    place = np.arange(len(owners)) - start[owners]  # 0, 1, 2, ... along the matches of a query
    wrong_ahead = wrong_ahead[np.lexsort((wrong_ahead, owners))]  # best match of a query first
    ranks = 1 + place + wrong_ahead
    precision = (place + 1) / ranks
    precision_before = np.where(ranks > 1, place / np.maximum(ranks - 1, 1), 1)
    average_precision = np.bincount(owners, (precision_before + precision) / 2, num_queries) / np.maximum(count, 1)
    matched = count > 0
    first_match_rank, last_match_rank = np.zeros_like(count), np.ones_like(count)
    first_match_rank[matched] = ranks[start[matched]]
    last_match_rank[matched] = ranks[start[matched] + count[matched] - 1]
    return RetrievalResult(
        beta=beta,
        average_precision=torch.from_numpy(average_precision),
        inverse_negative_penalty=torch.from_numpy(count / last_match_rank),
        first_match_rank=torch.from_numpy(first_match_rank),
        num_matches=torch.from_numpy(count),
        person_ids=person_ids,
    )
