"""A class-balanced reservoir: fixed bytes, every class as long a memory as any other."""

from __future__ import annotations

import heapq
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import BudgetExceeded
from edge_cl.memory.codecs import CODECS
from edge_cl.records import FloatArray, under


class Reservoir:
    """Class-balanced reservoir sampling (Chrysakis & Moens, 2020, algorithm 1).

    While there is room everything is kept. Then a sample of a class that was never the fullest
    replaces a random one of the fullest class; a sample of a class that is or was the fullest is kept
    with the probability that leaves its class a uniform sample over time.

    Parameters
    ----------
    capacity
        Exemplars at most; at least 1.
    n_features
        Length D of a feature vector.
    codec
        ``float32``, ``float16`` or ``int8``.
    rng
        Source of every random choice; part of the state, so that a replay repeats them.

    Notes
    -----
    `add` costs O(D + log C), C classes. All arrays are written once at the start, so that what the ledger
    counts is resident from the first moment.
    """

    def __init__(
        self, capacity: int, n_features: int, *, codec: str = "float16", rng: np.random.Generator
    ) -> None:
        if capacity < 1:
            raise BudgetExceeded(
                f"a replay memory needs room for one exemplar ({n_features} features); raise the budget"
            )
        self.n_features = n_features
        self.codec = codec
        if codec not in CODECS:
            raise ValueError(f"unknown codec {codec!r}; known: {', '.join(CODECS)}")
        self._codec = CODECS[codec](n_features)
        self._allocate(capacity)
        self._slots: list[array[int]] = []  # per class: the slots that hold it
        self._n_seen: list[int] = []  # per class: samples offered so far
        self._was_fullest: list[bool] = []  # per class
        self._by_size: list[tuple[int, int]] = []  # heap of (-size, class), partly stale; empty until needed
        self.rng = rng
        self.n = 0

    def _allocate(self, capacity: int) -> None:
        self.capacity = capacity
        self._rows = np.empty((capacity, self.n_features), dtype=self._codec.dtype)
        self._rows.fill(0)  # touch every page now: what the ledger counts is resident from the start
        self._labels = np.full(capacity, -1, dtype=np.int32)
        self._position = np.full(capacity, -1, dtype=np.int32)  # of the slot inside its class list

    @staticmethod
    def row_bytes(n_features: int, codec: str = "float16") -> int:
        """Bytes one exemplar costs, its bookkeeping included."""
        return n_features * np.dtype(CODECS[codec].dtype).itemsize + 4 + 4 + 8

    @staticmethod
    def own_bytes(n_features: int, codec: str = "float16") -> int:
        """Bytes held beside the exemplars, whatever the capacity."""
        return CODECS[codec].own_bytes(n_features)

    @staticmethod
    def needed_bytes(capacity_bytes: int, n_features: int, codec: str) -> int:
        """`nbytes` of a new one with as many exemplars as fit into `capacity_bytes`."""
        own, row = Reservoir.own_bytes(n_features, codec), Reservoir.row_bytes(n_features, codec)
        return own + max(capacity_bytes - own, 0) // row * row

    @property
    def nbytes(self) -> int:
        """Bytes held, used or not."""
        rows = self.capacity * self.row_bytes(self.n_features, self.codec)
        return rows + self.own_bytes(self.n_features, self.codec)

    @property
    def class_counts(self) -> list[int]:
        """Exemplars held of each class."""
        return [len(slots) for slots in self._slots]

    def add(self, x: FloatArray, y: int) -> int:
        """Offer one exemplar: x (n_features,), class y ≥ 0. Returns its slot, -1 when it was not kept."""
        while len(self._slots) <= y:
            self._slots.append(array("i"))
            self._n_seen.append(0)
            self._was_fullest.append(False)
        self._n_seen[y] += 1
        slot = self._slot_for(y)
        if slot < 0:
            return -1
        self._codec.widen(x, self._rows[: self.n])
        self._rows[slot] = self._codec.encode(x)
        self._labels[slot] = y
        self._position[slot] = len(self._slots[y])
        self._slots[y].append(slot)
        self._resized(y)
        return slot

    def remove(self, x: FloatArray, y: int) -> bool:
        """Drop one exemplar equal to x (n_features,) of class y, as if never offered; False: none is held.

        Until something was dropped for want of room that is exact; from then on the class may hold one less.
        """
        slots = self._slots[y] if y < len(self._slots) else array("i")
        found = self._codec.find(x, self._rows[slots])
        if found < 0:
            return False
        self._note_fullest()
        self._n_seen[y] -= 1
        self._remove(slots[found])
        return True

    def exemplars(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """All exemplars, decoded: (n, D) float32 and (n,) classes."""
        return self._codec.decode(self._rows[: self.n]), self._labels[: self.n].astype(np.int64)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Classes (n,) of all exemplars, by row."""
        return self._labels[: self.n].astype(np.int64)

    def features(self, rows: NDArray[np.int64]) -> FloatArray:
        """The exemplars in these rows (k,), decoded: (k, D) float32."""
        return self._codec.decode(self._rows[rows])

    def label(self, slot: int) -> int:
        """Class of the exemplar in a slot below `n`."""
        return int(self._labels[slot])

    def draw(self) -> int:
        """A random slot, all classes that are held alike; there must be one."""
        while True:
            slots = self._slots[int(self.rng.integers(len(self._slots)))]
            if slots:
                return slots[int(self.rng.integers(len(slots)))]

    def sample(self, n_per_class: int, rng: np.random.Generator) -> tuple[FloatArray, NDArray[np.int64]]:
        """At most `n_per_class` exemplars of each class, without replacement, decoded."""
        picked = [
            rng.permutation(np.asarray(slots, dtype=np.int64))[:n_per_class] for slots in self._slots if slots
        ]
        slots = np.concatenate(picked) if picked else np.empty(0, dtype=np.int64)
        return self._codec.decode(self._rows[slots]), self._labels[slots].astype(np.int64)

    def resize(self, capacity: int) -> None:
        """Change the capacity; when it shrinks, random exemplars of the fullest class go first."""
        capacity = max(capacity, 1)
        self._note_fullest()
        while self.n > capacity:
            self._remove(self._random_slot(self._fullest()))
        rows, labels, position = self._rows, self._labels, self._position
        self._allocate(capacity)
        for new, old in ((self._rows, rows), (self._labels, labels), (self._position, position)):
            new[: self.n] = old[: self.n]

    def state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values that `restore` takes back."""
        order = np.fromiter((slot for slots in self._slots for slot in slots), dtype=np.int32, count=self.n)
        arrays = {
            "rows": self._rows[: self.n].copy(),
            "labels": self._labels[: self.n].copy(),
            "order": order,
        } | {f"codec.{key}": value for key, value in self._codec.state().items()}
        meta = {
            "capacity": self.capacity,
            "n_seen": list(self._n_seen),
            "was_fullest": list(self._was_fullest),
            "rng": self.rng.bit_generator.state,
        }
        return arrays, meta

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take back what `state` gave; a smaller capacity than then drops the surplus."""
        rows, labels = arrays["rows"], arrays["labels"]
        wanted = meta["capacity"]
        self._allocate(max(wanted, len(rows)))
        self.n = len(rows)
        self._rows[: self.n], self._labels[: self.n] = rows, labels
        self._codec.restore(under(arrays, "codec."))
        self._by_size = []
        self._n_seen, self._was_fullest = list(meta["n_seen"]), list(meta["was_fullest"])
        counts = np.bincount(labels, minlength=len(self._n_seen))
        orders = np.split(arrays["order"], np.cumsum(counts)[:-1])
        self._slots = [array("i", slots.tolist()) for slots in orders[: len(counts)]]
        for slots in orders:
            self._position[slots] = np.arange(len(slots))
        self.rng.bit_generator.state = meta["rng"]
        if wanted < self.capacity:  # resizing notes the fullest classes, which is a change of state
            self.resize(wanted)

    def _slot_for(self, y: int) -> int:
        """A free slot for class y, made by eviction when full; -1 when the sample is not kept."""
        if self.n < self.capacity:
            self.n += 1
            return self.n - 1
        fullest = self._fullest()
        # while full, only a fullest class ever shrinks; so no other class needs a look
        self._was_fullest[fullest] = True
        self._was_fullest[y] |= len(self._slots[y]) == len(self._slots[fullest])
        if not self._was_fullest[y]:
            return self._evict(fullest)
        if self.rng.random() * self._n_seen[y] < len(self._slots[y]):
            return self._evict(y)
        return -1

    def _note_fullest(self) -> None:
        """Before the memory stops being full: all classes that are the fullest now were it."""
        if self.n == self.capacity and self.n:
            most = len(self._slots[self._fullest()])
            for c, slots in enumerate(self._slots):
                self._was_fullest[c] |= len(slots) == most

    def _fullest(self) -> int:
        """The class with most exemplars, of several the first."""
        heap = self._by_size
        if not heap or len(heap) > 4 * len(self._slots) + 64:
            heap[:] = sorted((-len(slots), c) for c, slots in enumerate(self._slots))
        while -heap[0][0] != len(self._slots[heap[0][1]]):
            heapq.heappop(heap)
        return heap[0][1]

    def _resized(self, c: int) -> None:
        """Class c holds more or fewer exemplars now."""
        if self._by_size:
            heapq.heappush(self._by_size, (-len(self._slots[c]), c))

    def _random_slot(self, c: int) -> int:
        return self._slots[c][int(self.rng.integers(len(self._slots[c])))]

    def _evict(self, c: int) -> int:
        slot = self._random_slot(c)
        self._forget_slot(slot)
        return slot

    def _forget_slot(self, slot: int) -> None:
        """Take the slot out of its class list in O(1): the list's last entry takes its place."""
        slots = self._slots[self._labels[slot]]
        last = slots.pop()
        if last != slot:
            slots[self._position[slot]] = last
            self._position[last] = self._position[slot]
        self._resized(int(self._labels[slot]))

    def _remove(self, slot: int) -> None:
        """Drop a slot and close the gap with the last one."""
        self._forget_slot(slot)
        last = self.n - 1
        if slot != last:
            self._rows[slot], self._labels[slot] = self._rows[last], self._labels[last]
            self._position[slot] = self._position[last]
            self._slots[self._labels[slot]][self._position[slot]] = slot
        self._labels[last] = -1
        self.n = last
