"""Multinomial logistic regression, one natural-gradient step per label."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from edge_cl.bundle import Prior
from edge_cl.heads.base import MAX_EXEMPLARS, Head, softmax, typical
from edge_cl.heads.cholesky import precision_times, shrunk_factor
from edge_cl.heads.linalg import lift_floor
from edge_cl.heads.priors import prior_weights
from edge_cl.heads.spread import ClassSpread
from edge_cl.heads.standardise import Standardiser
from edge_cl.memory.exemplars import Exemplars
from edge_cl.records import FloatArray

LEAST_CURVATURE = 0.1
"""Confident answers still count a little, so that steps keep shrinking on a stream that is solved."""
FLOOR, FLOOR_EVERY = 1e-8, 512
"""Added to every variance once per so many labels, against rounding."""
SHRINKAGE = 0.01
RESTART = 2.0
"""A feature's deviation that changed by more than this factor between two doublings."""
BALANCE, FEW = 0.25, 10.0
"""How much of log(labels of a class + FEW) its answers are cleared of: 0 none, 1 all of it.

At 0.25 a class with one label to 100 is recalled nearly three times as often; at 0.5 insects_gradual_balanced
loses 4 points of now0. Without FEW, a class that was just added takes 5 % of the others' samples."""
PASSES = 2
"""Over the exemplars, per rehearsal."""
SLICE = 64


class LogisticHead(Head):
    """Softmax of linear scores; each label moves the weights along the error, scaled by one covariance.

    For a sample with design vector d, scores p and target e: q = ½ Σ p (1 − p) stands for the curvature,
    P ← P − q P d dᵀ P / (1 + q dᵀ P d), then W ← W + (e − p) (P d)ᵀ. Unlike regression on one-hot targets
    what is answered rightly and surely moves nothing, so steps stay large for what is not known yet.
    Answers are cleared of some of the classes' frequency, see `BALANCE`.
    Features are standardised; scales follow at every doubling of labels, and the weights with them.

    Parameters
    ----------
    prior_var
        Variance of a weight before the first label, above 0: larger learns faster and trusts less.

    Notes
    -----
    d = D + 1. O(d² + C·d) per label, O(C·d) per prediction, 4·(d² + 2·C·d) bytes. Sources: Amari, Natural
    gradient works efficiently in learning (1998); Böhning, Multinomial logistic regression algorithm (1992),
    for one curvature shared by all classes; Menon et al., Long-tail learning via logit adjustment (2021).
    """

    name: ClassVar[str] = "logistic"

    def __init__(self, n_features: int, n_classes: int = 0, *, prior_var: float = 0.1) -> None:
        super().__init__(n_features, n_classes)
        if not 0 < prior_var < np.inf:
            raise ValueError(f"prior_var is {prior_var}; allowed: above 0, finite")
        self.prior_var = prior_var
        self.spread = ClassSpread(n_features, n_classes)
        self.standardise = Standardiser(n_features)
        self.weights = np.zeros((n_classes, n_features + 1), dtype=np.float32)
        self.cov = np.eye(n_features + 1, dtype=np.float32) * np.float32(prior_var)
        self._n_learned = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        own = self.weights.nbytes + self.cov.nbytes + self.class_counts.nbytes
        return own + self.spread.nbytes + self.standardise.nbytes

    @classmethod
    def _needed_bytes(cls, n_features: int, n_classes: int, options: dict[str, Any]) -> int:
        own = 4 * (n_features + 1) * (n_features + 1 + n_classes) + 8 * n_classes
        spread = ClassSpread.needed_bytes(n_features, n_classes)
        return own + spread + Standardiser.needed_bytes(n_features)

    @property
    def bytes_per_class(self) -> int:
        """Bytes that one more class costs."""
        return 8 * self.n_features + 4 + 8

    def warm_start(self, prior: Prior, *, strength: float) -> None:
        """Begin with the prior's linear discriminant, weighed as `strength` labels per class."""
        self.class_counts = prior_weights(prior, strength)
        self.spread.start(prior, self.class_counts)
        self.standardise.set_moments(*self._moments())
        means = self.standardise(self.spread.class_means).astype(np.float64)
        scale = self.standardise.inv_std.astype(np.float64)
        within = prior.shared_cov * np.outer(scale, scale)
        magnitude = np.abs(means).max(axis=0, initial=0)
        slopes = precision_times(*shrunk_factor(within, SHRINKAGE, magnitude), means)
        self.weights = np.column_stack([-0.5 * (slopes * means).sum(axis=1), slopes]).astype(np.float32)
        design = np.column_stack([np.ones(len(means)), means])
        information = (design.T * self.class_counts) @ design
        information[1:, 1:] += within * self.class_counts.sum()
        information *= LEAST_CURVATURE
        information[np.diag_indices_from(information)] += 1 / self.prior_var
        self.cov = np.linalg.inv(information).astype(np.float32)

    def rehearse(self, exemplars: Exemplars) -> Iterator[None]:
        """A few passes over the exemplars in a fixed random order; they add no certainty."""
        X, y = exemplars.selected(MAX_EXEMPLARS)
        order = np.random.default_rng(len(X))
        for _ in range(PASSES):
            for rows in np.array_split(order.permutation(len(X)), len(X) // SLICE + 1):
                for i in rows:
                    self._step(X[i], int(y[i]), certain=False)
                yield

    def _typical(self, y: int | None = None) -> FloatArray:
        return typical(self.spread.class_means, self.class_counts, y)

    def _predict(self, X: FloatArray) -> FloatArray:
        log_counts = np.log(self.class_counts + FEW).astype(np.float32)
        logits = self._design(X) @ self.weights.T - np.float32(BALANCE) * log_counts
        return softmax(logits, self.class_counts > 0)

    def _learn(self, x: FloatArray, y: int) -> None:
        self.spread.learn_one(x, y, self.class_counts[y])
        self.class_counts[y] += 1
        self._n_learned += 1
        if self._n_learned & (self._n_learned - 1) == 0:
            self._rescale()
        self._step(x, y, certain=True)
        if self._n_learned % FLOOR_EVERY == 0:
            lift_floor(self.cov, FLOOR)

    def _step(self, x: FloatArray, y: int, *, certain: bool) -> None:
        """Move the weights towards class y at x; when `certain`, steps in this direction get smaller."""
        design = self._design(x[None])
        error = -softmax(design @ self.weights.T, self.class_counts > 0)[0]
        curvature = max(0.5 * float(-error.sum() - error @ error), LEAST_CURVATURE)
        error[y] += 1
        projected = self.cov @ design[0]
        damped = projected / np.float32(1 + curvature * float(design[0] @ projected))
        if certain:
            self.cov -= np.outer(np.float32(curvature) * damped, projected)
        self.weights += np.outer(error, damped)

    def _moments(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and variance of every feature over all labels, (D,) each."""
        n = self.class_counts.sum()
        share = self.class_counts / n
        mean = share @ self.spread.class_means
        return mean, self.spread.scatter / n + share @ (self.spread.class_means - mean) ** 2

    def _rescale(self) -> None:
        """Follow the features' mean and scale; answers stay the same unless the scale was far off."""
        old_mean, old_inv_std = self.standardise.mean, self.standardise.inv_std
        mean, var = self._moments()
        self.standardise.set_moments(mean, var if self.class_counts.sum() > 1 else np.maximum(mean**2, 1e-12))
        ratio = old_inv_std / self.standardise.inv_std
        offset = (self.standardise.mean - old_mean) * old_inv_std
        if ratio.min() < 1 / RESTART or ratio.max() > RESTART:
            self._restart()
            return
        _express_anew(self.weights, ratio, offset)
        _express_anew(self.cov, ratio, offset)
        _express_anew(self.cov.T, ratio, offset)

    def _restart(self) -> None:
        """Weights of a far smaller scale would answer absurdly in the new one: relearn the class means."""
        self.weights.fill(0)
        self.cov = np.eye(len(self.cov), dtype=np.float32) * np.float32(self.prior_var)
        for c in np.flatnonzero(self.class_counts):
            self._step(self.spread.class_means[c], int(c), certain=True)

    def _design(self, X: FloatArray) -> FloatArray:
        """(n, D) → (n, D + 1): a one, then the standardised features."""
        return np.concatenate([np.ones((len(X), 1), dtype=np.float32), self.standardise(X)], axis=1)

    def _grow(self) -> None:
        self.spread.grow()
        self.weights = np.concatenate([self.weights, np.zeros((1, self.n_features + 1), dtype=np.float32)])

    def _options(self) -> dict[str, Any]:
        return {"prior_var": self.prior_var}

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {
            "weights": self.weights.copy(),
            "cov": self.cov.copy(),
            "feature_mean": self.standardise.mean.copy(),
            "feature_inv_std": self.standardise.inv_std.copy(),
        }
        return arrays | self.spread.state(), {"n_learned": self._n_learned}

    def _set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        self.weights, self.cov = arrays["weights"], arrays["cov"]
        self.standardise.mean, self.standardise.inv_std = arrays["feature_mean"], arrays["feature_inv_std"]
        self.spread.restore(arrays)
        self._n_learned = meta["n_learned"]


def _express_anew(rows: FloatArray, ratio: FloatArray, offset: FloatArray) -> None:
    """Rewrite rows of weights (n, D + 1) for features z where they were for offset + ratio · z, in place."""
    rows[:, 0] += rows[:, 1:] @ offset
    rows[:, 1:] *= ratio
