"""A running standardiser: mean and scale of every feature, from the stream itself."""

from __future__ import annotations

import numpy as np

from edge_cl.heads.linalg import median
from edge_cl.records import FloatArray

OUTLIER = 10.0
"""Standard deviations from the mean beyond which a sample counts as if it were so far."""
INNER, ENOUGH = 7 / 8, 256
"""Part of the rows that tells how far the others may be, and rows that are looked at, about."""
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
        """Take mean and scale from the rows of X (n, D), outliers clipped."""
        X = without_outliers(X)
        self.set_moments(X.mean(axis=0), X.var(axis=0))

    def set_moments(self, mean: FloatArray, var: FloatArray) -> None:
        """Take mean and variance, each (D,)."""
        std = np.sqrt(np.maximum(var, 0.0))
        positive = std[std > 0]
        floor = 1e-3 * float(median(positive)) if len(positive) else 1.0
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


def without_outliers(X: FloatArray) -> FloatArray:
    """X (n, D) in float64 with what is far from the other rows clipped, feature by feature.

    Far is beyond `OUTLIER` root mean squares around the median of the `INNER` part of the rows nearest to it,
    so that one broken reading cannot set the scale. A feature for which that is 0 stays as it is.
    """
    rows = X[:: max(len(X) // ENOUGH, 1)]
    middle = median(rows).astype(np.float64)
    apart = np.sort(np.abs(rows - middle), axis=0)[: int(INNER * len(rows))]
    spread = np.sqrt(np.einsum("nd,nd->d", apart, apart) / max(len(apart), 1))
    reach = np.where(spread > 0, OUTLIER * spread, np.inf)
    return np.clip(X, middle - reach, middle + reach)


class RunningMoments:
    """Mean and variance of every feature over all samples so far, in float64.

    Parameters
    ----------
    n_features
        Length D of a sample. 16·D bytes.

    Notes
    -----
    What a sample adds is clipped at `OUTLIER` standard deviations of the samples before it, the first ones by
    `without_outliers`, so that one broken reading cannot set the scale; a shift that lasts moves it all the
    same. Source: Chan, Golub &
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

    def clipped(self, X: FloatArray) -> FloatArray:
        """X (n, D) in float64 as `add` counts it."""
        if not self.count:
            return without_outliers(X)
        std = np.sqrt(self.var)
        reach = np.where(std > 0, OUTLIER * std, np.inf)  # what was constant may begin to vary
        return np.clip(X, self.mean - reach, self.mean + reach)

    def add(self, X: FloatArray) -> None:
        """Take in samples (n, D), n at least 1."""
        X = self.clipped(X)
        mean = X.mean(axis=0)
        X -= mean
        self.combine(len(X), mean, np.einsum("nd,nd->d", X, X))

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
