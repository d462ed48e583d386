"""Fast local memory: a Gaussian process over the last few labels' residuals."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.heads.standardise import Standardiser
from edge_cl.records import FloatArray

LENGTH_SCALE = 0.3
"""Closeness exp(-|z - z'|² / (2 · LENGTH_SCALE · D)); flat within a point from 0.25 to 0.5."""
DECAY = 0.98
"""Per label of distance in time; flat within a point from 0.98 to 0.995."""
OBS_NOISE_VAR = 0.1
ITSELF = 0.999
"""Closeness from which a sample, as a memory of exemplars gives it back, is the one in the ring."""
STRIPE = 64
"""Rows of the inverse updated at a time: no temporary as large as it."""
SIGNS = np.array([[-1.0], [1.0]], dtype=np.float32)
REINVERT_EVERY = 2048
"""Labels between two exact float64 inversions, so that rounding never accumulates."""


def closeness(z: FloatArray, others: FloatArray, norms: FloatArray) -> FloatArray:
    """Gaussian kernel, in (0, 1], of z (n, D) and others (m, D) with squared norms (m,): (n, m)."""
    near: FloatArray = z @ others.T
    near *= 2
    near -= norms
    near -= np.einsum("nd,nd->n", z, z)[:, None]
    np.minimum(near, 0, out=near)
    near *= np.float32(1 / (2 * LENGTH_SCALE * z.shape[1]))
    return np.exp(near, out=near)


class FastMemory:
    """Predicts what the slow memory gets wrong near recent samples; zero far from them.

    Kernel k(x, x') = closeness · 0.98^|t - t'|: an Ornstein-Uhlenbeck process that reverts to the slow memory
    in time and away from what was recently seen.

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
        self._norms = np.zeros(window, dtype=np.float32)
        self._classes = np.full(window, -1, dtype=np.int32)
        self._residuals = np.zeros((window, n_classes), dtype=np.float32)
        self._inverse = np.eye(window, dtype=np.float32) / np.float32(1 + OBS_NOISE_VAR)
        self._alpha = np.zeros((window, n_classes), dtype=np.float32)
        self._ages = DECAY ** np.arange(window, 0.0, -1)  # oldest first; the newest is 1 label old
        self._fade = np.zeros(window, dtype=np.float32)
        self._product = np.empty((min(STRIPE, window), window), dtype=np.float32)
        self._now = 0

    @staticmethod
    def needed_bytes(window: int, n_features: int, n_classes: int) -> int:
        """`nbytes` of a new one."""
        return window * (8 * n_features + 4 * window + 4 * min(STRIPE, window) + 8 * n_classes + 20)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = (self._raw, self._z, self._norms, self._classes, self._residuals, self._inverse, self._alpha)
        return sum(a.nbytes for a in (*arrays, self._product, self._ages, self._fade))

    @property
    def n(self) -> int:
        """Samples held."""
        return min(self._now, self.window)

    def near(self, z: FloatArray) -> FloatArray:
        """Closeness of z (n, D) to the whole ring, in slot order: (n, W); of empty slots too."""
        return closeness(z, self._z, self._norms)

    def predict(self, near: FloatArray) -> FloatArray:
        """Expected residuals (n, C), from `near` (n, W)."""
        residuals: FloatArray = (near * self._fade) @ self._alpha
        return residuals

    def predict_others(self, near: FloatArray, y: NDArray[np.int64]) -> FloatArray:
        """As `predict`, but of samples of classes y (n,) that the ring holds as if each had never come.

        Closed form: with α = K⁻¹ r, leaving out sample i takes its column of K⁻¹ times αᵢ / K⁻¹ᵢᵢ off α.
        """
        kernel = near * self._fade
        residuals: FloatArray = kernel @ self._alpha
        slots = near[:, : self.n].argmax(axis=1)
        closest = near[np.arange(len(y)), slots]
        rows = np.flatnonzero((closest > ITSELF) & (self._classes[slots] == y))
        left_out = slots[rows]
        inverse = self._inverse[left_out]
        share = np.einsum("nw,nw->n", kernel[rows], inverse) / inverse[np.arange(len(rows)), left_out]
        residuals[rows] -= share[:, None] * self._alpha[left_out]
        return residuals

    def surety(self, near: FloatArray) -> FloatArray:
        """Share of the variance that the window explains, in [0, 1): (n,), from `near` (n, W)."""
        kernel = near * self._fade
        share: FloatArray = np.einsum("nw,nw->n", kernel @ self._inverse, kernel)
        return share

    def oldest(self) -> tuple[FloatArray, int] | None:
        """Features (D,) and class of the sample that the next one replaces; None while there is room."""
        slot = self._now % self.window
        return (self._raw[slot], int(self._classes[slot])) if self._now >= self.window else None

    def newest(self, n: int) -> FloatArray:
        """Features of the last n samples, at most a window: (n, D)."""
        return self._raw[(self._now - n + np.arange(n)) % self.window]

    def learn_one(self, x: FloatArray, z: FloatArray, near: FloatArray, y: int, residual: FloatArray) -> None:
        """Replace the oldest sample by raw x (D,), standardised z (D,), class y, residual (C,).

        `near` (W,) is z's closeness to the ring before.
        """
        slot = self._now % self.window
        self._raw[slot], self._z[slot], self._norms[slot] = x, z, z @ z
        self._classes[slot], self._residuals[slot] = y, residual
        self._replace(slot, near * self._fade)
        self._now += 1
        if self._now % REINVERT_EVERY == 0:
            self._reinvert()
        self._set_fade()

    def held(self) -> tuple[FloatArray, NDArray[np.int32]]:
        """Features (n, D) and classes (n,) of all samples, in slot order."""
        return self._raw[: self.n], self._classes[: self.n]

    def restandardise(self, standardise: Standardiser, residuals: FloatArray | None = None) -> None:
        """Take over new feature scales, and new residuals (n, C) in slot order; else they stay as found."""
        if residuals is not None:
            self._residuals[: self.n] = residuals
        self._z[: self.n] = standardise(self._raw[: self.n])
        self._norms[: self.n] = np.einsum("wd,wd->w", self._z[: self.n], self._z[: self.n])
        self._reinvert()

    def nearest(self, z: FloatArray, n: int) -> list[dict[str, Any]]:
        """The n samples nearest to z (D,): ``{"class", "memory": "recent", "closeness", "labels_ago"}``."""
        near = self.near(z[None])[0, : self.n]
        found = np.argsort(-near, kind="stable")[:n]
        return [
            {
                "class": int(self._classes[k]),
                "memory": "recent",
                "closeness": float(near[k]),
                "labels_ago": int((self._now - 1 - k) % self.window),
            }
            for k in found
        ]

    def grow(self) -> None:
        """Make room for one more class."""
        column = np.zeros((self.window, 1), dtype=np.float32)
        self._residuals = np.concatenate([self._residuals, column], axis=1)
        self._alpha = np.concatenate([self._alpha, column], axis=1)

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values that `set_state` takes back."""
        names = ("raw", "z", "norms", "classes", "residuals", "inverse", "alpha")
        return {name: getattr(self, f"_{name}").copy() for name in names}, {"now": self._now}

    def set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take back what `get_state` gave."""
        for name, value in arrays.items():
            setattr(self, f"_{name}", value)
        self._now = meta["now"]
        self._set_fade()

    def _set_fade(self) -> None:
        """0.98 to the power of every slot's age; 0 for empty slots."""
        n = self.n
        self._fade[(self._now - n + np.arange(n)) % self.window] = self._ages[self.window - n :]

    def _replace(self, slot: int, row: FloatArray) -> None:
        """Take the old sample in `slot` out and the new one, with covariances `row` to the others, in.

        Out: K −= b bᵀ / b_j with b = K e_j. In, with v = K row and v_j = −1: K += v vᵀ / s. Both at once.
        """
        row[slot] = 0
        out = self._inverse[slot].copy()
        out /= np.sqrt(out[slot])
        self._alpha -= out[:, None] * (self._alpha[slot] / out[slot])
        column = self._inverse @ row
        column -= out * (out @ row)
        column[slot] = 0
        innovation_var = np.float32(1 + OBS_NOISE_VAR) - row @ column
        self._alpha[slot] = 0
        innovation = (self._residuals[slot] - row @ self._alpha) / innovation_var
        column[slot] = -1
        self._alpha -= column[:, None] * innovation
        column /= np.sqrt(innovation_var)
        both = np.stack([out, column])
        signed = (both * SIGNS).T
        for start in range(0, self.window, STRIPE):
            rows = self._inverse[start : start + STRIPE]
            rows += np.dot(signed[start : start + STRIPE], both, out=self._product[: len(rows)])
        self._inverse[slot] = self._inverse[:, slot] = column * column[slot]

    def _reinvert(self) -> None:
        """The inverse and weights afresh in float64."""
        n = self.n
        covariance = np.eye(self.window) * (1 + OBS_NOISE_VAR)
        z = self._z[:n].astype(np.float64)
        slots = np.arange(n)
        ages = (self._now - 1 - slots) % self.window if n == self.window else n - 1 - slots
        norms = np.einsum("nd,nd->n", z, z)
        squared = np.maximum(norms[:, None] + norms[None, :] - 2 * (z @ z.T), 0)
        gram = np.exp(-squared / (2 * LENGTH_SCALE * z.shape[1])) * DECAY ** np.abs(
            ages[:, None] - ages[None, :]
        )
        covariance[:n, :n] = gram + OBS_NOISE_VAR * np.eye(n)
        inverse = np.linalg.inv(covariance)
        self._inverse = inverse.astype(np.float32)
        self._alpha = (inverse @ self._residuals).astype(np.float32)
