"""Samples that a sender numbered or timed itself, or did neither, on the host's clock."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import numpy as np

from edge_cl.errors import BadReading
from edge_cl.records import FloatArray
from edge_cl.sensing.host_clock import HostClock
from edge_cl.sensing.lines import Item, Labelled, Samples

Found: TypeAlias = list[Item | BadReading]


class Clocks:
    """Places samples in time: counted ones, and those that bring their own time."""

    def __init__(self, rate_hz: float) -> None:
        self._counted, self._timed = HostClock(1 / rate_hz), HostClock(1.0)
        self._n = 0

    def place(self, items: Found, now_s: float) -> Found:
        """The items with host times; neighbouring samples become one block."""
        placed: Found = []
        run: list[Samples] = []
        for item in items:
            if isinstance(item, Samples):
                run.append(item)
                continue
            placed += self._block(run, now_s)
            run = []
            placed.append(self._window(item, now_s) if isinstance(item, Labelled) else item)
        return placed + self._block(run, now_s)

    def count(self, first: FloatArray, now_s: float) -> FloatArray:
        """Host times of samples with these numbers of the sender's."""
        return self._counted.times(first, now_s)

    def _window(self, item: Labelled, now_s: float) -> Labelled:
        return msgspec.structs.replace(item, t_s=float(self._timed.times([item.t_s], now_s)[0]))

    def _block(self, run: Sequence[Samples], now_s: float) -> Found:
        if not run:
            return []
        t_s = np.concatenate([part.t_s for part in run])
        if np.isnan(t_s).any():  # none, or not all, brought a time
            times = self._counted.times(np.arange(self._n, self._n + len(t_s), dtype=np.float64), now_s)
            self._n += len(t_s)
        else:
            times = _rising(self._timed, t_s, now_s)
        labels = [label for part in run for label in part.labels]
        return [Samples(times, np.concatenate([part.values for part in run]), labels)]


def _rising(clock: HostClock, t_s: FloatArray, now_s: float) -> FloatArray:
    """Host times of a sender's own times, as far as those rise; the others are left to be dropped."""
    newest = np.maximum.accumulate(np.concatenate([[-np.inf], t_s]))[:-1]
    rises = (t_s > newest) & np.isfinite(t_s)
    times = np.full(len(t_s), -np.inf)
    times[rises] = clock.times(t_s[rises], now_s)
    return np.where(rises, times, np.nan)
