"""Which snapshots and which part of the journal are kept."""

from __future__ import annotations

from pathlib import Path

from edge_cl.state.journal import Journal
from edge_cl.state.snapshots import Snapshots
from edge_cl.state.timeline import Timeline

NEWEST = 2
"""Snapshots that are never dropped: the newest that can be built upon."""
EXTRA = 3
"""Older snapshots kept beside them, about evenly spaced on a logarithmic scale of age."""


class Retention:
    """Decides what goes: snapshots nobody needs, then the beginning of the journal.

    Parameters
    ----------
    history_bytes
        What the journal may hold. When it holds more, it is cut off at the oldest snapshot: labels before it
        cannot be forgotten one by one any more, but what they taught stays.
    extra
        Older snapshots to keep.
    """

    def __init__(self, history_bytes: int, extra: int = EXTRA) -> None:
        self.history_bytes = history_bytes
        self.extra = extra

    def tidy(self, journal: Journal, snapshots: Snapshots, timeline: Timeline) -> None:
        """After a snapshot: keep to the limits."""
        while self._spare(journal, snapshots, timeline, self.extra):
            pass
        if journal.nbytes > self.history_bytes:
            self._cut(journal, snapshots, timeline)

    def give(self, journal: Journal, snapshots: Snapshots, timeline: Timeline) -> bool:
        """The disk budget is full: drop the least useful thing; False when nothing can go."""
        return self._spare(journal, snapshots, timeline, 0) or self._cut(journal, snapshots, timeline)

    def _spare(self, journal: Journal, snapshots: Snapshots, timeline: Timeline, n_kept: int) -> bool:
        """Drop one snapshot, when more than `n_kept` are kept beside the newest."""
        line, stranded = _sorted(journal, snapshots, timeline)
        older = list(line)[:-NEWEST]
        if len(older) + len(stranded) <= n_kept:
            return False
        if len(stranded) > 1 or (stranded and not older):
            victim = next(iter(stranded.values()))
        else:
            needed = older[:1] if journal.first_seq > 1 else []  # the journal goes back no further than it
            seq = _least_useful([*older, list(line)[-NEWEST]], journal.last_seq, needed)
            if seq is None:
                if not stranded:
                    return False
                victim = next(iter(stranded.values()))
            else:
                victim = line[seq]
        snapshots.delete(victim)
        return True

    def _cut(self, journal: Journal, snapshots: Snapshots, timeline: Timeline) -> bool:
        """Let the journal begin after the oldest snapshot that lets it begin later than now."""
        line, stranded = _sorted(journal, snapshots, timeline)
        base = next((seq for seq in list(line)[: 1 - NEWEST] if seq >= journal.first_seq), None)
        if base is None or len(line) < NEWEST:
            return False
        journal.prune(base)
        for seq, path in (line | stranded).items():
            if seq < base:
                snapshots.delete(path)
        return True


def _sorted(
    journal: Journal, snapshots: Snapshots, timeline: Timeline
) -> tuple[dict[int, Path], dict[int, Path]]:
    """Snapshots that can be built upon now, and others, each oldest first."""
    line: dict[int, Path] = {}
    stranded: dict[int, Path] = {}
    for seq, path in snapshots.paths().items():
        reaches = seq + 1 >= journal.first_seq and timeline.leads_to(seq, journal.last_seq)
        (line if reaches else stranded)[seq] = path
    return line, stranded


def _least_useful(seqs: list[int], last: int, needed: list[int]) -> int | None:
    """Of ascending snapshots but the last, the one whose neighbours in age are the closest."""
    ages = [last + 1, *(last + 1 - seq for seq in seqs)]
    ratios = {seq: ages[k] / max(ages[k + 2], 1) for k, seq in enumerate(seqs[:-1]) if seq not in needed}
    return min(ratios, key=lambda seq: ratios[seq], default=None)
