"""A running standardiser: mean and scale of every feature, from the stream itself."""

from __future__ import annotations

import numpy as np

from edge_cl.records import FloatArray

OUTLIER = 10.0
"""Standard deviations from the mean beyond which a sample counts as if it were so far."""
CLIP = 5.0
"""Standardised features are clipped here: one outlier must not own a dot product."""
LEAST, MOST = np.array(-CLIP, dtype=np.float32), np.array(CLIP, dtype=np.float32)


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
        return self.into(X, np.empty(X.shape, dtype=np.float32))

    def into(self, X: FloatArray, z: FloatArray) -> FloatArray:
        """The same, written into z of the shape of X; returns z."""
        np.subtract(X, self.mean, out=z)
        z *= self.inv_std
        np.maximum(z, LEAST, out=z)  # two calls: np.clip takes longer on one sample
        np.minimum(z, MOST, out=z)
        return z


class RunningMoments:
    """Mean and variance of every feature over all samples so far, in float64.

    Parameters
    ----------
    n_features
        Length D of a sample. 16·D bytes.

    Notes
    -----
    What a sample adds is clipped at `OUTLIER` standard deviations of the samples before it, so that one
    broken reading cannot set the scale; a shift that lasts moves it all the same. Source: Chan, Golub &
    LeVeque, updating formulae for sample variances (1979).
    """

    def __init__(self, n_features: int) -> None:
        self.count = 0.0
        self.mean = np.zeros(n_features)
        self.scatter = np.zeros(n_features)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.mean.nbytes + self.scatter.nbytes

    @property
    def var(self) -> FloatArray:
        """Variance (D,), 0 before the first sample."""
        return self.scatter / max(self.count, 1.0)

    def add(self, X: FloatArray) -> None:
        """Take in samples (n, D) float32, n at least 1."""
        centre = self.mean.astype(np.float32) if self.count else X[0]
        deviations = X - centre  # small numbers, so that float32 will do until they are summed
        if self.count:
            std = np.sqrt(self.var).astype(np.float32)
            reach = np.where(std > 0, OUTLIER * std, np.inf)  # what was constant may begin to vary
            np.maximum(deviations, -reach, out=deviations)
            np.minimum(deviations, reach, out=deviations)
        mean = deviations.mean(axis=0)
        deviations -= mean
        scatter = np.einsum("nd,nd->d", deviations, deviations)
        self.combine(len(X), centre.astype(np.float64) + mean, scatter.astype(np.float64))

    def combine(self, count: float, mean: FloatArray, scatter: FloatArray) -> None:
        """Take in `count` samples by their mean (D,) and sum of squared deviations from it (D,)."""
        total = self.count + count
        delta = mean - self.mean
        self.scatter = self.scatter + scatter + delta**2 * (self.count * count / max(total, 1.0))
        self.mean = self.mean + delta * (count / max(total, 1.0))
        self.count = float(total)


class ScaleChange:
    """The linear map A that turns a design vector [1, z] of one standardiser into another's.

    Exact where neither clips. A is a scaling (d,) plus a first column (d,), d = D + 1, and is never formed.
    """

    def __init__(self, old: Standardiser, new: Standardiser) -> None:
        self.factor = np.append(1.0, new.inv_std.astype(np.float64) / old.inv_std)
        self.shift = np.append(0.0, (old.mean.astype(np.float64) - new.mean) * new.inv_std)

    def targets(self, sums: FloatArray) -> FloatArray:
        """Sums of design times target: S (d, C) → A S."""
        changed: FloatArray = self.factor[:, None] * sums + np.outer(self.shift, sums[0])
        return changed

    def information(self, sums: FloatArray) -> FloatArray:
        """Sums of design times design: S (d, d) → A S Aᵀ."""
        return self.targets(self.targets(sums).T).T

    def weights(self, weights: FloatArray) -> FloatArray:
        """Weights that give the same outputs: W (d, C) → A⁻ᵀ W."""
        changed: FloatArray = weights / self.factor[:, None]
        changed[0] -= self.shift @ changed
        return changed
