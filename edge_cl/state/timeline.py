"""Which entries of a journal count, when some of them take others back: pure functions of numbers."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence

import msgspec

from edge_cl.errors import StateCorrupt
from edge_cl.state.entries import Entry

Ranges = list[tuple[int, int]]
"""First and last entry, both included; ascending, apart."""


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What a ``forget`` or ``hold`` took out, by first and last entry, and why."""

    ranges: list[tuple[int, int]]
    what: str = ""


class Back(msgspec.Struct, frozen=True, kw_only=True):
    """What a ``rollback`` returned to."""

    to: int
    why: str = ""


class Timeline:
    """The entries that count at any moment of a journal.

    An entry counts when no rollback left it behind and nothing took it out. What was taken out never comes
    back, whatever is rolled back to. A snapshot of a moment may be built upon when the entries that counted
    then are the beginning of those that count now.

    Parameters
    ----------
    revisions
        Every ``forget``, ``hold`` and ``rollback`` of the journal, in order.

    Raises
    ------
    StateCorrupt
        One of them cannot be read.
    """

    def __init__(self, revisions: Iterable[Entry] = ()) -> None:
        self._rollbacks: list[tuple[int, int]] = []
        self._taken: list[tuple[int, Ranges]] = []
        self._forgotten: list[Ranges] = []
        for entry in revisions:
            try:
                self._add(entry)
            except msgspec.MsgspecError as error:
                raise StateCorrupt(f"journal entry {entry.seq:,} is damaged ({error})") from error

    def _add(self, entry: Entry) -> None:
        if entry.kind == "rollback":
            self._rollbacks.append((entry.seq, msgspec.json.decode(entry.detail, type=Back).to))
            return
        ranges = msgspec.json.decode(entry.detail, type=Taken).ranges
        self._taken.append((entry.seq, ranges))
        if entry.kind == "forget":
            self._forgotten.append(ranges)

    def at(self, seq: int) -> Ranges:
        """The entries up to `seq` that counted when it was written, and have not been taken out since."""
        return without(self._line(seq), union(taken for _, taken in self._taken))

    def noted(self, seq: int) -> Ranges:
        """As `at`, with what is held back for a review: that is not learned, but not forgotten either."""
        return without(self._line(seq), union(self._forgotten))

    def leads_to(self, seq: int, last: int) -> bool:
        """Whether a snapshot at `seq` is a beginning of what counts at `last`."""
        if self._line(seq) != clipped(self._line(last), seq):
            return False
        return not self.tainted(seq)

    def tainted(self, seq: int) -> bool:
        """Whether a snapshot at `seq` holds something that was taken out later."""
        later = union(taken for when, taken in self._taken if when > seq)
        if not overlap(self._line(seq), later):
            return False
        known = without(self._line(seq), union(taken for when, taken in self._taken if when <= seq))
        return overlap(known, later)

    def _line(self, seq: int) -> Ranges:
        """What counted at `seq`, with what has been taken out."""
        lines: list[Ranges] = [[(1, 2**62)]]
        for when, to in self._rollbacks:
            if when > seq:
                break
            earlier = sum(past <= to for past, _ in self._rollbacks[: len(lines) - 1])
            lines.append([*clipped(lines[earlier], to), (when + 1, 2**62)])
        return clipped(lines[-1], seq)


def clipped(ranges: Ranges, last: int) -> Ranges:
    """What is not after `last`."""
    return [(a, min(b, last)) for a, b in ranges if a <= last]


def without(ranges: Ranges, taken: Sequence[tuple[int, int]]) -> Ranges:
    """What is not in `taken`; both ascending."""
    left: Ranges = []
    i = 0
    for a, b in ranges:
        while i < len(taken) and taken[i][1] < a:
            i += 1
        while i < len(taken) and taken[i][0] <= b:
            first, last = taken[i]
            if first > a:
                left.append((a, first - 1))
            a = last + 1
            if last >= b:  # it may reach into the next range, too
                break
            i += 1
        if a <= b:
            left.append((a, b))
    return left


def union(parts: Iterable[Sequence[tuple[int, int]]]) -> Ranges:
    """What is in one of them at least, ascending and apart; one pass, however many there are."""
    found: Ranges = []
    for first, last in sorted(pair for part in parts for pair in part):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return found


def overlap(ranges: Ranges, others: Sequence[tuple[int, int]]) -> bool:
    """Whether an entry is in both; both ascending."""
    i = 0
    for a, b in ranges:
        while i < len(others) and others[i][1] < a:
            i += 1
        if i < len(others) and others[i][0] <= b:
            return True
    return False


def holds(ranges: Ranges, seq: int) -> bool:
    """Whether entry `seq` is in it."""
    i = bisect.bisect_right(ranges, (seq, 2**62))
    return i > 0 and ranges[i - 1][1] >= seq


def ranges_of(seqs: Iterable[int]) -> Ranges:
    """Numbers, in ascending order, as ranges."""
    ranges: Ranges = []
    for seq in seqs:
        if ranges and seq == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], seq)
        else:
            ranges.append((seq, seq))
    return ranges
