"""Labels that came over MQTT: the broker keeps each one until its receipt is safe."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import msgspec

from edge_cl.errors import SyncError
from edge_cl.records import Label, Receipt
from edge_cl.sync.messages import SHOWN, answers, decode_label

MAX_LABELS = 1_000


class Arrival(NamedTuple):
    """An inbound message; `mid` is its number within connection `session`, 0 when it needs no answer."""

    topic: str
    payload: bytes
    mid: int
    session: int
    retained: bool = False
    redelivered: bool = False


class LabelInbox:
    """Hands labels over and remembers which arrival each receipt settles.

    `poll` may be called from another thread than the rest.

    Parameters
    ----------
    allowed
        Whether labels without a signature are taken at all.
    """

    def __init__(self, *, allowed: bool = True) -> None:
        self._allowed = allowed
        self.n_bad = 0
        self.shown = ""
        """Reading of the last decision that was published on this connection."""
        self.last_learned: Receipt | None = None
        """Of the newest label that came this way and was learned; cleared when it was taken back."""
        self._labels: deque[Label] = deque()
        self._awaiting: list[tuple[Label, Arrival]] = []
        self._settled: list[Arrival] = []

    @property
    def n_settled(self) -> int:
        """Arrivals that may be acknowledged after the next commit."""
        return len(self._settled)

    def poll(self) -> list[Label]:
        """Labels that arrived since the last call."""
        labels = []
        while self._labels:
            labels.append(self._labels.popleft())
        return labels

    def receive(self, arrival: Arrival) -> Receipt | None:
        """Take a label in, or give the receipt that says why not."""
        try:
            label = self._label(arrival)
        except SyncError as error:
            self.n_bad += 1
            self._settled.append(arrival)
            return Receipt(reading_id="", label="", status="refused", source="mqtt", message=str(error))
        self._awaiting.append((label, arrival))
        self._labels.append(label)
        return None

    def settle(self, receipt: Receipt) -> None:
        """The label that `receipt` answers may be acknowledged once the receipt is durable."""
        for waiting in self._awaiting:
            label, arrival = waiting
            if answers(receipt, label):
                self._awaiting.remove(waiting)
                self._settled.append(arrival)
                if receipt.status == "learned":
                    self.last_learned = receipt
                return

    def note_settled(self, arrival: Arrival) -> None:
        """`arrival` may be acknowledged after the next commit."""
        self._settled.append(arrival)

    def take_settled(self, session: int) -> list[int]:
        """Numbers to acknowledge now. A number of an earlier connection may mean another message."""
        mids = [arrival.mid for arrival in self._settled if arrival.mid and arrival.session == session]
        self._settled.clear()
        return mids

    def forget_connection(self) -> None:
        """The connection is gone: the broker will deliver again what was not acknowledged."""
        self._awaiting.clear()
        self._settled.clear()
        self.shown = ""

    def _label(self, arrival: Arrival) -> Label:
        if not self._allowed:
            raise SyncError(
                "label refused: labels without a signature are not allowed here; "
                "see commands.unsigned in the settings"
            )
        if arrival.retained:
            raise SyncError(
                "label refused: it is retained, so every connection would learn it again; send it unretained"
            )
        label = decode_label(arrival.payload)
        if arrival.redelivered and label.reading_id in ("", SHOWN):
            raise SyncError(
                "label refused: it was delivered again and names no reading, "
                "so the newest may not be the one it meant; send it with a reading_id"
            )
        if label.reading_id == SHOWN:
            if not self.shown:
                raise SyncError(
                    "label refused: no decision was published since the connection began; send a reading_id"
                )
            label = msgspec.structs.replace(label, reading_id=self.shown)
        if len(self._labels) >= MAX_LABELS:
            raise SyncError(f"label refused: {MAX_LABELS:,} labels wait already; send it again later")
        return label
