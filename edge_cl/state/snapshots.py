"""Immutable files of everything learned, one per moment.

A file ``head-<seq>.snapshot`` is one JSON line (format, seq, small values, name, type and shape of every
array, SHA-256 of it all) and the arrays' bytes, one after another. It is written to a temporary file, synced,
renamed, and the folder is synced; it is never written again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import msgspec
import numpy as np

from edge_cl.errors import StateCorrupt, StateError, StateUnwritable

FORMAT_VERSION = 4
READABLE = (3, 4)
"""Format 3 lay in two slots and had no cause or time."""
_OLD_SLOTS = ("slot-a.snapshot", "slot-b.snapshot")
PIECE_BYTES = 65_536
"""Read at once of a file that is not to be in memory as a whole."""
_NAME = re.compile(r"head-(\d+)\.snapshot")


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything learned up to and including journal entry `seq`."""

    seq: int
    bundle_id: str
    meta: dict[str, Any]
    arrays: dict[str, Any] = {}


class _Array(msgspec.Struct, frozen=True, array_like=True):
    name: str
    dtype: str
    shape: tuple[int, ...]


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    format_version: int
    seq: int
    bundle_id: str
    meta: dict[str, Any]
    arrays: list[_Array]
    sha256: str
    """Of format, seq, bundle, meta and table of arrays as JSON, then of the arrays' bytes."""


class Snapshots:
    """The snapshots of one state folder, by journal number."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def paths(self) -> dict[int, Path]:
        """Where they lie, oldest first. Nothing is read but names, and headers of format 3."""
        found: dict[int, Path] = {}
        for path in self.folder.glob("*.snapshot"):
            if name := _NAME.fullmatch(path.name):
                found[int(name[1])] = path
            elif path.name in _OLD_SLOTS:
                found[_seq_of(path)] = path
        return dict(sorted(found.items()))

    def read(self, path: Path) -> Snapshot:
        """Read and check one.

        A damaged one is renamed to ``….damaged``, never deleted. Raises StateCorrupt then, or StateError for
        a newer format.
        """
        try:
            return read_snapshot(path)
        except StateCorrupt:
            with contextlib.suppress(OSError):  # a card that takes nothing: it is passed over all the same
                aside(path)
            raise

    def write(self, snapshot: Snapshot) -> None:
        """Write one more. Raises StateUnwritable when the disk is full or failing; all is then as before."""
        path = self.folder / f"head-{snapshot.seq:012d}.snapshot"
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                for piece in _pieces(snapshot):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            sync_folder(self.folder)
        except OSError as error:
            with contextlib.suppress(OSError):  # a disk that fails may refuse that, too
                part.unlink(missing_ok=True)
            raise StateUnwritable(
                f"{path}: cannot write a snapshot ({error.strerror}); free some disk space or check the card"
            ) from error

    def delete(self, path: Path) -> None:
        """Drop one that is not needed any more. Raises StateUnwritable."""
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise StateUnwritable(f"{path}: cannot be deleted ({error.strerror}); check the card") from error


def sync_folder(folder: Path) -> None:
    """Make names made, changed or dropped in a folder durable."""
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def aside(path: Path) -> Path:
    """Rename a damaged file, so that it is kept and not used: ``….damaged``, ``….damaged.2``."""
    names = (path.with_name(f"{path.name}.damaged{n}") for n in ("", *(f".{i}" for i in range(2, 1000))))
    target = next(name for name in names if not name.exists())
    return path.rename(target)


def read_snapshot(path: Path) -> Snapshot:
    """Read and verify one snapshot file; raises StateCorrupt, or StateError for a newer format."""
    try:
        line, _, payload = path.read_bytes().partition(b"\n")
        header = _header(path, line, [payload])
        return Snapshot(
            seq=header.seq,
            bundle_id=header.bundle_id,
            meta=header.meta,
            arrays=_cut(payload, header.arrays),
        )
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise StateCorrupt(f"{path.name} is not a readable snapshot ({error})") from error
    except OSError as error:
        raise StateCorrupt(f"{path.name} cannot be read ({error.strerror})") from error


def read_arrays(path: Path, under: str) -> Snapshot:
    """A snapshot with those arrays alone whose names begin with `under`, and no more than them in memory.

    The whole file is verified all the same; raises as `read_snapshot`.
    """
    try:
        with path.open("rb") as file:
            line = file.readline()
            header = _header(path, line.removesuffix(b"\n"), _Rest(file, len(line)))
            arrays: dict[str, np.ndarray] = {}
            start = len(line)
            for array in header.arrays:
                nbytes = math.prod(array.shape) * np.dtype(array.dtype).itemsize
                if array.name.startswith(under):
                    file.seek(start)
                    arrays |= _cut(file.read(nbytes), [array])
                start += nbytes
        return Snapshot(seq=header.seq, bundle_id=header.bundle_id, meta=header.meta, arrays=arrays)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise StateCorrupt(f"{path.name} is not a readable snapshot ({error})") from error
    except OSError as error:
        raise StateCorrupt(f"{path.name} cannot be read ({error.strerror})") from error


class _Rest:
    """What a file holds from `start` on, piece by piece, as often as it is asked for."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self._file, self._start = file, start

    def __iter__(self) -> Iterator[bytes]:
        self._file.seek(self._start)
        while piece := self._file.read(PIECE_BYTES):
            yield piece


def peek(path: Path) -> Snapshot:
    """A snapshot's small values, without its arrays, and so unchecked; raises StateCorrupt."""
    try:
        with path.open("rb") as file:
            header = msgspec.json.decode(file.readline(), type=_Header)
        return Snapshot(seq=header.seq, bundle_id=header.bundle_id, meta=header.meta)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StateCorrupt(f"{path.name} is not a readable snapshot ({error})") from error


def _header(path: Path, line: bytes, payload: Iterable[bytes]) -> _Header:
    found = msgspec.json.decode(line)["format_version"]
    header = None
    try:
        header = msgspec.json.decode(line, type=_Header)
    except msgspec.MsgspecError:
        if found in READABLE:
            raise
    if header is not None and found in READABLE and _digest(header, payload, found) == header.sha256:
        return header
    sound_but_for_its_number = header is not None and any(
        _digest(header, payload, version) == header.sha256 for version in READABLE
    )
    if sound_but_for_its_number or found in READABLE or not isinstance(found, int):
        raise StateCorrupt(f"{path.name} failed its checksum")
    raise StateError(
        f"{path}: snapshot format {found}; this edge-cl reads {READABLE[0]} to {FORMAT_VERSION}: "
        f"{'upgrade it' if found > FORMAT_VERSION else 'use the release that wrote it'}"
    )


def _pieces(snapshot: Snapshot) -> Iterator[bytes | memoryview]:
    """The file's content, piece by piece: the arrays are never copied into one."""
    arrays = {name: np.ascontiguousarray(array) for name, array in snapshot.arrays.items()}
    header = _Header(
        format_version=FORMAT_VERSION,
        seq=snapshot.seq,
        bundle_id=snapshot.bundle_id,
        meta=snapshot.meta,
        arrays=[_Array(name, array.dtype.str, array.shape) for name, array in arrays.items()],
        sha256="",
    )
    views = [memoryview(array.reshape(-1).view(np.uint8).data) for array in arrays.values()]
    digest = _digest(header, views, FORMAT_VERSION)
    yield msgspec.json.encode(msgspec.structs.replace(header, sha256=digest)) + b"\n"
    yield from views


def _cut(payload: bytes, table: list[_Array]) -> dict[str, np.ndarray]:
    arrays, start = {}, 0
    for entry in table:
        dtype = np.dtype(entry.dtype)
        count = math.prod(entry.shape)
        arrays[entry.name] = np.frombuffer(payload, dtype, count, start).reshape(entry.shape)
        start += count * dtype.itemsize
    return arrays


def _digest(header: _Header, payload: Iterable[bytes | memoryview], version: int) -> str:
    covered = [version, header.seq, header.bundle_id, header.meta, header.arrays]
    digest = hashlib.sha256(msgspec.json.encode(covered))
    for piece in payload:
        digest.update(piece)
    return digest.hexdigest()


def _seq_of(path: Path) -> int:
    """The seq a file claims, 0 when it is unreadable."""
    try:
        return peek(path).seq
    except StateCorrupt:
        return 0
