"""The C heap of a process that runs for months: what was freed goes back to the system.

glibc's ``mallopt`` and ``malloc_trim``; another libc has neither, and nothing is done there.
"""

from __future__ import annotations

import contextlib
import ctypes

MMAP_THRESHOLD = -3, 256 * 1024
ARENA_MAX = -8, 1
"""Options and values for ``mallopt``."""


def return_freed_memory() -> None:
    """Keep large arrays out of the heap, so that freeing one gives its memory back; one heap for all threads.

    glibc raises this threshold by itself at the first large free, and the heap then never shrinks: 6 MB
    on the default bundle. A lower one takes 0.5 MB more off, and 4 % of the speed of learning.
    """
    with contextlib.suppress(OSError, AttributeError):
        for option, value in (MMAP_THRESHOLD, ARENA_MAX):
            ctypes.CDLL(None).mallopt(option, value)


def trim() -> None:
    """Give back what is free within the heap, which a sleep leaves behind: 3 MB on the default bundle."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
