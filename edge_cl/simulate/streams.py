"""The stream protocol: how right a head is about now, and about ever, on a labelled feature stream."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import DataError
from edge_cl.records import FloatArray

DELAY = 50
CHUNK = 100


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


class Stream(msgspec.Struct, frozen=True):
    """A labelled feature stream in its natural order: X (n, D), y (n,) classes from 0."""

    name: str
    X: FloatArray
    y: NDArray[np.int64]
    held_out: NDArray[np.bool_]


class StreamResult(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracies in [0, 1], processor time per predict + learn in µs, bytes of the head at the end."""

    now0: float
    now50: float
    ever: float
    ever_sorted: float
    us_per_step: float
    nbytes: int


def find_streams(folder: str | Path, rows: int = 25_000) -> Iterator[Stream]:
    """Every ``.npz`` in a folder that holds `X` (n, D) and `y` (n,); the first `rows` of each.

    Every fifth row is held out and never learned from. A file whose labels cycle names its cycle
    length in `frame`; then every fifth whole frame is held out.
    """
    paths = sorted(Path(folder).glob("*.npz"))
    if not paths:
        raise DataError(f"{folder}: no .npz files there; `edge-cl data list` shows where data is looked for")
    found = False
    for path in paths:
        with np.load(path, allow_pickle=False) as data:
            if not {"X", "y"} <= set(data.files) or data["X"].ndim != 2:
                continue
            X, y = data["X"][:rows].astype(np.float32), data["y"][:rows].astype(np.int64)
            frame = int(data["frame"]) if "frame" in data.files else 1
        found = True
        yield Stream(path.stem, X, y, np.arange(len(y)) // frame % 5 == 4)
    if not found:
        raise DataError(f"{folder}: none of its {len(paths)} .npz files holds X (n, D) and y (n,)")


def run_stream(stream: Stream, make_head: HeadFactory) -> StreamResult:
    """Measure one head on one stream; see :class:`StreamResult`."""
    X, y = stream.X[~stream.held_out], stream.y[~stream.held_out]
    n_classes = int(stream.y.max()) + 1
    head = make_head(X.shape[1], n_classes)
    now0, us_per_step = _prequential(head, X, y)
    now50, _ = _prequential(make_head(X.shape[1], n_classes), X, y, delay=DELAY)
    in_order = make_head(X.shape[1], n_classes)
    by_class = np.argsort(y, kind="stable")
    in_order.learn_many(X[by_class], y[by_class])
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
    head: StreamLearner, X: FloatArray, y: NDArray[np.int64], delay: int = 0
) -> tuple[float, float]:
    """Predict each sample before it is learned, `delay` samples later; accuracy and µs per step."""
    waiting: collections.deque[int] = collections.deque()
    correct = 0
    chunk_s: list[float] = []
    for start in range(0, len(y), CHUNK):
        began = time.process_time()
        stop = min(start + CHUNK, len(y))
        for i in range(start, stop):
            scores = head.predict_one(X[i])
            correct += int(scores.any() and scores.argmax() == y[i])
            waiting.append(i)
            if len(waiting) > delay:
                due = waiting.popleft()
                head.learn_one(X[due], int(y[due]))
        chunk_s.append((time.process_time() - began) / (stop - start))
    return float(correct) / len(y), float(np.median(chunk_s)) * 1e6


def _balanced_accuracy(head: StreamLearner, X: FloatArray, y: NDArray[np.int64]) -> float:
    predicted = np.concatenate(
        [head.predict_many(X[i : i + 256]).argmax(axis=1) for i in range(0, len(X), 256)]
    )
    return float(np.mean([(predicted[y == c] == c).mean() for c in np.unique(y)]))
