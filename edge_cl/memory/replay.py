"""The replay memory: what sleep rehearses, and the part held back to judge it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from edge_cl.bundle import Codebook
from edge_cl.errors import BudgetExceeded
from edge_cl.memory.codecs import CODECS, Float32
from edge_cl.memory.pq import Pq
from edge_cl.memory.reservoir import ABOUT_BYTES, Reservoir
from edge_cl.memory.rows import HEADER_BYTES, FileRows, RowFile
from edge_cl.records import FloatArray, under

HELD_BACK_EVERY = 6
"""Of every 6 exemplars of a class one (16.7 %), the 4th first, is held back: never rehearsed, it judges the
head after sleep. A class that nobody can judge makes the gate refuse."""

PARTS = ("rehearsed", "held_back")
LEAST_EXEMPLARS = 16
REFRESH_PART, FEWEST_NEW = 8, 256
"""Centroids follow when an eighth of the memory was offered since they last did, and at least so many."""


class ReplayMemory:
    """Two class-balanced reservoirs under one byte budget.

    Parameters
    ----------
    capacity_bytes
        Bytes of RAM for both together; by default as few as hold `LEAST_EXEMPLARS`.
    n_features
        Length D of a feature vector.
    codec
        ``float16`` (default), ``float32`` or ``int8``; or a codebook for product quantisation.
    evict
        ``redundant`` or ``random``, see :class:`Reservoir`.
    held_back_every
        One in so many exemplars of a class goes to the held-back part; 0 holds nothing back.
    seed
        Seeds the eviction choices.
    file
        Keeps the rows in two files beside this path instead of RAM, at most `file.max_bytes` of them.

    Raises
    ------
    BudgetExceeded
        There is no room for one exemplar.
    StateError, StateUnwritable
        A file is not ours, or the disk is full.

    Notes
    -----
    With a file, each `state` that became durable must be followed by `persisted`: files and snapshots change
    together, so that recovery after any stop finds both as they belong together.
    """

    def __init__(
        self,
        *,
        capacity_bytes: int | None = None,
        n_features: int,
        codec: str | Codebook = "float16",
        evict: str = "random",
        held_back_every: int = HELD_BACK_EVERY,
        seed: int = 0,
        file: RowFile | None = None,
    ) -> None:
        self.held_back_every = held_back_every
        self._file = file
        self._shared = Pq(codec) if isinstance(codec, Codebook) else None
        if self._shared is not None and self._shared.n_features != n_features:
            raise ValueError(
                f"the codebook is for features of size {self._shared.n_features}, found {n_features}"
            )
        self._plain = codec if isinstance(codec, str) else ""
        if self._shared is None and self._plain not in CODECS:
            raise ValueError(f"unknown codec {codec!r}; known: {', '.join(CODECS)}, and pq with a codebook")
        self._kind: Float32 = self._shared or CODECS[self._plain](n_features)
        n = LEAST_EXEMPLARS if capacity_bytes is None else self.n_exemplars(capacity_bytes)
        sizes = _split(n, held_back_every)
        rngs = np.random.default_rng(seed).spawn(2)
        self.rehearsed, self.held_back = (
            Reservoir(
                size,
                n_features,
                codec=self._shared or self._plain,
                evict=evict,
                rng=rng,
                file=file and file.part(name),
            )
            for name, size, rng in zip(PARTS, sizes, rngs, strict=True)
        )
        self._n_offered: list[int] = []  # per class
        self._n_unrefreshed = 0

    @property
    def row_bytes(self) -> int:
        """Bytes of RAM that one exemplar costs."""
        return ABOUT_BYTES + (0 if self._file else self._kind.row_bytes)

    @property
    def own_bytes(self) -> int:
        """Bytes of RAM held whatever the capacity."""
        if self._file is None:
            return self._kind.nbytes * (1 if self._shared else 2)
        return self._kind.nbytes + FileRows.reserved_bytes(self._file, self._kind.row_bytes)

    @property
    def nbytes(self) -> int:
        """Bytes of RAM held by both parts."""
        shared = self._shared.nbytes if self._shared else 0
        return self.rehearsed.nbytes + self.held_back.nbytes + shared + self._spare_bytes()

    def _spare_bytes(self) -> int:
        """What is set aside for rows that change before a snapshot, and not taken yet."""
        if self._file is None:
            return 0
        taken = self.rehearsed.unsaved_bytes + self.held_back.unsaved_bytes
        return max(FileRows.reserved_bytes(self._file, self._kind.row_bytes) - taken, 0)

    @property
    def disk_bytes(self) -> int:
        """Bytes of disk held by both parts."""
        return self.rehearsed.disk_bytes + self.held_back.disk_bytes

    @property
    def n(self) -> int:
        """Exemplars held in both parts."""
        return self.rehearsed.n + self.held_back.n

    def add(self, x: FloatArray, y: int) -> bool:
        """Offer one exemplar: x (n_features,) float32, class y; whether it is held back, never rehearsed."""
        self._n_offered += [0] * (y + 1 - len(self._n_offered))
        every, n = self.held_back_every, self._n_offered[y]
        self._n_offered[y] += 1
        held_back = bool(every) and n % every == every // 2
        (self.held_back if held_back else self.rehearsed).add(x, y)
        if self._shared is not None:
            self._n_unrefreshed += 1
            if self._n_unrefreshed >= max(self.n // REFRESH_PART, FEWEST_NEW):
                self.refresh()
        return held_back

    def reconstruct(self, X: FloatArray) -> FloatArray:
        """(n, D) features as they would come back from memory."""
        return self._kind.reconstruct(X)

    def refresh(self) -> None:
        """Before a sleep, and whenever much is new: centroids follow what was stored since the last time, as
        long as the older exemplars allow. Other codecs have nothing to follow with."""
        self._n_unrefreshed = 0
        if self._shared is not None:
            self._shared.refresh(self._stored())

    def resize(self, capacity_bytes: int) -> None:
        """Take or give back bytes of RAM; when it shrinks, exemplars of the fullest classes go first.

        Raises BudgetExceeded, and changes nothing, when a class would lose its last rehearsed exemplar.
        """
        rehearsed, held_back = _split(self.n_exemplars(capacity_bytes), self.held_back_every)
        n_held = sum(count > 0 for count in self.rehearsed.class_counts)
        if rehearsed < max(n_held, 1):
            raise BudgetExceeded(
                f"a memory of {capacity_bytes:,} bytes has room to rehearse {rehearsed} exemplars of "
                f"{self.row_bytes} bytes beside {self.own_bytes:,} of its own, and {n_held} classes need one "
                "each; raise budget.ram_mb, or choose a codec with fewer bytes (memory.codec)"
            )
        self.rehearsed.resize(rehearsed)
        self.held_back.resize(held_back)

    def shrink(self, over_bytes: int) -> None:
        """Give back at least so many bytes, as a ledger asks when its budget is lowered."""
        self.resize(self.nbytes - over_bytes)

    def state(self, *, whole: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values that `restore` takes back; `whole`: see :meth:`Reservoir.state`."""
        arrays: dict[str, np.ndarray] = {}
        meta: dict[str, Any] = {"n_offered": list(self._n_offered), "n_unrefreshed": self._n_unrefreshed}
        for name in PARTS:
            part_arrays, meta[name] = getattr(self, name).state(whole=whole)
            arrays |= {f"{name}.{key}": value for key, value in part_arrays.items()}
        if self._shared is not None:
            arrays |= {f"codec.{key}": value for key, value in self._shared.state().items()}
        return arrays, meta

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._n_offered, self._n_unrefreshed = list(meta["n_offered"]), meta["n_unrefreshed"]
        for name in PARTS:
            getattr(self, name).restore(under(arrays, f"{name}."), meta[name])
        if self._shared is not None:
            self._shared.restore(under(arrays, "codec."))

    def persisted(self) -> None:
        """The last `state` is safe on disk: files may take over what it held. Raises StateUnwritable."""
        self.rehearsed.persisted()
        self.held_back.persisted()

    def n_exemplars(self, capacity_bytes: int) -> int:
        """Exemplars that fit beside what the memory holds anyway."""
        n = max(capacity_bytes - self.own_bytes, 0) // self.row_bytes
        if self._file is None:
            return n
        return min(n, max(self._file.max_bytes - 2 * HEADER_BYTES, 0) // self._kind.row_bytes)

    def _stored(self) -> Iterator[np.ndarray]:
        return chain(self.rehearsed.stored(), self.held_back.stored())


def _split(n_exemplars: int, held_back_every: int) -> tuple[int, int]:
    """Capacities of the rehearsed and the held-back part; the latter is never without a place."""
    held_back = max(n_exemplars // held_back_every if held_back_every else 0, 1)
    return n_exemplars - held_back, held_back
