"""How the process keeps its memory."""

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation; nothing happens on other systems.

    A training step on the CPU allocates and frees tensors of many megabytes. By default each is mapped afresh, and the
    kernel clears every page of it on first touch: 2.6 million page faults, 20 % of the time, in a step of paper size at
    batch 4. Call once, at the start of a process that trains on the CPU.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        mallopt(_M_TOP_PAD, 2**28)
