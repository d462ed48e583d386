"""The C heap of a process that runs for months: what was freed goes back to the system.

glibc's ``mallopt`` and ``malloc_trim``; another libc has neither, and nothing is done there.
"""

from __future__ import annotations

import contextlib
import ctypes

MMAP_THRESHOLD = -3, 256 * 1024
ARENA_MAX = -8, 1
"""Option and value for ``mallopt``."""


def return_freed_memory() -> None:
    """Keep large arrays out of the heap, so that freeing one gives its memory back.

    glibc raises this threshold by itself at the first large free, and the heap then never shrinks: 6 MB
    on the default bundle.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(*MMAP_THRESHOLD)
        ctypes.CDLL(None).mallopt(*ARENA_MAX)


def trim() -> None:
    """Give back what is free within the heap, which a sleep leaves behind: 3 MB on the default bundle."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
