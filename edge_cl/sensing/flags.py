"""What is wrong with a sensor, seen in its samples alone: a dead channel, a saturated one, a wrong rate."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from edge_cl.records import FloatArray

CONSTANT_S, CONSTANT_SAMPLES = 5.0, 20
"""A channel that stays exactly the same for longer is dead, unless it is a coarse one."""
COARSE = 10.0
"""A coarse channel may keep a value for so many times as long as it usually does."""
MOST_CONSTANT_S = 600.0
SATURATED, NOT_SATURATED = 0.10, 0.03
"""Share of samples at full scale from which a channel is flagged, and below which it is not any more."""
OFF_RATE, RIGHT_RATE = 0.05, 0.04
"""Likewise for how far the rate is off."""
OTHER_RATE = 0.03
"""So much must it change to be told anew."""
MEASURED_S, MEASURED_SAMPLES = 10.0, 50
"""Over so many seconds is the rate measured, and at least so many samples."""
CLEAR_S = 3.0
"""What was flagged must be well for so long."""
SHARE_S = 2.0
FULL = 1 - 1e-3
"""An integer converter's largest value is a step less than its full scale."""


def held_since(
    t_s: FloatArray, x: FloatArray, last: FloatArray, since_s: FloatArray
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Since when each channel has its last value, and which changed at all.

    Parameters
    ----------
    t_s, x
        (n,) times and (n, n_channels) samples, n ≥ 1.
    last, since_s
        (n_channels,) the sample before them and since when each channel had that value.

    >>> held_since(np.arange(3.0), np.array([[1, 5], [2, 5], [2, 5]]), np.array([1, 5]), np.full(2, -1.0))
    (array([ 1., -1.]), array([ True, False]))
    """
    changed = np.diff(x, axis=0, prepend=last[None]) != 0
    any_changed = changed.any(axis=0)
    newest = len(x) - 1 - np.argmax(changed[::-1], axis=0)
    return np.where(any_changed, np.asarray(t_s, np.float64)[newest], since_s), any_changed


def share_saturated(x: FloatArray, full_scale: FloatArray) -> NDArray[np.float64]:
    """(n_channels,) share of the samples x (n, n_channels) that are as large as the sensor can say."""
    share: NDArray[np.float64] = (np.abs(x) >= FULL * full_scale).mean(axis=0)
    return share


class Flags:
    """Looks at samples as they pass; `alarm` says in plain words what a person should see to.

    Parameters
    ----------
    names
        Of the channels.
    rate_hz
        That the sensor should have.
    full_scale
        (n_channels,) largest magnitudes; None when unknown, then nothing is called saturated.
    """

    def __init__(self, names: Sequence[str], rate_hz: float, full_scale: FloatArray | None = None) -> None:
        self._names, self._rate_hz, self._full_scale = list(names), rate_hz, full_scale
        n = len(self._names)
        self._constant_s = max(CONSTANT_S, CONSTANT_SAMPLES / rate_hz)
        self._measured_s = max(MEASURED_S, MEASURED_SAMPLES / rate_hz)
        self._last: FloatArray | None = None
        self._t_s = 0.0
        self._since_s, self._hold_s = np.zeros(n), np.zeros(n)
        self._share, self._dead = np.zeros(n), np.zeros(n)
        self._counted: deque[tuple[float, int]] = deque()
        self._n = 0
        self._measured_hz = self._said_hz = 0.0
        self._flagged = np.zeros((3, n), np.bool_)
        self._seen_s = np.full((3, n), -np.inf)

    def note(self, t_s: FloatArray, x: FloatArray) -> None:
        """Samples (n, n_channels) came, with their (n,) times; any that are not finite are passed over."""
        fine = np.isfinite(t_s) & np.isfinite(x).all(axis=1)
        t, x = t_s[fine], x[fine]
        if not len(t):
            return
        if self._last is None:
            self._last, self._t_s = x[0], float(t[0])
            self._since_s[:] = t[0]
        if float(t[-1]) < self._t_s:
            return  # a clock that was set back; the windows see to it
        self._note_changes(t, x)
        if self._full_scale is not None:
            weight = 1 - np.exp(-max(float(t[-1]) - self._t_s, 0.0) / SHARE_S)
            self._share += weight * (share_saturated(x, self._full_scale) - self._share)
        self._note_rate(t)
        self._last, self._t_s = x[-1], float(t[-1])
        self._judge()

    def interrupt(self) -> None:
        """Samples are missing before the next ones: the rate is measured anew."""
        self._counted.clear()

    @property
    def alarm(self) -> str:
        """What was found and what to do, "" when all is well; the same words as long as it stays so."""
        constant, saturated, off = self._flagged
        said = []
        if constant.any():
            dead = np.flatnonzero(constant)
            value = f"exactly {self._dead[dead[0]]:g}" if len(dead) == 1 else "the same"
            said.append(
                f"{self._channels(constant)} stays {value} for more than {self._constant_s:g} s: "
                "is a wire loose, or the sensor asleep? check the wiring, then switch its power off and on"
            )
        if saturated.any():
            said.append(
                f"{self._channels(saturated)} is often at the end of its range: "
                "set a larger range in the sensor's options, or look for a short circuit"
            )
        if off.any():
            said.append(
                f"samples come at {self._said_hz:.3g} Hz, expected {self._rate_hz:.4g} Hz: "
                "set the sensor to that rate, or look for lost samples; windows are still right in time"
            )
        return "; ".join(said)

    def _note_changes(self, t: FloatArray, x: FloatArray) -> None:
        assert self._last is not None
        since, changed = held_since(t, x, self._last, self._since_s)
        n_changes = np.maximum((np.diff(x, axis=0, prepend=self._last[None]) != 0).sum(axis=0), 1)
        hold = (since - self._since_s) / n_changes
        self._hold_s = np.where(changed, np.maximum(hold, 0.9 * self._hold_s), self._hold_s)
        self._since_s = since

    def _note_rate(self, t: FloatArray) -> None:
        if not self._counted:
            self._counted.append((float(t[0]), 0))
            self._n = -1
        self._n += len(t)
        if float(t[-1]) - self._counted[-1][0] >= self._measured_s / 20:
            self._counted.append((float(t[-1]), self._n))
        while len(self._counted) > 2 and self._counted[1][0] <= float(t[-1]) - self._measured_s:
            self._counted.popleft()
        (from_s, from_n), (to_s, to_n) = self._counted[0], self._counted[-1]
        if to_s - from_s >= self._measured_s / 2:
            self._measured_hz = (to_n - from_n) / (to_s - from_s)
            if abs(self._measured_hz - self._said_hz) > OTHER_RATE * self._measured_hz:
                self._said_hz = self._measured_hz

    def _judge(self) -> None:
        held_s = self._t_s - self._since_s
        limit_s = np.clip(COARSE * self._hold_s, self._constant_s, MOST_CONSTANT_S)
        off = abs(self._measured_hz / self._rate_hz - 1) if self._measured_hz else 0.0
        was = self._flagged
        now = np.stack(
            [
                held_s > limit_s,
                self._share > np.where(was[1], NOT_SATURATED, SATURATED),
                np.full(len(self._names), off > (RIGHT_RATE if was[2].any() else OFF_RATE)),
            ]
        )
        assert self._last is not None
        self._seen_s[now] = self._t_s
        self._dead = np.where(now[0], self._last, self._dead)
        self._flagged = now | (was & (self._t_s - self._seen_s <= CLEAR_S))

    def _channels(self, which: NDArray[np.bool_]) -> str:
        if which.all() and len(which) > 1:
            return "every channel"
        names = [self._names[c] for c in np.flatnonzero(which)]
        return ("channel " if len(names) == 1 else "each of the channels ") + ", ".join(names)
