"""A running standardiser: mean and scale of every feature, from the stream itself."""

from __future__ import annotations

import numpy as np

from edge_cl.records import FloatArray

CLIP = 5.0
"""Standardised features are clipped here: one outlier must not own a dot product."""


class Standardiser:
    """Mean and inverse standard deviation per feature.

    A feature that never varies gets the scale of a thousandth of the typical feature, so that it
    neither explodes nor matters.
    """

    def __init__(self, n_features: int) -> None:
        self.mean = np.zeros(n_features, dtype=np.float32)
        self.inv_std = np.ones(n_features, dtype=np.float32)

    @staticmethod
    def needed_bytes(n_features: int) -> int:
        """`nbytes` of a new one."""
        return 8 * n_features

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.mean.nbytes + self.inv_std.nbytes

    def refit(self, X: FloatArray) -> None:
        """Take mean and scale from the rows of X (n, D)."""
        self.set_moments(X.mean(axis=0, dtype=np.float64), X.var(axis=0, dtype=np.float64))

    def set_moments(self, mean: FloatArray, var: FloatArray) -> None:
        """Take mean and variance, each (D,)."""
        std = np.sqrt(np.maximum(var, 0.0))
        positive = std[std > 0]
        floor = 1e-3 * float(np.median(positive)) if len(positive) else 1.0
        self.mean = mean.astype(np.float32)
        self.inv_std = (1.0 / np.maximum(std, floor)).astype(np.float32)

    def __call__(self, X: FloatArray) -> FloatArray:
        """(n, D) → standardised and clipped, float32."""
        z: FloatArray = (X - self.mean) * self.inv_std
        return np.clip(z, -CLIP, CLIP, out=z)
