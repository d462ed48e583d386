"""The nearest remembered samples vote."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edge_cl.bundle import Prior
from edge_cl.heads.base import Head, typical
from edge_cl.heads.priors import prior_samples, prior_weights
from edge_cl.heads.spread import ClassSpread
from edge_cl.memory import Reservoir
from edge_cl.memory.exemplars import Exemplars
from edge_cl.records import FloatArray, under

CODEC = "float32"  # exact, so that a sample is found again when it must be forgotten
QUERIES = 256
"""Queries answered at a time: bounds the table of distances."""
FAR = 1e6
"""Scaled features are clipped here, so that a square fits float32."""
DOUBT = 0.02
"""Vote shared by all seen classes: none is ruled out by k neighbours."""


class KnnHead(Head):
    """k nearest exemplars in a class-balanced memory of fixed size, nearer ones with more weight.

    Distances are in units of each feature's running within-class deviation. A neighbour at squared
    distance d² votes 1 / (d² + the mean d² of the k), so that one duplicate cannot outvote all others.

    Parameters
    ----------
    k
        Neighbours asked, at least 1.
    memory_bytes
        Size of the memory of exemplars, (4·D + 17) bytes each, allocated at once.
    seed
        Seeds which exemplars are replaced when the memory is full.

    Notes
    -----
    n exemplars: O(D) per label, O(n·D) per prediction, memory_bytes + 4·C·D bytes. Unlearns exactly what
    it still holds. Sources: Beringer & Hüllermeier, Efficient instance-based learning on data streams (2007);
    Chrysakis & Moens (2020) for the memory.
    """

    name: ClassVar[str] = "knn"
    can_forget: ClassVar[bool] = True
    can_explain: ClassVar[bool] = True
    gains_by_rehearsal: ClassVar[bool] = False

    def __init__(
        self, n_features: int, n_classes: int = 0, *, k: int = 5, memory_bytes: int = 2**20, seed: int = 0
    ) -> None:
        super().__init__(n_features, n_classes)
        row = Reservoir.row_bytes(n_features, CODEC)
        if not isinstance(k, int) or k < 1:
            raise ValueError(f"k is {k!r}; allowed: a whole number from 1")
        if not isinstance(memory_bytes, int) or not row <= memory_bytes <= 2**31:
            raise ValueError(
                f"memory_bytes is {memory_bytes!r}; allowed: a whole number from {row} (one exemplar of "
                f"{n_features} features) to {2**31:,}"
            )
        self.k, self.memory_bytes, self.seed = k, memory_bytes, seed
        self.spread = ClassSpread(n_features, n_classes)
        rng = np.random.default_rng(seed)
        self.memory = Reservoir(memory_bytes // row, n_features, codec=CODEC, rng=rng)

    @property
    def nbytes(self) -> int:
        """Bytes held, exemplars included."""
        return self.memory.nbytes + self.spread.nbytes + self.class_counts.nbytes

    @classmethod
    def _needed_bytes(cls, n_features: int, n_classes: int, options: dict[str, Any]) -> int:
        memory = Reservoir.needed_bytes(options["memory_bytes"], n_features, CODEC)
        return memory + ClassSpread.needed_bytes(n_features, n_classes) + 8 * n_classes

    @property
    def bytes_per_class(self) -> int:
        """Bytes that one more class costs."""
        return 4 * self.n_features + 8

    def warm_start(self, prior: Prior, *, strength: float) -> None:
        """Remember `strength` of the prior's exemplars per class; draws from its Gaussian make up for few."""
        self.class_counts = prior_weights(prior, strength)
        self.spread.start(prior, self.class_counts)
        left = self.class_counts.copy()
        X, classes, _ = prior_samples(prior, strength)
        for x, c in zip(X, classes, strict=True):
            if left[c] > 0:
                left[c] -= 1
                self.memory.add(x, int(c))

    def rehearse(self, exemplars: Exemplars) -> Iterator[None]:
        """Nothing: what is remembered is learned already."""
        yield

    def explain_one(self, x: ArrayLike, n: int = 3) -> dict[str, Any]:
        """The nearest exemplars: ``{"nearest": [{"class", "distance"}]}``, in within-class deviations."""
        features, wanted = self._checked(x, 1)[None], self._checked_n(n)
        if not self.memory.n:
            return {"nearest": []}
        squared, classes = self._nearest(features, wanted)
        pairs = zip(classes[0], np.sqrt(squared[0]), strict=True)
        return {"nearest": [{"class": int(c), "distance": float(d)} for c, d in pairs]}

    def _typical(self, y: int | None = None) -> FloatArray:
        return typical(self.spread.class_means, self.class_counts, y)

    def _predict(self, X: FloatArray) -> FloatArray:
        votes = np.zeros((len(X), self.n_classes), dtype=np.float32)
        if not self.memory.n:
            return votes
        for start in range(0, len(X), QUERIES):
            squared, classes = self._nearest(X[start : start + QUERIES], self.k)
            weights = 1 / (squared + squared.mean(axis=1, keepdims=True) + np.float32(1e-12))
            weights /= weights.sum(axis=1, keepdims=True)
            rows = start + np.arange(len(squared))[:, None]
            np.add.at(votes, (rows, classes), weights)
        seen = self.class_counts > 0
        votes[:, seen] += np.float32(DOUBT / seen.sum())
        votes /= votes.sum(axis=1, keepdims=True)
        return votes

    def _nearest(self, X: FloatArray, n: int) -> tuple[FloatArray, NDArray[np.int64]]:
        """The at most n nearest exemplars of each row: squared distances and classes, nearest first."""
        exemplars, classes = self.memory.exemplars()
        centre, inv_std = self.spread.scale(self.class_counts)
        queries, known = (np.clip((rows - centre) * inv_std, -FAR, FAR) for rows in (X, exemplars))
        squared = np.einsum("nd,nd->n", known, known) - 2 * (queries @ known.T)
        squared += np.einsum("nd,nd->n", queries, queries)[:, None]
        n = min(n, len(classes))
        nearest = np.argpartition(squared, np.arange(n), axis=1)[:, :n]
        distances = np.maximum(np.take_along_axis(squared, nearest, axis=1), 0)
        return distances, classes[nearest]

    def _learn(self, x: FloatArray, y: int) -> None:
        self.spread.learn_one(x, y, self.class_counts[y])
        self.class_counts[y] += 1
        self.memory.add(x, y)

    def _forget(self, x: FloatArray, y: int) -> None:
        if not self.memory.remove(x, y):
            raise ValueError(
                f"no such exemplar of class {y} is held: it was replaced since, or never learned"
            )
        self.spread.forget_one(x, y, self.class_counts[y])

    def _grow(self) -> None:
        self.spread.grow()

    def _options(self) -> dict[str, Any]:
        return {"k": self.k, "memory_bytes": self.memory_bytes, "seed": self.seed}

    def _get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        exemplars, meta = self.memory.state()
        return self.spread.state() | {f"memory.{key}": a for key, a in exemplars.items()}, meta

    def _set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        self.spread.restore(arrays)
        self.memory.restore(under(arrays, "memory."), meta)
