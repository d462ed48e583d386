"""Labels that come inside a recording: the window's majority, passed on late or not at all."""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterator

from edge_cl.errors import ConfigError
from edge_cl.records import Label, Reading


class LabelSchedule:
    """Delivers a label for one window in `every`, `delay` readings after that window.

    >>> import numpy as np
    >>> schedule = LabelSchedule(delay=1, every=2)
    >>> for k in range(3):
    ...     reading = Reading(id=f"r{k}", t_s=float(k), window=np.zeros((2, 1)))
    ...     print([label.reading_id for label in schedule.after(reading, "rest")])
    []
    ['r0']
    []
    >>> [label.reading_id for label in schedule.rest()]
    ['r2']
    """

    def __init__(self, *, delay: int = 0, every: int = 1, source: str = "recording") -> None:
        if delay < 0 or every < 1:
            raise ConfigError(f"label delay is {delay} and every {every}; allowed: delay ≥ 0, every ≥ 1")
        self.delay = delay
        self.every = every
        self.source = source
        self._waiting: deque[tuple[int, Label]] = deque()
        self._n_readings = 0
        self._n_known = 0

    def after(self, reading: Reading, label: str = "") -> Iterator[Label]:
        """Note what `reading` was ("": nobody knows) and give the labels that are due now."""
        if label:
            if self._n_known % self.every == 0:
                due = self._n_readings + self.delay
                said = Label(label=label, reading_id=reading.id, source=self.source, t_s=reading.t_s)
                self._waiting.append((due, said))
            self._n_known += 1
        while self._waiting and self._waiting[0][0] <= self._n_readings:
            yield self._waiting.popleft()[1]
        self._n_readings += 1

    def rest(self) -> Iterator[Label]:
        """The labels still waiting when the recording ends."""
        while self._waiting:
            yield self._waiting.popleft()[1]


class LabelTrack:
    """Remembers labels of recent samples, so that a window can ask for its majority."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._samples: deque[tuple[float, str]] = deque()

    def add(self, t_s: float, label: str) -> None:
        """One sample was `label` ("": not labelled) at `t_s`; a clock set back forgets the rest."""
        if not math.isfinite(t_s):
            return
        if self._samples and t_s < self._samples[-1][0] - self._window_s:
            self._samples.clear()
        self._samples.append((t_s, label))
        self._forget(t_s - 10 * (self._window_s + 1))

    def majority(self, end_s: float) -> str:
        """The commonest label of the window that ends at `end_s`; forgets what is older."""
        self._forget(end_s - self._window_s)
        counts = Counter(label for t, label in self._samples if t <= end_s and label)
        return counts.most_common(1)[0][0] if counts else ""

    def _forget(self, before_s: float) -> None:
        while self._samples and self._samples[0][0] < before_s:
            self._samples.popleft()
