"""Similarity of descriptors and ordering of scores: what `retrieval` and `reranking` both stand on.

On the CPU two inner loops are not PyTorch's usual ones. Measured on an AMD EPYC (Zen 5), oneDNN, which makes its
kernels for the CPU at hand, multiplies 1.8 times as fast as NumPy's OpenBLAS and 2.7 times as fast as the MKL of the
PyTorch wheels; NumPy compares 3 times as fast, on views of the same memory. On other devices everything is.

Shapes: N and Q rows, G gallery images, D descriptor length, M matches.
"""

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

BLOCK_ROWS = 512
"""Rows in a block of scores at most; no result depends on it."""
_BLOCK_SCORES = 2**27  # 512 MiB of float32
_INDEX_BITS = 31


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Slices over `rows`, such that a block of scores with `columns` columns stays below 512 MiB."""
    size = max(1, min(BLOCK_ROWS, _BLOCK_SCORES // columns))
    for first in range(0, rows, size):
        yield slice(first, min(first + size, rows))


def dot_products(left: Tensor, right: Tensor) -> Tensor:
    """left @ right.T of float32 (N x D) and (G x D) -> N x G."""
    if left.device.type == "cpu" and left.shape[1] and torch.backends.mkldnn.is_available():
        # What torch.compile makes of a linear layer; no public function leads to oneDNN in float32.
        return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")
    return left @ right.T


def ragged(starts: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenates the ranges starts[i] ... starts[i] + counts[i] - 1.

    Returns:
        The i that each element belongs to, and the element itself; both of length counts.sum().
    """
    owner = torch.repeat_interleave(counts)
    before = counts.cumsum(0) - counts
    return owner, torch.arange(len(owner), device=counts.device) - (before - starts)[owner]


def count_at_least(scores: Tensor, rows: Tensor, thresholds: Tensor) -> Tensor:
    """For each m, how many scores of row rows[m] are greater than or equal to thresholds[m].

    Comparing costs less than sorting, because a query has a few dozen matches in a gallery of many thousands.

    Args:
        scores: float32, N x G.
        rows: int64, M, ascending.
        thresholds: float32, M.

    Returns:
        int64, M.
    """
    ends = torch.bincount(rows, minlength=len(scores)).cumsum(0).tolist()
    if scores.device.type == "cpu":
        return torch.from_numpy(_count_with_numpy(scores.numpy(), ends, thresholds.numpy()))
    return _count_with_torch(scores, ends, thresholds)


def _count_with_torch(scores: Tensor, ends: list[int], thresholds: Tensor) -> Tensor:
    counts = torch.zeros(len(thresholds), dtype=torch.int64, device=scores.device)
    for row, (start, end) in enumerate(pairwise([0, *ends])):
        if start < end:
            counts[start:end] = (scores[row] >= thresholds[start:end, None]).sum(1)
    return counts


def _count_with_numpy(scores: np.ndarray, ends: list[int], thresholds: np.ndarray) -> np.ndarray:
    counts = np.zeros(len(thresholds), dtype=np.int64)
    longest = max(end - start for start, end in pairwise([0, *ends]))
    above = np.empty((longest, scores.shape[1]), dtype=bool)
    for row, (start, end) in enumerate(pairwise([0, *ends])):
        np.greater_equal(scores[row], thresholds[start:end, None], out=above[: end - start])
        for m in range(start, end):
            counts[m] = np.count_nonzero(above[m - start])  # ten times as fast as a sum over an axis
    return counts


def largest(scores: Tensor, k: int, last_among_equals: Tensor | None = None) -> Tensor:
    """Columns of the k largest scores of each row, best first, the same on every device and in every run.

    Equal scores are ordered by column.

    Args:
        scores: float32 without NaN, N x G.
        k: how many columns; at most G.
        last_among_equals: int64, 2 x P: (row, column) pairs that go behind all others of an equal score.

    Returns:
        int64, N x k.
    """
    # An int64 for each score, ordered by (score, not last, -column); float32 bits become monotonic integers.
    bits = (scores + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    column = torch.arange(scores.shape[1], device=scores.device)
    keys = (ordered << (_INDEX_BITS + 1)) + (2 ** (_INDEX_BITS + 1) - 1 - column)
    if last_among_equals is not None:
        keys[last_among_equals[0], last_among_equals[1]] -= 2**_INDEX_BITS
    return (2**_INDEX_BITS - 1) - (keys.topk(k, dim=1).values & (2**_INDEX_BITS - 1))
