"""Which images iteration t sees, and all its random draws."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from dgnet_core.learning.config import MethodConfig
from dgnet_core.learning.draws import permutation, uniforms, words
from dgnet_core.learning.precision import dtype_of
from dgnet_core.networks.batch_norm import is_synchronised


def share(batch_size: int, rank: int, world_size: int) -> range:
    """The places of the global batch that a rank takes: consecutive, and as many as the others' or one more or less.

    Raises:
        ValueError: there is no such rank, or some rank would get no image.
    """
    if not 0 <= rank < world_size:
        raise ValueError(f"rank = {rank}: {world_size} ranks are numbered from 0 to {world_size - 1}")
    if batch_size < world_size:
        raise ValueError(
            f"batch_size = {batch_size} over {world_size} ranks: every rank needs an image, use batch_size >="
            f" {world_size} or at most {batch_size} ranks"
        )
    return range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where in a run a batch stands; every random draw of the iteration is a function of this."""

    seed: int
    """The run's seed."""
    iteration: int | Tensor
    """0-based iteration; a tensor where a CUDA graph replays its draws."""
    first: int = 0
    """The place of this rank's first image in the global batch."""
    total: int | None = None
    """Images in the global batch; None: this rank has all of them."""

    def uniform(self, purpose: str, shape: Sequence[int], device: torch.device | str) -> Tensor:
        """Uniform draws in [0, 1) of `shape`, first dimension = this rank's images.

        An image's draws are a function of its place in the global batch, so they do not depend on how many ranks share
        the work, nor on the device (see draws.py).

        Raises:
            ValueError: this rank's images reach beyond the global batch.
        """
        return self.uniforms({purpose: shape}, device)[purpose]

    def uniforms(self, shapes: Mapping[str, Sequence[int]], device: torch.device | str) -> dict[str, Tensor]:
        """What `uniform` draws for each purpose, by one pass of the generator; first dimensions are equal.

        Raises:
            ValueError: as `uniform`.
        """
        if not shapes:
            return {}
        (count,) = {shape[0] for shape in shapes.values()}
        total = count if self.total is None else self.total
        places = range(self.first, self.first + count)
        if self.first < 0 or places.stop > total:
            raise ValueError(
                f"places {places.start} to {places.stop - 1} of a batch of {total}: set first and total to the rank's"
                " share of the global batch"
            )
        counts = {purpose: math.prod(shape[1:]) for purpose, shape in shapes.items()}
        draws = uniforms(self.seed, counts, self.iteration, places, device)
        return {purpose: draws[purpose].reshape(tuple(shape)) for purpose, shape in shapes.items()}

    def normal(self, purpose: str, shape: Sequence[int], device: torch.device | str) -> Tensor:
        """Normal draws, of `uniform`'s by the inverse of their distribution; errors as there."""
        draws = self.uniform(purpose, shape, device).clamp(min=2.0**-25)  # less, and 2 * draws - 1 rounds to -1
        return 2**0.5 * torch.erfinv(2 * draws - 1)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one rank trains on in one iteration: B images in each of the S sets that the method's row in METHODS reads.

    L of the sets are batch a or b. DG-Net reads a, b, and the positives of both: S = 4, L = 2.
    """

    images: Tensor
    """(S, B, 3, H, W), normalised."""
    erased: Tensor | None
    """The same with random erasing, for the identity losses; None: no erasing, `images` serve."""
    labels: Tensor
    """(L, B) int64 in [0, K): identities of a, or of a and b, and so of their positives. -1: an image without identity,
    for methods that learn these."""
    position: Position
    """Where in the run this is."""
    joints: Tensor | None = None
    """(S, B, 18, 3) x and y in pixels of `images`, and visibility (see poses), for methods that need poses."""


class PairSampler:
    """Draws two independent batches of images, each image with another photo of the same person.

    Each of the two streams walks through shuffles of the whole training set, one after the other, so every image is
    seen once an epoch. An identity with a single photo is paired with itself. Random access: `batch_at(t)` needs no
    history, so a resumed run sees what the uninterrupted one would have.

    With K instances, batches are identity-balanced (P x K; Hermans et al., arXiv 1703.07737): each stream walks through
    shuffles of all identities, but for those left over for less than a batch, and takes K photos of each, drawn without
    replacement as far as it has so many. Images without identity are split into groups that stand for identities, as
    large as those are on average, so their share of the batches is that of the data.

    With weights, batch b is drawn by them, image by image and with replacement.
    """

    def __init__(self, labels: Tensor, batch_size: int, seed: int, instances: int = 1, weights: Tensor | None = None):
        """Index the training set.

        Args:
            labels: (N) identity of each training image; -1: none.
            batch_size: images in batch a (and in b), over all ranks.
            seed: the run's seed.
            instances: K, a divisor of batch_size; 1: shuffles of images.
            weights: (N) positive, in proportion to each image's chance to be in batch b; None: as batch a.

        Raises:
            ValueError: no labels, a batch without images, or fewer identities than a balanced batch has.
        """
        if labels.ndim != 1 or len(labels) == 0:
            raise ValueError(f"labels of shape {tuple(labels.shape)}: one identity per training image is needed")
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: at least 1")
        self.labels = labels.cpu().numpy()
        self.batch_size = batch_size
        self.seed = seed
        self.instances = instances
        self._cumulative = None if weights is None else weights.double().cumsum(0).numpy()
        identities = _grouped(self.labels) if instances > 1 else self.labels
        self._by_identity = np.argsort(identities, kind="stable")  # images, those of one identity side by side
        _, first, inverse, counts = np.unique(
            identities[self._by_identity], return_index=True, return_inverse=True, return_counts=True
        )
        rank_sorted = np.arange(len(labels)) - first[inverse]
        self._first, self._count, self._rank = (np.empty(len(labels), np.int64) for _ in range(3))
        self._first[self._by_identity] = first[inverse]
        self._count[self._by_identity] = counts[inverse]
        self._rank[self._by_identity] = rank_sorted
        self._identities = first, counts  # in _by_identity: where each begins, and its photos
        if instances > 1 and batch_size // instances > len(first):
            raise ValueError(
                f"instances = {instances}: a batch of {batch_size} needs {batch_size // instances} identities, there"
                f" are {len(first)}: use a smaller batch_size or more instances"
            )
        self._shuffles: dict[str, tuple[int, np.ndarray]] = {}

    def _shuffle(self, stream: str, epoch: int, length: int) -> np.ndarray:
        """The order in which `stream` sees `length` images or identities in `epoch`; the last one asked for is kept."""
        if self._shuffles.get(stream, (-1,))[0] != epoch:
            order = permutation(self.seed, f"shuffle {stream}", epoch, length).numpy()
            self._shuffles[stream] = (epoch, order)
        return self._shuffles[stream][1]

    def _images(self, stream: str, iteration: int) -> np.ndarray:
        """Images (batch_size) of one stream at an iteration."""
        if stream == "b" and self._cumulative is not None:
            drawn = words(self.seed, "partners", iteration, range(self.batch_size), 1, "cpu")[:, 0].numpy()
            return np.searchsorted(self._cumulative, drawn * 2.0**-32 * self._cumulative[-1], side="right")
        if self.instances > 1:
            return self._balanced(stream, iteration)
        length = len(self.labels)
        places = iteration * self.batch_size + np.arange(self.batch_size)
        epochs, offsets = np.divmod(places, length)
        return np.concatenate([self._shuffle(stream, int(e), length)[offsets[epochs == e]] for e in np.unique(epochs)])

    def _balanced(self, stream: str, iteration: int) -> np.ndarray:
        """The same of P identities with K images each, side by side."""
        first, counts = self._identities
        P = self.batch_size // self.instances
        epoch, part = divmod(iteration, len(first) // P)
        people = self._shuffle(stream, epoch, len(first))[part * P : (part + 1) * P]
        first, counts = first[people, None], counts[people, None]
        keys = words(self.seed, f"instances {stream}", iteration, range(P), int(counts.max()), "cpu").numpy()
        keys[np.arange(keys.shape[1]) >= counts] = 2**32  # of photos that an identity does not have: last
        order = np.argsort(keys, axis=1, kind="stable")
        chosen = np.take_along_axis(order, np.arange(self.instances) % counts, axis=1)  # (P, K)
        return self._by_identity[first + chosen].ravel()

    def batch_at(self, iteration: int, places: range | None = None, *, positives: int = 1) -> Tensor:
        """Image indices (2 + 2 * positives, len(places)) of an iteration: a, b, positives of a, positives of b.

        Args:
            iteration: 0-based.
            places: of the global batch, as `share` splits it; None: all of them.
            positives: of each image: 1, or 2, which differ where an identity has three images; the second ones of a
                and of b come last.

        Raises:
            ValueError: there are no such places in the batch.
        """
        places = range(self.batch_size) if places is None else places
        if not places or min(places) < 0 or max(places) >= self.batch_size:
            raise ValueError(f"places = {places}: choose from range(0, {self.batch_size}), as share() does")
        images = np.stack([self._images(stream, iteration) for stream in ("a", "b")])
        drawn = words(self.seed, "positives", iteration, range(self.batch_size), 4, "cpu").numpy().T
        others = np.maximum(self._count[images] - 1, 1)
        place = drawn[:2] * others >> 32  # a word of 32 bits times less than 2^31 stays below 2^63
        found = [place]
        if positives > 1:
            found.append((place + 1 + (drawn[2:] * np.maximum(others - 1, 1) >> 32)) % others)
        rows = [images]
        for place in found:
            place = place + ((place >= self._rank[images]) & (self._count[images] > 1))  # skip the image itself
            rows.append(self._by_identity[self._first[images] + place])
        rows = np.concatenate(rows)[:, places.start : places.stop : places.step]
        return torch.from_numpy(np.ascontiguousarray(rows))


def _grouped(labels: np.ndarray) -> np.ndarray:
    """Labels (N) in which groups of images without identity have labels of their own, -1 and below."""
    unknown = labels < 0
    known = labels[~unknown]
    groups = max(1, round(len(np.unique(known)) * unknown.sum() / max(len(known), 1)))
    labels = labels.copy()
    labels[unknown] = -1 - np.arange(unknown.sum()) % groups
    return labels


LARGEST_INPUT = 10.0
"""Normalised images stay far below this; raw pixels do not."""


def check_batch(
    batch: Batch,
    config: MethodConfig,
    classes: int,
    iteration: int,
    device: torch.device,
    *,
    sets: int,
    labelled: int,
    lowest: int = 0,
) -> None:
    """Raise a ValueError if the batch is not what a state trains on next.

    Args:
        batch: to be checked.
        config: of the run.
        classes: identities that the state was built for.
        iteration: where the state stands.
        device: where the state lives.
        sets: batches side by side in `batch.images`.
        labelled: how many of them `batch.labels` names the identities of.
        lowest: label; -1 where images without identity are learned.
    """
    size = (config.network.height, config.network.width)
    dtype = dtype_of(config.step)
    if classes != config.num_classes:
        raise ValueError(f"num_classes = {config.num_classes}, the state was built for {classes}: build a new one")
    if batch.position.iteration != iteration:
        raise ValueError(
            f"batch.position.iteration = {batch.position.iteration}, the state is at {iteration}: ask the sampler"
            " for the state's iteration"
        )
    for name, x in (("images", batch.images), ("erased", batch.erased)):
        if x is None:
            continue
        if x.ndim != 5 or x.shape[0] != sets or x.shape[2:] != (3, *size):
            wanted = f"({sets}, B, 3, {size[0]}, {size[1]})"
            raise ValueError(f"batch.{name} has shape {tuple(x.shape)}: {wanted} is needed, resize the images")
        normalised = (batch.position.total if is_synchronised() else None) or x.shape[1]
        if normalised < 2:
            raise ValueError(f"batch.{name} has {normalised} image a batch: BatchNorm needs at least 2")
        if x.dtype != dtype:
            raise ValueError(f"batch.{name} is {x.dtype}: step.precision = {config.step.precision!r} needs {dtype}")
        if x.device != device:
            raise ValueError(f"batch.{name} is on {x.device}, the state on {device}: move the batch")
        on_host = x.device.type == "cpu" or iteration == 0  # elsewhere looking at values would stall the device
        if on_host and not float(x.abs().amax()) < LARGEST_INPUT:
            raise ValueError(f"batch.{name} has values beyond {LARGEST_INPUT} or not finite: pass normalised images")
    labels = batch.labels
    if labels.dtype != torch.int64 or labels.device.type != "cpu":
        raise ValueError(f"batch.labels is {labels.dtype} on {labels.device}: int64 on the CPU is needed")
    if labels.shape != (labelled, batch.images.shape[1]):
        wanted = f"({labelled}, {batch.images.shape[1]})"
        raise ValueError(f"batch.labels has shape {tuple(labels.shape)}: {wanted} is needed")
    if int(labels.min()) < lowest or int(labels.max()) >= config.num_classes:
        raise ValueError(
            f"batch.labels holds {int(labels.min())} to {int(labels.max())}: num_classes = {config.num_classes} allows"
            f" {lowest} to {config.num_classes - 1}; number the identities from 0 or correct num_classes"
        )


def check_joints(batch: Batch) -> Tensor:
    """The joints (S, B, 18, 3) of a batch; raises a ValueError where they are missing or of another shape or kind."""
    joints, images = batch.joints, batch.images
    if joints is None:
        raise ValueError("batch.joints is None: this method needs key points, prepare the data with --keypoints")
    if joints.shape != (*images.shape[:2], 18, 3) or joints.dtype != images.dtype or joints.device != images.device:
        wanted = f"{images.dtype} of shape {(*images.shape[:2], 18, 3)} on {images.device}"
        found = f"{joints.dtype} of shape {tuple(joints.shape)} on {joints.device}"
        raise ValueError(f"batch.joints is {found}: {wanted} is needed, from training_batch")
    return joints
