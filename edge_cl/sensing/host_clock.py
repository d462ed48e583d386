"""A sensor's own count on the host's clock.

A sensor that keeps its samples in a buffer of its own knows exactly how far they are apart by its oscillator
(which may be off by some percent), and only the host knows the time, late by whatever else it had to do.
So a second-order loop follows the host: its phase and its rate are pulled towards what each read shows,
critically damped and with a time constant of seconds, and within a read times are a straight line from the
end of the one before. The result rises strictly, in steps that are even to a few percent where reads are
some milliseconds late, and does not drift away.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from edge_cl.records import FloatArray

BANDWIDTH = 0.5
"""Of the loop, radians a second: it settles in about 10 s."""
LOST_S = 0.5
"""Further off than this the count was interrupted; it is anchored anew."""
MOST_OFF = 0.25
"""The sensor's oscillator is taken to be off by no more than this share."""


class HostClock:
    """Times of counted samples.

    Parameters
    ----------
    unit_s
        Seconds from one count to the next, as the sensor's data sheet or settings have it.

    >>> clock = HostClock(0.1)
    >>> clock.times([0, 1], 5.0), clock.times([2, 3], 5.2)
    (array([4.9, 5. ]), array([5.1, 5.2]))
    """

    def __init__(self, unit_s: float) -> None:
        self._nominal_s = self.unit_s = unit_s
        self._count = self._t_s = -math.inf

    def times(self, counts: FloatArray | Sequence[float], now_s: float) -> FloatArray:
        """Of the samples with these rising numbers, of which the last one was the newest at `now_s`."""
        n = np.asarray(counts, np.float64)
        if not len(n):
            return n
        expected_s = (float(n[-1]) - self._count) * self.unit_s
        late_s = now_s - self._t_s - expected_s
        if n[0] <= self._count or not abs(late_s) < LOST_S:
            times: FloatArray = now_s - (n[-1] - n) * self.unit_s
        else:
            end_s = self._t_s + self._follow(expected_s, late_s)
            times = end_s - (n[-1] - n) * ((end_s - self._t_s) / (float(n[-1]) - self._count))
        self._count, self._t_s = float(n[-1]), float(times[-1])
        return times

    def _follow(self, expected_s: float, late_s: float) -> float:
        """Pull phase and rate; how far to go on the host's clock."""
        pull = 1 - math.exp(-2 * BANDWIDTH * expected_s)
        ratio = 1 + pull**2 / 4 * late_s / expected_s
        low, high = (self._nominal_s * (1 + off) for off in (-MOST_OFF, MOST_OFF))
        self.unit_s = min(max(self.unit_s * ratio, low), high)
        return min(max(expected_s + pull * late_s, expected_s / 2), 2 * expected_s)
