"""What has to outlive a crash of the machine, and who may touch it meanwhile."""

import errno
import fcntl
import os
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from dgnet_platform.errors import UserError
from dgnet_platform.threads import map_in_threads

_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP)
_FLUSHING = 8
"""Threads that wait for the disk."""


def flush(path: Path) -> None:
    """Wait until a file's content, or a folder's list of files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in errors of what is done to it while it is open: of a full disk, for one, which name none.

    Raises:
        OSError: as it was, with the file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


@contextmanager
def appearing(path: Path, *, flushed: bool = True) -> Iterator[Path]:
    """A path beside `path` to write a file or a folder to, which takes the place of `path` at the end, whole.

    A crash of the process or the machine leaves what was at `path` before, or all that is new. An exception leaves what
    was there before, and so does a block that writes nothing, or removes what it wrote.

    Args:
        path: its folder is made; what is there is replaced.
        flushed: wait until all is on the disk; False: for what can be made again.

    Raises:
        OSError: it cannot be written; the file is named.
    """
    partial, former = path.with_name(f".{path.name}.partial"), path.with_name(f".{path.name}.former")
    try:
        with naming(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(partial)  # of a process that was killed here
            if former.exists() and not path.exists():  # killed between the two renames
                former.rename(path)
            yield partial
            if not partial.exists():
                return
            if flushed:
                for _ in map_in_threads(flush, partial.rglob("*"), _FLUSHING):
                    pass
                flush(partial)
            if path.is_dir():  # a folder with files in it cannot be renamed over
                _remove(former)
                path.rename(former)
            partial.rename(path)
            _remove(former)
            if flushed:
                flush(path.parent)
    finally:
        _remove(partial)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all, and wait until it is on the disk; raises OSError."""
    with appearing(path) as partial:
        partial.write_bytes(content)


def _remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def lock(file: IO, *, wait: bool = True, shared: bool = False) -> None:
    """Keep others out until a file is closed.

    These locks belong to the open file, as `flock`'s do. But where a folder is served by NFS, `flock` on the server
    does not see who holds it on a client, while these exclude each other.

    Args:
        file: open for writing, and for reading if the lock is shared.
        wait: until whoever holds it lets go.
        shared: only keep those out who want it for themselves.

    Raises:
        BlockingIOError: it is held, and was not to be waited for.
        UserError: the file system has no locks.
    """
    try:
        if not hasattr(fcntl, "F_OFD_SETLK"):  # only Linux has them
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
            return
        kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
        whole_file = struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)  # Linux's `struct flock`
        fcntl.fcntl(file, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, whole_file)
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
        raise UserError(
            f"{Path(file.name).parent} is on a file system without locks ({error.strerror}): mount it with them "
            "(Lustre: -o flock; NFS: version 4, or a lock daemon), or name a folder elsewhere"
        ) from None


def resolved(location: str) -> Path:
    """The absolute path of a location in which ~ is a home; raises UserError if it leads nowhere."""
    try:
        return Path(location).expanduser().resolve()
    except RuntimeError as error:  # there is no such user, or links go round in a circle
        raise UserError(f"{location}: {error} Write ./{location} if it is a name, or name another folder") from None
    except ValueError as error:  # it holds what no file's name can
        raise UserError(f"{location!r} is no name of a folder ({error}): name another one") from None


@contextmanager
def locked(path: Path, busy: str | None = None) -> Iterator[None]:
    """Hold the lock file at `path`, which is removed at the end.

    Args:
        path: its folder is made.
        busy: what is wrong when another process holds it, and what to do; None: wait for it.

    Raises:
        UserError: `busy`, or the file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("w", encoding="utf-8") as file:
            try:
                lock(file, wait=busy is None)
            except BlockingIOError:
                raise UserError(busy) from None
            except UserError:
                path.unlink(missing_ok=True)
                raise
            if not _is_open_at(path, file):
                continue  # who held it has removed it meanwhile
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_open_at(path: Path, file: IO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


@contextmanager
def staging(out: Path) -> Iterator[Path]:
    """An empty folder for one writer at a time, which takes the place of `out` at the end; as `appearing`.

    Raises:
        UserError: another process is writing there, or the file system has no locks.
    """
    busy = f"{out} is being written by another run: wait for it, or name another --out"
    with locked(out.with_name(f".{out.name}.lock"), busy), appearing(out) as folder:
        folder.mkdir()
        yield folder
