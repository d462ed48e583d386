"""Card wear: what is written is counted, and when it comes to much, commits and snapshots come less often."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

BLOCK_BYTES = 512
"""Unit in which the kernel counts what a process caused to be written."""
BURST = 1 / 8
"""Share of a day's bytes that may be written as fast as they come; the rest is spread over the day."""
MOST_COMMIT_S = 10.0
"""Commits never come further apart than this, so no receipt waits longer."""
MOST_GROWN = 50
"""Snapshots never come further apart than so many times what is usual: bounds the replay after a stop."""
DAY_S = 86_400.0


def blocks_written() -> int:
    """Bytes that this process has caused to be written to storage so far, by the kernel's count."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_oublock * BLOCK_BYTES


class Wear:
    """Counts bytes written and keeps them to a daily allowance (a token bucket).

    Parameters
    ----------
    daily_bytes
        What may be written in any 24 hours; 0 for as much as comes.
    counter
        Bytes that this process has caused to be written so far.
    clock
        Seconds that never go back.
    """

    def __init__(
        self,
        daily_bytes: float,
        *,
        counter: Callable[[], int] = blocks_written,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rate = daily_bytes * (1 - BURST) / DAY_S
        self._capacity = self._left = daily_bytes * BURST
        self._counter, self._clock = counter, clock
        self._counted, self._at_s = counter(), clock()
        self.written_before = 0
        """Bytes written by earlier runs."""
        self._written = 0

    @property
    def written_bytes(self) -> int:
        """Bytes written ever."""
        self._look()
        return self.written_before + self._written

    def commit_s(self, least_s: float) -> float:
        """How long to wait between two commits: `least_s`, or longer when much has been written."""
        share = self._share_left()
        if share >= 0.5 or least_s >= MOST_COMMIT_S:
            return least_s
        least_s = max(least_s, 0.01)
        return min(float(least_s * (MOST_COMMIT_S / least_s) ** (1 - 2 * share)), MOST_COMMIT_S)

    def snapshot_due(self, grown: int, usual: int, nbytes: int) -> bool:
        """Whether to write a snapshot of `nbytes` when the journal has grown by `grown` entries since the
        last, where `usual` is usual."""
        if grown < usual or grown >= usual * MOST_GROWN:
            return grown >= usual
        return self.affords(nbytes)

    def affords(self, nbytes: int) -> bool:
        """Whether so much may be written now."""
        return not self._capacity or self._share_left() * self._capacity > nbytes

    def _share_left(self) -> float:
        """Of what may be written at once, 0 to 1."""
        if not self._capacity:
            return 1.0
        self._look()
        return max(self._left, 0.0) / self._capacity

    def _look(self) -> None:
        counted, now_s = self._counter(), self._clock()
        written, passed_s = max(counted - self._counted, 0), max(now_s - self._at_s, 0.0)
        self._counted, self._at_s = counted, now_s
        self._written += written
        self._left = min(self._left + passed_s * self._rate, self._capacity) - written
