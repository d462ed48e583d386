"""Other libraries' learners with the verbs of a head, to be measured in the same run: extra ``bench``.

river and scikit-learn are imported by name when asked for. A plain import would have to be excepted from
the contract that `edge_cl` never imports scikit-learn; so the contract stays whole, this is the one
module that goes around it, and only ``edge-cl bench streams --peers`` loads it.
"""

from __future__ import annotations

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


class RiverPeer:
    """A river classifier; its answer is one-hot, all zero before it has one."""

    def __init__(self, model: Any, n_classes: int) -> None:
        self.model, self.n_classes = model, n_classes

    @property
    def nbytes(self) -> int:
        """Bytes of the model as river counts them."""
        return int(self.model._raw_memory_usage)

    def predict_one(self, x: FloatArray) -> FloatArray:
        """(D,) → (C,) one-hot."""
        return _one_hot(self.model.predict_one(_named(x)), self.n_classes)

    def predict_many(self, X: FloatArray) -> FloatArray:
        """(n, D) → (n, C) one-hot."""
        return np.stack([self.predict_one(x) for x in X])

    def learn_one(self, x: FloatArray, y: int) -> None:
        """One sample."""
        self.model.learn_one(_named(x), y)

    def learn_many(self, X: FloatArray, y: NDArray[np.int64]) -> None:
        """Samples in order."""
        for features, c in zip(X, y.tolist(), strict=True):
            self.learn_one(features, c)


class SgdPeer:
    """scikit-learn's logistic regression by stochastic gradient, behind its running standardiser."""

    def __init__(self, n_classes: int) -> None:
        self.scaler = _module("sklearn.preprocessing").StandardScaler()
        self.model = _module("sklearn.linear_model").SGDClassifier(loss="log_loss", random_state=0)
        self.n_classes = n_classes
        self._classes = np.arange(max(n_classes, 2))

    @property
    def nbytes(self) -> int:
        """Bytes of weights and scales."""
        arrays = [*vars(self.model).values(), *vars(self.scaler).values()]
        return sum(a.nbytes for a in arrays if isinstance(a, np.ndarray))

    def predict_one(self, x: FloatArray) -> FloatArray:
        """(D,) → (C,) one-hot."""
        scores: FloatArray = self.predict_many(x[None])[0]
        return scores

    def predict_many(self, X: FloatArray) -> FloatArray:
        """(n, D) → (n, C) one-hot; all zero before the first sample."""
        if not hasattr(self.model, "coef_"):
            return np.zeros((len(X), self.n_classes), dtype=np.float32)
        predicted = self.model.predict(self.scaler.transform(X))
        scores: FloatArray = np.eye(len(self._classes), dtype=np.float32)[predicted][:, : self.n_classes]
        return scores

    def learn_one(self, x: FloatArray, y: int) -> None:
        """One sample: scales first, then one step."""
        z = self.scaler.partial_fit(x[None]).transform(x[None])
        self.model.partial_fit(z, [y], classes=self._classes)

    def learn_many(self, X: FloatArray, y: NDArray[np.int64]) -> None:
        """Samples in order."""
        for features, c in zip(X, y.tolist(), strict=True):
            self.learn_one(features, c)


Peer = RiverPeer | SgdPeer


def peers() -> dict[str, Callable[[int, int], Peer]]:
    """Makers of every peer by name, from (n_features, n_classes).

    Softmax stands behind river's StandardScaler, without which it fails; nearest neighbours do better with
    it on some streams and worse on others, so both are here; trees and naive Bayes do not depend on scale.
    Defaults otherwise.

    Raises
    ------
    ConfigError
        When river or scikit-learn is not installed.
    """
    forest, bayes = _module("river.forest"), _module("river.naive_bayes")
    linear, neighbours = _module("river.linear_model"), _module("river.neighbors")
    scaler = _module("river.preprocessing").StandardScaler
    _module("sklearn.linear_model")

    def knn() -> Any:
        return neighbours.KNNClassifier(engine=neighbours.LazySearch(window_size=KNN_WINDOW))

    models: dict[str, Callable[[], Any]] = {
        "river-arf": lambda: forest.ARFClassifier(n_models=N_TREES, seed=0),
        "river-knn": knn,
        "river-knn-z": lambda: scaler() | knn(),
        "river-softmax": lambda: scaler() | linear.SoftmaxRegression(),
        "river-bayes": bayes.GaussianNB,
    }
    makers: dict[str, Callable[[int, int], Peer]] = {name: _river(make) for name, make in models.items()}
    return makers | {"sklearn-sgd": lambda _, n_classes: SgdPeer(n_classes)}


def versions() -> dict[str, str]:
    """Of the libraries that the peers come from."""
    return {name: metadata.version(name) for name in ("river", "scikit-learn")}


def _river(make_model: Callable[[], Any]) -> Callable[[int, int], Peer]:
    return lambda _, n_classes: RiverPeer(make_model(), n_classes)


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(
            f"--peers measures river and scikit-learn, but {name} cannot be imported ({error}): "
            "`pip install 'edge-cl[bench]'`, or leave --peers out"
        ) from error


def _named(x: FloatArray) -> dict[int, float]:
    return dict(enumerate(x.tolist()))


def _one_hot(y: int | None, n_classes: int) -> FloatArray:
    scores = np.zeros(n_classes, dtype=np.float32)
    if y is not None:
        scores[y] = 1
    return scores
