"""Relearning the slow memory when feature scales have moved, a little with every label."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_cl.heads.filter import SharedFilter
from edge_cl.heads.lift import Lift
from edge_cl.heads.standardise import RunningMoments, Standardiser
from edge_cl.memory.codecs import Int8
from edge_cl.records import FloatArray, under

OBS_NOISE_VAR = 0.1
"""Variance of a one-hot target around the slow memory; flat within a point from 0.1 to 0.3."""
BLOCK = 32
"""Samples encoded together; up to so many labels the slow memory is relearned at once, at every doubling."""
PER_LABEL = 8
"""Samples relearned together with every label later: n samples take n/7 labels, the new ones included."""
MOVED, MOVED_FAR = 0.03, 1.0
"""Mean over the features of (shift of the mean / deviation)² + (log ratio of deviations)² that is worth a
refit after twice as many labels as at the last one, and that is worth one after half as many more."""
MOST = 4.0
"""That one feature counts for."""


class Refit:
    """Keeps every sample while there is room, and looks every 32 labels whether the scales have moved.

    If so, a new slow memory is learned beside the old one, which goes on meanwhile. When the room is used up
    the scales stay as they are: relearning from some samples would forget the others.

    Parameters
    ----------
    memory_bytes
        For the samples, 8 bits per feature.
    n_features
        D.
    lift
        Of the slow memory.

    Notes
    -----
    O(D) per label; about as much as the label itself more while a refit is under way.
    """

    def __init__(self, memory_bytes: int, n_features: int, lift: Lift) -> None:
        self._lift = lift
        self._codec = Int8(n_features)
        capacity = _capacity(memory_bytes, n_features)
        self._rows = np.zeros((capacity, n_features), dtype=np.int8)
        self._classes = np.zeros(capacity, dtype=np.int32)
        self._block = np.zeros((BLOCK, n_features), dtype=np.float32)  # the last n % 32, not encoded yet
        self._n = 0
        self._moments = RunningMoments(n_features)
        self._standardise = Standardiser(n_features)
        self._slow: SharedFilter | None = None
        self._position = 0
        self._refitted_at = 0

    @staticmethod
    def needed_bytes(memory_bytes: int, n_features: int, n_lifted: int, n_outputs: int) -> int:
        """`nbytes` of a new one."""
        kept = _capacity(memory_bytes, n_features) * (n_features + 4)
        own = 4 * BLOCK * n_features + 32 * n_features
        return kept + own + SharedFilter.needed_bytes(n_lifted, n_outputs)

    def nbytes(self, n_outputs: int) -> int:
        """Bytes held, with the slow memory that a refit has of its own, under way or not."""
        own = self._rows.nbytes + self._classes.nbytes + self._block.nbytes
        own += self._codec.own_bytes(self._rows.shape[1]) + self._moments.nbytes + self._standardise.nbytes
        return own + SharedFilter.needed_bytes(self._lift.n_lifted, n_outputs)

    def add(self, x: FloatArray, y: int) -> None:
        """Keep a sample x (D,) of class y, as long as there is room."""
        if self._n == len(self._rows):
            self._slow = None
            return
        self._block[self._n % BLOCK], self._classes[self._n] = x, y
        self._n += 1
        if self._n % BLOCK == 0:
            block = self._moments.clipped(self._block)  # one broken reading would make a channel coarse
            self._moments.add(block)
            first, rows = self._n - BLOCK, self._rows[: self._n - BLOCK]
            for extreme in (block[0], block.max(axis=0), block.min(axis=0)):
                self._codec.widen(extreme, rows)
            self._rows[first : self._n] = self._codec.encode(block)

    def advance(self, standardise: Standardiser, n_outputs: int) -> tuple[Standardiser, SharedFilter] | None:
        """Go on with a refit; a finished one is returned."""
        n = self._n
        if self._slow is None and n < len(self._rows):
            self._look(standardise, n_outputs)
        if self._slow is None:
            return None
        first, self._position = self._position, min(n, self._position + (BLOCK if n <= BLOCK else PER_LABEL))
        targets = np.eye(n_outputs, dtype=np.float32)[self._classes[first : self._position]]
        z = self._standardise(self._samples(first, self._position))
        self._slow.learn_block(self._lift(z), targets)
        if self._position < n:
            return None
        done = self._standardise, self._slow
        self._standardise, self._slow = Standardiser(z.shape[1]), None
        return done

    def grow(self) -> None:
        """Make room for one more class."""
        if self._slow is not None:
            self._slow.grow()

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values that `set_state` takes back."""
        arrays: dict[str, np.ndarray] = {
            "rows": self._rows[: self._n].copy(),
            "classes": self._classes[: self._n].copy(),
            "block": self._block.copy(),
            "moments_mean": self._moments.mean.copy(),
            "moments_scatter": self._moments.scatter.copy(),
            "feature_mean": self._standardise.mean.copy(),
            "feature_inv_std": self._standardise.inv_std.copy(),
        }
        arrays |= {f"codec.{key}": value for key, value in self._codec.state().items()}
        meta: dict[str, Any] = {
            "n": self._n,
            "count": self._moments.count,
            "position": self._position,
            "refitted_at": self._refitted_at,
            "slow": None,
        }
        if self._slow is not None:
            slow, meta["slow"] = self._slow.get_state()
            arrays |= {f"slow.{key}": value for key, value in slow.items()}
        return arrays, meta

    def set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take back what `get_state` gave."""
        self._n, self._moments.count = meta["n"], meta["count"]
        self._position, self._refitted_at = meta["position"], meta["refitted_at"]
        self._rows[: self._n], self._classes[: self._n] = arrays["rows"], arrays["classes"]
        self._block = arrays["block"]
        self._codec.restore(under(arrays, "codec."))
        self._moments.mean, self._moments.scatter = arrays["moments_mean"], arrays["moments_scatter"]
        self._standardise.mean = arrays["feature_mean"]
        self._standardise.inv_std = arrays["feature_inv_std"]
        self._slow = None
        if meta["slow"] is not None:
            self._slow = SharedFilter(self._lift.n_lifted, 0, obs_noise_var=OBS_NOISE_VAR)
            self._slow.set_state(under(arrays, "slow."), meta["slow"])

    def _look(self, standardise: Standardiser, n_outputs: int) -> None:
        """Begin a refit if the scales have moved; at every doubling of the first few labels anyway."""
        n = self._n
        if n <= BLOCK:
            if n & (n - 1):
                return
            self._standardise.refit(self._block[:n])
        else:
            if n % BLOCK or n < 1.5 * self._refitted_at:
                return
            self._standardise.set_moments(self._moments.mean, self._moments.var)
            if _moved(standardise, self._standardise) < (MOVED if n >= 2 * self._refitted_at else MOVED_FAR):
                return
        self._slow = SharedFilter(self._lift.n_lifted, n_outputs, obs_noise_var=OBS_NOISE_VAR)
        self._position, self._refitted_at = 0, n

    def _samples(self, first: int, stop: int) -> FloatArray:
        """Features of samples in the order they came, (stop - first, D)."""
        if self._n <= BLOCK:
            return self._block[first:stop]
        encoded = self._n - self._n % BLOCK
        kept = self._codec.decode(self._rows[first : min(stop, encoded)])
        return np.concatenate([kept, self._block[max(first - encoded, 0) : max(stop - encoded, 0)]])


def _capacity(memory_bytes: int, n_features: int) -> int:
    return max(memory_bytes // (n_features + 4), 1)


def _moved(old: Standardiser, new: Standardiser) -> float:
    shift = (new.mean - old.mean) * np.minimum(old.inv_std, new.inv_std)
    ratio = np.log(new.inv_std / old.inv_std)
    return float(np.minimum(shift**2 + ratio**2, MOST).mean())
