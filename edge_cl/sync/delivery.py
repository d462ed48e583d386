"""Which message of the outbox goes out now: windows, confirmations, sending again. Pure; the clock is passed
in.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice, pairwise

import msgspec

from edge_cl.sync.outbox import Outbox
from edge_cl.sync.outbox_rows import Row

WINDOW = 16
"""Messages with paho that the broker has not acknowledged: it ignores its own limit when it reconnects."""
UNCONFIRMED = 128
"""Messages that the broker has, perhaps, and a server has not confirmed."""
WINDOW_BYTES = 256 * 1024
RESEND_S = 15.0
LONGEST_RESEND_S = 300.0
ASKED_AT_ONCE = 2_000
"""Messages that a server's request makes due, so that the answer fits into a message; the rest it asks again.
"""
RANGES_AT_ONCE = 1_000


class _Sent(msgspec.Struct):
    row_id: str
    nbytes: int
    due_s: float
    wait_s: float
    first_s: float


class Delivery:
    """Hands out rows within the windows, again when no confirmation comes, and removes the confirmed ones.

    Parameters
    ----------
    by_server
        Whether a server's word removes a message, or already the broker's acknowledgement.
    """

    def __init__(self, outbox: Outbox, *, by_server: bool) -> None:
        self._outbox = outbox
        self._by_server = by_server
        self._inflight: dict[int, int | None] = {}
        self._sent: dict[int, _Sent] = {}
        self._by_id: dict[str, int] = {}
        self.n_acknowledged = self.n_confirmed = self.n_resent = 0
        self.most_in_flight = 0

    @property
    def n_in_flight(self) -> int:
        """Messages that the broker has not acknowledged, those outside the outbox included."""
        return len(self._inflight)

    @property
    def n_unconfirmed(self) -> int:
        """Messages of the outbox that were sent on this connection and wait for the server's word."""
        return len(self._sent)

    def waits_since_s(self) -> float | None:
        """When the longest waiting unconfirmed message was first sent on this connection."""
        return min((sent.first_s for sent in self._sent.values()), default=None)

    @property
    def room(self) -> int:
        """How many more messages may be handed to paho."""
        return WINDOW - len(self._inflight)

    def restart(self) -> None:
        """A new connection: nobody knows what arrived."""
        self._inflight.clear()
        self._sent.clear()
        self._by_id.clear()
        self._outbox.rewind()

    def due(self, now_s: float) -> Iterator[Row]:
        """Rows to send now; each must be sent, and `sent` called, before the next is asked for."""
        for seq, sent in list(self._sent.items()):
            if self.room < 1:
                return
            if sent.due_s <= now_s and seq not in self._inflight.values():
                row = self._outbox.row(seq)
                if row is None:
                    self._drop(seq)
                    continue
                sent.wait_s = min(2 * sent.wait_s, LONGEST_RESEND_S)
                self.n_resent += 1
                yield row
        n, nbytes = min(self.room, UNCONFIRMED - len(self._sent)), WINDOW_BYTES - self._bytes()
        if n > 0 and nbytes > 0:
            yield from (row for row in self._outbox.ready(n, nbytes) if row.seq not in self._sent)

    def sent(self, mid: int, row: Row | None, now_s: float) -> None:
        """`row`, or a message outside the outbox, was handed to paho under number `mid`."""
        self._inflight[mid] = None if row is None else row.seq
        self.most_in_flight = max(self.most_in_flight, len(self._inflight))
        if row is not None:
            sent = self._sent.setdefault(row.seq, _Sent(row.id, row.nbytes, 0.0, RESEND_S, now_s))
            sent.due_s = now_s + sent.wait_s
            self._by_id[row.id] = row.seq

    def next_due_s(self) -> float | None:
        """When something has to be sent again; what the broker has not acknowledged waits for it."""
        flying = set(self._inflight.values())
        return min((sent.due_s for seq, sent in self._sent.items() if seq not in flying), default=None)

    def flies(self, mid: int) -> bool:
        """True until the broker has acknowledged message `mid`."""
        return mid in self._inflight

    def acknowledged(self, mid: int, *, refused: bool = False) -> None:
        """The broker has it or, `refused`, does not take it: then it is sent again later."""
        if mid not in self._inflight:
            return
        seq = self._inflight.pop(mid)
        self.n_acknowledged += not refused
        if seq is not None and not refused and not self._by_server:
            self._finish(seq)

    def confirmed(self, ids: Iterable[str]) -> None:
        """A server has stored these; others' ids are ignored."""
        for row_id in ids:
            seq = self._by_id.get(row_id)
            if seq is not None:
                self._finish(seq)

    def hurry(self, at_s: float) -> None:
        """A server came back: send again at `at_s` what it has not confirmed."""
        for sent in self._sent.values():
            sent.due_s, sent.wait_s = min(sent.due_s, at_s), RESEND_S

    def resend(self, ranges: Iterable[tuple[int, int]], now_s: float) -> list[tuple[int, int]]:
        """Make these numbers due, `ASKED_AT_ONCE` at most; gives the ranges of those that will never come."""
        gone: list[tuple[int, int]] = []
        left = ASKED_AT_ONCE
        for first, last in islice(ranges, RANGES_AT_ONCE):
            first, last = max(first, 1), min(last, self._outbox.seq)
            held = self._outbox.held(first, last, left) if left and first <= last else None
            if held is None:
                continue
            for seq in held:
                if seq in self._sent:
                    self._sent[seq].due_s = min(self._sent[seq].due_s, now_s)
            left -= len(held)
            ends = [*held, last + 1] if left else held  # beyond the last of too many nobody looked
            gone += [(a + 1, b - 1) for a, b in pairwise([first - 1, *ends]) if b > a + 1]
        return gone

    def _bytes(self) -> int:
        flying = set(self._inflight.values())
        return sum(sent.nbytes for seq, sent in self._sent.items() if seq in flying)

    def _finish(self, seq: int) -> None:
        row = self._outbox.row(seq)
        if row is not None:
            self._outbox.done(row)
        self.n_confirmed += 1
        self._drop(seq)

    def _drop(self, seq: int) -> None:
        sent = self._sent.pop(seq, None)
        if sent is not None:
            self._by_id.pop(sent.row_id, None)
