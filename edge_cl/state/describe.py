"""What a state folder says about a device that may be running or not; reads only, takes no lock."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge_cl.errors import StateCorrupt, StateError
from edge_cl.records import SleepReport, Status
from edge_cl.revisions import AuditLine, HeadRecord
from edge_cl.state import entries
from edge_cl.state.entries import REVISIONS
from edge_cl.state.migrations import SCHEMA_VERSION
from edge_cl.state.snapshots import Snapshot, Snapshots, peek, read_snapshot
from edge_cl.state.store import JOURNAL
from edge_cl.state.timeline import Taken, Timeline, holds


def describe(folder: str | Path) -> Status | None:
    """The status at the newest snapshot, with the labels journalled after it counted in.

    None when nothing was learned there yet. Changes nothing and takes no lock.

    Raises
    ------
    StateError
        When the folder is missing, neither snapshot nor journal can be read, or the device was cut off
        before its first snapshot.
    """
    folder = Path(folder)
    newest, problems = _newest(folder)
    if newest is None:
        return None
    status = msgspec.convert(newest.meta["status"], Status)
    with _opened(folder) as db:
        counts = _timeline(db).at(2**61)
        after = db.execute("SELECT seq, kind FROM journal WHERE seq > ?", (newest.seq,)).fetchall()
    n_labels = sum(kind == "label" and holds(counts, seq) for seq, kind in after)
    return msgspec.structs.replace(
        status,
        n_labels=status.n_labels + n_labels,
        journal_seq=max([newest.seq, *(seq for seq, _ in after)]),
        alarm="; ".join([*([status.alarm] if status.alarm else []), *problems]),
    )


def sleep_reports(folder: str | Path) -> list[SleepReport]:
    """Reports of the last sleeps at the newest snapshot, oldest first; raises as `describe`."""
    newest, _ = _newest(Path(folder))
    return [] if newest is None else msgspec.convert(newest.meta["reports"], list[SleepReport])


def heads_of(folder: str | Path) -> list[HeadRecord]:
    """The heads that are kept in a folder, oldest first; raises StateError for one that is none."""
    folder = _existing(folder)
    timeline, last = Timeline(), 2**61
    if (folder / JOURNAL).exists():
        with _opened(folder) as db:
            timeline = _timeline(db)
            last = db.execute("SELECT coalesce(max(seq), 0) FROM journal").fetchone()[0]
    found = []
    for seq, path in Snapshots(folder).paths().items():
        stranded = seq <= last and not timeline.leads_to(seq, last)
        found.append(_head_record(path, seq, stranded=stranded))
    return found


def audit(folder: str | Path) -> Iterator[AuditLine]:
    """Who changed what the device knows, in order: labels by source in a row, and every revision."""
    with _opened(_existing(folder)) as db:
        line: AuditLine | None = None
        columns = "seq, kind, label, source, at_s, detail"
        for seq, kind, label, source, at_s, detail in db.execute(
            f"SELECT {columns} FROM journal ORDER BY seq"
        ):
            what = _what(kind, label, detail)
            if line is not None and kind in _IN_A_ROW and (line.who, line.what) == (source, what):
                line = msgspec.structs.replace(line, n=line.n + 1)
                continue
            if line is not None:
                yield line
            line = AuditLine(seq=seq, at_s=at_s, who=source or "the device", what=what)
        if line is not None:
            yield line


_IN_A_ROW = ("label", "not", "held", "forgotten", "damaged")


def _what(kind: str, label: str, detail: str) -> str:
    if kind in ("forget", "hold"):
        try:
            taken = msgspec.json.decode(detail, type=Taken)
        except msgspec.MsgspecError:
            return f"{kind}: what it says is damaged"
        n = sum(last - first + 1 for first, last in taken.ranges)
        return f"{'forgot' if kind == 'forget' else 'held back'} {n:,} entries: {taken.what}"
    texts = {
        "label": "taught",
        "not": "said what it is not",
        "sleep": f"sleep began: {label}",
        "wake": "sleep ended",
        "rename": f"renamed {label!r} to {detail!r}",
        "held": "labels held for a review",
        "review": f"reviewed {detail}",
        "rollback": f"rolled back {detail}",
        "forgotten": "taught, forgotten since",
        "damaged": "lost to damage",
    }
    return texts.get(kind, kind)


def _head_record(path: Path, seq: int, *, stranded: bool) -> HeadRecord:
    nbytes = path.stat().st_size
    try:
        meta = peek(path).meta
        status = msgspec.convert(meta["status"], Status)
    except (StateCorrupt, KeyError, msgspec.ValidationError) as error:
        return HeadRecord(
            id=seq,
            at_s=0.0,
            cause="",
            n_labels=0,
            accuracy=None,
            n_classes=0,
            nbytes=nbytes,
            problem=str(error),
        )
    return HeadRecord(
        id=seq,
        at_s=meta.get("at_s", 0.0),
        cause=meta.get("cause", ""),
        n_labels=status.n_labels,
        accuracy=status.accuracy_now,
        n_classes=len(status.class_names),
        nbytes=nbytes,
        stranded=stranded,
    )


def _existing(folder: str | Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise StateError(f"{folder}: no such state folder; `edge-cl run` makes one")
    return folder


def _newest(folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The newest sound snapshot of what counts, None before the first label; what was wrong with others."""
    _existing(folder)
    journalled = (folder / JOURNAL).exists()
    timeline = Timeline()
    last = 0
    if journalled:
        with _opened(folder) as db:
            timeline = _timeline(db)
            last = db.execute("SELECT coalesce(max(seq), 0) FROM journal").fetchone()[0]
    problems: list[str] = []
    for seq, path in reversed(Snapshots(folder).paths().items()):
        if seq <= last and not timeline.leads_to(seq, last):
            continue
        try:
            return read_snapshot(path), problems
        except StateCorrupt as error:
            problems.append(str(error))
    if problems:
        raise StateCorrupt(f"{folder}: {'; '.join(problems)}")
    if last:
        raise StateError(
            f"{folder}: no snapshot is there yet, the device was cut off before its first or had to forget; "
            f"journal entries that are safe: {last:,}; start edge-cl run again to see its status"
        )
    return None, []


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[sqlite3.Connection]:
    path = folder / JOURNAL
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version != SCHEMA_VERSION:
                raise StateError(
                    f"{path}: of another release (journal schema {version}, this one has {SCHEMA_VERSION}); "
                    "start edge-cl run to bring an older one up to date, or upgrade edge-cl for a newer one"
                )
            yield db
        finally:
            db.close()
    except sqlite3.DatabaseError as error:
        raise StateError(f"{path}: cannot be read ({error})") from error


def _timeline(db: sqlite3.Connection) -> Timeline:
    where = ",".join(f"'{kind}'" for kind in REVISIONS)
    query = f"SELECT {entries.COLUMNS} FROM journal WHERE kind IN ({where}) ORDER BY seq"
    return Timeline(entries.entry(row) for row in db.execute(query))
