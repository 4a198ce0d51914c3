"""Which images iteration t sees, and where all its randomness comes from: both functions of the position alone."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


def stream_seed(seed: int, purpose: str, index: int) -> int:
    """Seed of the independent stream `purpose` at `index` (an iteration or an epoch) of a run's `seed`."""
    words = np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), index]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))  # torch seeds are signed


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where in a run a batch stands; every random draw of the iteration is a function of this."""

    seed: int
    """The run's seed."""
    iteration: int
    """0-based iteration."""
    rank: int = 0
    """Which part of the global batch."""
    world_size: int = 1
    """Into how many parts the global batch is split."""

    def uniform(self, purpose: str, shape: Sequence[int], device: torch.device | str) -> Tensor:
        """Uniform draws in [0, 1) of `shape`, first dimension = this rank's images.

        Draws are made for the whole global batch and this rank's rows returned, so an image's draws do not depend
        on how many ranks share the work.
        """
        generator = torch.Generator(device).manual_seed(stream_seed(self.seed, purpose, self.iteration))
        rows = shape[0]
        draws = torch.rand((self.world_size * rows, *shape[1:]), generator=generator, device=device)
        return draws[self.rank * rows : (self.rank + 1) * rows]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one rank trains on in one iteration. B images each in batch a, batch b and their positives."""

    images: Tensor
    """(4, B, 3, H, W), normalised: batch a, batch b, positives of a, positives of b."""
    erased: Tensor | None
    """The same with random erasing, for the identity losses; None: no erasing, `images` serve."""
    labels: Tensor
    """(2, B) int64 in [0, K): identities of a and b, and so of their positives."""
    position: Position
    """Where in the run this is."""


class PairSampler:
    """Draws two independent batches of images, each image with another photo of the same person.

    Each of the two streams walks through shuffles of the whole training set, one after the other, so every image is
    seen once an epoch. An identity with a single photo is paired with itself. Random access: `batch_at(t)` needs no
    history, so a resumed run sees what the uninterrupted one would have.
    """

    def __init__(self, labels: Tensor, batch_size: int, seed: int):
        """Index the training set.

        Args:
            labels: (N) identity of each training image.
            batch_size: images in batch a (and in b), over all ranks.
            seed: the run's seed.

        Raises:
            ValueError: no labels, or a batch without images.
        """
        if labels.ndim != 1 or len(labels) == 0:
            raise ValueError(f"labels of shape {tuple(labels.shape)}: one identity per training image is needed")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: at least 1")
        self.labels = labels.cpu().numpy()
        self.batch_size = batch_size
        self.seed = seed
        self._by_identity = np.argsort(self.labels, kind="stable")  # images, those of one identity side by side
        _, first, inverse, counts = np.unique(
            self.labels[self._by_identity], return_index=True, return_inverse=True, return_counts=True
        )
        rank_sorted = np.arange(len(labels)) - first[inverse]
        self._first, self._count, self._rank = (np.empty(len(labels), np.int64) for _ in range(3))
        self._first[self._by_identity] = first[inverse]
        self._count[self._by_identity] = counts[inverse]
        self._rank[self._by_identity] = rank_sorted
        self._shuffles: dict[str, tuple[int, np.ndarray]] = {}

    def _shuffle(self, stream: str, epoch: int) -> np.ndarray:
        """The order in which `stream` sees all images in `epoch`; the last one asked for is kept."""
        if self._shuffles.get(stream, (-1,))[0] != epoch:
            order = np.random.default_rng(stream_seed(self.seed, f"shuffle {stream}", epoch)).permutation(
                len(self.labels)
            )
            self._shuffles[stream] = (epoch, order)
        return self._shuffles[stream][1]

    def _images(self, stream: str, iteration: int) -> np.ndarray:
        """Images (batch_size) of one stream at an iteration."""
        places = iteration * self.batch_size + np.arange(self.batch_size)
        epochs, offsets = np.divmod(places, len(self.labels))
        return np.concatenate([self._shuffle(stream, int(e))[offsets[epochs == e]] for e in np.unique(epochs)])

    def batch_at(self, iteration: int, rank: int = 0, world_size: int = 1) -> Tensor:
        """Image indices (4, batch_size / world_size) of an iteration: a, b, positives of a, positives of b.

        Raises:
            ValueError: the batch cannot be split evenly over the ranks, or leaves a rank fewer than two images.
        """
        share, rest = divmod(self.batch_size, world_size)
        if rest or (share < 2 <= self.batch_size):
            raise ValueError(
                f"batch_size = {self.batch_size} over {world_size} ranks: use a multiple of the number of ranks,"
                " with at least 2 images a rank for BatchNorm"
            )
        images = np.stack([self._images(stream, iteration) for stream in ("a", "b")])
        draws = np.random.default_rng(stream_seed(self.seed, "positives", iteration)).random(images.shape)
        others = np.maximum(self._count[images] - 1, 1)
        place = np.minimum((draws * others).astype(np.int64), others - 1)
        place += (place >= self._rank[images]) & (self._count[images] > 1)  # skip the image itself
        positives = self._by_identity[self._first[images] + place]
        rows = np.concatenate([images, positives])[:, rank * share : (rank + 1) * share]
        return torch.from_numpy(np.ascontiguousarray(rows))
