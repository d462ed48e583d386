"""Relearning the slow memory when feature scales have moved, a little with every label."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_cl.heads.filter import SharedFilter
from edge_cl.heads.lift import Lift
from edge_cl.heads.standardise import RunningMoments, Standardiser
from edge_cl.memory import Reservoir
from edge_cl.records import FloatArray, under

OBS_NOISE_VAR = 0.1
"""Of the slow memory: variance of a one-hot target around its regression; flat within a point from 0.1 to 0.3."""
AT_ONCE = 32
"""Up to so many labels the slow memory is relearned at once, at every doubling."""
PER_LABEL = 3
"""Samples relearned with every label later: n samples take n/2 labels, the new ones included."""
MOVED = 0.01
"""Mean over the features of (shift of the mean / deviation)² + (log ratio of deviations)² that is worth it."""


class Refit:
    """Keeps every sample while there is room; at doublings of their number looks whether the scales moved.

    If so, a new slow memory is learned beside the old one, which goes on meanwhile. When the room is used up
    the scales stay as they are: a memory that lost samples cannot be relearned without forgetting them.

    Parameters
    ----------
    memory_bytes
        For the samples, 8 bits per feature.
    n_features
        D.
    lift
        Of the slow memory.
    """

    def __init__(self, memory_bytes: int, n_features: int, lift: Lift) -> None:
        capacity = _capacity(memory_bytes, n_features)
        self._kept = Reservoir(capacity, n_features, codec="int8", rng=np.random.default_rng(0))
        self._lift = lift
        self._moments = RunningMoments(n_features)
        self._standardise = Standardiser(n_features)
        self._slow: SharedFilter | None = None
        self._position = 0

    @staticmethod
    def needed_bytes(memory_bytes: int, n_features: int, n_lifted: int, n_outputs: int) -> int:
        """Bytes held while a refit is under way."""
        kept = Reservoir.own_bytes(n_features, "int8")
        kept += _capacity(memory_bytes, n_features) * Reservoir.row_bytes(n_features, "int8")
        return kept + 24 * n_features + SharedFilter.needed_bytes(n_lifted, n_outputs)

    def nbytes(self, n_outputs: int) -> int:
        """Bytes held, with the slow memory that a refit has of its own, under way or not."""
        own = self._kept.nbytes + self._moments.nbytes + self._standardise.nbytes
        return own + SharedFilter.needed_bytes(self._lift.n_lifted, n_outputs)

    def add(self, x: FloatArray, y: int) -> None:
        """Keep a sample x (D,) of class y, as long as there is room."""
        if self._kept.n < self._kept.capacity:
            self._kept.add(x, y)
            n = self._kept.n
            if n <= AT_ONCE:
                self._moments.add(x[None])
            elif n % AT_ONCE == 0:
                self._moments.add(self._kept.some(slice(n - AT_ONCE, n))[0])
        else:
            self._slow = None
            self._position = self._kept.capacity + 1

    def advance(
        self, standardise: Standardiser, n_outputs: int
    ) -> tuple[Standardiser, SharedFilter] | None:
        """Go on with a refit; a finished one is returned."""
        n = self._kept.n
        if self._position > self._kept.capacity:
            return None
        if n & (n - 1) == 0 and self._slow is None:
            self._begin(standardise, n_outputs, n)
        if self._slow is None:
            return None
        for _ in range(n if n <= AT_ONCE else PER_LABEL):
            X, y = self._kept.some(slice(self._position, self._position + 1))
            target = np.zeros(n_outputs, dtype=np.float32)
            target[y[0]] = 1
            self._slow.learn_one(self._lift(self._standardise(X))[0], target)
            self._position += 1
            if self._position == n:
                done, self._slow = (self._standardise, self._slow), None
                self._standardise = Standardiser(X.shape[1])
                return done
        return None

    def grow(self) -> None:
        """Make room for one more class."""
        if self._slow is not None:
            self._slow.grow()

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values that `set_state` takes back."""
        kept, kept_meta = self._kept.state()
        arrays = {f"kept.{key}": value for key, value in kept.items()}
        arrays |= {
            "moments_mean": self._moments.mean.copy(),
            "moments_scatter": self._moments.scatter.copy(),
            "feature_mean": self._standardise.mean.copy(),
            "feature_inv_std": self._standardise.inv_std.copy(),
        }
        meta = {"kept": kept_meta, "count": self._moments.count, "position": self._position, "slow": None}
        if self._slow is not None:
            slow, meta["slow"] = self._slow.get_state()
            arrays |= {f"slow.{key}": value for key, value in slow.items()}
            meta["n_outputs"] = self._slow.mean().shape[1]
        return arrays, meta

    def set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take back what `get_state` gave."""
        self._kept.restore(under(arrays, "kept."), meta["kept"])
        self._moments.count = meta["count"]
        self._moments.mean, self._moments.scatter = arrays["moments_mean"], arrays["moments_scatter"]
        self._standardise.mean = arrays["feature_mean"]
        self._standardise.inv_std = arrays["feature_inv_std"]
        self._position, self._slow = meta["position"], None
        if meta["slow"] is not None:
            self._slow = self._fresh(meta["n_outputs"])
            self._slow.set_state(under(arrays, "slow."), meta["slow"])

    def _begin(self, standardise: Standardiser, n_outputs: int, n: int) -> None:
        self._standardise.set_moments(self._moments.mean, self._moments.var)
        if n <= AT_ONCE or _moved(standardise, self._standardise) > MOVED:
            self._slow, self._position = self._fresh(n_outputs), 0

    def _fresh(self, n_outputs: int) -> SharedFilter:
        return SharedFilter(self._lift.n_lifted, n_outputs, obs_noise_var=OBS_NOISE_VAR)


def _capacity(memory_bytes: int, n_features: int) -> int:
    return max(memory_bytes // Reservoir.row_bytes(n_features, "int8"), 1)


def _moved(old: Standardiser, new: Standardiser) -> float:
    shift = (new.mean - old.mean) * np.minimum(old.inv_std, new.inv_std)
    ratio = np.log(new.inv_std / old.inv_std)
    return float((shift**2 + ratio**2).mean())
