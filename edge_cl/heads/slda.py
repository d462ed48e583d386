"""Streaming linear discriminant analysis: a Gaussian per class, one covariance for all."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_cl.bundle import Prior
from edge_cl.heads.base import Head, softmax, typical
from edge_cl.heads.cholesky import precision_times, shrunk_factor
from edge_cl.heads.linalg import merged_means
from edge_cl.heads.priors import prior_weights
from edge_cl.memory.exemplars import Exemplars
from edge_cl.records import FloatArray

BLOCK = 32
"""Deviations collected before they enter the scatter with one matrix product."""
BATCH = 256
"""Labels that `learn_many` takes in with one matrix product."""
LEAST_DUE, GROWTH = 16, 0.02
"""Labels, and share of labels, learned since the covariance was last factored that make it due again.

At 10 % elec2 loses 1.3 points of now0."""


class SldaHead(Head):
    """Running class means and one shared within-class scatter; scores by the Gaussian posterior.

    Exactly the batch estimate in any order of labels: a new sample enters the scatter with weight
    n/(n+1) around its class's mean so far (Welford), so a class's first sample adds nothing.
    The covariance is factored lazily, by the first prediction after 2 % (and 16) more labels were learned;
    until then the rows of the classes that were learned are solved with the factor at hand.

    Parameters
    ----------
    shrinkage
        How far the covariance shrinks towards its diagonal, in (0, 1]; relative, so features may
        be rescaled.

    Notes
    -----
    O(D²) per label amortised; O(C·D) per prediction, O(D²) more for each class learned since the last one,
    and D³/3 to factor, all in the one prediction that finds it due: 3 to 7 ms at D = 512, 26 to 39 at 1280.
    Spreading it would hold a second factor, half as many bytes again. 8·D² + 136·D + 8·C·D bytes.
    `learn_many` learns blocks with one matrix product. Merges and unlearns exactly. Source: Hayes & Kanan,
    Deep SLDA (2020); the pitfalls of its published code (first sample, absolute ridge) are avoided.
    """

    name: ClassVar[str] = "slda"
    can_merge: ClassVar[bool] = True
    can_forget: ClassVar[bool] = True
    gains_by_rehearsal: ClassVar[bool] = False

    def __init__(self, n_features: int, n_classes: int = 0, *, shrinkage: float = 0.01) -> None:
        super().__init__(n_features, n_classes)
        if not 0 < shrinkage <= 1:
            raise ValueError(f"shrinkage is {shrinkage}; allowed: above 0, at most 1")
        self.shrinkage = shrinkage
        self.class_means = np.zeros((n_classes, n_features), dtype=np.float32)
        self.scatter = np.zeros((n_features, n_features), dtype=np.float32)
        self._block = np.zeros((BLOCK, n_features), dtype=np.float32)
        self._n_block = 0
        self._factor = np.eye(n_features, dtype=np.float32)
        self._inv_std = np.ones(n_features, dtype=np.float32)
        self._weights = np.zeros((n_classes, n_features), dtype=np.float32)
        self._bias = np.zeros(n_classes, dtype=np.float32)
        self._centre = np.zeros(n_features, dtype=np.float32)  # of the classes: scores are taken around it
        self._outdated = np.zeros(n_classes, dtype=np.bool_)  # rows that learning left to the next prediction
        self._n_solved = -1.0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = self._arrays()
        return sum(array.nbytes for array in arrays.values()) + self._block.nbytes + self.class_counts.nbytes

    def shared_cov(self) -> FloatArray:
        """The pooled within-class covariance now, (D, D) float32."""
        self._fold()
        freedom = self.class_counts.sum() - np.count_nonzero(self.class_counts)
        cov: FloatArray = self.scatter / np.float32(max(freedom, 1.0))
        return cov

    @classmethod
    def _needed_bytes(cls, n_features: int, n_classes: int, options: dict[str, Any]) -> int:
        square = 4 * n_features * (2 * n_features + 2 + BLOCK)
        return square + n_classes * (8 * n_features + 4 + 1 + 8)

    @property
    def bytes_per_class(self) -> int:
        """Bytes that one more class costs."""
        return 8 * self.n_features + 8 + 4 + 1

    def warm_start(self, prior: Prior, *, strength: float) -> None:
        """Take means and scatter from the prior, weighed as `strength` labels per class."""
        self.class_counts = prior_weights(prior, strength)
        self.class_means = prior.class_means.astype(np.float32)
        self.scatter = (prior.shared_cov * self.class_counts.sum()).astype(np.float32)
        self._n_solved = -1.0

    def rehearse(self, exemplars: Exemplars) -> Iterator[None]:
        """Solve the precision afresh; the statistics are exact, exemplars cannot improve them."""
        self._solve()
        yield

    def _typical(self, y: int | None = None) -> FloatArray:
        return typical(self.class_means, self.class_counts, y)

    def _predict(self, X: FloatArray) -> FloatArray:
        n = self.class_counts.sum()
        if self._n_solved < 0 or n - self._n_solved >= max(LEAST_DUE, GROWTH * self._n_solved):
            self._solve()
        elif self._outdated.any():
            self._set_rows(np.flatnonzero(self._outdated))
        return softmax((X - self._centre) @ self._weights.T + self._bias, self.class_counts > 0)

    def _learn(self, x: FloatArray, y: int) -> None:
        n = float(self.class_counts[y])
        deviation = x - self.class_means[y]
        self.class_counts[y] = n + 1
        self.class_means[y] += deviation / np.float32(n + 1)
        self._outdated[y] = True
        if n:
            np.multiply(deviation, np.float32(math.sqrt(n / (n + 1))), out=self._block[self._n_block])
            self._n_block += 1
            if self._n_block == BLOCK:
                self._fold()

    def _learn_many(self, X: FloatArray, y: NDArray[np.int64]) -> None:
        """Class means of a block and the scatter around them, then both merged with what is known (Chan)."""
        for start in range(0, len(X), BATCH):
            self._learn_block(X[start : start + BATCH], y[start : start + BATCH])

    def _learn_block(self, X: FloatArray, y: NDArray[np.int64]) -> None:
        classes, row = np.unique(y, return_inverse=True)
        members = np.zeros((len(classes), len(X)), dtype=np.float32)
        members[row, np.arange(len(X))] = 1
        counts = members.sum(axis=1, dtype=np.float64)
        origin = self.class_means[classes]  # near the samples, once the class is known: nothing cancels
        first = self.class_counts[classes] == 0
        origin[first] = X[members[first].argmax(axis=1)]
        X = X - origin[row]
        means = (members @ X) / counts[:, None].astype(np.float32)
        known = self.class_counts[classes]
        merged, between = merged_means(known, self.class_means[classes] - origin, counts, means)
        deviations = np.concatenate([X - means[row], between.astype(np.float32)])
        self.scatter += deviations.T @ deviations.copy()  # of one array numpy would mirror one half, slowly
        self.class_means[classes] = (merged + origin).astype(np.float32)
        self.class_counts[classes] = known + counts
        self._outdated[classes] = True

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
        if self._n_block:
            block = self._block[: self._n_block]
            self.scatter += block.T @ block.copy()
            self._n_block = 0

    def _solve(self) -> None:
        seen = self.class_counts > 0
        magnitude = np.abs(self.class_means[seen]).max(axis=0, initial=0)
        self._factor, self._inv_std = shrunk_factor(self.shared_cov(), self.shrinkage, magnitude)
        self._centre = self.class_means[seen].mean(axis=0) if seen.any() else np.zeros_like(self._centre)
        self._set_rows(np.arange(self.n_classes))
        self._n_solved = float(self.class_counts.sum())

    def _set_rows(self, classes: NDArray[np.int64]) -> None:
        """Rows of the discriminant with the factor at hand: a new class is usable at once."""
        centred = self.class_means[classes] - self._centre
        rows = precision_times(self._factor, self._inv_std, centred)
        self._weights[classes] = rows
        self._bias[classes] = -0.5 * np.einsum("cd,cd->c", rows, centred)
        self._outdated[classes] = False

    def _grow(self) -> None:
        row = np.zeros((1, self.n_features), dtype=np.float32)
        self.class_means = np.concatenate([self.class_means, row])
        self._weights = np.concatenate([self._weights, row])
        self._bias = np.append(self._bias, np.float32(0))
        self._outdated = np.append(self._outdated, False)

    def _options(self) -> dict[str, Any]:
        return {"shrinkage": self.shrinkage}

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        block = self._block[: self._n_block].copy()
        arrays = {name: array.copy() for name, array in self._arrays().items()}
        return arrays | {"block": block}, {"n_solved": self._n_solved}

    def _set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        self.class_means, self.scatter = arrays["class_means"], arrays["scatter"]
        self._factor, self._inv_std = arrays["factor"], arrays["inv_std"]
        self._weights, self._bias, self._outdated = arrays["weights"], arrays["bias"], arrays["outdated"]
        self._centre, self._n_solved = arrays["centre"], meta["n_solved"]
        self._n_block = len(arrays["block"])
        self._block[: self._n_block] = arrays["block"]

    def _arrays(self) -> dict[str, np.ndarray]:
        return {
            "class_means": self.class_means,
            "scatter": self.scatter,
            "factor": self._factor,
            "inv_std": self._inv_std,
            "weights": self._weights,
            "bias": self._bias,
            "outdated": self._outdated,
            "centre": self._centre,
        }
