"""Streaming linear discriminant analysis: a Gaussian per class, one covariance for all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_cl.bundle import Prior
from edge_cl.heads.base import Head, prior_weights, softmax
from edge_cl.heads.linalg import merged_means, shrunk_precision
from edge_cl.records import FloatArray

BLOCK = 16
"""Deviations collected before they enter the scatter with one matrix product."""


class SldaHead(Head):
    """Running class means and one shared within-class scatter; scores by the Gaussian posterior.

    Exactly the batch estimate in any order of labels: a new sample enters the scatter with weight
    n/(n+1) around its class's mean so far (Welford), so a class's first sample adds nothing.
    The precision is solved lazily, when at least 2 % (and one block) more labels were learned.

    Parameters
    ----------
    shrinkage
        How far the covariance shrinks towards its diagonal, in (0, 1]; relative, so features may
        be rescaled.

    Notes
    -----
    O(D²) per label amortised, O(C·D) per prediction, O(D³) per solve. 8·D² + 8·C·D bytes.
    Merges and unlearns exactly. Source: Hayes & Kanan, Deep SLDA (2020); the pitfalls of its
    published code (first sample, absolute ridge) are avoided.
    """

    name: ClassVar[str] = "slda"
    can_merge: ClassVar[bool] = True
    can_forget: ClassVar[bool] = True

    def __init__(self, n_features: int, n_classes: int = 0, *, shrinkage: float = 0.01) -> None:
        super().__init__(n_features, n_classes)
        if not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage is {shrinkage}; allowed: above 0, at most 1")
        self.shrinkage = shrinkage
        self.class_means = np.zeros((n_classes, n_features), dtype=np.float32)
        self.scatter = np.zeros((n_features, n_features), dtype=np.float32)
        self._block: list[FloatArray] = []
        self._precision = np.eye(n_features, dtype=np.float32)
        self._weights = np.zeros((n_classes, n_features), dtype=np.float32)
        self._bias = np.zeros(n_classes, dtype=np.float32)
        self._centre = np.zeros(n_features, dtype=np.float32)  # of the classes: scores are taken around it
        self._n_solved = -1.0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        square = self.scatter.nbytes + self._precision.nbytes
        return square + self.class_means.nbytes + self._weights.nbytes + self._bias.nbytes + 64 * BLOCK

    def shared_cov(self) -> FloatArray:
        """The pooled within-class covariance now, (D, D) float32."""
        self._fold()
        freedom = self.class_counts.sum() - np.count_nonzero(self.class_counts)
        cov: FloatArray = self.scatter / np.float32(max(freedom, 1.0))
        return cov

    @property
    def bytes_per_class(self) -> int:
        """Bytes that one more class costs."""
        return 8 * self.n_features + 12

    def warm_start(self, prior: Prior, *, strength: float) -> None:
        """Take means and scatter from the prior, weighed as `strength` labels per class."""
        self.class_counts = prior_weights(prior, strength)
        self.class_means = prior.class_means.astype(np.float32)
        self.scatter = (prior.shared_cov * self.class_counts.sum()).astype(np.float32)
        self._n_solved = -1.0

    def rehearse(self, X: FloatArray, y: NDArray[np.int64]) -> Iterator[None]:
        """Solve the precision afresh; the statistics are exact, exemplars cannot improve them."""
        self._solve()
        yield

    def _predict(self, X: FloatArray) -> FloatArray:
        n = self.class_counts.sum()
        if self._n_solved < 0 or n - self._n_solved >= max(BLOCK, 0.02 * self._n_solved):
            self._solve()
        return softmax((X - self._centre) @ self._weights.T + self._bias, self.class_counts > 0)

    def _learn(self, x: FloatArray, y: int) -> None:
        n = self.class_counts[y]
        deviation = x - self.class_means[y]
        self.class_counts[y] = n + 1
        self.class_means[y] += deviation / np.float32(n + 1)
        if n:
            self._block.append(deviation * np.float32(np.sqrt(n / (n + 1))))
            if len(self._block) == BLOCK:
                self._fold()
        self._set_row(y)

    def _merge(self, other: SldaHead) -> None:
        other._fold()
        self._fold()
        means, between = merged_means(
            self.class_counts, self.class_means, other.class_counts, other.class_means
        )
        self.class_means = means.astype(np.float32)
        self.scatter = (self.scatter + (other.scatter + between.T @ between)).astype(np.float32)
        self._n_solved = -1.0

    def _forget(self, x: FloatArray, y: int) -> None:
        self._fold()
        n = self.class_counts[y]
        if n > 1:
            self.class_means[y] -= ((x - self.class_means[y].astype(np.float64)) / (n - 1)).astype(np.float32)
            deviation = x - self.class_means[y].astype(np.float64)
            self.scatter -= (np.outer(deviation, deviation) * ((n - 1) / n)).astype(np.float32)
        else:
            self.class_means[y] = 0
        if self.class_counts.sum() - 1 <= np.count_nonzero(self.class_counts) - (n == 1):
            self.scatter.fill(0)  # one label a class is left: no spread, so no rounding either
        self._n_solved = -1.0

    def _fold(self) -> None:
        if self._block:
            block = np.stack(self._block)
            self.scatter += block.T @ block
            self._block.clear()

    def _solve(self) -> None:
        seen = self.class_counts > 0
        magnitude = np.abs(self.class_means[seen]).max(axis=0, initial=0)
        self._precision = shrunk_precision(self.shared_cov(), self.shrinkage, magnitude)
        self._centre = self.class_means[seen].mean(axis=0) if seen.any() else np.zeros_like(self._centre)
        centred = self.class_means - self._centre
        self._weights = centred @ self._precision
        self._bias = -0.5 * np.einsum("cd,cd->c", self._weights, centred)
        self._n_solved = float(self.class_counts.sum())

    def _set_row(self, y: int) -> None:
        """The learned class's row with the precision at hand: a new class is usable at once."""
        centred = self.class_means[y] - self._centre
        self._weights[y] = self._precision @ centred
        self._bias[y] = -0.5 * self._weights[y] @ centred

    def _grow(self) -> None:
        row = np.zeros((1, self.n_features), dtype=np.float32)
        self.class_means = np.concatenate([self.class_means, row])
        self._weights = np.concatenate([self._weights, row])
        self._bias = np.append(self._bias, np.float32(0))

    def _options(self) -> dict[str, Any]:
        return {"shrinkage": self.shrinkage}

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        block = np.stack(self._block) if self._block else np.zeros((0, self.n_features), dtype=np.float32)
        arrays = {
            "class_means": self.class_means.copy(),
            "scatter": self.scatter.copy(),
            "block": block,
            "precision": self._precision.copy(),
            "weights": self._weights.copy(),
            "bias": self._bias.copy(),
            "centre": self._centre.copy(),
        }
        return arrays, {"n_solved": self._n_solved}

    def _set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        self.class_means, self.scatter = arrays["class_means"], arrays["scatter"]
        self._block = list(arrays["block"])
        self._precision, self._weights = arrays["precision"], arrays["weights"]
        self._bias, self._centre, self._n_solved = arrays["bias"], arrays["centre"], meta["n_solved"]
