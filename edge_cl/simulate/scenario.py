"""A story for a device: readings in order, what they truly are, and who says so, when, or never."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import ConfigError
from edge_cl.records import Event, FloatArray, Label, Reading
from edge_cl.simulate import wrist


class Due(msgspec.Struct, frozen=True, order=True):
    """The label of window `index` arrives right after window `after`."""

    after: int
    index: int


class Mark(msgspec.Struct, frozen=True):
    """Something happens at window `index`; with a `pause` the world is quiet before it."""

    index: int
    text: str
    pause: bool = False


class Exam(msgspec.Struct, frozen=True):
    """Held-out windows of one condition: never streamed, never learned from."""

    condition: str
    windows: FloatArray
    truth: list[str]


class Scenario(msgspec.Struct, frozen=True, kw_only=True):
    """One stream for one device.

    Attributes
    ----------
    windows, t_s
        (n, window_samples, n_channels) and (n,), in the order they arrive.
    truth
        What each window is; the device only hears of those in `labels`.
    recording
        (n,) which recording each window was cut from, or empty.
    """

    name: str
    windows: FloatArray
    t_s: FloatArray
    truth: list[str]
    labels: list[Due]
    marks: list[Mark] = []
    exams: list[Exam] = []
    recording: list[int] = []

    def events(self, *, pause_s: float = 0.0, wait: Callable[[float], None] = time.sleep) -> Iterator[Event]:
        """The stream, readings named by their index; in a pause it ticks for `pause_s`."""
        due = defaultdict(list)
        for label in self.labels:
            due[label.after].append(label.index)
        pauses = {mark.index for mark in self.marks if mark.pause}
        for k, window in enumerate(self.windows):
            if k in pauses:
                yield from _quiet(pause_s, wait)
            yield Reading(id=str(k), t_s=float(self.t_s[k]), window=window)
            for index in due[k]:
                yield Label(label=self.truth[index], reading_id=str(index), source="somebody")


class LabelPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Who gets a label and when: a share of the windows, half of them soon, half late, the rest never."""

    share: float = 0.25
    soon: tuple[int, int] = (1, 5)
    late: tuple[int, int] = (20, 120)

    def draw(self, n: int, rng: np.random.Generator) -> list[Due]:
        """Labels for `n` windows in order of arrival; those due after the end never come."""
        chosen = np.flatnonzero(rng.random(n) < self.share)
        is_late = rng.random(len(chosen)) < 0.5
        delays = np.where(
            is_late, rng.integers(*self.late, len(chosen)), rng.integers(*self.soon, len(chosen))
        )
        return sorted(Due(int(k + d), int(k)) for k, d in zip(chosen, delays, strict=True) if k + d < n)


def labels_every(n: int, *, every: int, delay: int) -> list[Due]:
    """One label in `every` windows, `delay` windows late."""
    return [Due(k + delay, k) for k in range(0, n - delay, every)]


PHASES = (
    ("somebody like the source people", 0.15),
    ("new person", 0.3),
    ("sensor knocked", 0.3),
    ("new class: washing", 0.25),
)


def demo(seed: int = 0, *, n_windows: int = 4000, policy: LabelPolicy | None = None) -> Scenario:
    """The scripted day: a familiar person, a new one, a knock to the sensor, an activity never seen.

    Each change comes after a pause in which nothing happens. One exam per condition.
    """
    if n_windows < 100:
        raise ConfigError(f"the demo was asked for {n_windows} windows; it needs 100 or more")
    rng = np.random.default_rng([seed, 2])
    familiar, newcomer = wrist.person(rng, spread=0.8), wrist.person(rng, spread=2.0, left_handed=True)
    mount = wrist.knock(rng, turn_rad=1.3)
    known, everything = list(wrist.SOURCE_ACTIVITIES), list(wrist.ACTIVITIES)
    cast = [
        (familiar, wrist.STRAIGHT, known),
        (newcomer, wrist.STRAIGHT, known),
        (newcomer, mount, known),
        (newcomer, mount, everything),
    ]
    windows, truth, marks, exams = [], list[str](), list[Mark](), list[Exam]()
    for (text, share), (who, worn, does) in zip(PHASES, cast, strict=True):
        marks.append(Mark(len(truth), text, pause=bool(marks)))
        seen, said = wrist.bouts(who, does, math.ceil(share * n_windows), rng, mount=worn)
        windows.append(seen)
        truth += said
        exams.append(Exam(text, *wrist.bouts(who, does, max(n_windows // 12, 50), rng, mount=worn)))
    X = np.concatenate(windows)
    return Scenario(
        name="demo",
        windows=X,
        t_s=_clock(len(X), marks),
        truth=truth,
        labels=(policy or LabelPolicy()).draw(len(X), rng),
        marks=marks,
        exams=exams,
    )


def majority(names: Sequence[str]) -> str:
    """The commonest name; the first to come wins a tie."""
    return max(dict.fromkeys(names), key=list(names).count)


def _clock(n: int, marks: list[Mark]) -> NDArray[np.float64]:
    """Window end times with an hour's rest before each mark that pauses."""
    hop_s = wrist.HOP_SAMPLES / wrist.RATE_HZ
    steps = np.full(n, hop_s)
    steps[[mark.index for mark in marks if mark.pause]] += 3600
    return np.cumsum(steps)


def _quiet(pause_s: float, wait: Callable[[float], None]) -> Iterator[None]:
    end_s = time.monotonic() + pause_s
    while time.monotonic() < end_s:
        wait(0.005)
        yield None
