"""Preparing a data set: from a folder, a .zip or a drawing to a store, with a report."""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyarrow import fs

from dgnet_platform.data.config import PrepareConfig
from dgnet_platform.data.pack import pack
from dgnet_platform.data.people.people import People
from dgnet_platform.data.people.people_set import write_market
from dgnet_platform.data.people.sizes import SIZES
from dgnet_platform.data.pose_files import read_pose_files
from dgnet_platform.data.poses import KeyPoints, PoseReport, drawn_keypoints, found_keypoints
from dgnet_platform.data.readers import read_source
from dgnet_platform.data.records import Problem
from dgnet_platform.data.source import UNREAD_ENDINGS, Source, is_picture, open_source
from dgnet_platform.data.store import Store, StoreError, StoreInfo
from dgnet_platform.storage.files import staging
from dgnet_platform.storage.remote import RemoteError, check_writable, open_place, put, refusal
from dgnet_platform.threads import no_progress

LISTED_PROBLEMS = 50
"""A report names as many files; a data set in which more are bad has one cause for many of them."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What became of a source."""

    config: PrepareConfig
    info: StoreInfo
    problems: list[Problem]
    ignored: int
    """Files of the source that are no pictures of any split."""
    unused: Mapping[str, int]
    """Pictures among them, by their folder at the top."""
    unread: Mapping[str, int]
    """Files among them of kinds that are not read, by the endings of their names."""
    outcome: Literal["packed", "already packed", "refused"]
    poses: PoseReport | None = None
    """Of the key points, where there are any."""


def prepare(config: PrepareConfig, progress: Callable[[int, int], None] = no_progress) -> Prepared:
    """Read, verify and pack a data set: `config.out` is then the whole store, or what it was before.

    Args:
        config: What to prepare.
        progress: Called now and then with the number of pictures done and the number there are.

    Raises:
        SourceError: The source cannot be used at all.
        StoreError: `config.out` holds something else.
        PoseError: the key points cannot be used.
        UserError: `config.out` is being written by another run.
    """
    _existing(config)  # refuses before anything is made
    with _staging(config.out) as folder, _source(config, progress) as source:
        existing = _existing(config)  # now that others are kept out
        listing = read_source(config.dataset, source, unlabelled=config.unlabelled)
        info, problems = pack(listing, folder, dataset=config.dataset, threads=config.threads, progress=progress)
        outcome: Literal["packed", "already packed", "refused"] = "packed"
        points = None
        if problems and not config.skip_bad:
            outcome = "refused"
        elif existing is None:
            points = _keypoints(config, Store.open(folder))
        elif existing.info.fingerprint == info.fingerprint:
            existing.verify()
            points = _keypoints(config, existing)
            outcome = "already packed"
        else:
            raise StoreError(
                f"{config.out} holds other pictures of {config.dataset} (fingerprint "
                f"{existing.info.fingerprint[:12]}, this source gives {info.fingerprint[:12]}): name another "
                "--out, or remove it first"
            )
        if outcome != "packed":
            shutil.rmtree(folder)
    used = {record.path for record in listing.records} | {problem.file for problem in problems}
    others = [name for name in listing.source.names if name not in used]
    unused = Counter(name.partition("/")[0] for name in others if is_picture(name))
    unread = Counter(ending for name in others for ending in UNREAD_ENDINGS if name.lower().endswith(ending))
    return Prepared(
        config=config,
        info=info,
        problems=problems,
        ignored=listing.ignored,
        unused=unused,
        unread=unread,
        outcome=outcome,
        poses=None if points is None else points.report,
    )


def _keypoints(config: PrepareConfig, store: Store) -> KeyPoints | None:
    """Make the key points that are asked for, and put them beside the pictures of a store."""
    if config.keypoints is not None:
        index = {split: store.index(split) for split in store.info.splits}
        points = found_keypoints(store, read_pose_files(config.keypoints, index))
    elif config.dataset == "people":
        points = drawn_keypoints(store, estimated=config.keypoints_as_estimated, threads=config.threads)
    else:
        return None
    points.save(store)
    return points


def _existing(config: PrepareConfig) -> Store | None:
    """The store that is at `config.out` already; raises StoreError when something else is, or nothing can be there."""
    out, source = config.out, config.source
    if _is_uri(out):
        try:
            filesystem, root = check_writable(str(out))
        except RemoteError as error:
            raise StoreError(str(error)) from None
        if not filesystem.get_file_info(fs.FileSelector(root, allow_not_found=True)):
            return None
    else:
        out = Path(out)
        if source is not None and source.is_dir() and out.resolve().is_relative_to(source.resolve()):
            raise StoreError(f"{out} is inside the source {source}, which is never written to: name another --out")
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return None
    try:
        store = Store.open(out)
    except StoreError as error:
        raise StoreError(f"{out} exists and is no whole store ({error}): remove it, or name another --out") from None
    if store.info.dataset != config.dataset:
        raise StoreError(f"{out} already holds {store.info.dataset}: name another --out, or remove it first")
    return store


def _is_uri(out: str | Path) -> bool:
    return isinstance(out, str) and "://" in out


@contextmanager
def _staging(out: str | Path) -> Iterator[Path]:
    """An empty folder, whose content is the store at `out` in the end, unless the folder is removed."""
    if not _is_uri(out):
        with staging(Path(out)) as folder:
            yield folder
        return
    with tempfile.TemporaryDirectory(prefix="store-") as temporary:
        folder = Path(temporary) / "store"
        folder.mkdir()
        yield folder
        if folder.exists():
            _upload(folder, str(out))


def _upload(folder: Path, uri: str) -> None:
    """Copy a packed folder to a URI. Opening a store that is not uploaded to its end is refused."""
    filesystem, root = open_place(uri)
    try:
        for file in sorted(folder.iterdir()):
            put(file, filesystem, f"{root}/{file.name}")
    except OSError as error:
        raise StoreError(f"{refusal(uri, error)}; remove what is there, then run the same command again") from error


@contextmanager
def _source(config: PrepareConfig, progress: Callable[[int, int], None]) -> Iterator[Source]:
    """The source, drawn into a temporary folder where there is none."""
    if config.source is not None:
        with open_source(config.source) as source:
            yield source
        return
    with tempfile.TemporaryDirectory(prefix="drawn-people-") as temporary:
        size, folder = SIZES[config.size or "laptop"], Path(temporary) / "people"
        people = People(config.seed or 0, scenery=config.scenery or size.scenery)
        write_market(people, folder, size, workers=config.threads, progress=progress)
        with open_source(folder) as source:
            yield source
