"""What to rehearse: which remembered exemplars, and in which order. All classes alike, whatever the sampler.

Every sampler is a pure function of its candidates, the seed among them: a sleep that is repeated, or taken up
again after a power cut, asks for the same exemplars and gets them.
"""

from __future__ import annotations

import abc
from collections.abc import Callable

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import ConfigError
from edge_cl.memory.exemplars import Sampler
from edge_cl.records import FloatArray, distinct

MAX_BOX = 5
"""An exemplar that is answered right again and again rests 2^5 = 32 sleeps at most."""
FOCUS = 0.25
"""Part of a class's order that a batch of `hard-first` and `easy-first` draws from."""
CHUNK = 256
"""Rows decoded at once while distances are measured."""


class Candidates(msgspec.Struct, frozen=True, eq=False):
    """What a sampler chooses from; row i of every array is the same exemplar.

    Attributes
    ----------
    y
        (n,) int64 classes.
    features
        Rows (k,) int64 to features (k, D) float32; asked only by samplers that measure distances.
    born
        (n,) labels learned when the exemplar came.
    box, due
        (n,) Leitner box from 0, and the number of the sleep from which it is due; see `after`.
    n_sleep
        The number of this sleep.
    seed
        Decides every random choice.
    n_steps
        Optimisation steps that the sleep may take.
    """

    y: NDArray[np.int64]
    features: Callable[[NDArray[np.int64]], FloatArray]
    born: NDArray[np.int64]
    box: NDArray[np.int8]
    due: NDArray[np.int64]
    n_sleep: int
    seed: int
    n_steps: int


class _ClassBalanced(abc.ABC):
    """Deals rows class by class in turn; subclasses order and draw the rows of one class.

    `order` says which rows of a class come first, once each; `_drawn` which row a class gives to a batch.
    """

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self._classes = distinct(candidates.y)
        self._rows = [np.flatnonzero(candidates.y == c) for c in self._classes]
        self._pools = [self._order(c, rows) for c, rows in enumerate(self._rows)]

    def select(self, n: int) -> NDArray[np.int64]:
        """At most n different rows, one of each class in turn; classes that run out leave their turns."""
        if not len(self._classes) or n < 1:
            return np.empty(0, dtype=np.int64)
        rows = np.concatenate(self._pools)
        turn = np.concatenate([np.arange(len(pool)) for pool in self._pools])
        dealt: NDArray[np.int64] = rows[np.argsort(turn, kind="stable")[:n]]
        return dealt

    def batch(self, step: int, size: int) -> NDArray[np.int64]:
        """Rows (size,) of optimisation step `step`, classes in turn across steps; empty without any."""
        if not len(self._classes):
            return np.empty(0, dtype=np.int64)
        turns = np.arange(step * size, (step + 1) * size)
        classes, rounds = turns % len(self._classes), turns // len(self._classes)
        rows = np.empty(size, dtype=np.int64)
        for c in distinct(classes):
            mine = classes == c
            rows[mine] = self._drawn(int(c), step, rounds[mine])
        return rows

    @abc.abstractmethod
    def _order(self, c: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows that class c may give, most wanted first."""

    @abc.abstractmethod
    def _drawn(self, c: int, step: int, rounds: NDArray[np.int64]) -> NDArray[np.int64]:
        """The rows of class c in a batch, one for each of its turns `rounds`, counted from the first step."""

    def _rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.candidates.seed, *what])


class Balanced(_ClassBalanced):
    """Any exemplar of a class is as good as another; batches go through a class before they repeat it."""

    def __init__(self, candidates: Candidates) -> None:
        self._epochs: dict[int, tuple[int, NDArray[np.int64]]] = {}
        super().__init__(candidates)

    def _order(self, c: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return self._rng(c).permutation(rows)

    def _drawn(self, c: int, step: int, rounds: NDArray[np.int64]) -> NDArray[np.int64]:
        n = len(self._pools[c])
        rows = np.empty(len(rounds), dtype=np.int64)
        for epoch in distinct(rounds // n).tolist():
            mine = rounds // n == epoch
            rows[mine] = self._epoch(c, epoch)[rounds[mine] % n]
        return rows

    def _epoch(self, c: int, epoch: int) -> NDArray[np.int64]:
        """The order of class c in its k-th epoch; the last one asked for is kept, since it is asked again."""
        known = self._epochs.get(c)
        if known is None or known[0] != epoch:
            known = (epoch, self._rng(c, epoch).permutation(self._pools[c]))
            self._epochs[c] = known
        return known[1]


class Recent(_ClassBalanced):
    """What came lately is likelier: the propensity halves with every `half_life` labels of age.

    The half-life is the number of exemplars held, so that a full memory leans to the labels that would just
    fill it. Within a class only differences of age count: a class of long ago gives its latest. After SHARP
    (arXiv 2305.18563) and the time-varying propensity of Fakoor et al. (arXiv 2210.01422).
    """

    @property
    def half_life(self) -> int:
        """Labels of age that halve the chance."""
        return max(len(self.candidates.y), 1)

    def _weights(self, rows: NDArray[np.int64]) -> FloatArray:
        born = self.candidates.born[rows].astype(np.float64)
        weights: FloatArray = np.exp2(np.maximum((born - born.max()) / self.half_life, -1000.0))
        return weights

    def _order(self, c: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        waits = self._rng(c).standard_exponential(len(rows)) / self._weights(rows)
        order: NDArray[np.int64] = rows[np.argsort(waits, kind="stable")]  # a weighted draw one by one
        return order

    def _drawn(self, c: int, step: int, rounds: NDArray[np.int64]) -> NDArray[np.int64]:
        rows = self._rows[c]
        weights = self._weights(rows)
        return self._rng(c, step).choice(rows, size=len(rounds), p=weights / weights.sum())


class EasyFirst(_ClassBalanced):
    """From the exemplars nearest to their class mean to the farthest, relative to the class's spread.

    Batches move through the order while the steps go by. Source: Harun et al., GRASP (arXiv 2308.13646).
    The first question decodes every candidate once, O(n·D).
    """

    sign = 1.0

    def _order(self, c: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        order: NDArray[np.int64] = rows[np.argsort(self.sign * self._distances(rows), kind="stable")]
        return order

    def _distances(self, rows: NDArray[np.int64]) -> FloatArray:
        """Distance of each row to the mean of them all, relative to their root mean square: (k,) float64."""
        chunks = [rows[k : k + CHUNK] for k in range(0, len(rows), CHUNK)]
        features = self.candidates.features
        mean = sum(features(chunk).sum(axis=0, dtype=np.float64) for chunk in chunks) / len(rows)
        squares = np.concatenate(
            [np.square(features(chunk) - mean).sum(axis=1, dtype=np.float64) for chunk in chunks]
        )
        relative: FloatArray = np.sqrt(squares / max(squares.mean(), np.finfo(np.float64).tiny))
        return relative

    def _drawn(self, c: int, step: int, rounds: NDArray[np.int64]) -> NDArray[np.int64]:
        order = self._pools[c]
        width = max(int(np.ceil(FOCUS * len(order))), 1)
        progress = min(step / max(self.candidates.n_steps - 1, 1), 1.0)
        begin = round(progress * (len(order) - width))
        return order[begin + self._rng(c, step).integers(width, size=len(rounds))]


class HardFirst(EasyFirst):
    """As `easy-first`, from the farthest to the nearest."""

    sign = -1.0


class Spaced(Balanced):
    """Recall at growing intervals: only exemplars that are due, those due longest first.

    What was answered right rests for a while, what was answered wrong comes back at the next sleep (`after`).
    A class with nothing due gives all it has, so that it is not forgotten beside the others. Source:
    Leitner's boxes; "enough rest" between recalls.
    """

    def _order(self, c: int, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        due = self.candidates.due
        pool = rows[due[rows] <= self.candidates.n_sleep]
        shuffled = super()._order(c, pool if len(pool) else rows)
        order: NDArray[np.int64] = shuffled[np.argsort(due[shuffled], kind="stable")]
        return order


def after(
    box: NDArray[np.int8], right: NDArray[np.bool_], n_sleep: int
) -> tuple[NDArray[np.int8], NDArray[np.int64]]:
    """Leitner boxes after sleep `n_sleep`: new (box, due) of exemplars that were asked in it.

    What was right rests 2^box sleeps and goes up a box; what was wrong goes to box 0, due at the next sleep.

    >>> box, due = after(np.array([0, 2, 2], dtype=np.int8), np.array([True, True, False]), 10)
    >>> box.tolist(), due.tolist()
    ([1, 3, 0], [12, 15, 11])
    """
    rest = np.where(right, np.left_shift(1, box.astype(np.int64)), 0)
    new_box = np.where(right, np.minimum(box + 1, MAX_BOX), 0).astype(np.int8)
    return new_box, n_sleep + 1 + rest


SAMPLERS: dict[str, Callable[[Candidates], Sampler]] = {
    "balanced": Balanced,
    "recent": Recent,
    "hard-first": HardFirst,
    "easy-first": EasyFirst,
    "spaced": Spaced,
}


def create(name: str, candidates: Candidates) -> Sampler:
    """The sampler called `name`; raises ConfigError, which lists the names, for another."""
    if name not in SAMPLERS:
        raise ConfigError(f"sleep.sampler is {name!r}; known samplers: {', '.join(SAMPLERS)}")
    return SAMPLERS[name](candidates)
