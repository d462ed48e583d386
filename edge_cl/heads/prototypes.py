"""A few running means per class, for classes that look different at different times."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

from edge_cl.records import FloatArray


class SubPrototypes:
    """Online clustering of every class into at most K means; nothing learned is ever dropped.

    A sample is a cluster of one: where there is no free place the two clusters of its class are merged that
    cost least, by Ward's n·m/(n+m)·d². Mostly the sample joins its nearest mean; a sample far from all of
    them makes two old means one instead. Which two old ones are closest is remembered per class and looked
    up afresh at every doubling of its labels, or when a sample seems further away than that.

    Parameters
    ----------
    n_features, n_classes
        D and C.
    n_per_class
        K; 0 keeps nothing, and then nothing can be learned.

    Notes
    -----
    O(K·D) per label, O(K²·D) where two old means may merge. 4·C·K·D + 8·C·(K + 1) bytes. Sources: Ward,
    Hierarchical grouping to optimize an objective function (1963); Zhang et al., BIRCH (1996), for clusters
    kept as counts and means.
    """

    def __init__(self, n_features: int, n_classes: int, n_per_class: int) -> None:
        self.means = np.zeros((n_classes, n_per_class, n_features), dtype=np.float32)
        self.counts = np.zeros((n_classes, n_per_class), dtype=np.float64)
        """Labels of each mean; 0: the place is free, and free places come last."""
        self._least_cost = np.zeros(n_classes, dtype=np.float64)  # of merging two means of the class

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.means.nbytes + self.counts.nbytes + self._least_cost.nbytes

    @staticmethod
    def needed_bytes(n_features: int, n_classes: int, n_per_class: int) -> int:
        """`nbytes` of new ones."""
        return n_classes * (n_per_class * (4 * n_features + 8) + 8)

    def learn_one(self, x: FloatArray, y: int, inv_var: FloatArray) -> None:
        """Learn x (D,) of class y; squared distances are weighed by `inv_var` (D,)."""
        means, counts = self.means[y], self.counts[y]
        apart = means - x
        squared: list[float] = np.dot(apart * apart, inv_var).tolist()
        held: list[float] = [n for n in counts.tolist() if n > 0]
        cost = [n / (n + 1) * d for n, d in zip(held, squared, strict=False)]
        least = min(cost, default=math.inf)
        if len(held) < len(counts) and least > 0:
            means[len(held)], counts[len(held)] = x, 1
            return
        n = int(sum(held))
        if len(held) == len(counts) > 1 and (least > self._least_cost[y] or n & (n - 1) == 0):
            first, second, merged = closest(means, counts, inv_var)
            self._least_cost[y] = merged
            if merged < least:
                absorb(means, counts, first, second)
                means[second], counts[second] = x, 1
                return
        nearest = cost.index(least)
        counts[nearest] += 1
        means[nearest] -= apart[nearest] / np.float32(counts[nearest])

    def moved(self, y: int, means: FloatArray) -> None:
        """Take over other means (k, D) for the k held of class y."""
        self.means[y, : len(means)] = means
        self._least_cost[y] = 0.0

    def merge(self, other: SubPrototypes, inv_var: FloatArray) -> None:
        """Take in the other's means: both sets, merged pair by pair until K are left."""
        n_per_class = self.counts.shape[1]
        for y in range(len(self.counts)):
            means = np.concatenate([self.means[y], other.means[y]])
            counts = np.concatenate([self.counts[y], other.counts[y]])
            means, counts = means[counts > 0], counts[counts > 0]
            while len(counts) > n_per_class:
                first, second, _ = closest(means, counts, inv_var)
                absorb(means, counts, first, second)
                means, counts = np.delete(means, second, axis=0), np.delete(counts, second)
            self.counts[y] = 0
            self.means[y, : len(counts)], self.counts[y, : len(counts)] = means, counts
        self._least_cost.fill(0)

    def start(self, means: FloatArray, counts: NDArray[np.float64]) -> None:
        """Begin with one mean per class: (C, D), worth (C,) labels."""
        self.counts.fill(0)
        self.means[:, :1], self.counts[:, :1] = means[:, None], counts[:, None]

    def grow(self) -> None:
        """Make room for one more class."""
        _, n_per_class, n_features = self.means.shape
        self.means = np.concatenate([self.means, np.zeros((1, n_per_class, n_features), dtype=np.float32)])
        self.counts = np.concatenate([self.counts, np.zeros((1, n_per_class))])
        self._least_cost = np.append(self._least_cost, 0.0)

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `restore` takes back."""
        return {
            "means": self.means.copy(),
            "counts": self.counts.copy(),
            "least_cost": self._least_cost.copy(),
        }

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take back what `state` gave."""
        self.means, self.counts, self._least_cost = arrays["means"], arrays["counts"], arrays["least_cost"]


def closest(means: FloatArray, counts: NDArray[np.float64], inv_var: FloatArray) -> tuple[int, int, float]:
    """The two means, (K, D) of (K,) labels each, that cost least to merge, and Ward's cost; O(K²·D)."""
    first, second = _pairs(len(counts))
    apart = means[first] - means[second]
    n, m = counts[first], counts[second]
    cost = n * m / (n + m) * np.dot(apart * apart, inv_var)
    k = int(cost.argmin())
    return int(first[k]), int(second[k]), float(cost[k])


@cache
def _pairs(n: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.triu_indices(n, 1)


def absorb(means: FloatArray, counts: NDArray[np.float64], first: int, second: int) -> None:
    """Let the first mean stand for the second one's labels, too, in place."""
    counts[first] += counts[second]
    means[first] += np.float32(counts[second] / counts[first]) * (means[second] - means[first])
