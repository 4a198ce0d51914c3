"""How far generated pictures are from real ones as sets, and how different the pictures of one identity are.

The Frechet distance (Heusel et al., NeurIPS 2017) and the kernel distance (Binkowski et al., ICLR 2018) compare
features of any network; they are FID and KID over the features of the FID network alone, see `inception`. DSSIM is the
diversity of the paper's Table 2.

Shapes: N pictures, D features each, P pairs of pictures.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SUBSETS, SUBSET_SIZE = 100, 1000
"""Subsets of the kernel distance, and pictures of each side in one."""
LEAST_FOR_KERNEL = 20
"""Pictures that the kernel distance needs: its subsets hold half of them, and smaller ones say nothing."""

_WINDOW, _RANGE = 7, 100.0
_SAMPLE = _WINDOW**2 / (_WINDOW**2 - 1)
_C1, _C2 = (0.01 * _RANGE) ** 2, (0.03 * _RANGE) ** 2


class TooFewPicturesError(ValueError):
    """A measure that so few pictures do not give; the message says how many are needed and why."""


# ------------------------------------------------------------------------------------------------------------
# Distances between sets of features


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Mean (D) and covariance (D, D) of features, float64, divided by N - 1."""

    mean: Tensor
    covariance: Tensor


def moments(features: Tensor) -> Moments:
    """Mean and covariance of features (N, D).

    Raises:
        TooFewPicturesError: N is not above D: the covariance of fewer is singular, and the distance biased beyond use.
    """
    N, D = features.shape
    if D >= N:
        raise TooFewPicturesError(
            f"{N:,} pictures: the Frechet distance over {D:,} features needs more than {D:,}, or their covariance is"
            " singular: measure more pictures, or take the kernel distance, which needs fewer"
        )
    values = features.double()
    mean = values.mean(dim=0)
    centred = values - mean
    return Moments(mean=mean, covariance=centred.T @ centred / (N - 1))


def frechet_distance(first: Moments, second: Moments) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)): the squared 2-Wasserstein distance of two Gaussians.

    The trace of the root is the sum of the roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric:
    nothing is added to the diagonal of a matrix that is nearly singular, and the result is real.
    """
    values, vectors = torch.linalg.eigh(first.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    middle = torch.linalg.eigvalsh(root @ second.covariance @ root)
    apart = (first.mean - second.mean).square().sum()
    spread = first.covariance.trace() + second.covariance.trace() - 2 * middle.clamp(min=0).sqrt().sum()
    return float(apart + spread)


@dataclass(frozen=True, kw_only=True)
class KernelDistance:
    """The kernel distance: mean and standard deviation over the subsets."""

    mean: float
    deviation: float
    subset_size: int


def kernel_distance(first: Tensor, second: Tensor, *, subsets: int = SUBSETS, seed: int = 0) -> KernelDistance:
    """Unbiased squared maximum mean discrepancy with the kernel (x . y / D + 1)^3.

    Args:
        first: features (N, D).
        second: features (M, D).
        subsets: random subsets of both sides; each has 1,000 pictures, or half of the smaller side if that is less, so
            that subsets differ and their spread says something.
        seed: draws other subsets.

    Raises:
        TooFewPicturesError: a side has fewer than 20.
    """
    least = min(len(first), len(second))
    if least < LEAST_FOR_KERNEL:
        raise TooFewPicturesError(
            f"{least} pictures: the kernel distance needs {LEAST_FOR_KERNEL} on both sides: measure more pictures"
        )
    size = min(SUBSET_SIZE, least // 2)
    rng = np.random.default_rng(seed)
    values = []
    for _ in range(subsets):
        x, y = (
            features[torch.from_numpy(rng.choice(len(features), size, replace=False)).to(features.device)].float()
            for features in (first, second)
        )
        within = _kernel_sum(x, x, diagonal=False) + _kernel_sum(y, y, diagonal=False)
        values.append(within / (size * (size - 1)) - 2 * _kernel_sum(x, y, diagonal=True) / size**2)
    found = torch.stack(values)
    return KernelDistance(mean=float(found.mean()), deviation=float(found.std(correction=0)), subset_size=size)


def _kernel_sum(x: Tensor, y: Tensor, *, diagonal: bool) -> Tensor:
    """Sum of the kernel over all pairs, float64, with or without those of the same place."""
    kernel = torch.addmm(x.new_ones(()), x, y.T, alpha=1 / x.shape[1])
    kernel = kernel * kernel.square()
    total = kernel.sum(dtype=torch.float64)
    return total if diagonal else total - kernel.diagonal().sum(dtype=torch.float64)


# ------------------------------------------------------------------------------------------------------------
# Diversity


def lab(pixels: Tensor) -> Tensor:
    """CIE Lab (N, 3, H, W), float32, of sRGB pixels (N, 3, H, W), uint8: L from 0 to 100, white point D65."""
    levels = torch.arange(256, device=pixels.device, dtype=torch.float64) / 255
    linear = torch.where(levels > 0.04045, ((levels + 0.055) / 1.055) ** 2.4, levels / 12.92).float()
    return _lab_of_linear(linear[pixels.contiguous().long()])  # sums over windows want planes


def _lab_of_linear(rgb: Tensor) -> Tensor:
    """Lab of linear RGB (N, 3, ...) from 0 to 1."""
    red, green, blue = rgb.unbind(1)
    f = []
    for r, g, b, white in _XYZ:
        share = (red * (r / white)).add_(green, alpha=g / white).add_(blue, alpha=b / white)
        f.append(torch.where(share > 0.008856, share.clamp(min=0.008856).pow_(1 / 3), 7.787 * share + 16 / 116))
    found = torch.empty_like(rgb)
    torch.sub(116 * f[1], 16, out=found[:, 0])
    torch.sub(500 * f[0], f[1], alpha=500, out=found[:, 1])
    torch.sub(200 * f[1], f[2], alpha=200, out=found[:, 2])
    return found


_XYZ = (
    (0.412453, 0.357580, 0.180423, 0.95047),
    (0.212671, 0.715160, 0.072169, 1.0),
    (0.019334, 0.119193, 0.950227, 1.08883),
)
"""Rows of the matrix from linear sRGB to XYZ, and the white point D65."""


def dssim(pixels: Tensor, pairs: Tensor) -> Tensor:
    """(1 - SSIM) / 2 in Lab of pairs of pictures: 0 for equal ones (Table 2's "SSIM").

    SSIM as scikit-image computes it by default: uniform windows of 7 x 7 that lie inside the picture, sample
    covariance, mean over the three channels; data range 100 for all three. What depends on one picture alone is
    computed once, however many pairs it is in.

    Args:
        pixels: (N, 3, H, W), uint8.
        pairs: (P, 2) int64, places among the N.

    Returns:
        (P), float32.

    Raises:
        ValueError: the pictures are smaller than a window.
    """
    H, W = pixels.shape[2:]
    if min(H, W) < _WINDOW:
        raise ValueError(f"pictures of {H} x {W}: DSSIM's window needs {_WINDOW} x {_WINDOW} or more")
    x = lab(pixels)
    # Values around their picture's mean: a variance is then no small difference of large numbers. Scaled such that the
    # sum of products over a window is twice their sample covariance, but for the product of the means.
    level = x.mean(dim=(2, 3), keepdim=True)
    x.sub_(level).mul_(math.sqrt(2 * _SAMPLE) / _WINDOW)
    # One pair at a time stays in a core's cache; memory that is taken anew for each would be half of the time.
    window_sums, product = _WindowSums(x[:1]), torch.empty_like(x[:1])
    own = torch.stack([window_sums(one[None])[0] / _WINDOW for one in x])  # (N, 3, H - 6, W - 6)
    variance = torch.stack([window_sums(torch.mul(one, one, out=product[0])[None])[0].clone() for one in x])
    variance.addcmul_(own, own, value=-1).add_(_C2).div_(2)
    mean = (own / math.sqrt(2 * _SAMPLE) + level).mul_(math.sqrt(2))
    square = mean.square().add_(_C1).div_(2)
    above, below, spread = (torch.empty_like(own[:1]) for _ in range(3))
    c1 = x.new_tensor(_C1)
    similarity = x.new_empty(len(pairs))
    for pair, (i, j) in enumerate(pairs.tolist()):
        i, j = slice(i, i + 1), slice(j, j + 1)
        covariance = window_sums(torch.mul(x[i], x[j], out=product)).addcmul_(own[i], own[j], value=-1)
        torch.addcmul(c1, mean[i], mean[j], out=above).mul_(covariance.add_(_C2))
        torch.add(square[i], square[j], out=below).mul_(torch.add(variance[i], variance[j], out=spread))
        similarity[pair] = above.div_(below).mean()
    return (1 - similarity) / 2


class _WindowSums:
    """Sums of x (1, C, H, W) over windows of 7 x 7, (1, C, H - 6, W - 6), always in the same memory.

    Sums of 1, 2 and 4 neighbours make one of 7: four additions for each direction instead of seven.
    """

    def __init__(self, like: Tensor) -> None:
        N, C, H, W = like.shape
        sizes = ((H - 1, W), (H - 6, W)), ((H - 6, W - 1), (H - 6, W - 6))
        self._scratch = [[like.new_empty(N, C, *size) for size in pair] for pair in sizes]

    def __call__(self, x: Tensor) -> Tensor:
        for dim, (two, seven) in zip((2, 3), self._scratch, strict=True):
            length = x.shape[dim]
            torch.add(x.narrow(dim, 0, length - 1), x.narrow(dim, 1, length - 1), out=two)
            torch.add(two.narrow(dim, 0, length - 6), two.narrow(dim, 2, length - 6), out=seven)
            x = seven.add_(two.narrow(dim, 4, length - 6)).add_(x.narrow(dim, 6, length - 6))
        return x


@dataclass(frozen=True, kw_only=True)
class Diversity:
    """DSSIM over random pairs of one identity, in rounds."""

    mean: float
    """Over the independent rounds."""
    deviation: float
    """Of the independent rounds; NaN for a single one."""
    table2: float
    """As the paper's Table 2 has it: the middle of the running means after each round."""
    table2_range: float
    """Half of the range of these running means, which are not independent."""


def diversity(rounds: Tensor) -> Diversity:
    """The figures of DSSIM values (rounds, P): P pairs in each round."""
    means = rounds.double().mean(dim=1)
    running = means.cumsum(0) / torch.arange(1, len(means) + 1, device=means.device)
    low, high = float(running.min()), float(running.max())
    deviation = float(means.std()) if len(means) > 1 else float("nan")
    return Diversity(
        mean=float(means.mean()), deviation=deviation, table2=(low + high) / 2, table2_range=(high - low) / 2
    )


def identity_pairs(identities: np.ndarray, per_identity: int, rounds: int, *, seed: int = 0) -> np.ndarray:
    """Random pairs of different pictures of one identity, for each round.

    Args:
        identities: (N) whose picture each is; those below 1 (distractors, junk) are left out.
        per_identity: pairs of each identity with two pictures or more.
        rounds: independent draws.
        seed: draws other pairs.

    Returns:
        (rounds, P, 2) int64: places of the pictures. P is 0 where no identity has two.
    """
    rng = np.random.default_rng(seed)
    order = np.argsort(identities, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(identities[order])) + 1) if len(order) else []
    groups = [group for group in groups if len(group) > 1 and identities[group[0]] > 0]
    drawn = []
    for _ in range(rounds):
        for group in groups:
            first = rng.integers(0, len(group), per_identity)
            step = rng.integers(1, len(group), per_identity)  # to another picture, each equally likely
            drawn.append(np.stack([group[first], group[(first + step) % len(group)]], axis=1))
    return np.concatenate(drawn).reshape(rounds, -1, 2) if drawn else np.empty((rounds, 0, 2), np.int64)
