"""Where stored rows lie: in RAM, or in a file that only changes together with snapshots."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge_cl.errors import StateError, StateUnwritable

FORMAT_VERSION = 1
HEADER_BYTES = 4096
ENTRY_BYTES = 200
"""RAM of a changed row beside its numbers: bytes object, table entries, its slot in the last snapshot."""


class RamRows:
    """Rows (capacity, width) in RAM; every page is touched at once, so what is counted is resident."""

    disk_bytes = unsaved_bytes = 0

    def __init__(self, capacity: int, width: int, dtype: DTypeLike) -> None:
        self.all = np.empty((capacity, width), dtype=dtype)
        self.all.fill(0)

    @property
    def nbytes(self) -> int:
        """Bytes of RAM."""
        return self.all.nbytes

    def read(self, slots: Any) -> np.ndarray:
        """Rows (k, width) of slots (k,)."""
        rows: np.ndarray = self.all[slots]
        return rows

    def write(self, slot: int, row: np.ndarray) -> None:
        """Set one row."""
        self.all[slot] = row

    def move(self, slots: NDArray[np.int64], to: NDArray[np.int64]) -> None:
        """Copy rows to other slots."""
        self.all[to] = self.all[slots]

    def resize(self, capacity: int) -> None:
        """Room for `capacity` rows; what is beyond is lost."""
        old = self.all
        self.all = np.empty((capacity, old.shape[1]), dtype=old.dtype)
        self.all.fill(0)
        n = min(len(old), capacity)
        self.all[:n] = old[:n]

    def state(self, n: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The first n rows."""
        return {"rows": self.all[:n].copy()}, {}

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        if "rows" not in arrays:
            raise StateError(
                "this state keeps its exemplars in a file, asked for is RAM; set memory.file = true, "
                "or choose another --state folder"
            )
        self.all[: len(arrays["rows"])] = arrays["rows"]

    def persisted(self) -> None:
        """Nothing: the snapshot holds every row."""


class RowFile(msgspec.Struct, frozen=True, kw_only=True):
    """Where a memory keeps its rows when they are not to be in RAM.

    Attributes
    ----------
    path
        Of the file; created when absent.
    max_bytes
        Of disk.
    owner
        Whose rows these are: a file of another owner is refused. The bundle's id does.
    unsaved_rows
        Rows that may change between three snapshots: RAM is set aside for them; more are counted as they
        come.
    """

    path: Path
    max_bytes: int
    owner: str = ""
    unsaved_rows: int = 3000

    def part(self, name: str) -> RowFile:
        """The file of a part of the memory; RAM for changed rows is set aside for all parts together."""
        path = self.path.with_name(f"{self.path.name}.{name}")
        return msgspec.structs.replace(self, path=path, unsaved_rows=0)


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    format_version: int
    owner: str
    dtype: str
    width: int
    capacity: int
    generation: int


class FileRows:
    """Rows in a memory-mapped file; what changed since the last snapshots stays in RAM.

    A row goes to the file once two snapshots hold it changed: then no snapshot on the disk needs what the
    file had there. So whichever of the two slots recovery takes, file and snapshot together are
    what they were. The file's space is taken at the start, so a full disk is found then.

    Parameters
    ----------
    place
        File, owner and the rows that may change meanwhile.
    capacity, width, dtype
        Of the rows.

    Raises
    ------
    StateError
        The file is another owner's, damaged or too short.
    StateUnwritable
        The disk is full or failing.
    """

    def __init__(self, place: RowFile, capacity: int, width: int, dtype: DTypeLike) -> None:
        self.path, self._owner = place.path, place.owner
        self._reserved = place.unsaved_rows
        self._width, self._dtype = width, np.dtype(dtype)
        self._changed: dict[int, bytes] = {}
        self._saving: dict[int, bytes] | None = None  # as of the last `state`, until it is persisted
        self._saved: set[int] = set()  # slots that every snapshot which may be the newest durable one holds
        header = self._read_header()
        self._file_capacity = header.capacity if header else 0
        self.generation = header.generation if header else 0
        self.resize(capacity)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row on disk."""
        return self._width * self._dtype.itemsize

    @staticmethod
    def reserved_bytes(place: RowFile, row_bytes: int) -> int:
        """RAM set aside for changed rows."""
        return place.unsaved_rows * (row_bytes + ENTRY_BYTES)

    @property
    def nbytes(self) -> int:
        """Bytes of RAM: changed rows, or what is set aside for them."""
        return max(self._reserved * (self.row_bytes + ENTRY_BYTES), self.unsaved_bytes)

    @property
    def unsaved_bytes(self) -> int:
        """Bytes of RAM of changed rows."""
        return len(self._changed) * (self.row_bytes + ENTRY_BYTES)

    @property
    def disk_bytes(self) -> int:
        """Size of the file."""
        return HEADER_BYTES + self._file_capacity * self.row_bytes

    def read(self, slots: Any) -> np.ndarray:
        """Rows (k, width) of slots (k,), a copy."""
        slots = np.asarray(slots, dtype=np.int64)
        rows = np.array(self._rows[slots])
        for k, slot in enumerate(slots.tolist()):
            changed = self._changed.get(slot)
            if changed is not None:
                rows[k] = np.frombuffer(changed, dtype=self._dtype)
        return rows

    def write(self, slot: int, row: np.ndarray) -> None:
        """Set one row, in RAM until it is saved."""
        self._changed[int(slot)] = row.tobytes()

    def move(self, slots: NDArray[np.int64], to: NDArray[np.int64]) -> None:
        """Copy rows to other slots."""
        for slot, row in zip(to, self.read(slots), strict=True):
            self.write(slot, row)

    def resize(self, capacity: int) -> None:
        """Room for `capacity` rows; the file never shrinks."""
        for slot in [slot for slot in self._changed if slot >= capacity]:
            del self._changed[slot]
        try:
            if capacity > self._file_capacity:
                self._extend(capacity)
            self._rows = np.memmap(
                self.path, self._dtype, "r+", HEADER_BYTES, (self._file_capacity, self._width)
            )
        except OSError as error:
            raise self._unwritable(error) from error

    def state(self, n: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The changed rows below n."""
        if self._saving is not None:  # that snapshot failed, or not: nobody said
            self._saved &= self._saving.keys()
        self._saving = {slot: row for slot, row in self._changed.items() if slot < n}
        slots = np.fromiter(self._saving, dtype=np.int64, count=len(self._saving))
        rows = np.frombuffer(b"".join(self._saving.values()), dtype=self._dtype)
        arrays = {"changed": slots, "changed_rows": rows.reshape(len(slots), self._width)}
        return arrays, {"generation": self.generation}

    def restore(self, arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
        """Take back what `state` gave; the file must be as it was then, or up to two snapshots newer."""
        if "changed" not in arrays:
            raise StateError(
                "this state keeps its exemplars in RAM, asked for is a file; set memory.file = false, "
                "or choose another --state folder"
            )
        wanted = meta["generation"]
        if not wanted <= self.generation <= wanted + 2:
            raise StateError(
                f"{self.path}: is of generation {self.generation}, the snapshot needs {wanted} to "
                f"{wanted + 2}: the file was lost or belongs to another copy of this state; put both back "
                "together, or choose another --state folder"
            )
        self.generation = min(self.generation, wanted + 1)  # an older slot was taken: count on from there
        slots, rows = arrays["changed"].tolist(), arrays["changed_rows"]
        self._changed = {slot: row.tobytes() for slot, row in zip(slots, rows, strict=True)}
        self._saving, self._saved = None, set(slots)

    def persisted(self) -> None:
        """The last `state` is durable: write what the snapshot before it holds changed, too."""
        saving = self._saving
        if saving is None:
            return
        ready = [slot for slot in saving if slot in self._saved]
        try:
            for slot in ready:
                self._rows[slot] = np.frombuffer(saving[slot], dtype=self._dtype)
            self._rows.flush()
            self.generation += 1
            self._write_header()
        except OSError as error:
            raise self._unwritable(error) from error
        for slot in ready:
            if self._changed.get(slot) is saving[slot]:
                del self._changed[slot]
        self._saving, self._saved = None, set(saving)

    def _extend(self, capacity: int) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, HEADER_BYTES + capacity * self.row_bytes)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._file_capacity = capacity
        self._write_header()

    def _write_header(self) -> None:
        header = _Header(
            format_version=FORMAT_VERSION,
            owner=self._owner,
            dtype=self._dtype.str,
            width=self._width,
            capacity=self._file_capacity,
            generation=self.generation,
        )
        with self.path.open("r+b") as file:
            file.write(msgspec.json.encode(header).ljust(HEADER_BYTES - 1) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def _read_header(self) -> _Header | None:
        """What the file says of itself, checked; None when there is no file yet."""
        try:
            with self.path.open("rb") as file:
                line, size = file.read(HEADER_BYTES), os.fstat(file.fileno()).st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StateError(f"{self.path}: cannot be read ({error.strerror})") from error
        if not line.strip(b"\0"):  # power was lost before the first header was written
            return None
        try:
            header = msgspec.json.decode(line, type=_Header)
        except msgspec.MsgspecError as error:
            raise StateError(
                f"{self.path}: is no file of exemplars ({error}); move it away, "
                "or choose another --state folder"
            ) from error
        found = (header.format_version, header.owner, header.dtype, header.width)
        wanted = (FORMAT_VERSION, self._owner, self._dtype.str, self._width)
        if found != wanted:
            raise StateError(
                f"{self.path}: holds exemplars of another format, bundle or codec (found {found}, wanted "
                f"{wanted}); move it away, or choose another --state folder"
            )
        if size < HEADER_BYTES + header.capacity * self.row_bytes:
            raise StateError(
                f"{self.path}: has {size:,} bytes, its header says {header.capacity:,} rows of "
                f"{self.row_bytes}; it was cut off: put back a whole copy with its snapshots, "
                "or choose another --state folder"
            )
        return header

    def _unwritable(self, error: OSError) -> StateUnwritable:
        return StateUnwritable(
            f"{self.path}: cannot keep exemplars there ({error.strerror}); free some disk space "
            "or check the card"
        )
