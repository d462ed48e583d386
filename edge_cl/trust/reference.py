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
from edge_cl.records import FloatArray

CAPACITY = 512
"""Features of trusted labels that are kept."""
N_NEAREST = 3
N_MEASURED, N_RECENT = 256, 96
"""Last trusted labels that tell how strange an honest label is; under drift only the very last do."""
LEAST_MEASURED = 32
"""With fewer nothing is said: an honest label could be as strange as any."""
BET = 0.4
"""The test bets that p-values of a bad source have the density BET · p^(BET - 1). With 0.5 an attacker who
hides among honest labels is found sooner, and drift is more often taken for one."""
FAIR = math.log(BET) + 1 - BET
"""What the bet brings on average where nothing is wrong: below 0."""
N_DRIFT, DRIFT_PRIOR = 64, 8
"""Last trusted labels that the bet is also made on, and labels of no drift that count besides."""
UNSEEN = 0.01
"""Share of labels that may be of classes without a trusted one yet, estimated; above it that says nothing."""
RESCALE_EVERY = 16
"""Trusted labels; in the beginning at every power of two."""
CLIP = 5.0
"""Standard deviations: one wild value must not own a distance."""
FAR = 1e-6


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
        Whether a trusted label has this class. If none has, `p` is the share of trusted labels that lay as far
        from their own class as this one lies from the rival, and the others say nothing (0, and 1).
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
    O(capacity · D) per question. Holds 2·D + 16 bytes per feature.
    """

    def __init__(self, n_features: int, capacity: int = CAPACITY) -> None:
        self.capacity = capacity
        self._codec = Float16(n_features)
        self._rows = np.zeros((capacity, n_features), dtype=np.float16)
        self._rows.fill(0)
        self._y = np.zeros(capacity, dtype=np.int64)
        self._born = np.zeros(capacity, dtype=np.int64)
        self.n = self.n_added = 0
        self._mean = np.zeros(n_features, dtype=np.float32)
        self._inv_std = np.ones(n_features, dtype=np.float32)
        self._measured = np.zeros((N_MEASURED, 3))  # strangeness, distance to own class, bet
        self._n_measured = 0

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        arrays = (self._rows, self._y, self._born, self._mean, self._inv_std, self._measured)
        return sum(array.nbytes for array in arrays)

    def doubt(self, x: FloatArray, y: int) -> Doubt | None:
        """What speaks against x (D,) being of class y (-1: a new one); None: too little is known to say."""
        if self._n_measured < LEAST_MEASURED:
            return None
        own, rival, c = self._distances(x, y)
        if c < 0:
            return None
        if np.isfinite(own):
            p, outlier = self._ranks(np.log(own / rival))
            return Doubt(p, _bet(p) - self._drift(), outlier, c, known=True)
        if self._unseen() > UNSEEN:
            return None
        as_far = float((self._measured[: self._n_rows, 1] >= rival).mean())
        return Doubt(as_far, 0.0, 1.0, c, known=False)

    def add(self, x: FloatArray, y: int) -> None:
        """Keep x (D,) of a trusted label of class y, and how strange it was."""
        own, rival, c = self._distances(x, y)
        if c >= 0 and np.isfinite(own):
            strange = float(np.log(own / rival))
            bet = _bet(self._ranks(strange)[0]) if self._n_measured >= LEAST_MEASURED else FAIR
            self._measured[self._n_measured % N_MEASURED] = strange, own, bet
            self._n_measured += 1
        row = self._free_row()
        self._rows[row], self._y[row], self._born[row] = self._codec.encode(x), y, self.n_added
        self.n_added += 1
        if self.n_added % RESCALE_EVERY == 0 or self.n_added.bit_count() == 1:
            rows = self._codec.decode(self._rows[: self.n])
            std = rows.std(axis=0, dtype=np.float64)
            self._mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
            self._inv_std = (1 / np.where(std > 0, std, np.inf)).astype(np.float32)

    def _unseen(self) -> float:
        """Probability that the next label is of a class that no trusted label has (Good and Turing)."""
        return float((np.bincount(self._y[: self.n]) == 1).sum()) / max(self.n, 1)

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

    def _free_row(self) -> int:
        if self.n < self.capacity:
            self.n += 1
            return self.n - 1
        fullest = np.bincount(self._y).argmax()
        of_it = np.flatnonzero(self._y == fullest)
        return int(of_it[self._born[of_it].argmin()])

    def _distances(self, x: FloatArray, y: int) -> tuple[float, float, int]:
        """Root mean square distance to the nearest of class y (inf: none) and of the nearest other class, and
        that class (-1: none)."""
        y_known = self._y[: self.n]
        z = self._scaled(self._codec.decode(self._rows[: self.n])) - self._scaled(self._codec.encode(x))
        squares = np.einsum("nd,nd->n", z, z, dtype=np.float64) / max(z.shape[1], 1)
        own, rival, nearest = np.inf, np.inf, -1
        for c in np.unique(y_known).tolist():
            of_class = squares[y_known == c]
            found = float(np.sqrt(np.sort(of_class)[:N_NEAREST].mean())) + FAR
            if c == y:
                own = found
            elif found < rival:
                rival, nearest = found, c
        return own, rival, nearest

    def _scaled(self, X: FloatArray) -> FloatArray:
        z: FloatArray = np.clip((X - self._mean) * self._inv_std, -CLIP, CLIP)
        return z

    def state(self) -> tuple[dict[str, NDArray[Any]], dict[str, int]]:
        """Arrays and JSON values that `restore` takes back."""
        arrays: dict[str, NDArray[Any]] = {
            "rows": self._rows[: self.n],
            "y": self._y[: self.n],
            "born": self._born[: self.n],
            "mean": self._mean,
            "inv_std": self._inv_std,
            "measured": self._measured[: self._n_rows],
        }
        return arrays, {"n_added": self.n_added, "n_measured": self._n_measured}

    def restore(self, arrays: dict[str, NDArray[Any]], meta: dict[str, int]) -> None:
        """Take back what `state` gave; of more features than `capacity` the last."""
        kept = np.sort(np.argsort(arrays["born"], kind="stable")[-self.capacity :])
        self.n = len(kept)
        self._rows[: self.n], self._y[: self.n] = arrays["rows"][kept], arrays["y"][kept]
        self._born[: self.n] = arrays["born"][kept]
        self._mean, self._inv_std = arrays["mean"].copy(), arrays["inv_std"].copy()
        self._measured[: len(arrays["measured"])] = arrays["measured"]
        self.n_added, self._n_measured = meta["n_added"], meta["n_measured"]


def _bet(p: float) -> float:
    return math.log(BET) + (BET - 1) * math.log(p)
