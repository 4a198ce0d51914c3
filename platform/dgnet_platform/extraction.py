"""Features of a store's splits, extracted while the next split is decoded."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

import torch

from dgnet_core.appearance import AppearanceEncoder
from dgnet_core.features import Features
from dgnet_core.inference import extract
from dgnet_core.teacher import Teacher
from dgnet_platform.datasets.images import ImageSet

Result = TypeVar("Result")
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


def ahead(jobs: Sequence[Callable[[], Result]]) -> Iterator[tuple[Result, float]]:
    """Results in order, with the seconds that each was waited for; the next job runs while one is used."""
    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(jobs[0])
        for number in range(len(jobs)):
            start = time.perf_counter()
            result = upcoming.result()
            waited = time.perf_counter() - start
            if number + 1 < len(jobs):
                upcoming = pool.submit(jobs[number + 1])
            yield result, waited


def extract_splits(
    networks: Mapping[str, AppearanceEncoder | Teacher],
    splits: Sequence[str],
    loaded: Iterator[tuple[ImageSet, float]],
    how: Extraction,
    progress: Progress,
) -> tuple[dict[str, dict[str, Features]], dict[str, float]]:
    """Features by network and split, and the timing of all of it.

    Args:
        networks: by name.
        splits: names, in the order of `loaded`.
        loaded: the splits' pictures, with the seconds they were waited for, as `ahead` gives them; as many as
            there are splits are taken. Pictures that fit on a GPU are moved there at once.
        how: sizes, precision and device.
        progress: called with the split, the pictures done and the number there are.

    Raises:
        ValueError: features are not finite.
    """
    features: dict[str, dict[str, Features]] = {name: {} for name in networks}
    pictures, waited, start = 0, 0.0, time.perf_counter()
    for split in splits:
        images, seconds = next(loaded)
        moved = time.perf_counter()
        if how.device.type != "cpu" and images.fits(how.device):
            images = images.to(how.device)
        waited += seconds + time.perf_counter() - moved
        pictures += len(images)
        for name, network in networks.items():
            try:
                features[name][split] = extract(
                    network,
                    images.images,
                    images.person_ids,
                    images.camera_ids,
                    height=how.height,
                    width=how.width,
                    batch_size=how.batch_size,
                    precision=how.precision,
                    progress=partial(progress, split),
                )
            except ValueError as error:
                raise ValueError(f"{name} on {split}: {error}") from error
    seconds = time.perf_counter() - start
    return features, {"pictures": pictures, "seconds": seconds, "waiting": waited / seconds}
