"""Other libraries' learners with the verbs of a head, to be measured in the same run: extra ``bench``.

river and scikit-learn are imported by name when asked for. A plain import would have to be excepted from
the contract that `edge_cl` never imports scikit-learn; so the contract stays whole, this is the one
module that goes around it, and only ``edge-cl bench streams --peers`` loads them.
"""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import ConfigError
from edge_cl.records import FloatArray

KNN_WINDOW = 1000
N_TREES = 10
SLDA_SHRINKAGE = 1e-4
SLDA_SOLVE_EVERY = 16
"""Labels between two pseudo-inverses, where the published code makes one for every prediction."""


class Peer(abc.ABC):
    """What the stream protocol asks of a learner; its answer is one-hot, all zero before it has one."""

    def __init__(self, n_classes: int) -> None:
        self.n_classes = n_classes

    @property
    @abc.abstractmethod
    def nbytes(self) -> int:
        """Bytes of what was learned."""

    @abc.abstractmethod
    def predict_one(self, x: FloatArray) -> FloatArray:
        """(D,) → (C,) one-hot."""

    @abc.abstractmethod
    def learn_one(self, x: FloatArray, y: int) -> None:
        """One sample."""

    def predict_many(self, X: FloatArray) -> FloatArray:
        """(n, D) → (n, C) one-hot."""
        return np.stack([self.predict_one(x) for x in X])

    def learn_many(self, X: FloatArray, y: NDArray[np.int64]) -> None:
        """Samples in order."""
        for features, c in zip(X, y.tolist(), strict=True):
            self.learn_one(features, c)


class RiverPeer(Peer):
    """A river classifier."""

    def __init__(self, model: Any, n_classes: int) -> None:
        super().__init__(n_classes)
        self.model = model

    @property
    def nbytes(self) -> int:
        """Bytes of the model as river counts them."""
        return int(self.model._raw_memory_usage)

    def predict_one(self, x: FloatArray) -> FloatArray:
        """(D,) → (C,) one-hot."""
        return _one_hot(self.model.predict_one(_named(x)), self.n_classes)

    def learn_one(self, x: FloatArray, y: int) -> None:
        """One sample."""
        self.model.learn_one(_named(x), y)


class SgdPeer(Peer):
    """scikit-learn's logistic regression by stochastic gradient."""

    def __init__(self, n_classes: int) -> None:
        super().__init__(n_classes)
        self.model = _module("sklearn.linear_model").SGDClassifier(loss="log_loss", random_state=0)
        self._classes = np.arange(max(n_classes, 2))

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return _array_bytes(self.model)

    def predict_one(self, x: FloatArray) -> FloatArray:
        """(D,) → (C,) one-hot."""
        known = hasattr(self.model, "coef_")
        return _one_hot(int(self.model.predict(x[None])[0]) if known else None, self.n_classes)

    def learn_one(self, x: FloatArray, y: int) -> None:
        """One step."""
        self.model.partial_fit(x[None], [y], classes=self._classes)


class DeepSldaPeer(Peer):
    """Deep SLDA by the published rule (Hayes & Kanan, 2020): Λ = pinv((1 − ε) S + ε I), ε = 1e-4.

    As published, ε does not depend on the scale of the features, a class's first sample enters the scatter S
    as if its mean were 0, and S is weighed by the count of all classes. Two kindnesses: classes not yet seen
    are never answered, and in a stream the pseudo-inverse may be up to 16 labels old (by `predict_many` it
    is always new). Float64; O(D²) per label, O(D³) per pseudo-inverse.
    """

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__(n_classes)
        self.means = np.zeros((n_classes, n_features))
        self.counts = np.zeros(n_classes)
        self.scatter = np.zeros((n_features, n_features))
        self.weights = np.zeros((n_features, n_classes))
        self.bias = np.zeros(n_classes)
        self._unsolved = 0

    @property
    def nbytes(self) -> int:
        """Bytes of means, scatter and weights."""
        return _array_bytes(self)

    def predict_one(self, x: FloatArray) -> FloatArray:
        """(D,) → (C,) one-hot."""
        # At the start, where a label still changes much, for every prediction.
        if self._unsolved >= min(SLDA_SOLVE_EVERY, 1 + self.counts.sum() // SLDA_SOLVE_EVERY):
            self._solve()
        answer: FloatArray = self._answers(x[None])[0]
        return answer

    def predict_many(self, X: FloatArray) -> FloatArray:
        """(n, D) → (n, C) one-hot."""
        if self._unsolved:
            self._solve()
        return self._answers(X)

    def learn_one(self, x: FloatArray, y: int) -> None:
        """One sample."""
        t = self.counts.sum()
        off = x - self.means[y]
        self.scatter = (t * self.scatter + t / (t + 1) * np.outer(off, off)) / (t + 1)
        self.means[y] += off / (self.counts[y] + 1)
        self.counts[y] += 1
        self._unsolved += 1

    def _solve(self) -> None:
        shrunk = (1 - SLDA_SHRINKAGE) * self.scatter + SLDA_SHRINKAGE * np.eye(len(self.scatter))
        self.weights = np.linalg.pinv(shrunk, hermitian=True) @ self.means.T
        self.bias = -0.5 * (self.means.T * self.weights).sum(axis=0)
        self._unsolved = 0

    def _answers(self, X: FloatArray) -> FloatArray:
        if not self.counts.any():
            return np.zeros((len(X), self.n_classes), dtype=np.float32)
        scores = np.where(self.counts > 0, X @ self.weights + self.bias, -np.inf)
        answers: FloatArray = np.eye(self.n_classes, dtype=np.float32)[scores.argmax(axis=1)]
        return answers


class Standardised(Peer):
    """A peer behind running means and scales (Welford's recursion), which learn each sample first."""

    def __init__(self, peer: Peer, n_features: int) -> None:
        super().__init__(peer.n_classes)
        self.peer = peer
        self.n_seen = 0
        self.mean, self.squares = np.zeros(n_features), np.zeros(n_features)
        self.scale = np.ones(n_features)

    @property
    def nbytes(self) -> int:
        """Bytes of the peer and its scales."""
        return self.peer.nbytes + _array_bytes(self)

    def predict_one(self, x: FloatArray) -> FloatArray:
        """(D,) → (C,) one-hot."""
        return self.peer.predict_one((x - self.mean) / self.scale)

    def predict_many(self, X: FloatArray) -> FloatArray:
        """(n, D) → (n, C) one-hot."""
        return self.peer.predict_many((X - self.mean) / self.scale)

    def learn_one(self, x: FloatArray, y: int) -> None:
        """One sample: scales first."""
        self.n_seen += 1
        before = x - self.mean
        self.mean += before / self.n_seen
        self.squares += before * (x - self.mean)
        self.scale = np.where(self.squares > 0, np.sqrt(self.squares / self.n_seen), 1.0)
        self.peer.learn_one((x - self.mean) / self.scale, y)


def _river(module: str, name: str, *, scaled: bool = False, **options: Any) -> Callable[..., Peer]:
    def make(_: int, n_classes: int, **seed: int) -> Peer:
        model = getattr(_module(module), name)(**options, **seed)
        if scaled:
            model = _module("river.preprocessing").StandardScaler() | model
        return RiverPeer(model, n_classes)

    return make


def _knn(*, scaled: bool) -> Callable[..., Peer]:
    def make(n_features: int, n_classes: int) -> Peer:
        engine = _module("river.neighbors").LazySearch(window_size=KNN_WINDOW)
        how = _river("river.neighbors", "KNNClassifier", scaled=scaled, engine=engine)
        return how(n_features, n_classes)

    return make


PEERS: dict[str, Callable[..., Peer]] = {
    "river-arf": _river("river.forest", "ARFClassifier", n_models=N_TREES),
    "river-tree": _river("river.tree", "HoeffdingAdaptiveTreeClassifier"),
    "river-knn": _knn(scaled=False),
    "river-knn-z": _knn(scaled=True),
    "river-softmax": _river("river.linear_model", "SoftmaxRegression", scaled=True),
    "river-bayes": _river("river.naive_bayes", "GaussianNB"),
    "sklearn-sgd": lambda n_features, n_classes: Standardised(SgdPeer(n_classes), n_features),
    "deep-slda": DeepSldaPeer,
    "deep-slda-z": lambda n_features, n_classes: Standardised(
        DeepSldaPeer(n_features, n_classes), n_features
    ),
}
"""Makers from (n_features, n_classes), and `seed` for those in `SEEDED`.

Softmax and SGD stand behind a running standardiser, without which they fail; nearest neighbours and Deep SLDA
do better with it on some streams and worse on others, so both are here; trees and naive Bayes do not depend
on scale. Defaults otherwise.
"""

SEEDED = frozenset({"river-arf", "river-tree"})


def require() -> None:
    """Raises ConfigError when river or scikit-learn is not installed."""
    for module in ("forest", "linear_model", "naive_bayes", "neighbors", "preprocessing", "tree"):
        _module(f"river.{module}")
    _module("sklearn.linear_model")


def versions() -> dict[str, str]:
    """Of the libraries that the peers come from."""
    return {name: metadata.version(name) for name in ("river", "scikit-learn")}


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"peers are learners of river and scikit-learn, but {name} cannot be imported ({error}): "
            "`pip install 'edge-cl[bench]'`, or leave --peers and --peer out"
        ) from error


def _named(x: FloatArray) -> dict[int, float]:
    return dict(enumerate(x.tolist()))


def _one_hot(y: int | None, n_classes: int) -> FloatArray:
    scores = np.zeros(n_classes, dtype=np.float32)
    if y is not None:
        scores[y] = 1
    return scores


def _array_bytes(holder: object) -> int:
    return sum(a.nbytes for a in vars(holder).values() if isinstance(a, np.ndarray))
