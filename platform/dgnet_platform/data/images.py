"""A split in memory: one uint8 tensor, the labels to train on, and the paper's validation split; or batch by batch."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import numpy as np
import psutil
import pyarrow as pa
import torch
import torch.nn.functional as F
from torch import Tensor

from dgnet_platform.data.decode import PictureError, decode
from dgnet_platform.data.held_out import held_out_people, held_out_queries, queries_among
from dgnet_platform.data.poses import KeyPoints
from dgnet_platform.data.records import JUNK
from dgnet_platform.data.store import Store, StoreError
from dgnet_platform.errors import UserError
from dgnet_platform.threads import map_in_threads, no_progress

CHUNK = 64
"""Pictures that a thread decodes at once."""
HEADROOM = 0.9
"""Share of the free memory that a split may take; training needs some too."""


class ImageMemoryError(UserError):
    """A split that is larger than the memory it should go to; the message has both sizes and the remedies."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSet:
    """N pictures of one size with their ids, in the order of the store (sorted file names)."""

    images: Tensor
    """(N, 3, H, W) uint8, RGB; channels last in memory where they were decoded."""
    person_ids: Tensor
    """(N,) int64, as in the store; on the CPU, wherever the pictures are."""
    camera_ids: Tensor
    """(N,) int64, on the CPU."""
    file_names: tuple[str, ...]
    joints: Tensor | None = None
    """(N, 18, 3) float32 on the CPU: x and y in pixels of `images`, and visibility; None: not loaded."""

    @classmethod
    def load(
        cls,
        store: Store,
        split: str,
        *,
        height: int,
        width: int,
        posed: bool = False,
        threads: int = os.cpu_count() or 1,
        progress: Callable[[int, int], None] = no_progress,
    ) -> Self:
        """Decode a split into memory; pictures of another size are resized by bicubic interpolation.

        Args:
            store: An opened store.
            split: One of its splits.
            height: Pixels.
            width: Pixels.
            posed: With the joints of the store's key points.
            threads: Threads that decode; they do not change the result.
            progress: Called now and then with the number of pictures done and the number there are.

        Raises:
            ImageMemoryError: The split does not fit in the memory that is free.
            StoreError: No such split, or a damaged file or picture.
            PoseError: The store has no key points, and is `posed`.
        """
        count = store.count(split)
        _require(image_bytes(count, height, width), torch.device("cpu"), f"{split} of {store.location}")
        # NumPy asks for huge pages where torch.empty does not: filling them takes a quarter of the time.
        images = np.empty((count, height, width, 3), np.uint8)

        def decode_to(chunk: tuple[int, pa.Table]) -> int:
            start, table = chunk
            _decode_into(images[start : start + len(table)], table, store, split)
            return start + len(table)

        chunks = zip(range(0, count, CHUNK), _tables(store, split, CHUNK), strict=True)
        for done in map_in_threads(decode_to, chunks, threads):
            progress(done, count)
        index = store.index(split)
        joints = KeyPoints.open(store).joints(split, index, height=height, width=width) if posed else None
        return cls(
            images=torch.from_numpy(images).permute(0, 3, 1, 2),
            person_ids=torch.from_numpy(index["person_id"].to_numpy(np.int64, copy=True)),
            camera_ids=torch.from_numpy(index["camera_id"].to_numpy(np.int64, copy=True)),
            file_names=tuple(index["file_name"]),
            joints=None if joints is None else torch.from_numpy(joints),
        )

    def __len__(self) -> int:
        return len(self.images)

    @cached_property
    def classes(self) -> Tensor:
        """(K,) int64: the sorted person ids that occur, without -1."""
        return torch.unique(self.person_ids[self.person_ids != JUNK])

    @cached_property
    def labels(self) -> Tensor:
        """(N,) int64 in 0..K-1: each person's position in `classes`, the same on every rank and machine; -1 for -1."""
        return torch.where(self.person_ids == JUNK, -1, torch.searchsorted(self.classes, self.person_ids))

    def select(self, rows: Tensor) -> Self:
        """A copy of some rows (M,) int64, with labels of their own."""
        return replace(
            self,
            images=self.images[rows],
            person_ids=self.person_ids[rows],
            camera_ids=self.camera_ids[rows],
            file_names=tuple(self.file_names[row] for row in rows.tolist()),
            joints=None if self.joints is None else self.joints[rows],
        )

    def joined(self, other: "ImageSet") -> Self:
        """This set and, after it, another one of the same size."""
        joints = None
        if self.joints is not None and other.joints is not None:
            joints = torch.cat([self.joints, other.joints])
        return replace(
            self,
            images=torch.cat([self.images, other.images]),
            person_ids=torch.cat([self.person_ids, other.person_ids]),
            camera_ids=torch.cat([self.camera_ids, other.camera_ids]),
            file_names=self.file_names + other.file_names,
            joints=joints,
        )

    def fits(self, device: torch.device) -> bool:
        """Whether the pictures fit into the free memory of a device, with headroom."""
        return self.images.nbytes <= HEADROOM * free_bytes(device)

    def to(self, device: torch.device) -> Self:
        """The set with its pictures on a device; raises ImageMemoryError when they do not fit there."""
        if self.images.device == device:
            return self
        _require(self.images.nbytes, device, f"{len(self):,} pictures")
        return replace(self, images=self.images.to(device))  # samplers and steps read identities on the CPU


def image_bytes(count: int, height: int, width: int) -> int:
    """Memory of `count` pictures as a uint8 tensor, in bytes."""
    return count * 3 * height * width


def free_bytes(device: torch.device) -> int:
    """Memory that can be had now: of a GPU, or of this machine within the limit of its container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = psutil.virtual_memory().available
    limit, usage = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.stat")
    if limit.exists() and usage.exists() and (allowed := limit.read_text(encoding="utf-8").strip()) != "max":
        anonymous = next(
            int(line.split()[1]) for line in usage.read_text(encoding="utf-8").splitlines() if line.startswith("anon ")
        )
        free = min(free, int(allowed) - anonymous)
    return free


def _require(needed: int, device: torch.device, what: str) -> None:
    free = free_bytes(device)
    if needed > HEADROOM * free:
        place, remedy = ("memory", "fewer workers on a machine")
        if device.type != "cpu":
            place, remedy = f"the memory of {device}", "keep the pictures on the CPU"
        raise ImageMemoryError(
            f"{what} needs {needed / 2**30:.2f} GiB, but {free / 2**30:.2f} GiB of {place} are free and a "
            f"tenth of that is left to others: use a smaller height and width, {remedy}, or a larger machine"
        )


def stream(
    store: Store,
    splits: Sequence[str],
    *,
    height: int,
    width: int,
    batch_size: int,
    rows: range | None = None,
    threads: int = os.cpu_count() or 1,
    pinned: bool = False,
) -> Iterator[tuple[str, Tensor]]:
    """The pictures of splits by batch, as `ImageSet.load` has them; 4 batches a thread are decoded ahead.

    So memory stays bounded however large a split is, and what uses a batch seldom waits for the next, not
    even for the first batch of the next split.

    Args:
        store: An opened store.
        splits: Of the store, one after the other.
        height: Pixels.
        width: Pixels.
        batch_size: Pictures in a batch; the last of each split has what is left.
        rows: Consecutive rows of each split; None: all.
        threads: Threads that decode, each a batch; they do not change the result.
        pinned: Into memory that a GPU copies from without the CPU's help.

    Yields:
        The split, and (batch_size, 3, height, width) uint8 pictures in the order of the store.

    Raises:
        StoreError: No such split, or a damaged file or picture.
    """

    def decoded(chunk: tuple[str, pa.Table]) -> tuple[str, Tensor]:
        split, table = chunk
        return split, decode_table(table, store, split, height=height, width=width, pinned=pinned)

    chunks = ((split, table) for split in splits for table in _tables(store, split, batch_size, rows))
    return map_in_threads(decoded, chunks, threads)


def decode_table(table: pa.Table, store: Store, split: str, *, height: int, width: int, pinned: bool = False) -> Tensor:
    """The pictures (N, 3, height, width) uint8 of N rows of a split, as `ImageSet.load` has them.

    Raises:
        StoreError: A damaged picture.
    """
    pictures = torch.empty(len(table), height, width, 3, dtype=torch.uint8, pin_memory=pinned)
    _decode_into(pictures.numpy(), table, store, split)
    return pictures.permute(0, 3, 1, 2)


def _tables(store: Store, split: str, size: int, rows: range | None = None) -> Iterator[pa.Table]:
    """Names and encoded pictures of a split, `size` at a time across row groups, at the end what is left."""
    rest: pa.Table | None = None
    for group in store.row_groups(split, ["file_name", "image"], rows):
        table = group if rest is None else pa.concat_tables([rest, group])
        whole = len(table) - len(table) % size
        for start in range(0, whole, size):
            yield table.slice(start, size)
        rest = table.slice(whole)
    if rest is not None and len(rest):
        yield rest


def _decode_into(out: np.ndarray, table: pa.Table, store: Store, split: str) -> None:
    """Write a table's pictures to `out` (N, H, W, 3) uint8, resizing those of one other size in one batch."""
    others: defaultdict[tuple[int, ...], dict[int, np.ndarray]] = defaultdict(dict)
    names, pictures = table["file_name"].to_pylist(), table["image"].to_pylist()
    for row, (name, picture, place) in enumerate(zip(names, pictures, out, strict=True)):
        try:
            array = decode(picture, place)
        except PictureError as error:
            where = f"{store.location}/{split}.parquet"
            raise StoreError(f"{where}: {name}: {error}: prepare the store again") from None
        if array.shape != place.shape:
            others[array.shape][row] = array
        elif array is not place:
            out[row] = array
    for arrays in others.values():
        batch = torch.from_numpy(np.stack(list(arrays.values()))).permute(0, 3, 1, 2).contiguous()
        resized = F.interpolate(batch, out.shape[1:3], mode="bicubic", antialias=True)
        out[list(arrays)] = resized.permute(0, 2, 3, 1).numpy()


# ----------------------------------------------------------------------------------------------------------------
# The validation split


@dataclass(frozen=True, kw_only=True, eq=False)
class ValidationSplit:
    """A training split parted by identity: to train on, and to choose settings by."""

    train: ImageSet
    query: ImageSet
    gallery: ImageSet


def validation_split(images: ImageSet, more: ImageSet | None = None) -> ValidationSplit:
    """Hold out the last identities of a training split, so that no search sees the real query and gallery.

    Of K identities in sorted order the last `held_out_people(K)` are held out; `held_out_queries` says which of their
    pictures are queries, all others are gallery.

    Args:
        images: the training split.
        more: pictures of other identities, which are validated on too; `queries_among` says by which queries.

    Raises:
        ValueError: There are fewer than 4 identities, or no held-out one gives a query.
    """
    people = len(images.classes)
    queries = torch.zeros_like(images.labels, dtype=torch.bool)
    queries[held_out_queries(zip(images.labels.tolist(), images.camera_ids.tolist(), strict=True), people)] = True
    trained = images.labels < people - held_out_people(people)
    split = ValidationSplit(
        train=images.select(torch.nonzero(trained).flatten()),
        query=images.select(torch.nonzero(queries).flatten()),
        gallery=images.select(torch.nonzero(~trained & ~queries).flatten()),
    )
    if more is None:
        return split
    asked = torch.zeros_like(more.person_ids, dtype=torch.bool)
    shots = zip(range(len(more)), more.person_ids.tolist(), more.camera_ids.tolist(), strict=True)
    asked[queries_among(shots)] = True
    return replace(
        split,
        query=split.query.joined(more.select(torch.nonzero(asked).flatten())),
        gallery=split.gallery.joined(more.select(torch.nonzero(~asked).flatten())),
    )
