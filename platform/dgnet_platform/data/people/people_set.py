"""Sets of drawn people in Market-1501's own folders and file names, so that its reader and protocol apply.

A file's name alone says which shot it shows; `people.json` beside the folders says of which people. So the
true swap of any two files can be drawn: `load(folder).draw(appearance_of=shot_of(one),
structure_of=shot_of(other))`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from collections.abc import Callable, Generator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from dgnet_platform.data.people.people import DISTRACTOR, JUNK, People, Shot
from dgnet_platform.data.people.sizes import SIZES, Size
from dgnet_platform.storage.files import appearing

VERSION = 1
"""Of the drawing. Another version draws other pixels for the same seed."""
_PLAN = 100  # a stream of random numbers that no factor of the people uses
_FILE_NAME = re.compile(r"(-1|\d{4,})_c([1-9])s\d_(\d{6})_\d{2}\.jpg")


def file_name(shot: Shot, *, hand_drawn: bool = False) -> str:
    """Market-1501's name for a picture, such as `0002_c1s1_000451_01.jpg`; hand-drawn boxes end in `_00`."""
    identity = "-1" if shot.identity == JUNK else f"{shot.identity:04d}"
    return f"{identity}_c{shot.camera}s1_{shot.frame:06d}_{0 if hand_drawn else 1:02d}.jpg"


def shot_of(name: str) -> Shot:
    """The shot that a file of a drawn set shows, from its name alone.

    Raises:
        ValueError: If the name is not of that form.
    """
    match = _FILE_NAME.fullmatch(name)
    if match is None:
        raise ValueError(f"{name!r} is no file name of a drawn set, such as 0002_c1s1_000451_01.jpg")
    return Shot(*(int(field) for field in match.groups()))


def plan(size: Size, seed: int) -> dict[str, list[str]]:
    """Which files each folder of a set holds: a pure function of size and seed.

    Each identity is seen by two or more of the cameras, so that each query has a match under another camera.
    """
    rng = np.random.default_rng((seed, _PLAN))
    folders: dict[str, list[str]] = {
        "bounding_box_train": [],
        "bounding_box_test": [],
        "query": [],
        "gt_bbox": [],
    }
    sightings = round(size.train_identities * size.queries / size.test_identities)
    seen = _seen_by(rng, 1, size.train_identities, size.cameras, sightings)
    for (identity, camera), count in zip(seen, _shares(rng, size.train, len(seen)), strict=True):
        folders["bounding_box_train"] += [file_name(Shot(identity, camera, k)) for k in range(count)]

    seen = _seen_by(rng, 1 + size.train_identities, size.test_identities, size.cameras, size.queries)
    for (identity, camera), count in zip(seen, _shares(rng, size.gallery, len(seen)), strict=True):
        drawn = [file_name(Shot(identity, camera, k), hand_drawn=True) for k in range(size.hand_drawn)]
        folders["query"].append(drawn[0])
        folders["gt_bbox"] += drawn
        first = size.hand_drawn
        folders["bounding_box_test"] += [file_name(Shot(identity, camera, first + k)) for k in range(count)]
    for identity, count in ((DISTRACTOR, size.distractors), (JUNK, size.junk)):
        shots = (Shot(identity, 1 + k % size.cameras, k // size.cameras) for k in range(count))
        folders["bounding_box_test"] += [file_name(shot) for shot in shots]
    if size.validation_identities:  # last: nothing else depends on them
        sightings = round(size.validation_identities * size.queries / size.test_identities)
        first = 1 + size.train_identities + size.test_identities
        seen = _seen_by(rng, first, size.validation_identities, size.cameras, sightings)
        shares = _shares(rng, size.validation, len(seen))
        folders["bounding_box_validation"] = [
            file_name(Shot(identity, camera, k))
            for (identity, camera), count in zip(seen, shares, strict=True)
            for k in range(count)
        ]
    return folders


def _seen_by(rng: np.random.Generator, first: int, identities: int, cameras: int, total: int) -> list[tuple[int, int]]:
    """`total` pairs of identity and camera, from two cameras to all of them for each identity."""
    counts = np.full(identities, 2)
    while (missing := total - int(counts.sum())) > 0:
        free = np.flatnonzero(counts < cameras)
        counts[rng.permutation(free)[:missing]] += rng.integers(0, 2, min(missing, len(free)))
    return [
        (first + i, int(camera))
        for i, count in enumerate(counts)
        for camera in np.sort(1 + rng.permutation(cameras)[:count])
    ]


def _shares(rng: np.random.Generator, total: int, parts: int) -> list[int]:
    """`total` split at random into `parts` of at least one."""
    return (1 + rng.multinomial(total - parts, rng.dirichlet(np.full(parts, 3.0)))).tolist()


def write_market(
    people: People,
    folder: Path | str,
    size: Size | str = "laptop",
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Draws a set in Market-1501's folders: bounding_box_train, bounding_box_test, query and gt_bbox.

    The set is drawn into a hidden folder beside `folder` and renamed at the end, so `folder` is a whole set
    or is not there. A `people.json` beside the four folders holds seed and size; each file's name holds its
    shot (`shot_of`).

    Args:
        people: Who is drawn, and how large.
        folder: Where to; must not exist. Its parents are made.
        size: A `Size`, or one of the names in `SIZES`.
        workers: Processes that draw; 1 draws in this one.
        progress: Called now and then with the number of pictures written and their total.

    Returns:
        The folder.

    Raises:
        ValueError: For an unknown size or fewer than one worker.
        FileExistsError: If `folder` exists.
    """
    folder = Path(folder)
    if isinstance(size, str):
        if size not in SIZES:
            raise ValueError(f"size is {size!r}; it must be a Size or one of {', '.join(SIZES)}")
        size = SIZES[size]
    if workers < 1:
        raise ValueError(f"workers is {workers}; it must be at least 1")
    if folder.exists():
        raise FileExistsError(f"{folder} exists; drawn people are written to a new folder: remove it or name another")
    folders = plan(size, people.seed)
    files = [f"{name}/{file}" for name, content in folders.items() for file in content]
    chunks = [files[k : k + 64] for k in range(0, len(files), 64)]
    with appearing(folder, flushed=False) as partial_set:
        for name in folders:
            (partial_set / name).mkdir(parents=True)
        done = 0
        with closing(_each(partial(_write_files, people, partial_set), chunks, workers)) as counts:
            for count in counts:
                done += count
                if progress is not None:
                    progress(done, len(files))
        about = {name: getattr(people, name) for name in ("seed", "height", "width", "scenery")}
        about = {"drawn_people": VERSION, **about, "size": asdict(size)}
        (partial_set / "people.json").write_text(json.dumps(about, indent=2) + "\n")
    return folder


def _each(work: Callable[[list[str]], int], chunks: list[list[str]], workers: int) -> Generator[int, None, None]:
    if workers == 1:
        yield from map(work, chunks)
        return
    # Spawned, not forked: a fork of a process with threads (Ray, PyTorch) may hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # workers inherit it: Ctrl-C is for this one
        try:
            counts = pool.map(work, chunks)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        yield from counts


def _end_with_parent() -> None:
    """Have this worker end when the process that started it does, even if that is killed."""
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _write_files(people: People, folder: Path, files: list[str]) -> int:
    for file in files:
        (folder / file).write_bytes(people.jpeg(shot_of(file.rpartition("/")[2])))
    return len(files)


def load(folder: Path | str) -> People:
    """The people of a set that `write_market` wrote.

    Raises:
        ValueError: If `people.json` is missing, is not one, or is of another version of the drawing.
    """
    path = Path(folder) / "people.json"
    try:
        return people_from(json.loads(path.read_text()))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe drawn people ({error!r}); give a folder of write_market") from error


def people_from(about: Mapping[str, Any]) -> People:
    """The people whom the content of a `people.json` describes.

    Raises:
        ValueError: they were drawn by another version of the drawing.
        KeyError: it does not describe drawn people.
    """
    if about["drawn_people"] != VERSION:
        raise ValueError(f"drawn by version {about['drawn_people']} of the drawing, this is {VERSION}: draw them again")
    return People(about["seed"], height=about["height"], width=about["width"], scenery=about.get("scenery", "busy"))
