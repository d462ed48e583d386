"""One file with all that a device has learned: write it, put it back, merge it into another device.

A backup is a zip file, stored: ``backup.json`` (format, bundle, time, SHA-256 and size of every member), the
journal, and the newest heads.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import sqlite3
import tempfile
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import msgspec

from edge_cl.errors import StateCorrupt, StateError, StateUnwritable
from edge_cl.state.carrying import GROUP, labels_of, origin_of
from edge_cl.state.entries import REVISIONS, is_origin
from edge_cl.state.journal import Journal
from edge_cl.state.revising import end_sleep
from edge_cl.state.shared import FROM_OTHERS
from edge_cl.state.snapshots import Snapshots, read_snapshot, sync_folder
from edge_cl.state.store import JOURNAL, KINDS, StateStore
from edge_cl.state.timeline import Timeline

FORMAT, FORMAT_VERSION = "edge-cl backup", 1
MANIFEST = "backup.json"
N_HEADS = 2


class _Member(msgspec.Struct, frozen=True):
    sha256: str
    nbytes: int


class _Manifest(msgspec.Struct, frozen=True, kw_only=True):
    format: str
    format_version: int
    bundle_id: str
    uid: str
    made_s: float
    last_seq: int
    members: dict[str, _Member]


class Merged(msgspec.Struct, frozen=True, kw_only=True):
    """What a merge took in: labels, labels that were known already, and the first entry that it could see."""

    n_new: int
    n_known: int
    first_seq: int
    uid: str


def back_up(folder: str | Path, file: str | Path, *, at_s: float) -> int:
    """Write a backup of a device that runs or is stopped; returns its bytes.

    Raises
    ------
    StateError
        The folder is none, or keeps exemplars in a file, which changes under a copy.
    StateUnwritable
        `file` cannot be written; nothing is left of it.
    """
    folder, file = Path(folder), Path(file)
    if not (folder / JOURNAL).exists():
        raise StateError(f"{folder}: no state to back up; `edge-cl run` makes it")
    if any(folder.glob("exemplars*")):
        raise StateError(
            f"{folder}: keeps exemplars in a file (memory.file); stop the device and copy the whole folder"
        )
    part = file.with_name(file.name + ".part")
    try:
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=".backup-") as temporary:
            members = _gather(folder, Path(temporary))
            _write(part, members, at_s)
        part.replace(file)
        sync_folder(file.parent)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise StateUnwritable(f"{file}: cannot write the backup ({error.strerror})") from error
    return file.stat().st_size


def restore_backup(folder: str | Path, file: str | Path, *, at_s: float) -> Path | None:
    """Make a stopped device's folder what the backup holds; returns where the state it had is kept now.

    Everything is checked before anything changes. Raises StateError for a folder in use, StateCorrupt for a
    backup that is not whole.
    """
    folder = Path(folder)
    if not Path(file).exists():
        raise StateError(f"{file}: no such backup")
    with StateStore(folder, "", 2**62) as store:  # locked meanwhile
        learned = store.journal.last_seq > 0 or store.snapshots.paths()
        with _unpacked(Path(file), folder) as (found, manifest):
            try:
                kept = _kept_folder(folder, at_s) if learned else None
                store.journal.close()  # closing it again does no harm
                for path in _state_files(folder):
                    if not path.samefile(file):
                        path.replace(kept / path.name) if kept else path.unlink()
                for name in sorted(manifest.members, key=lambda name: name == JOURNAL):  # the journal last:
                    (found / name).replace(folder / name)  # without it the next start tells
                sync_folder(folder)
            except OSError as error:
                raise StateUnwritable(
                    f"{folder}: was not restored to its end ({error.strerror}); what it knew is there or in "
                    "before-restore-…; free some disk and restore again"
                ) from error
        with contextlib.closing(Journal(folder / JOURNAL)) as journal:
            journal.become_another()
    return kept


def _kept_folder(folder: Path, at_s: float) -> Path:
    """A new folder for what is replaced; a number tells those of one second apart."""
    name = datetime.fromtimestamp(at_s).strftime("before-restore-%Y%m%d-%H%M%S")
    kept = next(k for n in range(1, 1000) if not (k := folder / (name + (f".{n}" if n > 1 else ""))).exists())
    kept.mkdir()
    return kept


def merge_backup(folder: str | Path, file: str | Path, *, at_s: float) -> Merged:
    """Teach a stopped device every label of a backup that it does not know, at its next start.

    The head is then the one that was taught both devices' labels, these last; merging twice adds nothing.
    Durable in groups: after a cut, merge again.

    Raises StateError when the backup was learned with another bundle: its features mean something else.
    """
    with StateStore(folder, "", 2**62) as store, _unpacked(Path(file), Path(folder)) as (found, manifest):
        if store.bundle_id and manifest.bundle_id != store.bundle_id:
            raise StateError(
                f"{file}: learned with bundle {manifest.bundle_id[:12]}…, this device with "
                f"{store.bundle_id[:12]}…: their features differ, so they cannot be merged"
            )
        with contextlib.closing(Journal(found / JOURNAL)) as other:
            return _take_in(store, other, at_s)


def _take_in(store: StateStore, other: Journal, at_s: float) -> Merged:
    journal = store.journal
    end_sleep(store, "labels of another device were merged", at_s=at_s)
    known = journal.origins()
    n_new = n_known = 0
    newest: dict[str, str] = {}
    for entry in labels_of(other):
        merged_before = is_origin(entry.detail)
        origin = origin_of(other, entry)
        uid, _, seq = origin.partition(":")
        if origin in known or journal.is_own(origin) or int(seq) <= journal.merged_to(uid):
            n_known += 1
            continue
        source = entry.source if merged_before else f"{FROM_OTHERS}{other.uid[:8]}/{entry.source}"
        store.append(
            msgspec.structs.replace(entry, seq=journal.last_seq + 1, source=source, detail=origin, at_s=at_s)
        )
        newest[uid] = origin
        n_new += 1
        if n_new % GROUP == 0:
            journal.commit()
    for origin in newest.values():
        journal.note_merged(origin)
    journal.commit()
    return Merged(n_new=n_new, n_known=n_known, first_seq=other.first_seq, uid=other.uid)


def _gather(folder: Path, temporary: Path) -> dict[str, Path]:
    """A consistent copy: first the journal, then heads that lead to its end."""
    with (
        contextlib.closing(sqlite3.connect(f"file:{folder / JOURNAL}?mode=ro", uri=True)) as db,
        contextlib.closing(sqlite3.connect(temporary / JOURNAL)) as copy,
    ):
        db.backup(copy)
    members = {JOURNAL: temporary / JOURNAL}
    with contextlib.closing(Journal(temporary / JOURNAL)) as journal:
        timeline, last = Timeline(journal.rare(*REVISIONS)), journal.last_seq
        first = journal.first_seq
        journal.shrink_log()
    usable = [
        path
        for seq, path in Snapshots(folder).paths().items()
        if first <= seq + 1 <= last + 1 and timeline.leads_to(seq, last)
    ]
    for path in usable[-N_HEADS:]:
        with contextlib.suppress(FileNotFoundError, StateCorrupt):  # it was dropped meanwhile, or is damaged
            read_snapshot(path)
            members[path.name] = Path(shutil.copyfile(path, temporary / path.name))
    if len(members) == 1 and first > 1:
        raise StateError(f"{folder}: no sound head to back up; look at `edge-cl history --check`")
    return members


def _write(part: Path, members: dict[str, Path], at_s: float) -> None:
    with contextlib.closing(Journal(members[JOURNAL])) as journal:
        manifest = _Manifest(
            format=FORMAT,
            format_version=FORMAT_VERSION,
            bundle_id=journal.get_meta("bundle_id") or "",
            uid=journal.uid,
            made_s=at_s,
            last_seq=journal.last_seq,
            members={name: _member(path) for name, path in members.items()},
        )
    with part.open("wb") as file:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            archive.writestr(MANIFEST, msgspec.json.encode(manifest))
            for name, path in members.items():
                archive.write(path, name)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _unpacked(file: Path, beside: Path) -> Iterator[tuple[Path, _Manifest]]:
    """The members of a backup in a temporary folder, each as it was written; raises StateCorrupt."""
    try:
        unpacked = tempfile.TemporaryDirectory(dir=beside, prefix="restoring-")
    except OSError as error:
        raise StateUnwritable(f"{beside}: no room to unpack {file} ({error.strerror})") from error
    with unpacked as temporary:
        try:
            with zipfile.ZipFile(file) as archive:
                manifest = msgspec.json.decode(archive.read(MANIFEST), type=_Manifest)
                if manifest.format != FORMAT or manifest.format_version > FORMAT_VERSION:
                    raise StateError(
                        f"{file}: is {manifest.format!r} of version {manifest.format_version}; this edge-cl "
                        f"reads {FORMAT!r} up to version {FORMAT_VERSION}: upgrade it"
                    )
                for name, member in manifest.members.items():
                    _extract(archive, name, Path(temporary) / name)
                    if _member(Path(temporary) / name) != member:
                        raise StateCorrupt(f"{file}: {name} in it failed its checksum; use another backup")
        except FileNotFoundError as error:
            raise StateError(f"{file}: no such backup") from error
        except (zipfile.BadZipFile, KeyError, ValueError, msgspec.MsgspecError, OSError, EOFError) as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
                raise StateUnwritable(
                    f"{beside}: no room to unpack {file} ({error.strerror}); free some disk"
                ) from error
            if isinstance(error, (PermissionError, IsADirectoryError)):
                raise StateError(f"{file}: cannot be read ({error.strerror})") from error
            raise StateCorrupt(f"{file}: is no whole backup ({error}); use another one") from error
        yield Path(temporary), manifest


def _extract(archive: zipfile.ZipFile, name: str, to: Path) -> None:
    if Path(name).name != name:
        raise StateCorrupt(f"a backup names the file {name!r}; it was made by nobody to be trusted")
    with archive.open(name) as source, to.open("wb") as file:
        shutil.copyfileobj(source, file)
        file.flush()
        os.fsync(file.fileno())


def _member(path: Path) -> _Member:
    with path.open("rb") as file:
        return _Member(hashlib.file_digest(file, "sha256").hexdigest(), path.stat().st_size)


def _state_files(folder: Path) -> list[Path]:
    """Journal, heads and exemplars; what waits to be sent stays."""
    names = tuple(begin for kind in ("journal", "snapshots", "exemplars") for begin in KINDS[kind])
    return [path for path in folder.iterdir() if path.is_file() and path.name.startswith(names)]
