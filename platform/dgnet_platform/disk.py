"""What has to outlive a crash of the machine, and who may touch it meanwhile."""

import fcntl
import os
import struct
from pathlib import Path
from typing import IO

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
