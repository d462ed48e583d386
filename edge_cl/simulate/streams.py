"""The stream protocol: how right a head is about now, and about ever, on a labelled feature stream."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_cl.datasets.streams import Stream
from edge_cl.records import FloatArray

DELAY = 50
CHUNK = 100
UNLABELLED = -1


class StreamLearner(Protocol):
    """What the protocol asks of a head, or of another library's learner in its place."""

    @property
    def nbytes(self) -> int: ...
    def predict_one(self, x: FloatArray, /) -> FloatArray: ...
    def predict_many(self, X: FloatArray, /) -> FloatArray: ...
    def learn_one(self, x: FloatArray, y: int, /) -> None: ...
    def learn_many(self, X: FloatArray, y: NDArray[np.int64], /) -> None: ...


HeadFactory = Callable[[int, int], StreamLearner]
"""Makes a fresh head from (n_features, n_classes)."""


class Labelling(msgspec.Struct, frozen=True):
    """Which labels a stream's learner is taught; what it is judged by stays whole and right.

    Attributes
    ----------
    noise
        Share in [0, 1] of the labels that are of another class, drawn at random.
    every
        One sample of so many in a row is labelled, a random one, so that no cycle of labels is hit alone.
    """

    noise: float = 0.0
    every: int = 1

    def taught(self, y: NDArray[np.int64], n_classes: int) -> NDArray[np.int64]:
        """The labels taught for true classes y (n,), −1 where there is none: the same for every learner."""
        rng = np.random.default_rng(0)
        wrong = (y + rng.integers(1, max(n_classes, 2), size=len(y))) % n_classes
        taught = np.where(rng.random(len(y)) < self.noise, wrong, y)
        place = rng.integers(self.every, size=-(-len(y) // self.every)).repeat(self.every)[: len(y)]
        taught[np.arange(len(y)) % self.every != place] = UNLABELLED
        return taught


EVERY_LABEL = Labelling()


class StreamResult(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracies in [0, 1], processor time per sample (predict, learn if taught) in µs, bytes at the end."""

    now0: float
    now50: float
    ever: float
    ever_sorted: float
    us_per_step: float
    nbytes: int


def run_stream(stream: Stream, make_head: HeadFactory, labelling: Labelling = EVERY_LABEL) -> StreamResult:
    """Measure one head on one stream; see :class:`StreamResult`."""
    X, y = stream.X[~stream.held_out], stream.y[~stream.held_out]
    n_classes = int(stream.y.max()) + 1
    taught = labelling.taught(y, n_classes)
    head = make_head(X.shape[1], n_classes)
    now0, us_per_step = _prequential(head, X, y, taught)
    now50, _ = _prequential(make_head(X.shape[1], n_classes), X, y, taught, delay=DELAY)
    in_order = make_head(X.shape[1], n_classes)
    by_class = np.argsort(taught, kind="stable")[(taught == UNLABELLED).sum() :]
    in_order.learn_many(X[by_class], taught[by_class])
    held_out = stream.X[stream.held_out], stream.y[stream.held_out]
    return StreamResult(
        now0=now0,
        now50=now50,
        ever=_balanced_accuracy(head, *held_out),
        ever_sorted=_balanced_accuracy(in_order, *held_out),
        us_per_step=us_per_step,
        nbytes=head.nbytes,
    )


def no_change(stream: Stream) -> float:
    """The floor: accuracy of repeating the last label."""
    y = stream.y[~stream.held_out]
    return float((y[1:] == y[:-1]).sum() / len(y))


def _prequential(
    head: StreamLearner, X: FloatArray, y: NDArray[np.int64], taught: NDArray[np.int64], delay: int = 0
) -> tuple[float, float]:
    """Predict each sample before it is learned, `delay` samples later; accuracy and µs per step."""
    correct = 0
    chunk_s: list[float] = []
    for start in range(0, len(y), CHUNK):
        began = time.process_time()
        stop = min(start + CHUNK, len(y))
        for i in range(start, stop):
            scores = head.predict_one(X[i])
            correct += int(scores.any() and scores.argmax() == y[i])
            due = i - delay
            if due >= 0 and taught[due] != UNLABELLED:
                head.learn_one(X[due], int(taught[due]))
        chunk_s.append((time.process_time() - began) / (stop - start))
    return float(correct) / len(y), float(np.median(chunk_s)) * 1e6


def _balanced_accuracy(head: StreamLearner, X: FloatArray, y: NDArray[np.int64]) -> float:
    predicted = np.concatenate(
        [head.predict_many(X[i : i + 256]).argmax(axis=1) for i in range(0, len(X), 256)]
    )
    return float(np.mean([(predicted[y == c] == c).mean() for c in np.unique(y)]))
