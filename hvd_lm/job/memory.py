"""What glibc does with memory that arrays have left."""

from __future__ import annotations

import contextlib
import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Let glibc keep the memory of large arrays that are freed, and hand it out again; nothing where there is no glibc.

    It would give it back to the system, which then clears each page when a new array touches it: a tenth of a training step in
    PyTorch, and most of the time that a checkpoint holds training up in TensorFlow.
    The environment's own settings (MALLOC_..., GLIBC_TUNABLES) win.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)  # what one thread frees serves the others too
        mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def return_freed_memory() -> None:
    """Give what is free within glibc's heap back to the system: after a start, room that training may never need again."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
