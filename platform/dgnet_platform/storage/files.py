"""What has to outlive a crash of the machine, and who may touch it meanwhile."""

import fcntl
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dgnet_platform.errors import ExperimentError, UserError

_WHOLE_FILE = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
"""Linux's `struct flock`."""


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and wait until it is on the disk; raises OSError."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    flush(partial)
    partial.rename(path)
    flush(path.parent)


def lock(file: IO, *, wait: bool = True) -> None:
    """Keep others out until a file, open for writing, is closed.

    These locks belong to the open file, as `flock`'s do. But where a folder is served by NFS, `flock` on the server
    does not see who holds it on a client, while these exclude each other.

    Raises:
        BlockingIOError: somebody else holds it, and shall not be waited for.
    """
    if not hasattr(fcntl, "F_OFD_SETLK"):  # only Linux has them
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    fcntl.fcntl(file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, _WHOLE_FILE)


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """An empty folder beside `out` for one writer at a time, removed at the end unless it was published.

    A run that was killed leaves the folder behind; its name starts with a dot and ends in `.partial`, and the
    next run takes it over. The lock is on the folder itself, so it ends with the process that holds it.

    Raises:
        UserError: Another process is writing there.
    """
    folder = out.parent / f".{out.name}.partial"
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out} is being written by another run: wait for it, or name another --out") from None
        if not _is_open_at(folder, descriptor):
            raise UserError(f"{out} was just written by another run: run the same command again")
        for leftover in folder.iterdir():
            leftover.unlink()
        try:
            yield folder
        finally:
            if _is_open_at(folder, descriptor):
                shutil.rmtree(folder)
    finally:
        os.close(descriptor)


def _is_open_at(folder: Path, descriptor: int) -> bool:
    return folder.exists() and os.path.samestat(folder.stat(), os.fstat(descriptor))


def put_in_place(folder: Path, out: Path) -> None:
    """Make a finished staging folder the store at `out`, in one step that a crash cannot halve."""
    flush(folder)
    folder.rename(out)
    flush(out.parent)


LOCK = ".training.lock"
"""Held by whoever trains the run of a folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Only one command at a time trains a run.

    Raises:
        ExperimentError: another one does.
    """
    with (folder / LOCK).open("w") as file:
        try:
            lock(file, wait=False)
        except BlockingIOError:
            raise ExperimentError(f"run {folder.name} is being trained by another command: wait for it") from None
        yield
