"""Nearest prototype: where a class has always been, the forms it takes, and where it is now."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike

from edge_cl.bundle import Prior
from edge_cl.heads.base import MAX_EXEMPLARS, Head, softmax, typical
from edge_cl.heads.clusters import recluster
from edge_cl.heads.linalg import merged_means
from edge_cl.heads.priors import prior_weights
from edge_cl.heads.prototypes import SubPrototypes
from edge_cl.memory.exemplars import Exemplars
from edge_cl.records import FloatArray, distinct, under

MOST_FORMS = 64
"""More is a slip of the pen."""
OWN_ARRAYS = ("class_means", "fast_means", "scatter")


class PrototypeHead(Head):
    """Per class the all-time mean, K running means of its forms, and a fast mean of recent samples.

    A class scores by its nearest prototype, in units of the running within-class variance of each
    feature. The fast prototype moves only when its own class is labelled, so a class that is not
    seen keeps what it knew. A form with the share s of the labels of its class's most frequent form counts as
    further away, by -2 log s in squared distance: wrong labels make rare forms.

    Parameters
    ----------
    sub_prototypes
        Forms K per class, from 0 to 64; see :class:`edge_cl.heads.prototypes.SubPrototypes`.
    fast_gain
        Step of the fast prototype, in (0, 1]: 1/30 follows about the last 30 labels of a class.

    Notes
    -----
    O(K·D) per label, O(C·K·D) per prediction, (K + 2)·4·C·D + 8·D + 8·C·(K + 2) bytes. Merging is exact for
    the all-time means and the variance. The forms of both are merged pair by pair until K are left, and of
    the fast prototypes it takes the average weighed by the labels each still remembers (1/fast_gain at most);
    both depend on the order of labels. For the same reason no label can be unlearned.
    Sources: Mensink et al., Distance-based image classification (2013), nearest class mean; Hastie &
    Tibshirani, Discriminant analysis by Gaussian mixtures (1996), several means per class and their weights.
    K = 4 was chosen on outdoor_objects, elec2 and insects_gradual_balanced for its size: with 8, two thirds
    larger, *ever* is 5.1, 0.3 and 3.0 points better there.
    """

    name: ClassVar[str] = "prototype"
    can_merge: ClassVar[bool] = True
    can_explain: ClassVar[bool] = True

    def __init__(
        self, n_features: int, n_classes: int = 0, *, sub_prototypes: int = 4, fast_gain: float = 1 / 30
    ) -> None:
        super().__init__(n_features, n_classes)
        if not 0 < fast_gain <= 1:
            raise ValueError(f"fast_gain is {fast_gain}; allowed: above 0, at most 1")
        if type(sub_prototypes) is not int or not 0 <= sub_prototypes <= MOST_FORMS:
            raise ValueError(
                f"sub_prototypes is {sub_prototypes!r}; allowed: a whole number from 0 to {MOST_FORMS}"
            )
        self.sub_prototypes, self.fast_gain = sub_prototypes, fast_gain
        self.class_means = np.zeros((n_classes, n_features), dtype=np.float32)
        self.fast_means = np.zeros((n_classes, n_features), dtype=np.float32)
        self.forms = SubPrototypes(n_features, n_classes, sub_prototypes)
        self.scatter = np.zeros(n_features, dtype=np.float64)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        means = self.class_means.nbytes + self.fast_means.nbytes + self.forms.nbytes
        return means + self.scatter.nbytes + self.class_counts.nbytes

    @classmethod
    def _needed_bytes(cls, n_features: int, n_classes: int, options: dict[str, Any]) -> int:
        forms = SubPrototypes.needed_bytes(n_features, n_classes, options["sub_prototypes"])
        return 8 * n_classes * n_features + forms + 8 * n_features + 8 * n_classes

    @property
    def bytes_per_class(self) -> int:
        """Bytes that one more class costs."""
        return (8 + 4 * self.sub_prototypes) * self.n_features + 8 * (self.sub_prototypes + 2)

    def warm_start(self, prior: Prior, *, strength: float) -> None:
        """Take means and variances from the prior, weighed as `strength` labels per class."""
        self.class_counts = prior_weights(prior, strength)
        self.class_means = prior.class_means.astype(np.float32)
        self.fast_means = self.class_means.copy()
        self.forms.start(self.class_means, self.class_counts)
        self.scatter = np.diagonal(prior.shared_cov).astype(np.float64) * self.class_counts.sum()

    def rehearse(self, exemplars: Exemplars) -> Iterator[None]:
        """Weigh all classes alike in the within-class variance; merge and split the forms of each."""
        X, y = exemplars.selected(MAX_EXEMPLARS)
        spread = np.zeros(self.n_features)
        classes = [c for c in distinct(y) if (y == c).sum() > 1]
        for c in classes:
            spread += X[y == c].var(axis=0, ddof=1, dtype=np.float64) / len(classes)
        if classes:
            self.scatter = spread * self.class_counts.sum()
        yield
        scale = np.sqrt(self._inv_var())
        for c in classes if self.sub_prototypes else ():
            yield from self._recluster(int(c), X[y == c], scale)

    def _recluster(self, c: int, X: FloatArray, scale: FloatArray) -> Iterator[None]:
        """The forms of class c afresh from exemplars (n, D), in units of the within-class deviations."""
        held = np.count_nonzero(self.forms.counts[c])
        means = (self.forms.means[c, :held] - self.class_means[c]) * scale
        yield from recluster((X - self.class_means[c]) * scale, means, self.forms.counts[c, :held])
        self.forms.moved(c, means / scale + self.class_means[c])

    def explain_one(self, x: ArrayLike, n: int = 3) -> dict[str, Any]:
        """The nearest prototypes of seen classes: ``{"nearest": [{"class", "which", "distance"}]}``.

        `which` is "all-time", "fast" or "form 1" to "form K". Distances are in within-class deviations over
        all features, and those of rare forms as they count, larger. O(C·K·D).
        """
        squared = self._distances(self._checked(x, 1)[None])[0]
        which = ["all-time", "fast", *(f"form {k + 1}" for k in range(self.sub_prototypes))]
        found: list[dict[str, Any]] = [
            {"class": int(c), "which": which[k], "distance": float(np.sqrt(squared[c, k]))}
            for c in np.flatnonzero(self.class_counts > 0)
            for k in np.flatnonzero(np.isfinite(squared[c]))
        ]
        return {"nearest": sorted(found, key=lambda one: one["distance"])[: self._checked_n(n)]}

    def _typical(self, y: int | None = None) -> FloatArray:
        return typical(self.class_means, self.class_counts, y)

    def _predict(self, X: FloatArray) -> FloatArray:
        nearest = np.minimum(
            self._distances(X).min(axis=2), np.float32(1e30)
        )  # infinity less itself is no number
        logits = nearest / np.float32(-2 * np.sqrt(self.n_features))
        return softmax(logits, self.class_counts > 0)

    def _distances(self, X: FloatArray) -> FloatArray:
        """Squared distances to the all-time, the fast and the sub-prototypes as they count: (n, C, 2 + K).

        From exact differences: far from the origin nothing cancels.
        """
        inv_var = self._inv_var()
        squared = np.empty((len(X), self.n_classes, 2 + self.sub_prototypes), dtype=np.float32)
        for x, row in zip(X, squared, strict=True):
            row[:, 0] = (self.class_means - x) ** 2 @ inv_var
            row[:, 1] = (self.fast_means - x) ** 2 @ inv_var
            row[:, 2:] = (self.forms.means - x) ** 2 @ inv_var
        counts = self.forms.counts
        with np.errstate(divide="ignore"):  # free places are infinitely far
            share = np.log(counts / np.maximum(counts.max(axis=1, initial=0, keepdims=True), 1e-300))
        squared[:, :, 2:] -= (2 * share).astype(np.float32)
        return squared

    def _inv_var(self) -> FloatArray:
        """One over each feature's within-class variance, (D,) float32."""
        n = max(float(self.class_counts.sum()), 1.0)
        floor = 1e-6 * max(float(np.add.reduce(self.scatter)) / self.n_features, 1e-12 * n)
        inv_var: FloatArray = (n / np.maximum(self.scatter, floor)).astype(np.float32)
        return inv_var

    def _learn(self, x: FloatArray, y: int) -> None:
        n = float(self.class_counts[y])
        mean, fast_mean = self.class_means[y], self.fast_means[y]  # views, moved in place
        deviation = x - mean
        self.class_counts[y] = n + 1
        mean += deviation / np.float32(n + 1)
        fast_mean += np.float32(max(1 / (n + 1), self.fast_gain)) * (x - fast_mean)
        squared = np.square(deviation, dtype=np.float64)
        squared *= n / (n + 1)
        self.scatter += squared
        if self.sub_prototypes:
            self.forms.learn_one(x, y, self._inv_var())

    def _merge(self, other: PrototypeHead) -> None:
        remembered = (np.minimum(head.class_counts, 1 / self.fast_gain) for head in (self, other))
        mine, theirs = remembered
        fast_means, _ = merged_means(mine, self.fast_means, theirs, other.fast_means)
        means, between = merged_means(
            self.class_counts, self.class_means, other.class_counts, other.class_means
        )
        self.class_means, self.fast_means = means.astype(np.float32), fast_means.astype(np.float32)
        self.scatter = self.scatter + other.scatter + (between**2).sum(axis=0)
        self.forms.merge(other.forms, self._inv_var())

    def _grow(self) -> None:
        row = np.zeros((1, self.n_features), dtype=np.float32)
        self.class_means = np.concatenate([self.class_means, row])
        self.fast_means = np.concatenate([self.fast_means, row])
        self.forms.grow()

    def _options(self) -> dict[str, Any]:
        return {"sub_prototypes": self.sub_prototypes, "fast_gain": self.fast_gain}

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        arrays = {name: getattr(self, name).copy() for name in OWN_ARRAYS}
        return arrays | {f"forms.{key}": value for key, value in self.forms.state().items()}, {}

    def _set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        for name in OWN_ARRAYS:
            setattr(self, name, arrays[name])
        self.forms.restore(under(arrays, "forms."))
