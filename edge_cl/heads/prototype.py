"""Nearest class mean, twice: where a class has always been, and where it is now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_cl.bundle import Prior
from edge_cl.heads.base import Head, prior_weights, softmax
from edge_cl.heads.linalg import merged_means
from edge_cl.records import FloatArray


class PrototypeHead(Head):
    """Two prototypes per class: the all-time mean and a fast one that follows recent samples.

    A class scores by its nearer prototype, in units of the running within-class variance of each
    feature. The fast prototype moves only when its own class is labelled, so a class that is not
    seen keeps what it knew.

    Parameters
    ----------
    fast_gain
        Step of the fast prototype, in (0, 1]: 1/30 follows about the last 30 labels of a class.

    Notes
    -----
    O(D) per label, O(C·D) per prediction, 8·C·D + 8·D bytes. Merging is exact for the all-time means and
    the variance; of the fast prototypes, which depend on the order of labels, it takes the average weighed
    by the labels each still remembers (1/fast_gain at most). For the same reason no label can be unlearned.
    Source: Mensink et al. (2013), nearest
    class mean; the class-clocked fast mean is measured in the project's design notes.
    """

    name: ClassVar[str] = "prototype"
    can_merge: ClassVar[bool] = True

    def __init__(self, n_features: int, n_classes: int = 0, *, fast_gain: float = 1 / 30) -> None:
        super().__init__(n_features, n_classes)
        if not 0 < fast_gain <= 1:
            raise ValueError(f"fast_gain is {fast_gain}; allowed: above 0, at most 1")
        self.fast_gain = fast_gain
        self.class_means = np.zeros((n_classes, n_features), dtype=np.float32)
        self.fast_means = np.zeros((n_classes, n_features), dtype=np.float32)
        self.scatter = np.zeros(n_features, dtype=np.float64)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return (
            self.class_means.nbytes + self.fast_means.nbytes + self.scatter.nbytes + self.class_counts.nbytes
        )

    @property
    def bytes_per_class(self) -> int:
        """Bytes that one more class costs."""
        return 8 * self.n_features + 8

    def warm_start(self, prior: Prior, *, strength: float) -> None:
        """Take means and variances from the prior, weighed as `strength` labels per class."""
        self.class_counts = prior_weights(prior, strength)
        self.class_means = prior.class_means.astype(np.float32)
        self.fast_means = self.class_means.copy()
        self.scatter = np.diagonal(prior.shared_cov).astype(np.float64) * self.class_counts.sum()

    def rehearse(self, X: FloatArray, y: NDArray[np.int64]) -> Iterator[None]:
        """Weigh all classes alike in the within-class variance."""
        spread = np.zeros(self.n_features)
        classes = [c for c in np.unique(y) if (y == c).sum() > 1]
        for c in classes:
            spread += X[y == c].var(axis=0, ddof=1, dtype=np.float64) / len(classes)
        if classes:
            self.scatter = spread * self.class_counts.sum()
        yield

    def explain_one(self, x: ArrayLike, n: int = 3) -> dict[str, Any]:
        """The nearest prototypes: ``{"nearest": [{"class", "which": "all-time" or "fast", "distance"}]}``.

        Distances are in within-class deviations over all features; of classes that were seen. O(C·D).
        """
        features = self._checked(x, 1)[None]
        seen = np.flatnonzero(self.class_counts > 0)
        found: list[dict[str, Any]] = [
            {"class": int(c), "which": which, "distance": float(np.sqrt(squared[0, c]))}
            for which, squared in zip(("all-time", "fast"), self._distances(features), strict=True)
            for c in seen
        ]
        return {"nearest": sorted(found, key=lambda one: one["distance"])[: self._checked_n(n)]}

    def _predict(self, X: FloatArray) -> FloatArray:
        logits = -np.minimum(*self._distances(X)) / (2 * np.float32(np.sqrt(self.n_features)))
        return softmax(logits, self.class_counts > 0)

    def _distances(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Squared distances to the all-time and to the fast prototypes, (n, C) each."""
        var = self.scatter / max(self.class_counts.sum(), 1.0)
        inv_var = (1.0 / np.maximum(var, 1e-6 * max(var.mean(), 1e-12))).astype(np.float32)
        scaled = X * np.sqrt(inv_var)
        by_scale = np.sqrt(inv_var)
        return _squared(scaled, self.class_means * by_scale), _squared(scaled, self.fast_means * by_scale)

    def _learn(self, x: FloatArray, y: int) -> None:
        n = self.class_counts[y]
        deviation = x - self.class_means[y]
        self.class_counts[y] = n + 1
        self.class_means[y] += deviation / np.float32(n + 1)
        self.fast_means[y] += np.float32(max(1 / (n + 1), self.fast_gain)) * (x - self.fast_means[y])
        self.scatter += (n / (n + 1)) * deviation.astype(np.float64) ** 2

    def _merge(self, other: PrototypeHead) -> None:
        remembered = (np.minimum(head.class_counts, 1 / self.fast_gain) for head in (self, other))
        mine, theirs = remembered
        fast_means, _ = merged_means(mine, self.fast_means, theirs, other.fast_means)
        means, between = merged_means(
            self.class_counts, self.class_means, other.class_counts, other.class_means
        )
        self.class_means, self.fast_means = means.astype(np.float32), fast_means.astype(np.float32)
        self.scatter = self.scatter + other.scatter + (between**2).sum(axis=0)

    def _grow(self) -> None:
        row = np.zeros((1, self.n_features), dtype=np.float32)
        self.class_means = np.concatenate([self.class_means, row])
        self.fast_means = np.concatenate([self.fast_means, row])

    def _options(self) -> dict[str, Any]:
        return {"fast_gain": self.fast_gain}

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {name: getattr(self, name).copy() for name in ("class_means", "fast_means", "scatter")}
        return arrays, {}

    def _set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        for name, value in arrays.items():
            setattr(self, name, value)


def _squared(X: FloatArray, means: FloatArray) -> FloatArray:
    """Squared distances between rows: (n, D), (C, D) → (n, C); exact differences, no cancellation."""
    distances: FloatArray = ((X[:, None, :] - means[None, :, :]) ** 2).sum(axis=2)
    return distances
