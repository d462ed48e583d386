"""How much of each fast part an answer takes: learned from where the input lies."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.heads.base import softmax
from edge_cl.records import FloatArray

MOST = 1.5
"""Weight of a fast part at most."""
STEP, STEP_CAP = 0.02, 0.2
"""Step of a weight in units of the root mean square of its gradient, and the longest step."""
FADE = 0.999
"""Of the running mean square, per step."""
REACH = 4.0
"""Context values are clipped here."""
START_TEMPERATURE, TEMPERATURE_STEP, MOST_LOG_TEMPERATURE = 4.0, 0.02, 4.0


class Temperature:
    """The factor T from scores, which are near 0 to 1, to logits; learned by likelihood."""

    def __init__(self) -> None:
        self.log = math.log(START_TEMPERATURE)

    @property
    def factor(self) -> float:
        """T."""
        return math.exp(self.log)

    def probabilities(self, scores: FloatArray, seen: NDArray[np.bool_]) -> FloatArray:
        """softmax(T · scores) over the classes seen: (n, C) → (n, C)."""
        return softmax(np.float32(self.factor) * scores, seen)

    def learn_one(self, scores: FloatArray, probabilities: FloatArray, y: int) -> None:
        """One gradient step on the log-likelihood of class y: (C,), (C,)."""
        slope = self.factor * float(scores[y] - probabilities @ scores)
        self.log += TEMPERATURE_STEP * min(max(slope, -1.0), 1.0)
        self.log = min(max(self.log, 0.0), MOST_LOG_TEMPERATURE)


class Gate:
    """Weights g_j = 1.5 · sigmoid(w_j · context) of the fast parts j.

    Parameters
    ----------
    start
        Bias that each of the P parts starts with.
    n_context
        Length K of a context, the constant included.

    Notes
    -----
    O(P·(K + C)) per sample; 16·P·K bytes. Steps are normalised per weight as in RMSprop
    (Tieleman & Hinton, 2012).
    """

    def __init__(self, start: tuple[float, ...], n_context: int) -> None:
        self.weights = np.zeros((len(start), n_context))
        self.weights[:, 0] = start
        self.mean_square = np.full_like(self.weights, 1e-3)

    @staticmethod
    def needed_bytes(n_parts: int, n_context: int) -> int:
        """`nbytes` of a new one."""
        return 16 * n_parts * n_context

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.weights.nbytes + self.mean_square.nbytes

    def __call__(self, context: FloatArray) -> FloatArray:
        """Context (n, K) → weights (n, P) in (0, 1.5)."""
        weights: FloatArray = (MOST / (1 + np.exp(-(context @ self.weights.T)))).astype(np.float32)
        return weights

    def learn_one(
        self, parts: FloatArray, context: FloatArray, error: FloatArray, temperature: float
    ) -> None:
        """One descent step on the negative log-likelihood of a sample's class.

        Parameters
        ----------
        parts
            (P, C), what each part would add.
        context
            (K,).
        error
            (C,) probabilities minus one-hot class.
        temperature
            T.
        """
        weight = MOST / (1 + np.exp(-(self.weights @ context)))
        slope = temperature * (parts @ error) * weight * (1 - weight / MOST)
        gradient = slope[:, None] * context
        self.mean_square *= FADE
        self.mean_square += (1 - FADE) * gradient**2
        step = STEP * gradient / np.sqrt(self.mean_square + 1e-8)
        self.weights -= np.minimum(np.maximum(step, -STEP_CAP), STEP_CAP)

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values that `set_state` takes back."""
        return {"weights": self.weights.copy(), "mean_square": self.mean_square.copy()}, {}

    def set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take back what `get_state` gave."""
        self.weights, self.mean_square = arrays["weights"], arrays["mean_square"]
