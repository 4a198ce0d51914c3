"""Features of a store's splits, extracted batch by batch while later batches are decoded."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dgnet_core.appearance import AppearanceEncoder
from dgnet_core.features import Features
from dgnet_core.inference import evaluating, extract_batch
from dgnet_core.teacher import Teacher
from dgnet_platform.datasets.images import stream
from dgnet_platform.datasets.store import Store

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is."""


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How features are extracted."""

    height: int
    """What the networks were trained on, in pixels."""
    width: int
    batch_size: int
    precision: Literal["float32", "bfloat16"]
    device: torch.device
    threads: int
    """Threads that decode."""


def extract_splits(
    networks: Mapping[str, AppearanceEncoder | Teacher],
    store: Store,
    splits: Sequence[str],
    how: Extraction,
    progress: Progress,
) -> tuple[dict[str, dict[str, Features]], dict[str, float]]:
    """Features by network and split, and the timing of all of it.

    All networks see a batch before the next one is taken, so each picture is decoded once.

    Args:
        networks: by name, on the device of `how`.
        store: an opened store.
        splits: of the store.
        how: sizes, precision, device and threads.
        progress: called with the split, the pictures done and the number there are.

    Returns:
        The features, and the number of pictures, the seconds taken, and the share of them spent waiting for a
        decoded batch. On a GPU the share is an upper bound: earlier batches may still be at work meanwhile.

    Raises:
        ValueError: features are not finite.
        StoreError: a damaged file or picture.
    """
    features: dict[str, dict[str, Features]] = {name: {} for name in networks}
    halves: defaultdict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    pictures, done, waited, start = 0, 0, 0.0, time.perf_counter()
    batches = stream(
        store,
        splits,
        height=how.height,
        width=how.width,
        batch_size=how.batch_size,
        threads=how.threads,
        pinned=how.device.type == "cuda",
    )
    with evaluating(*networks.values()):
        while True:
            asked = time.perf_counter()
            split, pixels = next(batches, (None, None))
            waited += time.perf_counter() - asked
            if split is None or pixels is None:
                break
            pixels = pixels.to(how.device, non_blocking=True)
            for name, network in networks.items():
                halves[name].append(
                    extract_batch(network, pixels, height=how.height, width=how.width, precision=how.precision)
                )
            done += len(pixels)
            progress(split, done, store.count(split))
            if done == store.count(split):
                for name in networks:
                    features[name][split] = _features(store, split, halves.pop(name), name)
                pictures, done = pictures + done, 0
    seconds = time.perf_counter() - start
    return features, {"pictures": pictures, "seconds": seconds, "waiting": waited / seconds}


def _features(store: Store, split: str, halves: Sequence[tuple[Tensor, Tensor]], name: str) -> Features:
    """All batches of a split together with its labels; raises ValueError when they are not finite."""
    prim, fine = (torch.cat(half) for half in zip(*halves, strict=True))
    index = store.index(split)
    person_ids, camera_ids = (
        torch.from_numpy(index[column].to_numpy(np.int64, copy=True)).to(prim.device)
        for column in ("person_id", "camera_id")
    )
    try:
        return Features(prim=prim, fine=fine, person_ids=person_ids, camera_ids=camera_ids)
    except ValueError as error:
        raise ValueError(f"{name} on {split}: {error}") from error
