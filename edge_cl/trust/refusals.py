"""What readings are not: a small memory of refusals, applied to the answers of whichever head is awake."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from edge_cl.records import FloatArray

CONSTANT = 1e-6
"""A feature that moves less than this part of its size says nothing about distance."""


class Refusals:
    """At most `capacity` pairs of a reading's feature and a class that it is not; the oldest goes first.

    The probability of class c is multiplied by ∏ (1 - k) over the refusals of c; then all are scaled to add
    up to 1. With d the distance to the refused reading, k = 1 - d² / reach² within its reach, 0 beyond: 1 at
    that reading itself, which is never answered with c again. The reach ends at the nearest reading known
    to be a c, so there is no width to tune; a later label "is c" ends it there, too, or takes it back: the
    latest word wins. Distance: the root mean square over features of the difference in deviations.

    Parameters
    ----------
    capacity
        Refusals kept.
    n_features
        Length D of a feature vector.

    Notes
    -----
    An answer costs O(n·D) for n refusals, nothing while there are none. No clock, no chance.
    Why so: docs/decisions/0017-not-this.md.
    """

    def __init__(self, capacity: int, n_features: int) -> None:
        self.capacity = capacity
        self._rows = np.zeros((capacity, n_features), dtype=np.float32)  # oldest first
        self._rows.fill(0)  # so that what is registered is held
        self._classes = np.zeros(capacity, dtype=np.int32)
        self._reaches = np.zeros(capacity, dtype=np.float32)
        self._weights = np.zeros(n_features, dtype=np.float32)  # of differences
        self.n = 0

    @classmethod
    def within(cls, nbytes: int, n_features: int, *, most: int = 256, least: int = 16) -> Self:
        """As many refusals as `nbytes` hold, but `least` at least and `most` at most."""
        return cls(max(least, min(nbytes // cls.row_bytes(n_features), most)), n_features)

    @staticmethod
    def row_bytes(n_features: int) -> int:
        """Bytes that one refusal costs."""
        return 4 * n_features + 8

    @property
    def nbytes(self) -> int:
        """Bytes held, used or not."""
        return self.capacity * self.row_bytes(len(self._weights)) + self._weights.nbytes

    def __call__(self, X: FloatArray, scores: FloatArray) -> FloatArray:
        """Scores (C,) or (n, C) of features X (D,) or (n, D), with refused classes weakened.

        Rows again add up to 1; where nothing is left they are zeros: no answer.
        """
        if not self.n:
            return scores
        if X.ndim == 1:
            return self._weakened(X, scores)
        rows = [self._weakened(x, row) for x, row in zip(X, scores, strict=True)]
        return np.array(rows, dtype=scores.dtype).reshape(scores.shape)

    def add(self, x: FloatArray, c: int, known: FloatArray, typical: FloatArray) -> None:
        """Note that feature x (D,) is not of class c; the oldest refusal goes when there is no room.

        Parameters
        ----------
        known
            (m, D) features known to be of class c: the refusal ends there. With none it reaches only x.
        typical
            (k, D) features of any class; their deviations are the unit of distances from now on.
        """
        self.take_back(x, c)
        if self.n == self.capacity:
            self._keep(np.arange(self.n) > 0)
        self._measure_in(typical)
        self._rows[self.n], self._classes[self.n] = x, c
        self._reaches[self.n] = _distances(known, self._rows[self.n], self._weights).min(initial=np.inf)
        if not np.isfinite(self._reaches[self.n]):
            self._reaches[self.n] = 0
        self.n += 1

    def learn(self, x: FloatArray, c: int) -> None:
        """Somebody says x (D,) is of class c: refusals of c within half their reach go, others end there."""
        of_class = np.flatnonzero(self._classes[: self.n] == c)
        if not len(of_class):
            return
        rows, reaches = self._rows[of_class], self._reaches[of_class]
        far = _distances(rows, np.asarray(x, dtype=np.float32), self._weights)
        self._reaches[of_class] = np.minimum(reaches, far)
        gone = of_class[(far < reaches / 2) | (rows == x).all(axis=1)]
        if len(gone):
            self._keep(~np.isin(np.arange(self.n), gone))

    def holds(self, x: FloatArray, c: int) -> bool:
        """Whether class c is refused for exactly this feature (D,)."""
        return bool(self._same(x, c).any())

    def take_back(self, x: FloatArray, c: int) -> None:
        """Forget that class c is refused for exactly this feature (D,)."""
        same = self._same(x, c)
        if same.any():
            self._keep(~same)

    def state(self) -> dict[str, Any]:
        """Arrays that `restore` takes back; none while nothing is refused."""
        if not self.n:
            return {}
        kept = {"rows": self._rows, "classes": self._classes, "reaches": self._reaches}
        arrays: dict[str, Any] = {name: array[: self.n].copy() for name, array in kept.items()}
        return arrays | {"weights": self._weights.copy()}

    def restore(self, arrays: dict[str, Any]) -> None:
        """Take back what `state` gave, bit for bit; the newest, where there is less room than then."""
        self.n = min(len(arrays.get("classes", ())), self.capacity)
        if self.n:
            self._rows[: self.n] = arrays["rows"][-self.n :]
            self._classes[: self.n] = arrays["classes"][-self.n :]
            self._reaches[: self.n] = arrays["reaches"][-self.n :]
            self._weights[:] = arrays["weights"]

    def _weakened(self, x: FloatArray, scores: FloatArray) -> FloatArray:
        rows, reaches = self._rows[: self.n], self._reaches[: self.n]
        squared = _squared_distances(rows, x, self._weights)
        within = np.square(reaches)
        hit = np.flatnonzero(squared < within)
        only_there = np.flatnonzero(reaches == 0)
        left = np.array(scores, dtype=np.float64)
        if len(hit):
            np.multiply.at(left, self._classes[hit], squared[hit] / within[hit])
        if len(only_there):
            left[self._classes[only_there[(rows[only_there] == x).all(axis=1)]]] = 0
        total = left.sum()
        return (left / total if total > 0 else left).astype(scores.dtype)

    def _measure_in(self, typical: FloatArray) -> None:
        """Weigh differences so that distances are in deviations of `typical` (k, D)."""
        X = np.asarray(typical, dtype=np.float64).reshape(-1, len(self._weights))
        self._weights[:] = 0
        if len(X) > 1:
            variance = X.var(axis=0)
            moves = variance > np.square(CONSTANT * np.abs(X).max(axis=0))
            self._weights[moves] = 1 / np.sqrt(variance[moves] * moves.sum())

    def _same(self, x: FloatArray, c: int) -> NDArray[np.bool_]:
        x = np.asarray(x, dtype=np.float32)
        same: NDArray[np.bool_] = (self._rows[: self.n] == x).all(axis=1) & (self._classes[: self.n] == c)
        return same

    def _keep(self, kept: NDArray[np.bool_]) -> None:
        """Close the gaps between rows (n,) that stay."""
        n = int(kept.sum())
        for array in (self._rows, self._classes, self._reaches):
            array[:n] = array[: self.n][kept]
        self.n = n


def _distances(X: FloatArray, x: FloatArray, weights: FloatArray) -> FloatArray:
    """Of x (D,) from each of X (m, D), weighed: (m,)."""
    X = np.asarray(X, dtype=np.float32).reshape(-1, len(weights))
    distances: FloatArray = np.sqrt(_squared_distances(X, x, weights))
    return distances


def _squared_distances(X: FloatArray, x: FloatArray, weights: FloatArray) -> FloatArray:
    """As `_distances`, squared; infinite where no number holds it."""
    with np.errstate(over="ignore", invalid="ignore"):
        apart = X - x
        apart *= weights
        squared: FloatArray = np.einsum("ij,ij->i", apart, apart)
        return squared
