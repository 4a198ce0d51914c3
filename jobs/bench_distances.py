#!/usr/bin/env python
"""Time the measures of generated people: `uv run jobs/bench_distances.py`. Ratios are taken in one run.

Distances over features of a teacher against the extraction of these features, and DSSIM of Table 2's protocol (10 pairs
of each identity in five rounds) against a loop over the pairs: scikit-image's where it is installed, else the same sums
in NumPy. Networks have random weights: the time is the same.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro

from dgnet_core.generation.distances import dssim, frechet_distance, identity_pairs, kernel_distance, lab, moments
from dgnet_core.learning.augment import normalise
from dgnet_core.networks.modes import evaluating
from dgnet_core.teacher.config import laptop_teacher
from dgnet_core.teacher.networks import Teacher


@dataclass(frozen=True, kw_only=True)
class Options:
    """What is timed."""

    pictures: int = 12_936
    """Features that distances compare; 12,936 in Table 2."""
    extracted: int = 512
    """Pictures that the teacher's features are extracted from, to know the time for all."""
    identities: int = 4
    """Identities whose pairs are compared."""
    of_each: int = 17
    """Pictures of each; 12,936 / 751 in Market-1501."""
    threads: int = 2
    """Of PyTorch."""


def timed(work: Callable[[], object]) -> float:
    """Seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def distances(options: Options) -> None:
    """Distances and floor over a teacher's features against their extraction."""
    network = laptop_teacher(751, options.pictures).network
    teacher = Teacher(network, 751)
    pixels = torch.randint(256, (options.extracted, 3, 128, 64), dtype=torch.uint8)

    def extract() -> None:
        with evaluating(teacher):
            for batch in pixels.split(64):
                x = normalise(batch, network.height, network.width)
                teacher.trunk(torch.cat([x, x.flip(3)])).mean(dim=(2, 3))

    extraction = 2 * timed(extract) / options.extracted * options.pictures  # real and generated ones
    real, generated = (torch.rand(options.pictures, network.appearance_channels) for _ in range(2))

    def compare() -> None:
        known = moments(real)
        for other in (generated, generated[: len(generated) // 2]):
            frechet_distance(known, moments(other))
            kernel_distance(real, other)

    taken = timed(compare)
    print(
        f"{options.pictures:,} pictures, {network.appearance_channels} features: extraction {extraction:.1f} s,"
        f" distances and floor {taken:.1f} s, {taken / extraction:.1%} of it"
    )


def dissimilarity(options: Options) -> None:
    """DSSIM of Table 2's protocol against a loop over its pairs."""
    ids = np.arange(options.identities * options.of_each) // options.of_each + 1
    pairs = identity_pairs(ids, 10, 5)
    blocks = np.random.default_rng(0).integers(0, 256, (len(ids), 16, 8, 3), np.uint8)
    pictures = blocks.repeat(16, 1).repeat(16, 2)
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2)
    flat = pairs.reshape(-1, 2)

    def batched() -> None:
        for identity in range(1, options.identities + 1):
            own = flat[ids[flat[:, 0]] == identity]
            rows, places = np.unique(own, return_inverse=True)
            dssim(pixels[torch.from_numpy(rows)], torch.from_numpy(places.reshape(-1, 2)))

    looped, name = _loop(pictures)
    some = flat[: min(len(flat), 50)]
    slow = timed(lambda: [looped(i, j) for i, j in some]) / len(some) * len(flat)
    fast = timed(batched)
    print(
        f"DSSIM of {len(flat):,} pairs of 256 x 128: {fast:.2f} s, {name}'s loop {slow:.2f} s: {slow / fast:.1f} times"
    )


def _loop(pictures: np.ndarray) -> tuple[Callable[[int, int], float], str]:
    """DSSIM of one pair, and whose it is."""
    try:
        from skimage.color import rgb2lab  # pyright: ignore[reportMissingImports]
        from skimage.metrics import structural_similarity  # pyright: ignore[reportMissingImports]
    except ImportError:
        return lambda i, j: _numpy_dssim(pictures[i], pictures[j]), "NumPy"

    def of_pair(i: int, j: int) -> float:
        x, y = rgb2lab(pictures[i]), rgb2lab(pictures[j])
        return (1 - structural_similarity(x, y, data_range=100, channel_axis=2)) / 2

    return of_pair, "scikit-image"


def _numpy_dssim(first: np.ndarray, second: np.ndarray) -> float:
    """DSSIM of two pictures (H, W, 3), uint8, with NumPy's sums over windows."""
    x, y = (lab(torch.from_numpy(p).permute(2, 0, 1)[None])[0].double().numpy() for p in (first, second))

    def means(values: np.ndarray) -> np.ndarray:
        return np.lib.stride_tricks.sliding_window_view(values, (7, 7), (1, 2)).mean((3, 4))

    mean_x, mean_y = means(x), means(y)
    sample = 49 / 48
    variances = sample * (means(x * x) - mean_x**2 + means(y * y) - mean_y**2)
    covariance = sample * (means(x * y) - mean_x * mean_y)
    similarity = (2 * mean_x * mean_y + 1) * (2 * covariance + 9) / ((mean_x**2 + mean_y**2 + 1) * (variances + 9))
    return (1 - float(similarity.mean())) / 2


def main() -> None:
    """Time both."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    distances(options)
    dissimilarity(options)


if __name__ == "__main__":
    main()
