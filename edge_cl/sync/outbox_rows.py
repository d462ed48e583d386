"""The outbox's file: its tables, those of the version before, and a row of it."""

from __future__ import annotations

import sqlite3
from enum import IntEnum
from typing import NamedTuple

ROW_BYTES = 200  # what SQLite and a message's other columns add to a body

_FORMAT = 2
_SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL, kind TEXT NOT NULL, keep INTEGER NOT NULL, body BLOB NOT NULL,
  at_s REAL NOT NULL, boot_id TEXT NOT NULL, up_s REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS droppable ON outbox (keep, seq) WHERE keep > 0;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
PRAGMA user_version = 2;
"""
_FROM_1 = """
DROP INDEX droppable;
ALTER TABLE outbox RENAME COLUMN stream TO kind;
ALTER TABLE outbox RENAME COLUMN vital TO keep;
UPDATE outbox SET keep = CASE keep WHEN 0 THEN 2 ELSE 0 END;
ALTER TABLE outbox ADD COLUMN at_s REAL NOT NULL DEFAULT 0;
ALTER TABLE outbox ADD COLUMN boot_id TEXT NOT NULL DEFAULT '';
ALTER TABLE outbox ADD COLUMN up_s REAL NOT NULL DEFAULT 0;
"""
COLUMNS = "seq, id, kind, keep, body, at_s, boot_id, up_s"


class Keep(IntEnum):
    """What may be dropped when the outbox is full: nothing, older ones of its kind, the oldest."""

    ALWAYS = 0
    NEWEST = 1
    WHILE_ROOM = 2


class Row(NamedTuple):
    """One waiting message; made at `at_s` (Unix time), `up_s` seconds into the life `boot_id` of
    the program.
    """

    seq: int
    id: str
    kind: str
    keep: int
    body: bytes
    at_s: float
    boot_id: str
    up_s: float

    @property
    def nbytes(self) -> int:
        """What the row counts against the capacity."""
        return len(self.body) + ROW_BYTES


def prepare(db: sqlite3.Connection) -> None:
    """Make the tables, or bring those of format 1 up to date; raises OperationalError for a later format."""
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version not in (0, 1, _FORMAT):
        raise sqlite3.OperationalError(f"it has format {version}, this program reads {_FORMAT}")
    if version == 1:
        db.executescript(f"BEGIN; {_FROM_1} {_SCHEMA} COMMIT;")
    db.executescript(_SCHEMA)
