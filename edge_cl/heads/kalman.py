"""A Kalman filter on one-hot targets: recursive ridge regression with one shared covariance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_cl.bundle import Prior
from edge_cl.heads.base import Head, prior_weights, softmax
from edge_cl.heads.linalg import condition_on_block, lift_floor
from edge_cl.heads.standardise import Standardiser
from edge_cl.records import FloatArray

WARM_UP = 32
"""Labels kept as they are until the features' scale is known; then the filter takes over."""
FLOOR, FLOOR_EVERY = 1e-8, 512
"""Added to every variance once per so many labels, against rounding; at 1e-6 it forgets (kalman, sorted
gas: 97 → 81 %)."""
SHARPNESS = 8.0
"""Regression outputs in about [0, 1] times this are the logits."""
TRACE_CAP = 4.0
"""The mean variance never exceeds this many times its start: forgetting cannot wind up."""


class KalmanHead(Head):
    """One Gaussian belief over the weights of all classes; every label is one measurement.

    With one-hot targets and the same noise for all classes the covariance does not depend on the
    labels, so one (d, d) matrix serves every class.

    Parameters
    ----------
    obs_noise_var
        Variance of a one-hot target around its regression, above 0.
    forgetting
        In (0, 1]; 1 never forgets (equal to batch ridge). Below 1 the covariance grows by 1/forgetting
        per label, bounded. It forgets classes that are not seen: 0.999 lost 60 points of retention on a
        drifting gas sensor, so the default is 1.

    Notes
    -----
    d = D + 1. O(d² + C·d) per label, O(C·d) per prediction, 4·(d² + C·d) bytes. Source: Titsias et al.,
    Kalman filter for online classification of non-stationary data (2024), with exponential instead of
    isotropic forgetting.

    With forgetting = 1 it merges and unlearns, exactly but for float32 and features beyond the clip of the
    standardiser, whose scales stay as they are.
    """

    name: ClassVar[str] = "kalman"
    can_merge: ClassVar[bool] = True
    can_forget: ClassVar[bool] = True

    def __init__(
        self, n_features: int, n_classes: int = 0, *, obs_noise_var: float = 0.1, forgetting: float = 1.0
    ) -> None:
        super().__init__(n_features, n_classes)
        if not obs_noise_var > 0 or not 0 < forgetting <= 1:
            raise ValueError(
                f"obs_noise_var is {obs_noise_var}, forgetting {forgetting}; allowed: above 0, and in (0, 1]"
            )
        self.obs_noise_var, self.forgetting = obs_noise_var, forgetting
        self.standardise = Standardiser(n_features)
        self.mean = np.zeros((n_features + 1, n_classes), dtype=np.float32)
        self.cov = np.eye(n_features + 1, dtype=np.float32)
        self._warm_up: list[tuple[FloatArray, int]] = []
        self._n_updates = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        warm_up = len(self._warm_up) * (4 * self.n_features + 100)
        return self.mean.nbytes + self.cov.nbytes + self.standardise.nbytes + warm_up

    def score_var(self, x: FloatArray) -> float:
        """Predictive variance of the class scores at x (D,): large where little was learned."""
        design = self._design(self._checked(x, 1)[None])[0]
        return float(design @ self.cov @ design) + self.obs_noise_var

    @classmethod
    def _needed_bytes(cls, n_features: int, n_classes: int, options: dict[str, Any]) -> int:
        return 4 * (n_features + 1) * (n_features + 1 + n_classes) + Standardiser.needed_bytes(n_features)

    @property
    def bytes_per_class(self) -> int:
        """Bytes that one more class costs."""
        return 4 * (self.n_features + 1) + 8

    def warm_start(self, prior: Prior, *, strength: float) -> None:
        """Condition on the prior's class means and covariance as `strength` labels per class."""
        self.class_counts = prior_weights(prior, strength)
        weights = self.class_counts / max(self.class_counts.sum(), 1.0)
        centre = weights @ prior.class_means
        spread = np.diagonal(prior.shared_cov) + weights @ (prior.class_means - centre) ** 2
        self.standardise.set_moments(centre, spread)
        means = self._design(prior.class_means.astype(np.float32)).astype(np.float64)
        scale = np.append(0.0, self.standardise.inv_std.astype(np.float64))
        within = np.zeros_like(self.cov, dtype=np.float64)
        within[1:, 1:] = prior.shared_cov
        within *= scale[:, None] * scale[None, :]
        moments = within * self.class_counts.sum() + (means.T * self.class_counts) @ means
        cov = np.linalg.inv(moments / self.obs_noise_var + np.eye(len(moments)))
        self.cov = cov.astype(np.float32)
        self.mean = (cov @ (means.T * self.class_counts) / self.obs_noise_var).astype(np.float32)
        self._n_updates = WARM_UP

    def rehearse(self, X: FloatArray, y: NDArray[np.int64]) -> Iterator[None]:
        """One more pass over the exemplars, all classes alike."""
        for start in range(0, len(X), 64):
            self._condition(X[start : start + 64], y[start : start + 64])
            yield

    def _typical(self, y: int | None = None) -> FloatArray:
        return self.standardise.mean

    def _predict(self, X: FloatArray) -> FloatArray:
        return softmax(SHARPNESS * (self._design(X) @ self.mean), self.class_counts > 0)

    def _learn(self, x: FloatArray, y: int) -> None:
        self.class_counts[y] += 1
        self._n_updates += 1
        if self._n_updates <= WARM_UP:
            self._warm_up.append((x, y))
            self._restart()
            if self._n_updates == WARM_UP:
                self._warm_up.clear()
            return
        if self.forgetting < 1:
            self._inflate()
        self._condition(x[None], np.array([y]))
        if self._n_updates % FLOOR_EVERY == 0:
            lift_floor(self.cov, FLOOR)

    def merge(self, other: Head) -> None:
        """As `Head.merge`; refused with forgetting below 1, where the order of labels matters."""
        self._refuse_forgetting("merge")
        super().merge(other)

    def _merge(self, other: KalmanHead) -> None:
        """Add the information of the other's labels, in this head's scales; few labels are just learned."""
        counts = self.class_counts.copy()
        if self._n_updates < WARM_UP <= other._n_updates:
            few, self._warm_up = self._warm_up, []
            self.mean, self.cov = other.mean.copy(), other.cov.copy()
            self.standardise.mean = other.standardise.mean.copy()
            self.standardise.inv_std = other.standardise.inv_std.copy()
            self._n_updates = other._n_updates
        elif other._n_updates < WARM_UP:
            few = list(other._warm_up)
        else:
            few = []
            self._add_information(other)
        for x, y in few:
            self._learn(x, y)
        self.class_counts = counts

    def _add_information(self, other: KalmanHead) -> None:
        information = np.linalg.inv(self.cov.astype(np.float64))
        learned = np.linalg.inv(other.cov.astype(np.float64))
        targets = information @ self.mean + self._from(other) @ (learned @ other.mean)
        learned[np.diag_indices_from(learned)] -= 1  # the start, which this head has already
        cov = np.linalg.inv(information + self._from(other) @ learned @ self._from(other).T)
        self.mean, self.cov = (cov @ targets).astype(np.float32), cov.astype(np.float32)

    def _from(self, other: KalmanHead) -> NDArray[np.float64]:
        """(d, d) matrix that turns the other's design vector into this head's, where nothing was clipped."""
        mine, theirs = self.standardise, other.standardise
        ratio = mine.inv_std.astype(np.float64) / theirs.inv_std
        change = np.diag(np.append(1.0, ratio))
        change[1:, 0] = (theirs.mean.astype(np.float64) - mine.mean) * mine.inv_std
        return change

    def forget_one(self, x: ArrayLike, y: int) -> None:
        """As `Head.forget_one`; refused with forgetting below 1, where the label has faded already."""
        self._refuse_forgetting("forget_one")
        super().forget_one(x, y)

    def _forget(self, x: FloatArray, y: int) -> None:
        if self._warm_up:
            self._drop_from_warm_up(x, y)
            return
        design = self._design(x[None])[0].astype(np.float64)
        projected = self.cov @ design
        left = self.obs_noise_var - float(design @ projected)
        if left <= 0:  # a learned sample's leverage is below 1
            raise ValueError(
                f"this sample of class {y} was never learned: it would tell more than all labels"
            )
        target = np.eye(self.n_classes)[y]
        gain = projected / left
        self.mean = (self.mean - np.outer(gain, target - design @ self.mean)).astype(np.float32)
        self.cov = (self.cov + np.outer(gain, projected)).astype(np.float32)

    def _drop_from_warm_up(self, x: FloatArray, y: int) -> None:
        for k, (known, c) in enumerate(self._warm_up):
            if c == y and np.array_equal(known, x):
                del self._warm_up[k]
                self._n_updates -= 1
                self._restart()
                return
        raise ValueError(f"this sample of class {y} was never learned")

    def _refuse_forgetting(self, what: str) -> None:
        if self.forgetting < 1:
            raise ValueError(f"{what} needs forgetting = 1, found {self.forgetting}: old labels have faded")

    def _restart(self) -> None:
        """Fit the few samples so far afresh, with the scale that they show."""
        X = np.array([x for x, _ in self._warm_up]).reshape(-1, self.n_features)
        if not len(X):
            self.standardise = Standardiser(self.n_features)
        elif len(X) > 1:
            self.standardise.refit(X)
        else:
            self.standardise.set_moments(X[0], np.maximum(X[0] ** 2, 1e-12))
        self.mean = np.zeros((self.n_features + 1, self.n_classes), dtype=np.float32)
        self.cov = np.eye(self.n_features + 1, dtype=np.float32)
        self._condition(X, np.array([y for _, y in self._warm_up], dtype=np.int64))

    def _condition(self, X: FloatArray, y: NDArray[np.int64]) -> None:
        targets = np.eye(self.n_classes, dtype=np.float32)[y]
        condition_on_block(self.mean, self.cov, self._design(X), targets, self.obs_noise_var)

    def _inflate(self) -> None:
        """Exponential forgetting: every direction's variance grows alike, up to a cap on the mean."""
        if np.trace(self.cov) < TRACE_CAP * len(self.cov):
            self.cov /= np.float32(self.forgetting)

    def _design(self, X: FloatArray) -> FloatArray:
        """(n, D) → (n, D + 1): a one, then the standardised features."""
        return np.concatenate([np.ones((len(X), 1), dtype=np.float32), self.standardise(X)], axis=1)

    def _grow(self) -> None:
        self.mean = np.concatenate([self.mean, np.zeros((len(self.mean), 1), dtype=np.float32)], axis=1)

    def _options(self) -> dict[str, Any]:
        return {"obs_noise_var": self.obs_noise_var, "forgetting": self.forgetting}

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        warm_up = [x for x, _ in self._warm_up]
        arrays = {
            "mean": self.mean.copy(),
            "cov": self.cov.copy(),
            "feature_mean": self.standardise.mean.copy(),
            "feature_inv_std": self.standardise.inv_std.copy(),
            "warm_up": np.stack(warm_up) if warm_up else np.zeros((0, self.n_features), dtype=np.float32),
        }
        return arrays, {"n_updates": self._n_updates, "warm_up": [y for _, y in self._warm_up]}

    def _set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        self.mean, self.cov = arrays["mean"], arrays["cov"]
        self.standardise.mean, self.standardise.inv_std = arrays["feature_mean"], arrays["feature_inv_std"]
        self._warm_up = list(zip(arrays["warm_up"], meta["warm_up"], strict=True))
        self._n_updates = meta["n_updates"]
