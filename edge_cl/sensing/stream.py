"""Where readings come from: a recorded file, or standard input as it arrives.

A stream yields `Event`: a `Reading`, a `Label`, or None when nothing has arrived for a moment,
so that the loop can poll for labels and sleep. A line that cannot be used is logged with its
number, counted, and skipped.
"""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Protocol

import numpy as np

from edge_cl.errors import BadReading, SensorUnavailable
from edge_cl.manifest import Manifest
from edge_cl.records import Event, Label, Reading
from edge_cl.sensing.labelling import LabelSchedule, LabelTrack
from edge_cl.sensing.lines import CsvDecoder, Interrupted, Item, JsonDecoder, Labelled, Samples
from edge_cl.sensing.windowing import Windower

MAX_LINE_BYTES = 4 * 1024 * 1024
CHUNK_LINES = 64
CHUNK_BYTES = 8 * 1024
"""Lines are taken together while they are fewer and shorter: long ones hold memory and gain nothing."""
STDIN = 0
TICK_S = 0.05
N_LOGGED = 20

_log = logging.getLogger(__name__)


class Decoder(Protocol):
    """Turns one line into an item, or raises `BadReading`."""

    def decode(self, line: bytes) -> Item | None:
        """One line; None when it holds nothing."""
        ...


class Assembler:
    """Items in, events out: cuts windows, names readings, places labels.

    `n_bad` counts what was dropped, `last_problem` says what the last of it was.
    """

    def __init__(self, manifest: Manifest, labels: LabelSchedule, prefix: str = "") -> None:
        self._labels = labels
        self._prefix = prefix or uuid.uuid4().hex[:8]
        self._windower = Windower(
            rate_hz=manifest.rate_hz,
            window_samples=manifest.window_samples,
            hop_samples=manifest.hop_samples,
            n_channels=manifest.n_channels,
        )
        self._track = LabelTrack(manifest.window_samples / manifest.rate_hz)
        self._n_readings = self._n_bad_items = 0
        self.last_problem = ""

    @property
    def n_bad(self) -> int:
        """Items and samples dropped so far."""
        return self._n_bad_items + self._windower.n_bad

    @property
    def n_gaps(self) -> int:
        """Pauses and clock resets that started a new window."""
        return self._windower.n_gaps + self._windower.n_resets

    def take(self, items: Iterable[Item | BadReading]) -> Iterator[Event]:
        """Events of some items; neighbouring samples are windowed as one block, bad readings are counted."""
        block: list[Samples] = []
        for item in items:
            if isinstance(item, Samples):
                block.append(item)
            elif isinstance(item, BadReading):
                self._n_bad_items += 1
                self._note(f"{item}; skipped")
                if isinstance(item, Interrupted):
                    yield from self._windows(block)
                    block = []
                    self.restart()
            else:
                yield from self._windows(block)
                block = []
                yield from self._ready(item)
        yield from self._windows(block)

    def restart(self) -> None:
        """What comes next has nothing to do with what came before: no window spans the two."""
        self._windower.restart()

    def finish(self) -> Iterator[Event]:
        """Labels still waiting at the end of the stream."""
        yield from self._labels.rest()

    def _windows(self, block: list[Samples]) -> Iterator[Event]:
        if not block:
            return
        n_problems = self._windower.n_bad + self._windower.n_resets
        t_s = np.concatenate([part.t_s for part in block])
        labels = [label for part in block for label in part.labels]
        windows = self._windower.push(t_s, np.concatenate([part.values for part in block]))
        if self._windower.n_bad + self._windower.n_resets > n_problems:
            self._note(str(self._windower.last_bad))
        samples = iter(zip(t_s.tolist(), labels, strict=True)) if any(labels) else iter(())
        for end_s, window in windows:
            self._catch_up(samples, end_s)
            yield from self._reading(end_s, window, self._track.majority(end_s))
        for t, label in samples:
            self._track.add(t, label)

    def _catch_up(self, samples: Iterator[tuple[float, str]], end_s: float) -> None:
        """Note sample labels up to a window's end, one sample beyond it at most."""
        for t, label in samples:
            self._track.add(t, label)
            if t >= end_s:
                return

    def _ready(self, item: Labelled | Label) -> Iterator[Event]:
        if isinstance(item, Label):
            yield item
        else:
            yield from self._reading(item.t_s, item.window, item.label, name=item.id, urgent=item.urgent)

    def _reading(
        self, t_s: float, window: np.ndarray, label: str, *, name: str = "", urgent: bool = False
    ) -> Iterator[Event]:
        name = name or f"{self._prefix}-{self._n_readings}"
        reading = Reading(id=name, t_s=t_s, window=window, urgent=urgent)
        self._n_readings += 1
        yield reading
        yield from self._labels.after(reading, label)

    def _note(self, problem: str) -> None:
        self.last_problem = problem
        if self.n_bad <= N_LOGGED:
            _log.warning("%s", problem)
            if self.n_bad == N_LOGGED:
                _log.warning("further problems are counted but not logged")


class Ahead:
    """Events handed out one looked ahead, so that `more` says whether others are to come."""

    def __init__(self) -> None:
        self.more = False

    def of(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events."""
        event = next(events, None)
        while event is not None:
            after = next(events, None)
            self.more = after is not None
            yield event
            event = after


class LineAssembler(Assembler):
    """Lines in, events out; a problem is named with the number of its line."""

    def __init__(self, manifest: Manifest, decoder: Decoder, labels: LabelSchedule, prefix: str = "") -> None:
        super().__init__(manifest, labels, prefix)
        self._decoder = decoder
        self._n_lines = 0

    def feed(self, lines: Sequence[bytes]) -> Iterator[Event]:
        """Events of a chunk of lines."""
        return self.take(item for item in map(self._decode, lines) if item is not None)

    def _decode(self, line: bytes) -> Item | BadReading | None:
        self._n_lines += 1
        try:
            if len(line) > MAX_LINE_BYTES:
                raise BadReading(f"line longer than {MAX_LINE_BYTES:,} bytes")
            return self._decoder.decode(line)
        except BadReading as problem:
            return BadReading(f"line {self._n_lines}: {problem}")

    def _note(self, problem: str) -> None:
        super()._note(problem if problem.startswith("line ") else f"lines up to {self._n_lines}: {problem}")


class _Lines:
    """What streams of lines have in common: the alarm they never give, what they count."""

    assembler: LineAssembler
    alarm = ""

    @property
    def n_bad(self) -> int:
        """Lines and samples dropped so far."""
        return self.assembler.n_bad

    def stuck_s(self) -> float:
        """Seconds that a driver has not come back for: there is none."""
        return 0.0

    def close(self) -> None:
        """Nothing is held: a pipe is its owner's."""


class FileStream(_Lines):
    """A recorded file, as fast as it can be read or `realtime`: ``.csv``, anything else is JSON lines."""

    def __init__(
        self,
        path: str | Path,
        manifest: Manifest,
        *,
        labels: LabelSchedule | None = None,
        prefix: str = "",
        realtime: bool = False,
    ) -> None:
        self._path = Path(path)
        self._realtime = realtime
        is_csv = self._path.suffix.lower() == ".csv"
        decoder = CsvDecoder(manifest) if is_csv else JsonDecoder(manifest)
        self.assembler = LineAssembler(manifest, decoder, labels or LabelSchedule(), prefix)

    def waiting(self) -> bool:
        """A recording has no hurry."""
        return False

    def __iter__(self) -> Iterator[Event]:
        return paced(self._events()) if self._realtime else self._events()

    def _events(self) -> Iterator[Event]:
        try:
            with self._path.open("rb") as file:
                lines = _lines(file)
                while chunk := list(itertools.islice(lines, CHUNK_LINES)):
                    yield from self.assembler.feed(chunk)
        except OSError as error:
            raise SensorUnavailable(f"{self._path}: cannot read the recording ({error.strerror})") from error
        yield from self.assembler.finish()


class PipeStream(_Lines):
    """JSON lines from standard input (or another pipe), with a tick while nothing arrives."""

    def __init__(
        self,
        manifest: Manifest,
        *,
        file: IO[bytes] | None = None,
        labels: LabelSchedule | None = None,
        prefix: str = "",
    ) -> None:
        # A reader of its own: at exit Python aborts if a thread is still reading from sys.stdin.
        self._file = file or os.fdopen(STDIN, "rb", closefd=False)
        self._lines: queue.Queue[bytes | None] = queue.Queue(maxsize=CHUNK_LINES)
        self._ahead = Ahead()
        self.assembler = LineAssembler(manifest, JsonDecoder(manifest), labels or LabelSchedule(), prefix)

    def waiting(self) -> bool:
        """Whether something has arrived that was not handed out yet."""
        return self._ahead.more or not self._lines.empty()

    def __iter__(self) -> Iterator[Event]:
        threading.Thread(target=self._read, name="edge-cl-stdin", daemon=True).start()
        ended = False
        told_s = time.monotonic()
        while not ended:
            chunk, ended = self._arrived()
            for event in self._ahead.of(self.assembler.feed(chunk)):
                yield event
                told_s = time.monotonic()
            if not ended and time.monotonic() - told_s >= TICK_S:  # also while no line completes a window
                yield None
                told_s = time.monotonic()
        yield from self.assembler.finish()

    def _read(self) -> None:
        try:
            for line in _lines(self._file):
                self._lines.put(line)
        except (OSError, ValueError) as error:
            _log.warning("input stopped: %s", error)
        finally:
            self._lines.put(None)

    def _arrived(self) -> tuple[list[bytes], bool]:
        """What has arrived (waiting at most one tick) and whether the input has ended."""
        chunk: list[bytes] = []
        try:
            line = self._lines.get(timeout=TICK_S)
            room = CHUNK_BYTES
            while line is not None:
                chunk.append(line)
                room -= len(line)
                if len(chunk) == CHUNK_LINES or room <= 0:
                    return chunk, False
                line = self._lines.get_nowait()
            return chunk, True
        except queue.Empty:
            return chunk, False


def open_stream(
    source: str | Path, manifest: Manifest, *, labels: LabelSchedule | None = None, prefix: str = ""
) -> FileStream | PipeStream:
    """The stream for a file, or for standard input when `source` is ``-``."""
    if str(source) == "-":
        return PipeStream(manifest, labels=labels, prefix=prefix)
    return FileStream(source, manifest, labels=labels, prefix=prefix)


def paced(
    events: Iterable[Event],
    *,
    clock: Callable[[], float] = time.monotonic,
    wait: Callable[[float], None] = time.sleep,
) -> Iterator[Event]:
    """Play a recording at its own speed, ticking while it waits.

    A pause or a jump of more than a minute in the recording's clock is not waited for.
    """
    offset_s: float | None = None
    for event in events:
        if isinstance(event, Reading):
            behind_s = 0.0 if offset_s is None else event.t_s - (clock() - offset_s)
            if offset_s is None or abs(behind_s) > 60:
                offset_s = clock() - event.t_s
            while (left_s := event.t_s - (clock() - offset_s)) > 0:
                wait(min(left_s, TICK_S))
                yield None
        yield event


def _lines(file: IO[bytes]) -> Iterator[bytes]:
    """Lines of a binary file; of one that is too long, only as much as shows it."""
    while line := file.readline(MAX_LINE_BYTES + 1):
        rest = line
        while not rest.endswith(b"\n") and len(rest) > MAX_LINE_BYTES:
            rest = file.readline(MAX_LINE_BYTES + 1)
        yield line
