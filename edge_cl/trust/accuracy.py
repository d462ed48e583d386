"""Prequential accuracy: every label is first an exam question, then a lesson."""

from __future__ import annotations

import collections


class PrequentialAccuracy:
    """Share of right answers over the last `window` labels, as answered when the reading came."""

    def __init__(self, window: int = 200) -> None:
        self._hits: collections.deque[bool] = collections.deque(maxlen=window)

    def update(self, correct: bool) -> None:
        """Count one labelled reading."""
        self._hits.append(correct)

    def restart(self) -> None:
        """What was counted is of a head that is no more."""
        self._hits.clear()

    @property
    def full(self) -> bool:
        """Whether the window is full, so that `value` can be compared with an earlier one."""
        return len(self._hits) == self._hits.maxlen

    @property
    def value(self) -> float | None:
        """Accuracy in [0, 1], None before the first label."""
        return sum(self._hits) / len(self._hits) if self._hits else None
