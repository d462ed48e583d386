"""Fast local memory: a Gaussian process over the last few labels' residuals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.records import FloatArray

LENGTH_SCALE = 0.3
"""Kernel exp(-|z - z'|² / (2 · LENGTH_SCALE · D)); flat within a point from 0.25 to 0.5."""
DECAY = 0.98
"""Per label of distance in time; flat within a point from 0.98 to 0.995."""
OBS_NOISE_VAR = 0.1
REINVERT_EVERY = 2048
"""Labels between two exact float64 inversions, so that rounding never accumulates."""


class FastMemory:
    """Predicts what the slow memory gets wrong near recent samples; zero far from them.

    Kernel k(x, x') = exp(-|z - z'|² / (2·0.3·D)) · 0.98^|t - t'|: an Ornstein-Uhlenbeck process that
    reverts to the slow memory in time and away from what was recently seen.

    Parameters
    ----------
    window
        Samples W held in a ring.
    n_features, n_classes
        D and C.

    Notes
    -----
    Predict O(W·D + W² + W·C), learn O(W² + W·C): a sample is dropped from and added to the inverse by
    rank-one updates. 4·(W·2D + W² + 2·W·C) bytes. Source: Gaussian process regression with a rolling
    window (Van Vaerenbergh et al., sliding-window kernel RLS, 2006).
    """

    def __init__(self, window: int, n_features: int, n_classes: int) -> None:
        self.window = window
        self._raw = np.zeros((window, n_features), dtype=np.float32)
        self._z = np.zeros((window, n_features), dtype=np.float32)
        self._time = np.full(window, -np.inf)
        self._classes = np.full(window, -1, dtype=np.int32)
        self._residuals = np.zeros((window, n_classes), dtype=np.float32)
        self._inverse = np.eye(window, dtype=np.float32) / np.float32(1 + OBS_NOISE_VAR)
        self._alpha = np.zeros((window, n_classes), dtype=np.float32)
        self._scale = np.float32(-1 / (2 * LENGTH_SCALE * n_features))
        self._now = 0

    @staticmethod
    def needed_bytes(window: int, n_features: int, n_classes: int) -> int:
        """`nbytes` of a new one."""
        return window * (8 * n_features + 4 * window + 8 * n_classes + 12)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = (self._raw, self._z, self._time, self._classes, self._residuals, self._inverse, self._alpha)
        return sum(a.nbytes for a in arrays)

    def predict(self, z: FloatArray) -> FloatArray:
        """Expected residuals of standardised features: (n, D) → (n, C)."""
        prediction: FloatArray = self._kernel(z, self._now) @ self._alpha
        return prediction

    def learn_one(self, x: FloatArray, z: FloatArray, y: int, residual: FloatArray) -> None:
        """Replace the oldest sample by raw x (D,), standardised z (D,), class y, residual (C,)."""
        slot = self._now % self.window
        self._drop(slot)
        self._raw[slot], self._z[slot], self._classes[slot] = x, z, y
        self._residuals[slot], self._time[slot] = residual, -np.inf
        self._add(slot)
        self._time[slot] = self._now
        self._now += 1
        if self._now % REINVERT_EVERY == 0:
            self._reinvert()

    def samples(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """Raw features (n, D) and classes (n,) held now, in slot order."""
        n = min(self._now, self.window)
        return self._raw[:n], self._classes[:n].astype(np.int64)

    def reseed(self, z: FloatArray, residuals: FloatArray) -> None:
        """Replace the standardised features (n, D) and residuals (n, C) of `samples`."""
        self._z[: len(z)], self._residuals[: len(z)] = z, residuals
        self._reinvert()

    def grow(self) -> None:
        """Make room for one more class."""
        column = np.zeros((self.window, 1), dtype=np.float32)
        self._residuals = np.concatenate([self._residuals, column], axis=1)
        self._alpha = np.concatenate([self._alpha, column], axis=1)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values that `restore` takes back."""
        names = ("raw", "z", "time", "classes", "residuals", "inverse", "alpha")
        return {name: getattr(self, f"_{name}").copy() for name in names}, {"now": self._now}

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        for name, value in arrays.items():
            setattr(self, f"_{name}", value)
        self._now = meta["now"]

    def _kernel(self, z: FloatArray, now: float) -> FloatArray:
        """Covariances between rows of z (n, D) at time `now` and the window: (n, W)."""
        squared: FloatArray = np.einsum("wd,wd->w", self._z, self._z) - 2 * (z @ self._z.T)
        squared += np.einsum("nd,nd->n", z, z)[:, None]
        np.maximum(squared, 0, out=squared)
        squared *= self._scale
        np.exp(squared, out=squared)
        squared *= (DECAY ** (now - self._time)).astype(np.float32)
        return squared

    def _drop(self, slot: int) -> None:
        """Take one sample out of the inverse: K −= b bᵀ / b_j, and its weights with it."""
        column = self._inverse[:, slot].copy()
        pivot = column[slot]
        self._alpha -= np.outer(column, self._alpha[slot] / pivot)
        self._inverse -= np.outer(column, column / pivot)

    def _add(self, slot: int) -> None:
        """Put the sample in `slot` into the inverse (its row and column are zero now)."""
        row = self._kernel(self._z[slot][None], self._now)[0]
        row[slot] = 0
        column = self._inverse @ row
        innovation_var = np.float32(1 + OBS_NOISE_VAR) - row @ column
        innovation = self._residuals[slot] - row @ self._alpha
        column[slot] = -1
        self._inverse += np.outer(column, column / innovation_var)
        self._alpha -= np.outer(column, innovation / innovation_var)

    def _reinvert(self) -> None:
        """The inverse and weights afresh in float64."""
        n = min(self._now, self.window)
        covariance = np.eye(self.window) * (1 + OBS_NOISE_VAR)
        z, time = self._z[:n].astype(np.float64), self._time[:n]
        norms = np.einsum("nd,nd->n", z, z)
        squared = np.maximum(norms[:, None] + norms[None, :] - 2 * (z @ z.T), 0)
        gram = np.exp(squared * float(self._scale)) * DECAY ** np.abs(time[:, None] - time[None, :])
        covariance[:n, :n] = gram + OBS_NOISE_VAR * np.eye(n)
        inverse = np.linalg.inv(covariance)
        self._inverse = inverse.astype(np.float32)
        self._alpha = (inverse @ self._residuals).astype(np.float32)
