"""What a sleep offers a head: remembered exemplars, decoded when asked for, in the order a sampler chose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_cl.records import FloatArray


class Sampler(Protocol):
    """Which exemplars to rehearse; rows are indices into `Exemplars.y`.

    Pure: the same question has the same answer, so that a sleep can be repeated or taken up again.
    """

    def select(self, n: int) -> NDArray[np.int64]:
        """At most n different rows, most wanted first, for heads that learn each exemplar once."""
        ...

    def batch(self, step: int, size: int) -> NDArray[np.int64]:
        """The rows (size,) of optimisation step `step`, from 0; a row may come again and again."""
        ...


class Exemplars(msgspec.Struct, frozen=True, eq=False):
    """Remembered exemplars of one sleep; nobody changes them while it lasts.

    Attributes
    ----------
    y
        (n,) int64 classes.
    features
        Rows (k,) int64 to decoded features (k, D) float32.
    sampler
        Which rows to take, and in which order.
    n_steps
        Optimisation steps allowed, for heads that learn by steps.
    """

    y: NDArray[np.int64]
    features: Callable[[NDArray[np.int64]], FloatArray]
    sampler: Sampler
    n_steps: int

    @classmethod
    def of(cls, X: FloatArray, y: NDArray[np.int64], *, n_steps: int = 100, seed: int = 0) -> Self:
        """All of X (n, D), y (n,), in order; batches are drawn at random."""
        features = np.asarray(X, dtype=np.float32)
        return cls(
            np.asarray(y, dtype=np.int64), lambda rows: features[rows], _InOrder(len(y), seed), n_steps
        )

    def selected(self, n: int) -> tuple[FloatArray, NDArray[np.int64]]:
        """Features (k, D) and classes (k,) of the at most n rows that the sampler selects."""
        rows = self.sampler.select(n)
        return self.features(rows), self.y[rows]


class _InOrder:
    def __init__(self, n: int, seed: int) -> None:
        self._n, self._seed = n, seed

    def select(self, n: int) -> NDArray[np.int64]:
        return np.arange(min(n, self._n), dtype=np.int64)

    def batch(self, step: int, size: int) -> NDArray[np.int64]:
        return np.random.default_rng([self._seed, step]).integers(self._n, size=size)
