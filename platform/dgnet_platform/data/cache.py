"""Stores at a URI, kept on this machine: downloaded once for all its processes, within a size limit.

`DGNET_CACHE` names another folder than ~/.cache/dgnet, and `DGNET_CACHE_GIB` another limit than 50 GiB.
"""

import hashlib
import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

from pyarrow import fs

from dgnet_platform.data.store import Store, StoreError
from dgnet_platform.storage.files import appearing, lock, locked, resolved
from dgnet_platform.storage.remote import get, remedy_for
from dgnet_platform.threads import no_progress

_log = logging.getLogger(__name__)
_used: dict[Path, IO[str]] = {}
"""Locks of the stores that this process reads; they end with it."""


def cached(store: Store, progress: Callable[[int, int], None] = no_progress) -> Store:
    """The same store, read from this machine's disk: a local one as it is, another one from the cache.

    It is downloaded if it is not in the cache, by one process while others wait. Stores longest unused are removed
    for it, never one that a process reads.

    Args:
        store: an opened store.
        progress: called now and then with the number of bytes downloaded and the number there are.

    Raises:
        StoreError: it cannot be downloaded, or there is no room for it.
    """
    if isinstance(store.filesystem, fs.LocalFileSystem):
        return store
    place = hashlib.sha256(store.location.encode()).hexdigest()[:8]
    folder = _folder() / "stores" / f"{store.info.dataset}-{store.info.fingerprint[:16]}-{place}"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        if folder not in _used:
            _used[folder] = folder.with_suffix(".lock").open("a+")
            lock(_used[folder], shared=True)  # from now on it is not removed
        with locked(folder.with_suffix(".download")):
            if not folder.exists():
                _download(store, folder, progress)
        os.utime(folder)
    except OSError as error:
        remedy = remedy_for(error) or "can that folder be written? DGNET_CACHE names another one"
        raise StoreError(f"{store.location} cannot be brought into {folder} ({error}): {remedy}") from error
    return replace(store, filesystem=fs.LocalFileSystem(), root=folder.as_posix())


def cached_file(store: Store, filesystem: fs.FileSystem, path: str, digest: str) -> Path:
    """A file that lies beside a store, on this machine's disk: downloaded again only when its content has changed.

    Args:
        store: what `cached` gave; the file is removed with it.
        filesystem: where the store is.
        path: of the file there.
        digest: of its content.

    Raises:
        OSError: it cannot be downloaded.
    """
    folder = Path(store.root)
    target = folder / f"{digest}-{Path(path).name}"
    with locked(folder.with_suffix(".download")):
        if not target.exists():
            get(filesystem, path, target)
    return target


def _folder() -> Path:
    return resolved(os.environ.get("DGNET_CACHE") or "~/.cache/dgnet")


def _download(store: Store, folder: Path, progress: Callable[[int, int], None]) -> None:
    """Bring a store's files to `folder`, which is there at the end only."""
    files = store.filesystem.get_file_info([store.file(split) for split in store.info.splits])
    total, done = sum(file.size for file in files), 0
    _make_room(folder, total)
    if progress is no_progress:
        _log.warning("downloads %s, %.1f MiB, into %s", store.location, total / 2**20, folder)

    def advance(more: int) -> None:
        nonlocal done
        done += more
        progress(done, total)

    with appearing(folder) as partial:
        for file in files:
            get(store.filesystem, file.path, partial / file.base_name, advance)


def _make_room(folder: Path, needed: int) -> None:
    """Remove stores longest unused until `needed` more bytes keep the limit and fit on the disk.

    Raises:
        StoreError: the disk is too small, or the limit is no number.
    """
    given = os.environ.get("DGNET_CACHE_GIB") or "50"
    try:
        limit = float(given) * 2**30
    except ValueError:
        raise StoreError(f"DGNET_CACHE_GIB is {given!r}: set it to a number of GiB, such as 50") from None
    others = sorted((path for path in folder.parent.iterdir() if path.is_dir()), key=lambda path: path.stat().st_mtime)
    sizes = {other: sum(file.stat().st_size for file in other.iterdir()) for other in others}
    total = sum(sizes.values())
    for other, size in sizes.items():
        if total + needed <= limit and needed <= shutil.disk_usage(folder.parent).free:
            break
        name = other.name.removeprefix(".").partition(".")[0]  # also of a download that was killed
        with (other.parent / f"{name}.lock").open("w") as file:
            try:
                lock(file, wait=False)
            except BlockingIOError:
                continue
            shutil.rmtree(other)
        total -= size
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise StoreError(
            f"{folder.parent} has {free / 2**30:.1f} GiB free, the store takes {needed / 2**30:.1f} GiB: make room, or"
            " set DGNET_CACHE to a folder on a larger disk"
        )
