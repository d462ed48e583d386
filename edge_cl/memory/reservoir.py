"""A class-balanced reservoir: fixed bytes, every class as long a memory as any other."""

from __future__ import annotations

import heapq
from array import array
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import BudgetExceeded, StateError
from edge_cl.memory.codecs import CODECS, Float32
from edge_cl.memory.eviction import DRAWN, most_redundant
from edge_cl.memory.rows import FileRows, RamRows, RowFile
from edge_cl.records import FloatArray, distinct, under

ABOUT = np.dtype([("label", np.uint16), ("born", np.uint32), ("box", np.uint8), ("due", np.uint16)])
"""What is known of an exemplar beside its row: class, which offer it was, recall box, sleep it is due in."""
ABOUT_BYTES = ABOUT.itemsize + 8
"""An exemplar's share of the class lists is 4 bytes, and as much again where a list has shrunk."""
EVICT = ("random", "redundant")
CHUNK = 4096


class Reservoir:
    """Class-balanced reservoir sampling (Chrysakis & Moens, 2020, algorithm 1).

    While there is room everything is kept. Then a sample of a class that was never the fullest
    replaces one of the fullest class; a sample of a class that is or was the fullest is kept with the
    probability that leaves its class a uniform sample over time, and replaces one of its own.

    Parameters
    ----------
    capacity
        Exemplars at most; at least 1.
    n_features
        Length D of a feature vector.
    codec
        ``float32``, ``float16`` or ``int8``; or a codec, which is then shared: its bytes and its state are
        its maker's to count and to keep.
    evict
        Which of a class goes: a ``random`` one, or the most ``redundant`` of 8 drawn at random. The former
        leaves every class a uniform sample over time. The latter does not: it keeps what is rare in feature
        space, outliers and wrong labels too, for longer than what is common.
    rng
        Source of every random choice; part of the state, so that a replay repeats them.
    file
        Keep rows there; None keeps them in RAM.

    Notes
    -----
    `add` costs O(D + log C), C classes, and O(64·D) more when the most redundant goes. All arrays are written
    once at the start, so that what the ledger counts is resident from the first moment.
    """

    def __init__(
        self,
        capacity: int,
        n_features: int,
        *,
        codec: str | Float32 = "float16",
        evict: str = "random",
        rng: np.random.Generator,
        file: RowFile | None = None,
    ) -> None:
        if capacity < 1:
            raise BudgetExceeded(
                f"a replay memory needs room for one exemplar ({n_features} features); raise the budget"
            )
        if evict not in EVICT:
            raise ValueError(f"unknown evict {evict!r}; known: {', '.join(EVICT)}")
        self.n_features = n_features
        self.evict = evict
        self._codec = _codec(codec, n_features)
        self._own_codec = isinstance(codec, str)
        if file is not None and self._codec.rewrites:
            raise ValueError(
                f"{self._codec.name} rewrites stored rows when a range grows; for a file choose float16 or pq"
            )
        store = (capacity, self._codec.width, self._codec.dtype)
        self._rows: RamRows | FileRows = RamRows(*store) if file is None else FileRows(file, *store)
        self.capacity = capacity
        self._about = np.zeros(capacity, dtype=ABOUT)
        self._about.fill(0)
        self._slots: list[array[int]] = []  # per class: the slots that hold it
        self._n_seen: list[int] = []  # per class: samples offered so far
        self._was_fullest: list[bool] = []  # per class
        self._by_size: list[tuple[int, int]] = []  # heap of (-size, class), partly stale; empty until needed
        self.rng = rng
        self.n = 0
        self.n_offered = 0

    @staticmethod
    def row_bytes(n_features: int, codec: str = "float16") -> int:
        """Bytes one exemplar costs, its bookkeeping included."""
        return n_features * np.dtype(CODECS[codec].dtype).itemsize + ABOUT_BYTES

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
    def codec(self) -> str:
        """Name of the codec."""
        return self._codec.name

    @property
    def nbytes(self) -> int:
        """Bytes of RAM held, used or not; a shared codec is not counted."""
        own = self._codec.nbytes if self._own_codec else 0
        return self._rows.nbytes + self.capacity * ABOUT_BYTES + own

    @property
    def unsaved_bytes(self) -> int:
        """Of `nbytes`, rows that a file is to take over after the next snapshots."""
        return self._rows.unsaved_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes of disk held."""
        return self._rows.disk_bytes

    @property
    def class_counts(self) -> list[int]:
        """Exemplars held of each class."""
        return [len(slots) for slots in self._slots]

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n,) classes."""
        return self._about["label"][: self.n].astype(np.int64)

    @property
    def born(self) -> NDArray[np.uint32]:
        """(n,) which offer each exemplar was, from 1; `n_offered` is the newest."""
        return self._about["born"][: self.n].copy()

    @property
    def box(self) -> NDArray[np.uint8]:
        """(n,) recall boxes, 0 until `rest` says otherwise."""
        return self._about["box"][: self.n].copy()

    @property
    def due(self) -> NDArray[np.uint16]:
        """(n,) sleeps that exemplars are due in, 0 until `rest` says otherwise."""
        return self._about["due"][: self.n].copy()

    def features(self, rows: NDArray[np.int64]) -> FloatArray:
        """Decoded features (k, D) of rows (k,), each below n."""
        return self._codec.decode(self._rows.read(rows))

    def rest(self, rows: NDArray[np.int64], box: NDArray[np.uint8], due: NDArray[np.uint16]) -> None:
        """Note recall boxes and due sleeps (k,) of rows (k,)."""
        self._about["box"][rows] = box
        self._about["due"][rows] = due

    def add(self, x: FloatArray, y: int) -> int:
        """Offer one exemplar: x (n_features,), class 0 ≤ y < 65,536. Returns its slot, -1: not kept."""
        while len(self._slots) <= y:
            if y > np.iinfo(np.uint16).max:
                raise ValueError(f"class {y} is more than a memory tells apart; allowed: 0 to 65,535")
            self._slots.append(array("i"))
            self._n_seen.append(0)
            self._was_fullest.append(False)
        self._n_seen[y] += 1
        self.n_offered += 1
        slot = self._slot_for(y)
        if slot < 0:
            return -1
        codec = self._codec
        if isinstance(self._rows, RamRows):
            codec.widen(x, self._rows.all[: self.n])
        row = codec.encode(x)
        self._rows.write(slot, row)
        codec.learn(x, row)
        self._about[slot] = (y, self.n_offered, 0, 0)
        self._slots[y].append(slot)
        self._resized(y)
        return slot

    def remove(self, x: FloatArray, y: int) -> bool:
        """Drop one exemplar equal to x (n_features,) of class y, as if never offered; False: none is held.

        Until something was dropped for want of room that is exact; from then on the class may hold one less.
        O(n·D) for the n exemplars of the class.
        """
        slots = self._slots[y] if y < len(self._slots) else array("i")
        found = self._codec.find(x, self._rows.read(slots)) if slots else -1
        if found < 0:
            return False
        self._note_fullest()
        self._n_seen[y] -= 1
        self._close_gaps([self._take(y, found)])
        return True

    def exemplars(self) -> tuple[FloatArray, NDArray[np.int64]]:
        """All exemplars, decoded: (n, D) float32 and (n,) classes."""
        return self.features(np.arange(self.n)), self.labels

    def stored(self) -> Iterator[np.ndarray]:
        """All stored rows, some thousands at a time."""
        for start in range(0, self.n, CHUNK):
            yield self._rows.read(np.arange(start, min(start + CHUNK, self.n)))

    def label(self, slot: int) -> int:
        """Class of the exemplar in a slot below `n`."""
        return int(self._about["label"][slot])

    def draw(self) -> int:
        """A random slot, all classes that are held alike; there must be one."""
        while True:
            slots = self._slots[int(self.rng.integers(len(self._slots)))]
            if slots:
                return slots[int(self.rng.integers(len(slots)))]

    def resize(self, capacity: int) -> None:
        """Change the capacity; when it shrinks, exemplars of the fullest class go first."""
        capacity = max(capacity, 1)
        self._note_fullest()
        gone = []
        for _ in range(self.n - capacity):
            fullest = self._fullest()
            gone.append(self._take(fullest, self._choose(fullest)))
        self._close_gaps(gone)
        self._set_capacity(capacity)

    def state(self, *, whole: bool = False) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """Arrays and JSON values that `restore` takes back.

        With a file: what the file does not hold, to be followed by `persisted`; `whole` gives all rows
        instead, to compare two states.
        """
        rows_meta: dict[str, Any] = {}
        if whole and isinstance(self._rows, FileRows):
            arrays = {"rows": self._rows.read(np.arange(self.n))}
        else:
            arrays, rows_meta = self._rows.state(self.n)
        arrays["order"] = np.fromiter(
            (slot for slots in self._slots for slot in slots), dtype=np.int32, count=self.n
        )
        arrays |= {name: self._about[name][: self.n].copy() for name in ABOUT.fields or ()}
        if self._own_codec:
            arrays |= {f"codec.{key}": value for key, value in self._codec.state().items()}
        meta = {
            "codec": self.codec,
            "capacity": self.capacity,
            "n_offered": self.n_offered,
            "n_seen": list(self._n_seen),
            "was_fullest": list(self._was_fullest),
            "rng": self.rng.bit_generator.state,
            "rows": rows_meta,
        }
        return arrays, meta

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take back what `state` gave; a smaller capacity than then drops the surplus.

        Raises StateError when it was kept by another codec, or the file is not the one that belongs to it.
        """
        if meta["codec"] != self.codec:
            raise StateError(
                f"this state remembers in {meta['codec']}, asked for is {self.codec}; set memory.codec = "
                f"{meta['codec']!r}, or choose another --state folder"
            )
        labels = arrays["label"]
        wanted = meta["capacity"]
        self.n = 0
        self._set_capacity(max(wanted, len(labels)))
        self._rows.restore(arrays, meta["rows"])
        self.n = len(labels)
        for name in ABOUT.fields or ():
            self._about[name][: self.n] = arrays[name]
        if self._own_codec:
            self._codec.restore(under(arrays, "codec."))
        self._by_size = []
        self.n_offered = meta["n_offered"]
        self._n_seen, self._was_fullest = list(meta["n_seen"]), list(meta["was_fullest"])
        counts = np.bincount(labels, minlength=len(self._n_seen))
        orders = np.split(arrays["order"], np.cumsum(counts)[:-1])
        self._slots = [array("i", slots.tolist()) for slots in orders[: len(counts)]]
        self.rng.bit_generator.state = meta["rng"]
        if wanted < self.capacity:  # resizing notes the fullest classes, which is a change of state
            self.resize(wanted)

    def persisted(self) -> None:
        """The last `state` is safe on disk, so a file may take over what it held."""
        self._rows.persisted()

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

    def _choose(self, c: int) -> int:
        """Which of class c goes: a position in its list."""
        slots = self._slots[c]
        if self.evict == "random" or len(slots) < 3:
            return int(self.rng.integers(len(slots)))
        drawn = self.rng.integers(len(slots), size=DRAWN) if len(slots) > DRAWN else np.arange(len(slots))
        drawn = distinct(drawn)
        return int(drawn[most_redundant(self.features(np.array([slots[k] for k in drawn.tolist()])))])

    def _evict(self, c: int) -> int:
        return self._take(c, self._choose(c))

    def _take(self, c: int, position: int) -> int:
        """Take a slot out of its class list in O(1): the list's last entry takes its place."""
        slots = self._slots[c]
        slot, last = slots[position], slots.pop()
        if position < len(slots):
            slots[position] = last
        self._resized(c)
        return slot

    def _close_gaps(self, gone: list[int]) -> None:
        """Fill slots that were taken with the last exemplars."""
        n = self.n - len(gone)
        if not gone:
            return
        free = np.zeros(self.n, dtype=np.bool_)
        free[gone] = True
        to, slots = np.flatnonzero(free[:n]), n + np.flatnonzero(~free[n:])
        self._rows.move(slots, to)
        self._about[to] = self._about[slots]
        new_slot = dict(zip(slots.tolist(), to.tolist(), strict=True))
        for c in distinct(self._about["label"][to]).tolist():
            self._slots[c] = array("i", [new_slot.get(slot, slot) for slot in self._slots[c]])
        self.n = n

    def _set_capacity(self, capacity: int) -> None:
        self._rows.resize(capacity)
        about, self._about = self._about, np.zeros(capacity, dtype=ABOUT)
        self._about.fill(0)
        self._about[: self.n] = about[: self.n]
        self.capacity = capacity


def _codec(codec: str | Float32, n_features: int) -> Float32:
    """The codec of that name; one that is given must be for this feature size."""
    if isinstance(codec, Float32):
        if codec.n_features != n_features:
            raise ValueError(f"the codec is for {codec.n_features} features, the memory for {n_features}")
        return codec
    if codec not in CODECS:
        raise ValueError(f"unknown codec {codec!r}; known: {', '.join(CODECS)}, and pq with a codebook")
    return CODECS[codec](n_features)
