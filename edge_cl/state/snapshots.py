"""Two immutable snapshots of everything learned, written so that a power cut never costs both.

A snapshot file is one JSON line (format, seq, size and SHA-256 of the rest, small values) and an
uncompressed ``.npz`` of arrays. It is written to a temporary file, synced, renamed over the older of
``slot-a.snapshot`` and ``slot-b.snapshot``, and the folder is synced.
"""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_cl.bundle import npz_bytes
from edge_cl.errors import StateCorrupt, StateError, StateUnwritable

FORMAT_VERSION = 1
SLOTS = ("slot-a.snapshot", "slot-b.snapshot")


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """Everything learned up to and including journal entry `seq`."""

    seq: int
    meta: dict[str, Any]
    arrays: dict[str, Any]


class _Header(msgspec.Struct, frozen=True, kw_only=True):
    format_version: int
    seq: int
    size: int
    sha256: str
    meta: dict[str, Any]
    meta_sha256: str


class Snapshots:
    """The two slots of one state folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes_written = 0

    def newest(self) -> tuple[Snapshot | None, list[str]]:
        """The newest sound snapshot, and what was wrong with any slot that was set aside.

        A damaged slot is renamed to ``…​.damaged``, never deleted.
        """
        found: list[Snapshot] = []
        problems: list[str] = []
        for path in self._existing():
            try:
                found.append(read_snapshot(path))
            except StateCorrupt as error:
                problems.append(str(error))
                path.rename(path.with_suffix(".damaged"))
        return max(found, key=lambda snapshot: snapshot.seq, default=None), problems

    def write(self, snapshot: Snapshot) -> int:
        """Write into the older slot; returns the seq that the *other* slot holds (0: none).

        Raises StateUnwritable when the disk is full or failing; both slots are then as before.
        """
        seqs = {name: _seq_of(self.folder / name) for name in SLOTS}
        target = min(SLOTS, key=lambda name: seqs[name])
        other = SLOTS[1 - SLOTS.index(target)]
        self._replace(self.folder / target, _encode(snapshot))
        return max(seqs[other], 0)

    def _existing(self) -> list[Path]:
        return [self.folder / name for name in SLOTS if (self.folder / name).exists()]

    def _replace(self, path: Path, data: bytes) -> None:
        part = path.with_suffix(".part")
        try:
            with part.open("wb") as file:
                file.write(data)
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
        self.bytes_written += len(data)


def read_snapshot(path: Path) -> Snapshot:
    """Read and verify one snapshot file; raises StateCorrupt, or StateError for a newer format."""
    try:
        line, _, payload = path.read_bytes().partition(b"\n")
        version = msgspec.json.decode(line)["format_version"]
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise StateError(
                f"{path}: snapshot format {version}; this edge-cl reads {FORMAT_VERSION}: upgrade"
            )
        header = msgspec.json.decode(line, type=_Header)
        if len(payload) != header.size or _digest(payload) != header.sha256:
            raise StateCorrupt(f"{path.name} failed its checksum")
        if _digest(msgspec.json.encode([header.seq, header.meta])) != header.meta_sha256:
            raise StateCorrupt(f"{path.name} failed its header's checksum")
        with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
            return Snapshot(
                seq=header.seq, meta=header.meta, arrays={key: arrays[key] for key in arrays.files}
            )
    except (
        msgspec.MsgspecError,
        UnicodeDecodeError,
        KeyError,
        TypeError,
        ValueError,
        zipfile.BadZipFile,
    ) as error:
        raise StateCorrupt(f"{path.name} is not a readable snapshot ({error})") from error
    except OSError as error:
        raise StateCorrupt(f"{path.name} cannot be read ({error.strerror})") from error


def _encode(snapshot: Snapshot) -> bytes:
    payload = npz_bytes(**snapshot.arrays)
    header = _Header(
        format_version=FORMAT_VERSION,
        seq=snapshot.seq,
        size=len(payload),
        sha256=_digest(payload),
        meta=snapshot.meta,
        meta_sha256=_digest(msgspec.json.encode([snapshot.seq, snapshot.meta])),
    )
    return msgspec.json.encode(header) + b"\n" + payload


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _seq_of(path: Path) -> int:
    """The seq a slot claims, -1 when empty or unreadable (it is then the one to overwrite)."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.readline(), type=_Header).seq
    except (OSError, msgspec.MsgspecError):
        return -1
