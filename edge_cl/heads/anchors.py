"""What the gate knows of the past: remembered exemplars, and how near they are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.heads.fast import closeness
from edge_cl.heads.gate import REACH
from edge_cl.heads.standardise import Standardiser
from edge_cl.memory import Reservoir
from edge_cl.records import FloatArray, under

ENOUGH = 32
"""Anchors held before one is asked; with less room, all of it."""
TOGETHER = 4.0
"""Anchors asked at once: half the work of asking one by one."""
LEAST = 1e-3
"""Added to a closeness before its logarithm."""
N_CONTEXT = 4


class Anchors:
    """Class-balanced exemplars of all that was learned, with their standardised features at hand.

    Parameters
    ----------
    capacity
        Exemplars at most.
    n_features
        D.
    seed
        Of every random choice.

    Notes
    -----
    8·capacity·D bytes. A context costs O(capacity·D).
    """

    def __init__(self, capacity: int, n_features: int, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._held = Reservoir(capacity, n_features, codec="float32", rng=self._rng)
        self._z = np.zeros((capacity, n_features), dtype=np.float32)
        self._norms = np.zeros(capacity, dtype=np.float32)
        self._owed = 0.0

    @staticmethod
    def needed_bytes(capacity: int, n_features: int) -> int:
        """`nbytes` of a new one."""
        held = Reservoir.own_bytes(n_features, "float32") + capacity * Reservoir.row_bytes(
            n_features, "float32"
        )
        return held + 4 * capacity * (n_features + 1)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._held.nbytes + self._z.nbytes + self._norms.nbytes

    def add(self, x: FloatArray, y: int, standardise: Standardiser) -> None:
        """Offer a sample x (D,) of class y."""
        slot = self._held.add(x, y)
        if slot >= 0:
            self._set(slice(slot, slot + 1), standardise(x[None]))

    def restandardise(self, standardise: Standardiser) -> None:
        """Take over new feature scales."""
        self._set(slice(0, self._held.n), standardise(self._held.exemplars()[0]))

    def draw(self, share: float) -> list[int]:
        """Slots to ask now, classes alike: `share` of one per call on average, together when `TOGETHER` are
        due, none while few are held."""
        if self._held.n < min(ENOUGH, self._held.capacity):
            return []
        self._owed += share
        if self._owed < TOGETHER:
            return []
        n, self._owed = int(self._owed), self._owed % 1
        return [self._held.draw() for _ in range(n)]

    def exemplars(self, slots: list[int]) -> tuple[FloatArray, list[int]]:
        """Standardised features (n, D) and classes of some exemplars."""
        return self._z[slots], [self._held.label(slot) for slot in slots]

    def context(
        self, z: FloatArray, window: FloatArray, surety: FloatArray, *, asked: list[int] | None = None
    ) -> NDArray[np.float64]:
        """Where z lies, for a gate: near what was recently seen, or near what is remembered.

        Parameters
        ----------
        z
            (n, D) standardised.
        window
            (n, W) closeness to the recent samples, W maybe 0.
        surety
            (n,) share of the fast memory's variance that the recent samples explain.
        asked
            When z are exemplars: their slots, each left out for itself.

        Returns
        -------
        (n, 4): 1; log ratio of mean closeness, recent over remembered; of the greatest; `surety`. Within ±4.
        """
        context = np.zeros((len(z), N_CONTEXT))
        context[:, 0], context[:, 3] = 1, surety
        n = self._held.n
        if n and window.shape[1]:
            near = closeness(z, self._z[:n], self._norms[:n])
            if asked is not None:
                near[np.arange(len(z)), asked] = 0
            ratio = np.empty((2, 2, len(z)))  # (recent or remembered, mean or greatest, sample)
            for k, close in enumerate((window, near)):
                np.add.reduce(close, axis=1, out=ratio[k, 0])
                np.maximum.reduce(close, axis=1, out=ratio[k, 1])
                ratio[k, 0] /= close.shape[1]
            ratio += LEAST
            np.log(ratio, out=ratio)
            context[:, 1:3] = (ratio[0] - ratio[1]).T
        np.maximum(context, -REACH, out=context)
        return np.minimum(context, REACH, out=context)

    def nearest(self, z: FloatArray, n: int) -> list[dict[str, Any]]:
        """The n exemplars nearest to z (D,): ``{"class", "memory": "remembered", "closeness"}``."""
        near = closeness(z[None], self._z[: self._held.n], self._norms[: self._held.n])[0]
        return [
            {"class": self._held.label(int(k)), "memory": "remembered", "closeness": float(near[k])}
            for k in np.argsort(-near, kind="stable")[:n]
        ]

    def get_state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values that `set_state` takes back."""
        arrays, meta = self._held.state()
        arrays = {f"held.{key}": value for key, value in arrays.items()}
        return arrays | {"z": self._z[: self._held.n].copy()}, {"held": meta, "owed": self._owed}

    def set_state(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take back what `get_state` gave."""
        self._held.restore(under(arrays, "held."), meta["held"])
        self._set(slice(0, self._held.n), arrays["z"])
        self._owed = meta["owed"]

    def _set(self, slots: slice, z: FloatArray) -> None:
        self._z[slots] = z
        self._norms[slots] = np.einsum("nd,nd->n", z, z)
