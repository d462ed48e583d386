"""A day of a sensor in some minutes, in a process of its own: ``python -m bench.day BUNDLE STATE [HOURS]``.

A driver gives a simulated wrist's samples as fast as the device answers them, in times of its own clock.
Spread over the day it is unplugged 50 times, and its clock is set forward two hours and back three. Every
window that reaches the device is compared with the samples of its time, bit for bit up to rounding, and one
in 60 is labelled. Prints JSON:

``growth_mb``        resident memory at the end less that after the first hour, each the least of an hour; of
                     the last six the least, since what a sleep leaves free goes back after the next one
``highest_mb``       the highest such hour less the first
``windows``          that reached the device, and ``expected``: those that fit between the interruptions
``wrong_times``      of them, windows whose samples are not those of the time they bear
``unplugged``        how often the driver was lost and opened again
``labels, sleeps``   learned and slept meanwhile
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from edge_cl.bundle import Bundle
from edge_cl.cli import heap
from edge_cl.errors import SensorUnavailable
from edge_cl.learner import Learner
from edge_cl.manifest import Manifest
from edge_cl.records import Answer, Event, FloatArray, Label, Reading, SleepReport
from edge_cl.sensing.lines import Item, Samples
from edge_cl.sensing.live import LiveStream, Waits
from edge_cl.simulate import wrist

HOUR_S = 3600
BLOCK_S = 60
N_UNPLUGGED = 50
GAP_S = 5
JUMPS_S = (0.0, 7200.0, -3600.0)
"""How far the sensor's clock is from true time in the three thirds of the day."""
LABEL_EVERY = 60


class Day:
    """What the sensor felt, and when it was there; `at` is the next sample's number."""

    def __init__(self, manifest: Manifest, hours: float, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.rate_hz = int(manifest.rate_hz)
        self.names = list(wrist.SOURCE_ACTIVITIES)
        self.bout = 60 * self.rate_hz
        who = wrist.person(rng)
        felt = [wrist.signal(who, name, self.bout, rng) for name in self.names * 3]
        self._felt = np.concatenate(felt).astype(np.float32)
        self.n_samples = int(hours * HOUR_S) * self.rate_hz
        self.at = 0
        thirds = [self.n_samples * k // 3 for k in (1, 2)]
        unplugged = np.linspace(0, self.n_samples, N_UNPLUGGED + 2)[1:-1].astype(int).tolist()
        self.cuts = sorted({*thirds, *unplugged})
        self.unplugs = set(unplugged)
        self._thirds = thirds

    def samples(self, first: int, n: int) -> FloatArray:
        """(n, n_channels) from this number on."""
        return self._felt[np.arange(first, first + n) % len(self._felt)]

    def activity(self, sample: int) -> str:
        """What was done at it."""
        return self.names[sample // self.bout % len(self.names)]

    def offset_s(self, sample: int) -> float:
        """How far the sensor's clock was off at it."""
        return JUMPS_S[sum(sample >= third for third in self._thirds)]

    def expected(self, manifest: Manifest) -> int:
        """Windows between the interruptions."""
        gap = GAP_S * self.rate_hz
        starts = [0, *(cut + gap if cut in self.unplugs else cut for cut in self.cuts)]
        ends = [*self.cuts, self.n_samples]
        lengths = (end - start for start, end in zip(starts, ends, strict=True))
        return sum(
            (length - manifest.window_samples) // manifest.hop_samples + 1
            for length in lengths
            if length >= manifest.window_samples
        )


class DaySensor:
    """A driver that gives a day as fast as it is taken, and is lost now and then."""

    full_scale = None

    def __init__(self, day: Day, stream: list[LiveStream]) -> None:
        self._day, self._stream = day, stream[0]
        self.rate_hz = float(day.rate_hz)

    def read(self) -> list[Item]:
        """A minute, or what is left until the next interruption, once the last one was taken."""
        while self._stream.waiting():
            time.sleep(0.0005)
        day = self._day
        if day.at in day.unplugs:
            day.unplugs.discard(day.at)
            day.at += GAP_S * day.rate_hz
            raise SensorUnavailable("the sensor was unplugged")
        if day.at >= day.n_samples:
            time.sleep(0.05)
            return []
        ends = (cut for cut in [*day.cuts, day.n_samples] if cut > day.at)
        n = min(BLOCK_S * day.rate_hz, next(ends) - day.at)
        t_s = np.arange(day.at, day.at + n) / day.rate_hz + day.offset_s(day.at)
        found = Samples(t_s, day.samples(day.at, n), [""] * n)
        day.at += n
        return [found]

    def close(self) -> None:
        """Nothing is held."""


class Watcher:
    """The day's events, each reading compared with what was felt then; memory by the hour."""

    def __init__(self, day: Day, manifest: Manifest, expected: int) -> None:
        self.n = self.wrong = 0
        self.least: dict[int, int] = {}
        self._day, self._manifest, self._expected = day, manifest, expected

    def events(self, stream: LiveStream) -> Iterator[Event]:
        """Until the day is over."""
        for event in stream:
            yield event
            if isinstance(event, Reading):
                yield from self._seen(event)
            elif self.n >= self._expected or (self._day.at >= self._day.n_samples and not stream.waiting()):
                return

    def _seen(self, reading: Reading) -> Iterator[Label]:
        self.n += 1
        rate_hz, n = self._day.rate_hz, self._manifest.window_samples
        lasts = [round((reading.t_s - off) * rate_hz) for off in JUMPS_S]
        right = [last for last, off in zip(lasts, JUMPS_S, strict=True) if self._day.offset_s(last) == off]
        rows = [self._day.samples(last - n + 1, n) for last in right if 0 <= last < self._day.n_samples]
        if not any(np.allclose(reading.window, row, atol=1e-4) for row in rows):
            self.wrong += 1
        if self.n % 20 == 0:
            hour = self._day.at // (HOUR_S * rate_hz)
            self.least[hour] = min(_resident_kb(), self.least.get(hour, sys.maxsize))
        if right and self.n % LABEL_EVERY == 0:
            yield Label(label=self._day.activity(right[0]), reading_id=reading.id, source="bench")


def measure(path: str, state: Path, hours: float) -> dict[str, float]:
    """The figures of a day of `hours`, at least 3."""
    heap.return_freed_memory()
    bundle = Bundle.load(path)
    day = Day(bundle.manifest, hours)
    expected = day.expected(bundle.manifest)
    watcher = Watcher(day, bundle.manifest, expected)
    streams: list[LiveStream] = []
    stream = LiveStream(
        lambda: DaySensor(day, streams), bundle.manifest, name="replay", waits=Waits(0.001, 0.01)
    )
    streams.append(stream)
    began_s = time.monotonic()
    with Learner.from_bundle(bundle, state_dir=state) as learner:
        learner.run(watcher.events(stream), (), [_trim], busy=stream.waiting)
        found = learner.status()
    stream.close()
    by_hour = [watcher.least[hour] / 1024 for hour in sorted(watcher.least)][1:-1]
    return {
        "growth_mb": round(min(by_hour[-6:]) - by_hour[0], 2),
        "highest_mb": round(max(by_hour) - by_hour[0], 2),
        "resident_mb": round(by_hour[-1], 1),
        "hours": hours,
        "windows": watcher.n,
        "expected": expected,
        "wrong_times": watcher.wrong,
        "unplugged": stream.n_unplugged,
        "labels": found.n_labels,
        "sleeps": found.n_sleeps,
        "seconds": round(time.monotonic() - began_s, 1),
    }


def _trim(answer: Answer) -> None:
    """As `edge-cl run` does."""
    if isinstance(answer, SleepReport):
        heap.trim()


def _resident_kb() -> int:
    with Path("/proc/self/status").open() as status:
        line = next(itertools.dropwhile(lambda line: not line.startswith("VmRSS:"), status))
    return int(line.split()[1])


if __name__ == "__main__":
    hours = float(sys.argv[3]) if len(sys.argv) > 3 else 26.0
    sys.stdout.write(msgspec.json.encode(measure(sys.argv[1], Path(sys.argv[2]), hours)).decode() + "\n")
