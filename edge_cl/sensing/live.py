"""A sensor that is there now: its driver in a thread, its readings in the run loop.

::

    driver's thread:  open ─▶ read ─▶ read … gone ─▶ close, wait ─▶ open …
                               │ blocks of samples; the oldest go when the loop is too slow
    run loop:               windows ─▶ readings; None while nothing comes; alarm; stuck_s()
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np

from edge_cl.errors import BadReading, SensorUnavailable
from edge_cl.manifest import Manifest
from edge_cl.records import Event, Label
from edge_cl.sensing.drivers import Sensor
from edge_cl.sensing.flags import Flags
from edge_cl.sensing.labelling import LabelSchedule
from edge_cl.sensing.lines import Interrupted, Item, Labelled, Samples
from edge_cl.sensing.stream import TICK_S, Ahead, Assembler

QUEUE_BYTES = 1024 * 1024
"""Of samples that wait for the run loop."""
QUEUE_BLOCKS = 1024
USELESS_S = 5.0
"""So long may all that comes be unusable before it is said."""
SILENT_S, SILENT_HOPS = 30.0, 5
"""A sensor that is there and gives nothing for longer, and for so many hops of the bundle, is named."""
SLOW_S = 10.0
"""So long is it said that blocks were dropped."""
STEADY_S = 5.0
"""A sensor that is lost again sooner is waited for ever longer."""
MOST_LABELS = 1_000
JOIN_S = 3.0
"""A driver that hangs is not waited for any longer when the program ends."""

Block: TypeAlias = Sequence[Item | BadReading]
_log = logging.getLogger(__name__)


class Waits(NamedTuple):
    """Shortest and longest wait before a sensor that is gone is opened again, seconds."""

    shortest_s: float = 0.5
    longest_s: float = 30.0


class LiveStream:
    """Readings of a sensor as they come, with a tick while none do; survives that it is unplugged.

    Parameters
    ----------
    make
        Opens the sensor: called in the driver's thread, again and again while it is not there.
    manifest
        Of the bundle that wants its readings.
    name
        Of the driver, for messages.
    queue_bytes
        How much may wait for the run loop; beyond it the oldest is dropped, but for labels that name
        their reading.
    rng
        Draws the waits: each between nothing and a ceiling that doubles (full jitter).

    Attributes
    ----------
    n_unplugged
        How often the sensor was lost after it had been there.
    """

    def __init__(
        self,
        make: Callable[[], Sensor],
        manifest: Manifest,
        *,
        name: str = "sensor",
        labels: LabelSchedule | None = None,
        prefix: str = "",
        waits: Waits = Waits(),  # noqa: B008  immutable
        queue_bytes: int = QUEUE_BYTES,
        rng: random.Random | None = None,
    ) -> None:
        self.assembler = Assembler(manifest, labels or LabelSchedule(), prefix)
        self.n_unplugged = 0
        self._make, self._manifest, self._name, self._waits = make, manifest, name, waits
        self._rng = rng or random.Random()
        self._queue = _Queue(queue_bytes)
        self._ahead = Ahead()
        self._closed = False
        self._closing = threading.Event()
        self._called_s: float | None = None
        self._gone, self._seen, self._useless = "", False, ""
        self._ceiling_s = waits.shortest_s
        self._flags = self._new_flags(None)
        self._failure: BaseException | None = None
        self._dropped = (0, -SLOW_S)
        self._good_s = self._bad_s = self._there_s = time.monotonic()
        self._silent_s = max(SILENT_S, SILENT_HOPS * manifest.hop_samples / manifest.rate_hz)
        self._thread = threading.Thread(target=self._work, name=f"edge-cl-{name}", daemon=True)

    # ------------------------------------------------------------------ for the run loop

    def __iter__(self) -> Iterator[Event]:
        if not self._thread.is_alive() and not self._closed:
            self._thread.start()
        told_s = time.monotonic()
        while not self._closed:
            arrived = self._queue.take(TICK_S)
            if arrived is None and self._failure is not None:
                raise self._failure
            for event in () if arrived is None else self._handed_out(arrived):
                yield event
                told_s = time.monotonic()
            if time.monotonic() - told_s >= TICK_S:  # also while samples come that complete no window
                yield None
                told_s = time.monotonic()

    def waiting(self) -> bool:
        """Whether something has arrived that was not handed out yet."""
        return self._ahead.more or bool(self._queue)

    @property
    def n_bad(self) -> int:
        """Samples, lines, frames that were dropped because they could not be used."""
        return self.assembler.n_bad

    @property
    def n_dropped(self) -> int:
        """Blocks that the loop was too slow for."""
        return self._queue.n_dropped

    @property
    def alarm(self) -> str:
        """What a person should see to, "" when all is well."""
        if self._gone:
            return self._gone
        slow = ""
        if self._bad_s - self._good_s > USELESS_S:
            self._useless = self._useless or self.assembler.last_problem
            return f"{self._name}: nothing that comes can be used ({self._useless})"
        self._useless = ""
        if time.monotonic() - max(self._good_s, self._there_s) > self._silent_s:
            return (
                f"{self._name} is there but gives nothing for more than {self._silent_s:g} s: does it send?"
            )
        if time.monotonic() - self._dropped[1] < SLOW_S:
            slow = (
                f"{self._name} gives more than can be answered, the oldest samples are dropped: "
                "take a bundle with a longer hop or a smaller encoder"
            )
        flags = self._flags.alarm
        return "; ".join(filter(None, [f"{self._name}: {flags}" if flags else "", slow]))

    def stuck_s(self) -> float:
        """Seconds that the driver has not come back for; 0 while it is waited for to be plugged in again."""
        called_s = self._called_s
        return 0.0 if called_s is None else time.monotonic() - called_s

    def close(self) -> None:
        """Let go of the sensor; a driver that hangs is left behind."""
        self._closed = True
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join(JOIN_S)

    def _handed_out(self, arrived: _Arrived) -> Iterator[Event]:
        if arrived.sensor is not None:
            self._flags = self._new_flags(arrived.sensor)
        if arrived.fresh:
            self._good_s = time.monotonic()
            self.assembler.restart()
            self._flags.interrupt()
        if self._queue.n_dropped > self._dropped[0]:
            self._dropped = (self._queue.n_dropped, time.monotonic())
        for item in arrived.items:
            self._flag(item)
        yield from self._ahead.of(self.assembler.take(arrived.items))

    def _flag(self, item: Item | BadReading) -> None:
        n_channels = self._manifest.n_channels
        if isinstance(item, BadReading):
            self._bad_s = time.monotonic()
            if isinstance(item, Interrupted):
                self._flags.interrupt()
            return
        self._good_s = time.monotonic()
        if isinstance(item, Samples) and item.values.shape[1:] == (n_channels,):
            self._flags.note(item.t_s, item.values)
        elif isinstance(item, Labelled):  # only a picture that stands still as a whole is worth a word
            self._flags.note(np.array([item.t_s]), np.full((1, n_channels), item.window.mean()))
            self._flags.interrupt()  # whatever rate windows come at is right

    def _new_flags(self, sensor: Sensor | None) -> Flags:
        names = [channel.name for channel in self._manifest.channels]
        if sensor is None:
            return Flags(names, self._manifest.rate_hz)
        return Flags(names, sensor.rate_hz or self._manifest.rate_hz, sensor.full_scale)

    # ------------------------------------------------------------------ in the driver's thread

    def _work(self) -> None:
        try:
            while not self._closing.is_set():
                self._use()
        except Exception as error:  # noqa: BLE001  a driver is foreign code; raised again in the run loop
            self._failure = error
        finally:
            self._called_s = None

    def _use(self) -> None:
        """Open the sensor as soon as it is there, read until it is gone, close it."""
        sensor = self._open()
        if sensor is None:
            return
        began_s, fresh = time.monotonic(), True
        self._there_s = began_s
        try:
            while not self._closing.is_set():
                block = self._read(sensor)
                self._well(time.monotonic() - began_s)
                if block:
                    self._queue.put(_Arrived(block, fresh, sensor if fresh else None))
                    fresh = False
        except (SensorUnavailable, OSError) as error:
            self.n_unplugged += 1
            self._say(error)
        finally:
            sensor.close()
            self._called_s = None

    def _read(self, sensor: Sensor) -> Block:
        self._called_s = time.monotonic()
        try:
            return sensor.read()
        except BadReading as problem:
            return [problem]

    def _open(self) -> Sensor | None:
        """The sensor, after waits that double up to the longest; None when the program ends."""
        while not self._closing.is_set():
            if self._gone:
                self._closing.wait(self._rng.uniform(0, self._ceiling_s))
                self._ceiling_s = min(2 * self._ceiling_s, self._waits.longest_s)
            try:
                self._called_s = time.monotonic()
                return self._make()
            except (SensorUnavailable, OSError) as error:
                self._say(error)
            finally:
                self._called_s = None
        return None

    def _well(self, for_s: float) -> None:
        """It was read `for_s` seconds after it was opened."""
        if self._gone:
            _log.warning("%s is there again", self._name)
        elif not self._seen:
            _log.info("%s is there", self._name)
        self._gone, self._seen = "", True
        if for_s > STEADY_S:
            self._ceiling_s = self._waits.shortest_s

    def _say(self, error: Exception) -> None:
        if not self._gone:
            state = "gone" if self._seen else "not there"
            _log.warning("%s is %s (%s); trying again", self._name, state, error)
        self._gone = f"{self._name} is not there: {error}"


class _Arrived(NamedTuple):
    """A block; whether nothing before it belongs with it; the sensor, with the first block of it."""

    items: Block
    fresh: bool
    sensor: Sensor | None


class _Queue:
    """Blocks for another thread, bounded by bytes: the oldest go first."""

    def __init__(self, capacity_bytes: int) -> None:
        self.n_dropped = 0
        self._capacity_bytes = capacity_bytes
        self._bytes = 0
        self._blocks: deque[tuple[_Arrived, int]] = deque()
        self._changed = threading.Condition()

    def __bool__(self) -> bool:
        return bool(self._blocks)

    def put(self, arrived: _Arrived) -> None:
        """Never blocks for long."""
        with self._changed:
            size = sum(map(_size, arrived.items))
            self._blocks.append((arrived, size))
            self._bytes += size
            while len(self._blocks) > 1 and (
                self._bytes > self._capacity_bytes or len(self._blocks) > QUEUE_BLOCKS
            ):
                self._drop()
            self._changed.notify()

    def take(self, timeout_s: float) -> _Arrived | None:
        """The oldest block, None when there is none in time."""
        with self._changed:
            if not self._blocks:
                self._changed.wait(timeout_s)
            if not self._blocks:
                return None
            arrived, size = self._blocks.popleft()
            self._bytes -= size
            return arrived

    def _drop(self) -> None:
        """The next block begins anew; labels that name their reading go with it."""
        (oldest, size), (after, after_size) = self._blocks.popleft(), self._blocks.popleft()
        kept = [item for item in oldest.items if isinstance(item, Label) and item.reading_id][-MOST_LABELS:]
        kept_size = sum(map(_size, kept))
        merged = _Arrived([*kept, *after.items], True, after.sensor or oldest.sensor)
        self._blocks.appendleft((merged, after_size + kept_size))
        self._bytes += kept_size - size
        self.n_dropped += 1


def _size(item: Item | BadReading) -> int:
    if isinstance(item, Samples):
        labels = 60 * len(item.labels) if any(item.labels) else 0
        return int(item.values.nbytes + 2 * item.t_s.nbytes + labels) + 500
    return int(item.window.nbytes) if isinstance(item, Labelled) else 500
