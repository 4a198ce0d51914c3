"""Re-ranking by k-reciprocal neighbours (Zhong et al., CVPR 2017, "the paper" below).

Images are neighbours when each is among the other's nearest; an image is then described by a soft list
of its neighbours, and two images are close when their lists overlap. Where the published code of the
paper's authors says more than the paper or something else, the code is followed, since published figures
come from it: an image is its own first neighbour; the distance is the squared Euclidean one divided by
the row's largest; the overlap that lets a neighbour's neighbours in must exceed 2/3, not reach it; soft
lists are scaled to sum 1.

Lists are sparse, so memory grows with the number of images and not with its square. N images: Q queries,
then G of the gallery.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dgnet_core.ranking.scoring import dot_products, largest, ragged, row_blocks

_MOST_PAIRS = 2**23  # pairs of list entries looked at together, at some 50 bytes each


@dataclass(frozen=True, kw_only=True)
class Reranking:
    """Settings of k-reciprocal re-ranking; the defaults are the paper's for Market-1501."""

    k1: int = 20
    """Neighbours looked at."""

    k2: int = 6
    """Neighbours whose lists are averaged (itself included)."""

    original_weight: float = 0.3
    """Lambda of the paper: weight of the original distance; 1 would not re-rank."""

    def within(self, images: int) -> "Reranking | None":
        """The same with as many neighbours as so many images have; None: an image has no neighbour but itself."""
        k1 = min(self.k1, images - 1)
        return replace(self, k1=k1, k2=min(self.k2, k1 + 1)) if k1 >= 1 else None

    def __post_init__(self):
        if self.k1 < 1:
            raise ValueError(f"k1: must be at least 1, got {self.k1}; the paper uses 20")
        if not 1 <= self.k2 <= self.k1 + 1:
            raise ValueError(f"k2: must be from 1 to k1 + 1 = {self.k1 + 1}, got {self.k2}; the paper uses 6")
        if not 0 <= self.original_weight <= 1:
            raise ValueError(f"original_weight: must be from 0 to 1, got {self.original_weight}; the paper uses 0.3")


def reranked_scores(query: Tensor, gallery: Tensor, settings: Reranking) -> Iterator[tuple[slice, Tensor]]:
    """Scores of the re-ranked gallery: minus the final distance of the paper.

    Args:
        query: float32, Q x D.
        gallery: float32, G x D.
        settings: k1, k2 and lambda.

    Yields:
        Some queries, and their scores against the whole gallery: float32, queries x G.

    Raises:
        ValueError: fewer images than k1 + 1.
    """
    images = torch.cat([query, gallery])
    if len(images) <= settings.k1:
        raise ValueError(f"k1: {settings.k1} neighbours need more than the {len(images)} images given; lower k1")
    squared_norms = images.square().sum(1)
    nearest, farthest = _neighbours(images, squared_norms, settings.k1)
    rows, columns = _reciprocal_neighbours(nearest, settings.k1)

    weights = torch.empty(len(rows), device=images.device)
    for part in row_blocks(len(rows), images.shape[1]):
        dots = (images[rows[part]] * images[columns[part]]).sum(1)
        distance = (squared_norms[rows[part]] + squared_norms[columns[part]] - 2 * dots).clamp(min=0)
        distance[rows[part] == columns[part]] = 0
        weights[part] = torch.exp(-distance / farthest[rows[part]])
    weights /= torch.zeros(len(images), device=images.device).index_add_(0, rows, weights)[rows]
    rows, columns, weights = _average(rows, columns, weights, nearest[:, : settings.k2])

    overlap_blocks = _overlaps(rows, columns, weights, len(query), len(gallery))
    for block, overlap in overlap_blocks:
        jaccard = 1 - overlap / (2 - overlap)  # lists sum to 1, so their maxima sum to 2 - overlap
        distance = -2 * dot_products(query[block], gallery)
        distance += squared_norms[block, None] + squared_norms[len(query) :]
        distance = distance.clamp_(min=0).div_(farthest[block, None])
        yield block, -(settings.original_weight * distance + (1 - settings.original_weight) * jaccard)


def _neighbours(images: Tensor, squared_norms: Tensor, k1: int) -> tuple[Tensor, Tensor]:
    """N(p, k1): each image and its k1 nearest, nearest first, int64, N x (k1 + 1).

    Also the largest squared distance of each row, float32, N.
    """
    nearest = torch.empty(len(images), k1 + 1, dtype=torch.int64, device=images.device)
    farthest = torch.empty(len(images), device=images.device)
    for block in row_blocks(len(images), 4 * len(images)):  # 4: the keys of `largest`
        closeness = dot_products(images[block], images).mul_(2).sub_(squared_norms)
        farthest[block] = squared_norms[block] - closeness.min(1).values
        own = torch.arange(block.start, block.stop, device=images.device)
        closeness[own - block.start, own] = torch.inf
        nearest[block] = largest(closeness, k1 + 1)
    return nearest, farthest.clamp(min=torch.finfo(torch.float32).tiny)


def _reciprocal_neighbours(nearest: Tensor, k1: int) -> tuple[Tensor, Tensor]:
    """R*(p, k1): pairs (image, extended reciprocal neighbour), ascending and each once; int64."""
    half = nearest[:, : round(k1 / 2) + 1]
    width = nearest.shape[1] * half.shape[1] * nearest.shape[1]
    found = []
    for block in row_blocks(len(nearest), 8 * width):
        owners = torch.arange(block.start, block.stop, device=nearest.device)
        members = _reciprocal(nearest, owners)  # b x K
        lists = _reciprocal(half, nearest[block].flatten())
        lists = lists.view(*members.shape, -1)  # b x K x H: R(q, k1 / 2) of each candidate q
        shared = (lists[..., None] == members[:, None, None, :]).any(3) & (lists >= 0)
        accepted = (members >= 0) & (3 * shared.sum(2) > 2 * (lists >= 0).sum(2))
        added = torch.where(accepted[..., None], lists, -1).flatten(1)
        union = torch.cat([members, added], dim=1).sort(1).values
        first = torch.ones_like(union, dtype=torch.bool)
        first[:, 1:] = union[:, 1:] != union[:, :-1]
        row, place = (first & (union >= 0)).nonzero(as_tuple=True)
        found.append(torch.stack([row + block.start, union[row, place]]))
    rows, columns = torch.cat(found, dim=1)
    return rows, columns


def _reciprocal(nearest: Tensor, owners: Tensor) -> Tensor:
    """R(p, k): the neighbours that have their owner among their own neighbours; others become -1."""
    candidates = nearest[owners]
    mutual = (nearest[candidates] == owners[:, None, None]).any(2)
    return torch.where(mutual, candidates, -1)


def _average(rows: Tensor, columns: Tensor, weights: Tensor, nearest: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Local query expansion: the mean of the lists of an image's k2 nearest, itself included."""
    N, k2 = nearest.shape
    count = torch.bincount(rows, minlength=N)
    start = count.cumsum(0) - count
    owner, entry = ragged(start[nearest.flatten()], count[nearest.flatten()])
    places = torch.stack([owner // k2, columns[entry]])
    mean = torch.sparse_coo_tensor(places, weights[entry] / k2, (N, N), check_invariants=False).coalesce()
    return mean.indices()[0], mean.indices()[1], mean.values()


def _overlaps(
    rows: Tensor, columns: Tensor, weights: Tensor, num_queries: int, num_gallery: int
) -> Iterator[tuple[slice, Tensor]]:
    """Sum of the smaller weights of two lists, for queries x gallery, from an inverted index of the lists."""
    of_gallery = (rows >= num_queries).nonzero()[:, 0]
    of_gallery = of_gallery[columns[of_gallery].argsort(stable=True)]
    count = torch.bincount(columns[of_gallery], minlength=num_queries + num_gallery)
    start = count.cumsum(0) - count
    for block in row_blocks(num_queries, num_gallery):
        overlap = torch.zeros(block.stop - block.start, num_gallery, device=rows.device)
        first, last = torch.searchsorted(rows, rows.new_tensor([block.start, block.stop])).tolist()
        longest = max(1, int(count[columns[first:last]].max()))
        for entries in torch.arange(first, last, device=rows.device).split(max(1, _MOST_PAIRS // longest)):
            mine, place = ragged(start[columns[entries]], count[columns[entries]])
            mine, other = entries[mine], of_gallery[place]
            cell = (rows[mine] - block.start) * num_gallery + rows[other] - num_queries
            overlap.view(-1).index_add_(0, cell, torch.minimum(weights[mine], weights[other]))
        yield block, overlap
