"""A few trusted labels of every class that are never rehearsed: the exam that no flood can change."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.memory.codecs import Float16
from edge_cl.records import FloatArray

CAPACITY, PER_CLASS = 256, 16
"""Features pinned at most: in all, and of one class."""


class Pinned:
    """Features of trusted labels that the memory holds back, as many of every class, spread over all time.

    Classes share the room; when one comes, each gives its last ones up. Of each class it is a uniform sample
    of what was offered (Vitter's algorithm R), drawn by the numbers of class and offer alone.

    Parameters
    ----------
    n_features
        Length D of a feature vector.
    capacity
        Features held at most.

    Notes
    -----
    Holds (2·D + 16)·capacity bytes whatever it has; half of them for the copy that a sleep is judged by.
    """

    def __init__(self, n_features: int, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._codec = Float16(n_features)
        self._rows: dict[int, list[NDArray[np.float16]]] = {}
        self._n_offered: dict[int, int] = {}

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return 2 * self.capacity * (self._codec.row_bytes + 8)

    @property
    def per_class(self) -> int:
        """Features of one class, at most."""
        return min(PER_CLASS, self.capacity // max(len(self._rows), 1))

    def add(self, x: FloatArray, y: int) -> None:
        """Offer x (D,) of a trusted label of class y that will never be rehearsed."""
        if y not in self._rows:
            self._rows[y], self._n_offered[y] = [], 0
            for rows in self._rows.values():
                del rows[self.per_class :]
        rows, n = self._rows[y], self._n_offered[y]
        self._n_offered[y] = n + 1
        if len(rows) < self.per_class:
            rows.append(self._codec.encode(x))
            return
        row = int(np.random.default_rng((y, n)).integers(n + 1))
        if row < len(rows):
            rows[row] = self._codec.encode(x)

    def exam(self) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        """A copy of what is pinned now: X (n, D) and classes (n,)."""
        rows = [row for of_class in self._rows.values() for row in of_class]
        y = np.repeat(list(self._rows), [len(of_class) for of_class in self._rows.values()])
        X = np.array(rows, dtype=np.float16).reshape(len(rows), self._codec.n_features)
        return X, y.astype(np.int64)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Arrays and JSON values that `restore` takes back."""
        X, y = self.exam()
        return {"rows": X, "y": y}, {"n_offered": list(self._n_offered.items())}

    def restore(self, arrays: dict[str, NDArray[Any]], meta: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._n_offered = {int(c): int(n) for c, n in meta["n_offered"]}
        self._rows = {c: [] for c in self._n_offered}
        for row, c in zip(arrays["rows"], arrays["y"].tolist(), strict=True):
            self._rows[c].append(np.array(row))
