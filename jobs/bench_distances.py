#!/usr/bin/env python
"""Time the measures of generated people: `uv run jobs/bench_distances.py`. Ratios are taken in one run.

Distances over features of a teacher against the extraction of these features, and DSSIM of Table 2's protocol (10 pairs
of each identity in five rounds) against scikit-image's loop over the pairs, on one thread each. Networks have random
weights: the time is the same.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import tyro
from skimage.color import rgb2lab
from skimage.metrics import structural_similarity

from dgnet_core.generation.distances import dssim, frechet_distance, identity_pairs, kernel_distance, moments
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
    """Of PyTorch, for the features and distances."""


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

    def looped() -> None:
        for i, j in some:
            x, y = rgb2lab(pictures[i]), rgb2lab(pictures[j])
            structural_similarity(x, y, data_range=100, channel_axis=2)

    some = flat[: min(len(flat), 50)]
    slow = timed(looped) / len(some) * len(flat)
    fast = timed(batched)
    print(
        f"DSSIM of {len(flat):,} pairs of 256 x 128: {fast:.2f} s, scikit-image's loop {slow:.2f} s:"
        f" {slow / fast:.1f} times"
    )


def main() -> None:
    """Time both."""
    options = tyro.cli(Options, description=__doc__)
    torch.set_num_threads(options.threads)
    distances(options)
    torch.set_num_threads(1)  # scikit-image has one
    dissimilarity(options)


if __name__ == "__main__":
    main()
