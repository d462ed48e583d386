"""What trusted labels say about a label: how strange it is among them.

The question is asked of trusted labels alone: what is checked never decides what is checked, so no flood of
labels from elsewhere can move the answer.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_cl.memory.codecs import Float16
from edge_cl.records import FloatArray, distinct

CAPACITY = 512
"""Features of trusted labels that are kept."""
N_NEAREST = 3
N_MEASURED, N_RECENT = 256, 32
"""Last trusted labels that tell how strange an honest label is; under drift only the very last do."""
LEAST_MEASURED = 32
"""With fewer nothing is said: an honest label could be as strange as any."""
BET = 0.45
"""The test bets that p-values of a bad source have the density BET · p^(BET - 1). Nearer to 1 an attacker who
hides among honest labels is found sooner, and drift is more often taken for one."""
FAIR = math.log(BET) + 1 - BET
"""What the bet brings on average where nothing is wrong: below 0."""
N_DRIFT, DRIFT_PRIOR = 32, 8
"""Last trusted labels that the bet is also made on, and labels of no drift that count besides."""
UNSEEN = 0.01
"""Share of labels that may be of classes without a trusted one yet, estimated; above it that says nothing."""
BLOCK = 32
"""Trusted labels that are measured at once; in the beginning, and while checked ones come, fewer."""
CLIP = 5.0
"""Standard deviations: one wild value must not own a distance."""
NEAR = 1e-3
"""In standard deviations, added to every distance: equal features are no proof."""


class Doubt(NamedTuple):
    """What trusted labels say against a label.

    Attributes
    ----------
    p
        Share of the trusted labels that were as strange when they came, in (0, 1]. Uniform for a source that
        labels as the trusted ones do.
    evidence
        Logarithm of what a bet on a bad source brings, less what it lately brought on trusted labels: drift
        makes those strange as well.
    outlier
        As `p`, of more and so of older trusted labels.
    rival
        The class whose trusted labels are nearest, the label's own not counted.
    known
        Whether a trusted label has this class. If none has, `p` is the share of trusted labels that lay as
        far from their own class as this one lies from the rival, and the others say nothing (0, and 1).
    """

    p: float
    evidence: float
    outlier: float
    rival: int
    known: bool


class Reference:
    """Features of trusted labels, the last of every class, and how strange each was when it came.

    Strangeness is the logarithm of the distance to the label's own class over that to the nearest other one:
    distances to the `N_NEAREST` nearest, features scaled to unit variance. Among those of the last trusted
    labels its rank makes a p-value that holds whatever the classes' overlap, as long as labels are
    exchangeable (conformal prediction; Vovk, Gammerman, Shafer 2005).

    Parameters
    ----------
    n_features
        Length D of a feature vector.
    capacity
        Features kept; when full the fullest class loses its oldest.

    Notes
    -----
    O(capacity · D) per question and per `BLOCK` trusted labels. Holds 2·D + 16 bytes per feature.
    """

    def __init__(self, n_features: int, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._codec = Float16(n_features)
        n = capacity + BLOCK  # behind the rows that count lie those of the block
        self._rows = np.zeros((n, n_features), dtype=np.float16)
        self._rows.fill(0)
        self._y = np.zeros(n, dtype=np.int64)
        self._born = np.zeros(n, dtype=np.int64)
        self.n = self._n_block = self.n_added = 0
        self._mean = np.zeros(n_features, dtype=np.float32)
        self._inv_std = np.zeros(n_features, dtype=np.float32)
        self._measured = np.zeros(
            (N_MEASURED, 3), dtype=np.float32
        )  # strangeness, distance to own class, bet
        self._n_measured = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = (self._rows, self._y, self._born, self._mean, self._inv_std, self._measured)
        return sum(array.nbytes for array in arrays)

    def doubt(self, x: FloatArray, y: int) -> Doubt | None:
        """What speaks against x (D,) being of class y (-1: a new one); None: too little is known to say.

        Labels added since `measure` count as neighbours, but not yet as measures.
        """
        if self._n_measured < LEAST_MEASURED:
            return None
        n = self.n + self._n_block
        own, rival, nearest = self._distances(self._codec.encode(x)[None], np.array([y]), np.array([n]))
        if nearest[0] < 0:
            return None
        if np.isfinite(own[0]):
            p, outlier = self._ranks(float(np.float32(np.log(own[0] / rival[0]))))
            return Doubt(p, _bet(p) - self._drift(), outlier, int(nearest[0]), known=True)
        if y >= 0 and self._unseen() > UNSEEN:
            return None
        as_far = float((self._measured[: self._n_rows, 1] >= rival[0]).mean())
        return Doubt(as_far, 0.0, 1.0, int(nearest[0]), known=False)

    def add(self, x: FloatArray, y: int) -> None:
        """Keep x (D,) of a trusted label of class y."""
        row = self.n + self._n_block
        self._rows[row], self._y[row], self._born[row] = self._codec.encode(x), y, self.n_added
        self.n_added += 1
        self._n_block += 1
        if self._n_block == min(BLOCK, self.n + 1):
            self.measure()

    def measure(self) -> None:
        """Note how strange the last trusted labels were, each among those before it."""
        block = np.arange(self.n, self.n + self._n_block)
        if not len(block):
            return
        own, rival, nearest = self._distances(self._rows[block], self._y[block], block)
        for k in np.flatnonzero(np.isfinite(own) & (nearest >= 0)):
            strange = float(np.log(own[k] / rival[k]))
            bet = _bet(self._ranks(strange)[0]) if self._n_measured >= LEAST_MEASURED else FAIR
            self._measured[self._n_measured % N_MEASURED] = strange, own[k], bet
            self._n_measured += 1
        self.n, self._n_block = self.n + len(block), 0
        while self.n > self.capacity:
            self._drop_one()
        rows = self._codec.decode(self._rows[: self.n])
        std = rows.std(axis=0, dtype=np.float64)
        self._mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._inv_std = (1 / np.where(std > 0, std, np.inf)).astype(np.float32)

    def relabel(self, class_of: list[int]) -> None:
        """Classes have become one: class c is `class_of[c]` now."""
        n = self.n + self._n_block
        self._y[:n] = np.array(class_of, dtype=np.int64)[self._y[:n]]

    def _drop_one(self) -> None:
        """The oldest of the fullest class goes, the last row takes its place."""
        y = self._y[: self.n]
        of_it = np.flatnonzero(y == np.bincount(y).argmax())
        row = of_it[self._born[of_it].argmin()]
        self.n -= 1
        for array in (self._rows, self._y, self._born):
            array[row] = array[self.n]

    def _distances(
        self, encoded: NDArray[np.float16], y: NDArray[np.int64], among: NDArray[np.int64]
    ) -> tuple[FloatArray, FloatArray, NDArray[np.int64]]:
        """Of encoded (n, D), classes y (n,), each looked for among the first `among` (n,) rows: root mean
        square distance to the nearest of its class (inf: none) and of the nearest other class, and that class
        (-1: none), each (n,)."""
        n_rows = int(among.max())
        rows, z = self._scaled(self._rows[:n_rows]), self._scaled(encoded)
        squares = (z * z).sum(axis=1)[:, None] + (rows * rows).sum(axis=1) - 2 * (z @ rows.T)
        squares = np.maximum(squares.astype(np.float64) / z.shape[1], 0) + NEAR**2
        squares[np.arange(n_rows) >= among[:, None]] = np.inf
        own, rival = np.full((2, len(y)), np.inf)
        nearest = np.full(len(y), -1)
        for c in distinct(self._y[:n_rows]).tolist():
            of_class = squares[:, self._y[:n_rows] == c]
            if of_class.shape[1] > N_NEAREST:
                of_class = np.partition(of_class, N_NEAREST - 1, axis=1)[:, :N_NEAREST]
            n_found = np.isfinite(of_class).sum(axis=1)
            total = np.where(np.isfinite(of_class), of_class, 0).sum(axis=1)
            found = np.sqrt(np.where(n_found > 0, total / np.maximum(n_found, 1), np.inf))
            own = np.where(y == c, found, own)
            closer = (y != c) & (found < rival)
            rival, nearest = np.where(closer, found, rival), np.where(closer, c, nearest)
        return own, rival, nearest

    def _scaled(self, rows: NDArray[np.float16]) -> FloatArray:
        z: FloatArray = np.clip((self._codec.decode(rows) - self._mean) * self._inv_std, -CLIP, CLIP)
        return z

    def _unseen(self) -> float:
        """Probability that the next label is of a class that no trusted label has (Good and Turing)."""
        n = self.n + self._n_block
        return float((np.bincount(self._y[:n]) == 1).sum()) / max(n, 1)

    @property
    def _n_rows(self) -> int:
        return min(self._n_measured, N_MEASURED)

    def _last(self, n: int) -> FloatArray:
        """The last n measured, (≤ n, 3)."""
        rows: FloatArray = self._measured[
            (self._n_measured - 1 - np.arange(min(n, self._n_rows))) % N_MEASURED
        ]
        return rows

    def _ranks(self, strange: float) -> tuple[float, float]:
        """p-values among the recent ones, and among all that were measured."""
        counts = [
            (rows[:, 0] >= strange, len(rows)) for rows in (self._last(N_RECENT), self._last(N_MEASURED))
        ]
        recent, longer = (float(1 + stranger.sum()) / (1 + n) for stranger, n in counts)
        return recent, longer

    def _drift(self) -> float:
        """How much more the bet lately brought on trusted labels than where nothing is wrong, at least 0."""
        bets = self._last(N_DRIFT)[:, 2]
        return max(float((bets - FAIR).sum()) / (len(bets) + DRIFT_PRIOR), 0.0)

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
        """Arrays and JSON values that `restore` takes back."""
        n = self.n + self._n_block
        arrays: dict[str, NDArray[Any]] = {
            "rows": self._rows[:n],
            "y": self._y[:n],
            "born": self._born[:n],
            "mean": self._mean,
            "inv_std": self._inv_std,
            "measured": self._measured[: self._n_rows],
        }
        counts = {"n_block": self._n_block, "n_added": self.n_added, "n_measured": self._n_measured}
        return {name: array.copy() for name, array in arrays.items()}, counts

    def restore(self, arrays: dict[str, NDArray[Any]], meta: dict[str, int]) -> None:
        """Take back what `state` gave; what is more than `capacity` goes."""
        n = len(arrays["y"])
        self.n, self._n_block = n - meta["n_block"], meta["n_block"]
        self.n_added, self._n_measured = meta["n_added"], meta["n_measured"]
        self._mean, self._inv_std = arrays["mean"].copy(), arrays["inv_std"].copy()
        self._measured[: len(arrays["measured"])] = arrays["measured"]
        if self.n <= self.capacity:
            self._rows[:n], self._y[:n], self._born[:n] = arrays["rows"], arrays["y"], arrays["born"]
            return
        last = np.argsort(arrays["born"])[-self.capacity :]  # under a smaller budget than then
        self.n, self._n_block = len(last), 0
        for mine, name in ((self._rows, "rows"), (self._y, "y"), (self._born, "born")):
            mine[: self.n] = arrays[name][last]


def _bet(p: float) -> float:
    return math.log(BET) + (BET - 1) * math.log(p)
