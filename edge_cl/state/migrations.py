"""Journals of earlier releases become the present one when they are opened, in one transaction."""

from __future__ import annotations

import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from edge_cl.errors import StateError
from edge_cl.state.entries import INSERT, Entry, check, link_all

SCHEMA_VERSION = 2
"""Kept in the database as ``user_version``; version 1 had none."""
_SCHEMA = """
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    reading_id TEXT NOT NULL,
    label TEXT NOT NULL,
    source TEXT NOT NULL,
    trust REAL NOT NULL,
    t_s REAL NOT NULL,
    at_s REAL NOT NULL,
    detail TEXT NOT NULL,
    feature BLOB NOT NULL,
    chain BLOB NOT NULL
);
CREATE INDEX journal_rare ON journal (kind, seq)
    WHERE kind IN ('forget','hold','rollback','held','review','rename');
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Make the tables of a new journal, or bring those of an earlier release up to date.

    Raises StateError for a journal of a newer release; sqlite3's errors as they are.
    """
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if version == SCHEMA_VERSION:
        return
    if version > SCHEMA_VERSION:
        raise StateError(
            f"{path}: written by a newer edge-cl (journal schema {version}, this one knows "
            f"{SCHEMA_VERSION}); upgrade edge-cl, or choose another --state folder"
        )
    old = db.execute("SELECT 1 FROM sqlite_master WHERE name = 'journal'").fetchone()
    db.execute("BEGIN IMMEDIATE")
    try:
        if old:
            _from_1(db)
        else:
            _create(db)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        db.execute("COMMIT")
    except BaseException:
        db.execute("ROLLBACK")
        raise


def _create(db: sqlite3.Connection) -> None:
    for statement in _SCHEMA.split(";"):
        if statement.strip():
            db.execute(statement)


def _from_1(db: sqlite3.Connection) -> None:
    """Version 1 had no wall clock, trust or chain, and kept plans of sleeps where the source is now."""
    db.execute("DROP INDEX IF EXISTS journal_reading")
    db.execute("ALTER TABLE journal RENAME TO journal_1")
    db.execute("ALTER TABLE meta RENAME TO meta_1")
    _create(db)
    meta = dict(db.execute("SELECT key, value FROM meta_1"))
    for key, value in meta.items():
        db.execute("INSERT INTO meta VALUES (?, ?)", (key, f"{value}|{check(key, value)}"))
    db.executemany(INSERT, link_all(_entries_of_1(db)))
    db.execute("DROP TABLE journal_1")
    db.execute("DROP TABLE meta_1")


def _entries_of_1(db: sqlite3.Connection) -> Iterator[Entry]:
    for *row, crc in db.execute("SELECT * FROM journal_1 ORDER BY seq"):
        seq, kind, reading_id, label, source, t_s, feature = row
        if zlib.crc32(feature, zlib.crc32(repr(tuple(row[:6])).encode())) != crc:
            yield Entry(seq=seq, kind="damaged")
            continue
        planned = kind in ("sleep", "wake")
        yield Entry(
            seq=seq,
            kind=kind,
            reading_id=reading_id,
            label=label,
            source="" if planned else source,
            t_s=t_s,
            detail=source if planned else "",
            feature=np.frombuffer(feature, dtype=np.float32),
        )
