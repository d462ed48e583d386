"""Features that wait for a label: now, late, or never."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from edge_cl.records import FloatArray


class PendingFeature(NamedTuple):
    """A remembered reading: its feature (D,), the class it was last answered as, its given label."""

    reading_id: str
    feature: FloatArray
    answer: int
    taught: int


class Pending:
    """A ring of the last readings' features, found by reading id.

    Parameters
    ----------
    capacity
        Readings remembered; the oldest is forgotten first.
    n_features
        Length D of a feature vector.

    Notes
    -----
    `add` and `get` cost O(D). Holds 4·D + about 200 bytes per reading.
    """

    def __init__(self, capacity: int, n_features: int) -> None:
        self.capacity = capacity
        self._features = np.zeros((capacity, n_features), dtype=np.float32)
        self._features.fill(0)
        self._answers = np.full(capacity, -1, dtype=np.int32)  # as given when the reading came
        self._current = np.full(capacity, -1, dtype=np.int32)  # as the head would answer now
        self._taught = np.full(capacity, -1, dtype=np.int32)
        self._ids: list[str] = [""] * capacity
        self._slot_of: dict[str, int] = {}
        self._next = 0
        self.newest_id = ""

    @classmethod
    def within(cls, nbytes: int, n_features: int) -> Self:
        """As many readings as `nbytes` hold, but 64 at least and 4,096 at most."""
        return cls(max(64, min(nbytes // cls.row_bytes(n_features), 4096)), n_features)

    @staticmethod
    def row_bytes(n_features: int) -> int:
        """Bytes one remembered reading costs, its id and table entries included."""
        return 4 * n_features + 12 + 8 + 170

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.capacity * self.row_bytes(self._features.shape[1])

    def __len__(self) -> int:
        """Readings remembered now."""
        return len(self._slot_of)

    def add(self, reading_id: str, feature: FloatArray, answer: int) -> None:
        """Remember a reading that was answered with class index `answer` (-1: none)."""
        slot = self._slot_of.pop(reading_id, None)
        if slot is None:
            slot = self._next
            self._next = (slot + 1) % self.capacity
            self._slot_of.pop(self._ids[slot], None)
        self._ids[slot] = self.newest_id = reading_id
        self._slot_of[reading_id] = slot
        self._features[slot] = feature
        self._answers[slot] = self._current[slot] = answer
        self._taught[slot] = -1

    def get(self, reading_id: str) -> PendingFeature | None:
        """The remembered reading, or None when it is unknown or forgotten."""
        slot = self._slot_of.get(reading_id)
        if slot is None:
            return None
        return PendingFeature(
            reading_id, self._features[slot].copy(), int(self._answers[slot]), int(self._taught[slot])
        )

    def mark_taught(self, reading_id: str, class_index: int) -> None:
        """Note what the reading was labelled (-1: nothing that still holds); it stays for `recent`."""
        self._taught[self._slot_of[reading_id]] = class_index

    def recent(self, n: int) -> tuple[list[str], FloatArray, NDArray[np.int32]]:
        """The newest at most `n` readings, oldest first: ids, features (k, D), present answers (k,)."""
        slots = (self._next - min(n, self.capacity) + np.arange(min(n, self.capacity))) % self.capacity
        slots = slots[[self._slot_of.get(self._ids[s]) == s for s in slots]]
        return [self._ids[s] for s in slots], self._features[slots], self._current[slots]

    def set_current(self, ids: list[str], answers: NDArray[np.int64]) -> None:
        """Note how the head would answer the named readings now."""
        for reading_id, answer in zip(ids, answers, strict=True):
            self._current[self._slot_of[reading_id]] = answer

    def set_taught(self, taught: Mapping[str, int]) -> None:
        """By reading id, the class that each has as its label now; the others have none."""
        for reading_id, slot in self._slot_of.items():
            self._taught[slot] = taught.get(reading_id, -1)

    def rename(self, old: Sequence[str], new: Sequence[str]) -> None:
        """Classes have other numbers now: what an index of `old` named is found in `new`, or is unknown."""
        number = {name: k for k, name in enumerate(new)}
        to = np.array([*(number.get(name, -1) for name in old), -1], dtype=np.int32)
        for answers in (self._answers, self._current, self._taught):
            answers[:] = to[answers]
