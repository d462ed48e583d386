"""What a worker does with what arrives: batches into the store, a word to the devices, one to the broker.

The order is what nothing is lost by: stored first, confirmed to the device second, to the broker last. A
crash anywhere only makes messages come again, and the store takes each id once.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from edge_cl.errors import StoreUnavailable, SyncError
from edge_cl.sync.messages import DURABLE, Ack, Want, encode
from edge_cl_fleet.arrivals import Arrival, Source, Word, read
from edge_cl_fleet.connection import Got, Publish
from edge_cl_fleet.store import FleetStore

BATCH = 2_000
MAX_QUEUED = 50_000
ACK_IDS = 1_000  # about 35 KB, below what a device reads
MAX_TOPICS = 1_000
RETRY_S = (0.5, 30.0)
COUNT_S = 10.0

log = logging.getLogger(__name__)


class Counts(NamedTuple):
    """What came of messages, since this worker started: `bad` by topic, stored ones by kind."""

    stored: int
    batches: int
    events: int
    overflowed: int
    refused: int
    bad: dict[str, int]
    by_kind: dict[str, int]


class Collector:
    """Takes messages on any thread (`received`), stores them on its own.

    Parameters
    ----------
    confirm
        Tells the broker that messages are done with.
    wanted
        Gets the chunks that devices ask for.
    heard
        Gets every batch after it is stored.

    Attributes
    ----------
    alarm
        Why nothing is stored at the moment, or "".
    """

    def __init__(
        self,
        store: FleetStore,
        publish: Publish,
        confirm: Callable[[list[Got]], None],
        *,
        wanted: Callable[[Source, Want], None] = lambda source, want: None,
        heard: Callable[[Sequence[Word]], None] = lambda words: None,
    ) -> None:
        self.alarm = ""
        self._store, self._publish, self._confirm = store, publish, confirm
        self._wanted, self._heard = wanted, heard
        self._waiting: queue.SimpleQueue[tuple[Got, float] | None] = queue.SimpleQueue()
        self._bad: Counter[str] = Counter()
        self._by_kind: Counter[str] = Counter()
        self._n = dict.fromkeys(("stored", "batches", "events", "overflowed"), 0)
        self._fleet, self._count_at_s = 0, 0.0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="fleet-store", daemon=True)

    @property
    def counts(self) -> Counts:
        """What came of messages so far."""
        return Counts(
            **self._n, refused=self._store.n_refused, bad=dict(self._bad), by_kind=dict(self._by_kind)
        )

    def received(self, got: Got) -> None:
        """Take a message; returns at once. Beyond a full queue it is dropped: its device sends it again."""
        if self._waiting.qsize() >= MAX_QUEUED:
            self._n["overflowed"] += 1
            self._confirm([got])
        else:
            self._waiting.put((got, time.time()))

    def start(self) -> None:
        """Begin storing."""
        self._thread.start()

    def supervise(self) -> bool:
        """Start the thread again if it died; true when it had."""
        if self._stopping.is_set() or self._thread.is_alive():
            return False
        self._thread = threading.Thread(target=self._run, name="fleet-store", daemon=True)
        self._thread.start()
        return True

    def stop(self, timeout_s: float = 10.0) -> None:
        """Store what has arrived, if the store is there, and end."""
        self._stopping.set()
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def store(self, arrived: list[tuple[Got, float]]) -> None:
        """Store a batch, confirm it. Raises `StoreUnavailable`: then nothing was stored nor confirmed."""
        words = [word for got, at_s in arrived if (word := self._read(got, at_s)) is not None]
        ids = self._store.insert(words)
        self._confirm_to_devices(words)
        self._confirm([got for got, _ in arrived])
        self._n["stored"] += len(ids)
        self._by_kind.update(_kind(word.row.kind) for word in words if word.row is not None)
        self._n["batches"] += 1
        for word in words:
            if isinstance(word.content, Want) and not word.arrival.retained:
                self._wanted(word.source, word.content)
        self._heard(words)

    def _run(self) -> None:
        while True:
            arrived, ends = self._next_batch()
            if arrived and not self._store_until_done(arrived):
                return
            if ends:
                return

    def _next_batch(self) -> tuple[list[tuple[Got, float]], bool]:
        """What waits, at most so many; waits for the first. True when it is the last."""
        arrived: list[tuple[Got, float]] = []
        try:
            one = self._waiting.get()
            while one is not None:
                arrived.append(one)
                if len(arrived) == BATCH:
                    return arrived, False
                one = self._waiting.get_nowait()
            return arrived, True
        except queue.Empty:
            return arrived, False

    def _store_until_done(self, arrived: list[tuple[Got, float]]) -> bool:
        """Try until it is stored; false when it is to stop first: then the broker gives it to another."""
        wait_s = RETRY_S[0]
        while True:
            try:
                self.store(arrived)
            except StoreUnavailable as error:
                self.alarm = str(error)
                log.error("%s; nothing is confirmed meanwhile, trying again in %.0f s", error, wait_s)
                if self._stopping.wait(wait_s):
                    return False
                wait_s = min(2 * wait_s, RETRY_S[1])
            else:
                self.alarm = ""
                return True

    def _read(self, got: Got, at_s: float) -> Word | None:
        try:
            word = read(Arrival(got.topic, got.payload, at_s, got.retained))
        except SyncError as error:
            topic = (
                got.topic[:200] if got.topic in self._bad or len(self._bad) < MAX_TOPICS else "other topics"
            )
            if not self._bad[topic]:
                log.warning("%s: %s", topic, error)
            self._bad[topic] += 1
            return None
        if word is None:
            self._n["events"] += 1
        return word

    def _confirm_to_devices(self, words: Sequence[Word]) -> None:
        ids: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
        for word in words:
            if word.row is not None:
                ids[word.source.site, word.source.device].append(word.row.id)
        if ids and time.monotonic() > self._count_at_s:
            self._fleet, self._count_at_s = self._store.n_devices(), time.monotonic() + COUNT_S
        for (site, device), stored in ids.items():
            for first in range(0, len(stored), ACK_IDS):
                ack = Ack(ids=stored[first : first + ACK_IDS], fleet=self._fleet)
                self._publish(f"edgecl/1/{site}/{device}/cmd/ack", encode(ack))


def _kind(kind: str) -> str:
    return kind if kind in DURABLE else "other"  # names that a device makes up must not fill the memory
