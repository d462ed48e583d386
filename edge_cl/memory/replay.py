"""The replay memory: what sleep rehearses, and the part held back to judge it."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_cl.memory.reservoir import Reservoir
from edge_cl.records import FloatArray, under

HELD_BACK_EVERY = 8
"""Every 8th exemplar (12.5 %) is held back: never rehearsed, it judges the head after sleep."""


class ReplayMemory:
    """Two class-balanced reservoirs under one byte budget.

    Parameters
    ----------
    capacity_bytes
        Bytes for both together.
    n_features
        Length D of a feature vector.
    codec
        ``float16`` (default), ``float32`` or ``int8``.
    held_back_every
        Every n-th exemplar goes to the held-back part; 0 holds nothing back.
    seed
        Seeds the eviction choices.
    """

    def __init__(
        self,
        *,
        capacity_bytes: int,
        n_features: int,
        codec: str = "float16",
        held_back_every: int = HELD_BACK_EVERY,
        seed: int = 0,
    ) -> None:
        self.held_back_every = held_back_every
        rehearsed, held_back = _split(_n_exemplars(capacity_bytes, n_features, codec), held_back_every)
        rngs = np.random.default_rng(seed).spawn(2)
        self.rehearsed = Reservoir(rehearsed, n_features, codec=codec, rng=rngs[0])
        self.held_back = Reservoir(held_back, n_features, codec=codec, rng=rngs[1])
        self.n_offered = 0

    @staticmethod
    def needed_bytes(capacity_bytes: int, n_features: int, codec: str, held_back_every: int) -> int:
        """`nbytes` of a new one."""
        n = sum(_split(_n_exemplars(capacity_bytes, n_features, codec), held_back_every))
        row = Reservoir.row_bytes(n_features, codec)
        return n * row + 2 * Reservoir.own_bytes(n_features, codec)

    @property
    def nbytes(self) -> int:
        """Bytes held by both parts."""
        return self.rehearsed.nbytes + self.held_back.nbytes

    @property
    def n(self) -> int:
        """Exemplars held in both parts."""
        return self.rehearsed.n + self.held_back.n

    def add(self, x: FloatArray, y: int) -> None:
        """Offer one exemplar: x (n_features,) float32, class y."""
        self.n_offered += 1
        held_back = self.held_back_every and self.n_offered % self.held_back_every == 0
        (self.held_back if held_back else self.rehearsed).add(x, y)

    def resize(self, capacity_bytes: int) -> None:
        """Take or give back bytes; when it shrinks, exemplars of the fullest classes go first."""
        n = _n_exemplars(capacity_bytes, self.rehearsed.n_features, self.rehearsed.codec)
        rehearsed, held_back = _split(n, self.held_back_every)
        self.rehearsed.resize(rehearsed)
        self.held_back.resize(held_back)

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values that `restore` takes back."""
        arrays: dict[str, np.ndarray] = {}
        meta: dict[str, Any] = {"n_offered": self.n_offered}
        for name in ("rehearsed", "held_back"):
            part_arrays, meta[name] = getattr(self, name).state()
            arrays |= {f"{name}.{key}": value for key, value in part_arrays.items()}
        return arrays, meta

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self.n_offered = meta["n_offered"]
        for name in ("rehearsed", "held_back"):
            getattr(self, name).restore(under(arrays, f"{name}."), meta[name])


def _split(n_exemplars: int, held_back_every: int) -> tuple[int, int]:
    """Capacities of the rehearsed and the held-back part; the latter is never without a place."""
    held_back = n_exemplars // held_back_every if held_back_every else 0
    return n_exemplars - held_back, max(held_back, 1)


def _n_exemplars(capacity_bytes: int, n_features: int, codec: str) -> int:
    """Exemplars that fit beside what the two reservoirs hold anyway."""
    left = capacity_bytes - 2 * Reservoir.own_bytes(n_features, codec)
    return max(left, 0) // Reservoir.row_bytes(n_features, codec)
