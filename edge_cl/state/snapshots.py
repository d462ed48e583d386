"""Two immutable snapshots of everything learned, written so that a power cut never costs both.

A snapshot file is one JSON line (format, seq, small values, name, type and shape of every array, SHA-256 of
it all) and the arrays' bytes, one after another. It is written to a temporary file, synced, renamed over the
older of ``slot-a.snapshot`` and ``slot-b.snapshot``, and the folder is synced.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_cl.errors import StateCorrupt, StateError, StateUnwritable

FORMAT_VERSION = 3
SLOTS = ("slot-a.snapshot", "slot-b.snapshot")


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything learned up to and including journal entry `seq`."""

    seq: int
    bundle_id: str
    meta: dict[str, Any]
    arrays: dict[str, Any]


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
    """The two slots of one state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def newest(self) -> tuple[Snapshot | None, list[str]]:
        """The newest sound snapshot, and what was wrong with any slot that was set aside.

        A damaged slot is renamed to ``…​.damaged``, never deleted.
        """
        found: list[Snapshot] = []
        problems: list[str] = []
        newer: StateError | None = None
        for path in self._existing():
            try:
                found.append(read_snapshot(path))
            except StateCorrupt as error:
                problems.append(str(error))
                path.rename(path.with_suffix(".damaged"))
            except StateError as error:
                newer = error
                problems.append(str(error))
        if newer is not None and not found:
            raise newer
        return max(found, key=lambda snapshot: snapshot.seq, default=None), problems

    def write(self, snapshot: Snapshot) -> int:
        """Write into the older slot; returns the seq that the *other* slot holds (0: none).

        Raises StateUnwritable when the disk is full or failing; both slots are then as before.
        """
        seqs = {name: _seq_of(self.folder / name) for name in SLOTS}
        target = min(SLOTS, key=lambda name: seqs[name])
        other = SLOTS[1 - SLOTS.index(target)]
        self._replace(self.folder / target, snapshot)
        return max(seqs[other], 0)

    def _existing(self) -> list[Path]:
        return [self.folder / name for name in SLOTS if (self.folder / name).exists()]

    def _replace(self, path: Path, snapshot: Snapshot) -> None:
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                for piece in _pieces(snapshot):
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            directory = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise StateUnwritable(
                f"{path}: cannot write a snapshot ({error.strerror}); free some disk space or check the card"
            ) from error


def read_snapshot(path: Path) -> Snapshot:
    """Read and verify one snapshot file; raises StateCorrupt, or StateError for a newer format."""
    try:
        line, _, payload = path.read_bytes().partition(b"\n")
        if (other := _other_format(line, payload)) is not None:
            raise StateError(
                f"{path}: snapshot format {other}; this edge-cl reads {FORMAT_VERSION}: "
                f"{'upgrade it' if other > FORMAT_VERSION else 'use the release that wrote it'}"
            )
        header = msgspec.json.decode(line, type=_Header)
        if header.format_version != FORMAT_VERSION or _digest(header, [payload]) != header.sha256:
            raise StateCorrupt(f"{path.name} failed its checksum")
        arrays = _cut(payload, header.arrays)
        return Snapshot(seq=header.seq, bundle_id=header.bundle_id, meta=header.meta, arrays=arrays)
    except (msgspec.MsgspecError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise StateCorrupt(f"{path.name} is not a readable snapshot ({error})") from error
    except OSError as error:
        raise StateCorrupt(f"{path.name} cannot be read ({error.strerror})") from error


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
    yield msgspec.json.encode(msgspec.structs.replace(header, sha256=_digest(header, views))) + b"\n"
    yield from views


def _other_format(line: bytes, payload: bytes) -> int | None:
    """The format's number if it is not ours; None too when only that number is damaged."""
    version = msgspec.json.decode(line)["format_version"]
    if version == FORMAT_VERSION or not isinstance(version, int):
        return None
    try:
        header = msgspec.json.decode(line, type=_Header)
    except msgspec.MsgspecError:
        return version
    return None if _digest(header, [payload]) == header.sha256 else version


def _cut(payload: bytes, table: list[_Array]) -> dict[str, np.ndarray]:
    arrays, start = {}, 0
    for entry in table:
        dtype = np.dtype(entry.dtype)
        count = math.prod(entry.shape)
        arrays[entry.name] = np.frombuffer(payload, dtype, count, start).reshape(entry.shape)
        start += count * dtype.itemsize
    return arrays


def _digest(header: _Header, payload: Sequence[bytes | memoryview]) -> str:
    """As a snapshot of this format has it, whatever format the header claims."""
    covered = [FORMAT_VERSION, header.seq, header.bundle_id, header.meta, header.arrays]
    digest = hashlib.sha256(msgspec.json.encode(covered))
    for piece in payload:
        digest.update(piece)
    return digest.hexdigest()


def _seq_of(path: Path) -> int:
    """The seq a slot claims, -1 when empty or unreadable (it is then the one to overwrite)."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.readline(), type=_Header).seq
    except (OSError, msgspec.MsgspecError):
        return -1
