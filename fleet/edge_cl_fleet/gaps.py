"""Numbers that are missing in the store, and a request to the device to send them again.

A device sends again by itself what is not confirmed; this finds what it believes delivered and is not here.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence

import msgspec
from sqlalchemy import case, func, select

from edge_cl.sync.messages import Resend, encode
from edge_cl_fleet import tables
from edge_cl_fleet.arrivals import Word
from edge_cl_fleet.connection import Publish
from edge_cl_fleet.database import guarded
from edge_cl_fleet.store import FleetStore

REORDER_S = 20.0
"""Longer than a device waits before it sends again what was not confirmed."""
ASK_S = (60.0, 3600.0)
MAX_RANGES = 200
MAX_WATCHED = 100_000


def find_missing(
    store: FleetStore, site: str, device: str, epoch: str, *, before_s: float, after: int = -1
) -> list[tuple[int, int]]:
    """Inclusive ranges above `after` that were jumped over before `before_s`, less those that are gone.

    What a device sent before its first stored message is not missing: it was another store's.
    """
    messages, gone = tables.messages.c, tables.gone.c
    before = func.lag(messages.seq) if after < 0 else func.lag(messages.seq, 1, after)
    previous = before.over(order_by=messages.seq).label("previous")
    seen = select(messages.seq, previous).where(
        messages.site == site,
        messages.device == device,
        messages.epoch == epoch,
        messages.received_s <= before_s,
        messages.seq > after,
    )
    steps = seen.subquery()
    jumps = (
        select(steps.c.previous, steps.c.seq).where(steps.c.seq > steps.c.previous + 1).order_by(steps.c.seq)
    )
    whose = (gone.site == site, gone.device == device, gone.epoch == epoch, gone.last > after)
    with guarded(store.engine), store.reading.connect() as connection:
        found = [(row.previous + 1, row.seq - 1) for row in connection.execute(jumps)]
        if not found:
            return []
        known = select(gone.first, gone.last).where(*whose).order_by(gone.first)
        given_up = [(row.first, row.last) for row in connection.execute(known)]
        late = select(messages.seq).where(
            messages.site == site,
            messages.device == device,
            messages.epoch == epoch,
            messages.received_s > before_s,
            messages.seq.between(found[0][0], found[-1][1]),
        )
        given_up += [(row.seq, row.seq) for row in connection.execute(late)]
    return subtract(found, sorted(given_up))


def subtract(ranges: list[tuple[int, int]], without: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """What is left of inclusive `ranges`; both sorted by their beginning.

    >>> subtract([(1, 10), (20, 20)], [(3, 4), (9, 15), (20, 21)])
    [(1, 2), (5, 8)]
    """
    left = []
    for first, last in ranges:
        for cut_first, cut_last in without:
            if cut_last < first:
                continue
            if cut_first > last or first > last:
                break
            if cut_first > first:
                left.append((first, cut_first - 1))
            first = cut_last + 1
        if first <= last:
            left.append((first, last))
    return left


class _Watched(msgspec.Struct):
    complete_to: int = -1
    heard: bool = True
    ask_at_s: float = 0.0
    wait_s: float = ASK_S[0]
    asked: list[tuple[int, int]] = []


class GapDuty:
    """Asks each device for what is missing: at most once a minute, more rarely when nothing comes of it.

    Looks only at devices that this worker heard of, and only behind what was complete already.
    """

    def __init__(self, store: FleetStore, *, reorder_s: float = REORDER_S) -> None:
        self.n_asked = 0
        self._store, self._reorder_s = store, reorder_s
        self._watched: dict[tuple[str, str, str], _Watched] = {}
        self._lock = threading.Lock()

    def heard(self, words: Sequence[Word]) -> None:
        """Take note of a stored batch, on the storing thread."""
        keys = {(word.row.site, word.row.device, word.row.epoch) for word in words if word.row is not None}
        with self._lock:
            if len(self._watched) > MAX_WATCHED:
                self._watched.clear()
            first_look_s = time.time() + self._reorder_s  # before, nothing is old enough
            for key in keys:
                self._watched.setdefault(key, _Watched(ask_at_s=first_look_s)).heard = True

    def tick(self, now_s: float, publish: Publish) -> None:
        """Look after those that are due."""
        with self._lock:
            due = [(key, one) for key, one in self._watched.items() if one.heard and now_s >= one.ask_at_s]
        for (site, device, epoch), watched in due:
            self._look(site, device, epoch, watched, now_s, publish)

    def _look(
        self, site: str, device: str, epoch: str, watched: _Watched, now_s: float, publish: Publish
    ) -> None:
        watched.heard = False
        before_s = now_s - self._reorder_s
        missing = find_missing(self._store, site, device, epoch, before_s=before_s, after=watched.complete_to)
        if not missing:
            self._advance(site, device, epoch, watched, before_s)
            watched.ask_at_s, watched.wait_s, watched.asked = now_s + ASK_S[0], ASK_S[0], []
            return
        watched.heard = True  # look again, whether it speaks or not
        watched.complete_to = max(watched.complete_to, missing[0][0] - 1)
        watched.wait_s = min(2 * watched.wait_s, ASK_S[1]) if missing == watched.asked else ASK_S[0]
        watched.ask_at_s, watched.asked = now_s + watched.wait_s, missing
        request = Resend(epoch=epoch, seqs=missing[:MAX_RANGES])
        if publish(f"edgecl/1/{site}/{device}/cmd/resend", encode(request)):
            self.n_asked += 1

    def _advance(self, site: str, device: str, epoch: str, watched: _Watched, before_s: float) -> None:
        """Everything up to the newest old number is here; what came since is looked at the next time."""
        messages = tables.messages.c
        old = case((messages.received_s <= before_s, messages.seq))
        query = select(func.max(old), func.max(messages.seq)).where(
            messages.site == site,
            messages.device == device,
            messages.epoch == epoch,
            messages.seq > watched.complete_to,
        )
        with guarded(self._store.engine), self._store.reading.connect() as connection:
            newest_old, newest = connection.execute(query).one()
        if newest_old is not None:
            watched.complete_to = newest_old
        watched.heard = watched.heard or newest != newest_old
