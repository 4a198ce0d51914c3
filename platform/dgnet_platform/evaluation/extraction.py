"""Features of a store's splits, extracted batch by batch while later batches are decoded: here, or on workers."""

import io
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dgnet_core.networks.modes import evaluating
from dgnet_core.networks.resnet import DescriptorNetwork
from dgnet_core.ranking.extraction import extract_batch
from dgnet_core.ranking.features import Features
from dgnet_platform.compute.parts import Files, Part, make_parts, missing, owned, parts_of
from dgnet_platform.data.images import stream
from dgnet_platform.data.store import Store
from dgnet_platform.runs.exported import ExportedNetwork

Networks = Mapping[str, DescriptorNetwork | ExportedNetwork]
"""Networks by name."""
Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done and how much there is."""
HALVES = "prim", "fine"
PART = 1024
"""Pictures of which a worker makes a part of the descriptors, to the next whole batch: all that a kill costs it."""


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
    networks: Networks,
    store: Store,
    splits: Sequence[str],
    how: Extraction,
    progress: Progress,
) -> tuple[dict[str, dict[str, Features]], dict[str, float]]:
    """Features by network and split, and the timing of all of it.

    All networks see a batch before the next one is taken, so each picture is decoded once.

    Args:
        networks: on the device of `how`.
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
    batches = _batches(store, splits, how)
    with evaluating(*networks.values()):
        while True:
            asked = time.perf_counter()
            split, pixels = next(batches, (None, None))
            waited += time.perf_counter() - asked
            if split is None or pixels is None:
                break
            for name, batch in _extract(networks, pixels, how).items():
                halves[name].append(batch)
            done += len(pixels)
            progress(split, done, store.count(split))
            if done == store.count(split):
                for name in networks:
                    prim, fine = (torch.cat(half) for half in zip(*halves.pop(name), strict=True))
                    features[name][split] = _features(store, split, prim, fine, name)
                pictures, done = pictures + done, 0
    seconds = time.perf_counter() - start
    return features, {"pictures": pictures, "seconds": seconds, "waiting": waited / seconds}


def extract_on_workers(
    networks: Networks,
    store: Store,
    splits: Sequence[str],
    how: Extraction,
    progress: Progress,
    *,
    folder: Path,
    settings: Mapping[str, Any],
    workers: int,
    gpus: bool | None,
) -> tuple[dict[str, dict[str, Features]], dict[str, float]]:
    """As `extract_splits`, by Ray's actors and in parts that a killed run leaves behind for the next.

    Batches hold the same pictures as there. The features end up on the device of `how`; the networks stay where they
    are, the workers have copies.

    Args:
        networks: on any device.
        store: an opened store, which the workers reach too.
        splits: of the store.
        how: sizes, precision, threads of each worker; where the features should be.
        progress: called with the split, the pictures done and the number there are.
        folder: for the parts, in a folder of each store.
        settings: what tells these networks from others.
        workers: how many.
        gpus: whether each has a GPU; None: if there is one.

    Returns:
        The features, and the pictures and seconds of this run.

    Raises:
        PartsError: the folder holds parts of other settings, or workers cannot be had.
        ValueError: features are not finite.
        StoreError: a damaged file or picture.
    """
    size = -(-PART // how.batch_size) * how.batch_size
    parts = {split: parts_of(split, store.count(split), size) for split in splits}
    decisive = {
        "store": store.info.fingerprint,
        "size": [how.height, how.width],
        "batch_size": how.batch_size,
        "precision": how.precision,
    }
    folder = folder / store.info.fingerprint[:12]
    with owned(folder, {**settings, **decisive}):
        lacking = missing(folder, [part for split in splits for part in parts[split]])
        done = Counter({split: store.count(split) for split in splits})
        for part in lacking:
            done[part.split] -= len(part)
        for split in splits:
            progress(split, done[split], store.count(split))

        def written(part: Part) -> None:
            done[part.split] += len(part)
            progress(part.split, done[part.split], store.count(part.split))

        start = time.perf_counter()
        copies = {name: deepcopy(network).cpu() for name, network in networks.items()}
        arguments = {"networks": copies, "store": store, "how": how}
        make_parts(folder, lacking, Extractor, arguments, workers=workers, gpus=gpus, progress=written)
        seconds = time.perf_counter() - start
        features: dict[str, dict[str, Features]] = {name: {} for name in networks}
        for name in networks:
            for split in splits:
                prim, fine = (_gathered(folder, parts[split], name, half).to(how.device) for half in HALVES)
                features[name][split] = _features(store, split, prim, fine, name)
    return features, {"pictures": sum(map(len, lacking)), "seconds": seconds}


class Extractor:
    """Extracts the features of parts of a store."""

    def __init__(self, *, device: torch.device, networks: Networks, store: Store, how: Extraction) -> None:
        self._networks = {name: network.to(device) for name, network in networks.items()}
        self._store = store
        self._how = replace(how, device=device)

    def __call__(self, part: Part) -> Files:
        """Descriptors as `<network>.<half>.npy`, float32."""
        rows = range(part.first, part.stop)
        with evaluating(*self._networks.values()):
            batches = [
                _extract(self._networks, pixels, self._how)
                for _, pixels in _batches(self._store, [part.split], self._how, rows)
            ]
        return {
            f"{name}.{half}.npy": _npy(torch.cat([batch[name][place] for batch in batches]))
            for name in self._networks
            for place, half in enumerate(HALVES)
        }


def _batches(
    store: Store, splits: Sequence[str], how: Extraction, rows: range | None = None
) -> Iterator[tuple[str, Tensor]]:
    return stream(
        store,
        splits,
        height=how.height,
        width=how.width,
        batch_size=how.batch_size,
        rows=rows,
        threads=how.threads,
        pinned=how.device.type == "cuda",
    )


def _extract(networks: Networks, pixels: Tensor, how: Extraction) -> dict[str, tuple[Tensor, Tensor]]:
    """Both halves of a batch by network."""
    pixels = pixels.to(how.device, non_blocking=True)
    return {
        name: network(pixels)
        if isinstance(network, ExportedNetwork)
        else extract_batch(network, pixels, height=how.height, width=how.width, precision=how.precision)
        for name, network in networks.items()
    }


def _npy(values: Tensor) -> bytes:
    file = io.BytesIO()
    np.save(file, values.cpu().numpy(), allow_pickle=False)
    return file.getvalue()


def _gathered(folder: Path, parts: Sequence[Part], name: str, half: str) -> Tensor:
    """One half of a split's descriptors from its parts."""
    arrays = [np.load(folder / part.name / f"{name}.{half}.npy", allow_pickle=False) for part in parts]
    return torch.from_numpy(np.concatenate(arrays))


def _features(store: Store, split: str, prim: Tensor, fine: Tensor, name: str) -> Features:
    """The descriptors of a split together with its labels; raises ValueError when they are not finite."""
    index = store.index(split)
    person_ids, camera_ids = (
        torch.from_numpy(index[column].to_numpy(np.int64, copy=True)).to(prim.device)
        for column in ("person_id", "camera_id")
    )
    try:
        return Features(prim=prim, fine=fine, person_ids=person_ids, camera_ids=camera_ids)
    except ValueError as error:
        raise ValueError(f"{name} on {split}: {error}") from error
