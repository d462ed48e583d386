"""Where each class is and how far its samples scatter, feature by feature, one sample at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_cl.bundle import Prior
from edge_cl.heads.linalg import median
from edge_cl.records import FloatArray


class ClassSpread:
    """Running class means and the scatter of each feature within the classes; the head has the counts.

    Within a class, since a feature that separates the classes well has a large spread over all of them.
    """

    def __init__(self, n_features: int, n_classes: int) -> None:
        self.class_means = np.zeros((n_classes, n_features), dtype=np.float32)
        self.scatter = np.zeros(n_features, dtype=np.float64)

    @staticmethod
    def needed_bytes(n_features: int, n_classes: int) -> int:
        """`nbytes` of a new one."""
        return 4 * n_classes * n_features + 8 * n_features

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.class_means.nbytes + self.scatter.nbytes

    def start(self, prior: Prior, counts: NDArray[np.float64]) -> None:
        """Begin with a prior's means and variances, weighed as `counts` (C,) labels."""
        self.class_means = prior.class_means.astype(np.float32)
        self.scatter = np.diagonal(prior.shared_cov).astype(np.float64) * counts.sum()

    def learn_one(self, x: FloatArray, y: int, n: float) -> None:
        """Learn x (D,) of class y, of which `n` were learned before (Welford)."""
        deviation = x.astype(np.float64) - self.class_means[y]
        self.class_means[y] += (deviation / (n + 1)).astype(np.float32)
        self.scatter += (n / (n + 1)) * deviation**2

    def forget_one(self, x: FloatArray, y: int, n: float) -> None:
        """Take back what `learn_one` did; n includes x."""
        if n <= 1:
            self.class_means[y] = 0
            return
        deviation = x - self.class_means[y].astype(np.float64)
        self.class_means[y] -= (deviation / (n - 1)).astype(np.float32)
        self.scatter = np.maximum(self.scatter - (n / (n - 1)) * deviation**2, 0.0)

    def scale(self, counts: NDArray[np.float64]) -> tuple[FloatArray, FloatArray]:
        """Centre of the classes and inverse deviation of each feature, both (D,) float32.

        A feature that never varied within a class gets a thousandth of the typical deviation.
        """
        seen = counts > 0
        centre = (
            self.class_means[seen].mean(axis=0) if seen.any() else np.zeros(len(self.scatter), np.float32)
        )
        std = np.sqrt(self.scatter / max(counts.sum() - seen.sum(), 1.0))
        positive = std[std > 0]
        floor = 1e-3 * float(median(positive)) if len(positive) else 1.0
        return centre, (1.0 / np.maximum(std, floor)).astype(np.float32)

    def grow(self) -> None:
        """Make room for one more class."""
        row = np.zeros((1, len(self.scatter)), dtype=np.float32)
        self.class_means = np.concatenate([self.class_means, row])

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `restore` takes back."""
        return {"class_means": self.class_means.copy(), "scatter": self.scatter.copy()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take back what `state` gave."""
        self.class_means, self.scatter = arrays["class_means"], arrays["scatter"]
