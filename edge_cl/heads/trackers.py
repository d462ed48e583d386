"""Two quick linear learners that follow the stream beside the slow memory, and forget."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.heads.base import softmax
from edge_cl.heads.filter import SharedFilter
from edge_cl.records import FloatArray

N_INPUTS = 256
"""Lifted features, the last ones, that the residual tracker sees."""
FORGETTING = 0.999
"""Per label: it follows about the last thousand."""
OBS_NOISE_VAR = 1.0
INPUT_SCALE = 1 / 32
"""Times the root of the number of lifted features: lifted features shrink with that number."""
LEARNING_RATE = 0.5
"""Of the softmax regression, divided by the number of features."""


class ResidualTracker:
    """A Kalman filter with forgetting on what the slow memory gets wrong, everywhere at once.

    It drifts back to the slow memory where nothing is learned. O(257²) per label.
    """

    def __init__(self, n_lifted: int, n_classes: int) -> None:
        self._n_inputs = min(N_INPUTS, n_lifted)
        self._input_scale = np.float32(INPUT_SCALE * np.sqrt(n_lifted))
        self.filter = SharedFilter(
            self._n_inputs + 1, n_classes, obs_noise_var=OBS_NOISE_VAR, forgetting=FORGETTING
        )

    @staticmethod
    def needed_bytes(n_lifted: int, n_classes: int) -> int:
        """Of a new one's filter."""
        return SharedFilter.needed_bytes(min(N_INPUTS, n_lifted) + 1, n_classes)

    def predict(self, lifted: FloatArray) -> FloatArray:
        """Expected residuals: (n, d) lifted → (n, C)."""
        return self.filter.predict(self._design(lifted))

    def learn_one(self, lifted: FloatArray, residual: FloatArray) -> None:
        """Learn what the slow memory got wrong: (1, d), (C,)."""
        self.filter.learn_one(self._design(lifted)[0], residual)

    def _design(self, lifted: FloatArray) -> FloatArray:
        design = np.empty((len(lifted), self._n_inputs + 1), dtype=np.float32)
        design[:, 0] = 1
        np.multiply(lifted[:, -self._n_inputs :], self._input_scale, out=design[:, 1:])
        return design


class SoftmaxTracker:
    """Softmax regression by stochastic gradient on standardised features. O(C·D) per label.

    Source: online logistic regression as in river's ``SoftmaxRegression``, with the rate scaled by D.
    """

    def __init__(self, n_features: int, n_classes: int) -> None:
        self.weights = np.zeros((n_features, n_classes), dtype=np.float32)
        self.bias = np.zeros(n_classes, dtype=np.float32)
        self._rate = np.float32(LEARNING_RATE / n_features)

    @staticmethod
    def needed_bytes(n_features: int, n_classes: int) -> int:
        """`nbytes` of a new one."""
        return 4 * n_classes * (n_features + 1)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.weights.nbytes + self.bias.nbytes

    def predict(self, z: FloatArray, seen: NDArray[np.bool_]) -> FloatArray:
        """Probabilities of the classes seen: (n, D) → (n, C)."""
        return softmax(z @ self.weights + self.bias, seen)

    def learn_one(self, z: FloatArray, probabilities: FloatArray, y: int) -> None:
        """One step: z (D,), what was predicted for it (C,), class y."""
        step = -self._rate * probabilities
        step[y] += self._rate
        self.bias += step
        self.weights += z[:, None] * step

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values that `set_state` takes back."""
        return {"weights": self.weights.copy(), "bias": self.bias.copy()}, {}

    def set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take back what `get_state` gave."""
        self.weights, self.bias = arrays["weights"], arrays["bias"]

    def grow(self) -> None:
        """Make room for one more class."""
        self.weights = np.pad(self.weights, ((0, 0), (0, 1)))
        self.bias = np.pad(self.bias, (0, 1))
