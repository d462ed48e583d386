"""What a state folder says about a device that is not running; reads only."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec

from edge_cl.errors import StateCorrupt, StateError
from edge_cl.records import SleepReport, Status
from edge_cl.state.snapshots import SLOTS, Snapshot, read_snapshot
from edge_cl.state.store import JOURNAL


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
    last_seq, n_labels = _journalled_after(folder / JOURNAL, newest.seq)
    return msgspec.structs.replace(
        status,
        n_labels=status.n_labels + n_labels,
        journal_seq=max(newest.seq, last_seq),
        alarm="; ".join([*([status.alarm] if status.alarm else []), *problems]),
    )


def sleep_reports(folder: str | Path) -> list[SleepReport]:
    """Reports of the last sleeps at the newest snapshot, oldest first; raises as `describe`."""
    newest, _ = _newest(Path(folder))
    return [] if newest is None else msgspec.convert(newest.meta["reports"], list[SleepReport])


def _newest(folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The newest sound snapshot, None before the first label, and what was wrong with others."""
    if not folder.is_dir():
        raise StateError(f"{folder}: no such state folder; `edge-cl run` makes one")
    found, problems = [], []
    for path in (folder / name for name in SLOTS if (folder / name).exists()):
        try:
            found.append(read_snapshot(path))
        except StateCorrupt as error:
            problems.append(str(error))
    if not found:
        if problems:
            raise StateCorrupt(f"{folder}: {'; '.join(problems)}")
        _refuse_if_labelled(folder)
    return max(found, key=lambda snapshot: snapshot.seq, default=None), problems


def _refuse_if_labelled(folder: Path) -> None:
    n_labels = _journalled_after(folder / JOURNAL, 0)[1] if (folder / JOURNAL).exists() else 0
    if n_labels:
        raise StateError(
            f"{folder}: the device was cut off before its first snapshot; "
            f"labels safe in the journal: {n_labels}; "
            "start edge-cl run again to see its status"
        )


def _journalled_after(path: Path, seq: int) -> tuple[int, int]:
    query = "SELECT coalesce(max(seq), 0), coalesce(sum(kind = 'label'), 0) FROM journal WHERE seq > ?"
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
        try:
            last_seq, n_labels = db.execute(query, (seq,)).fetchone()
        finally:
            db.close()
    except sqlite3.DatabaseError as error:
        raise StateError(f"{path}: cannot be read ({error})") from error
    return int(last_seq), int(n_labels)
