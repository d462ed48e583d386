"""The journal: every label and every sleep, in order, before anything is promised."""

from __future__ import annotations

import contextlib
import math
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from edge_cl.errors import StateCorrupt, StateUnwritable
from edge_cl.records import FloatArray

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS journal (
    seq INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    reading_id TEXT NOT NULL,
    label TEXT NOT NULL,
    source TEXT NOT NULL,
    t_s REAL NOT NULL,
    feature BLOB NOT NULL,
    crc INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS journal_reading ON journal (reading_id) WHERE kind = 'label';
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the journal.

    `kind` is ``label`` (`feature` was learned as class `label`), ``not`` (as not of it), ``sleep`` (one
    began, `label` is its cause and `source` its plan) or ``wake`` (it ended, `source` says how). Learned
    state is a pure function of the bundle and the entries in order.
    """

    seq: int
    kind: Literal["label", "not", "sleep", "wake"]
    label: str
    reading_id: str = ""
    source: str = ""
    t_s: float = 0.0
    feature: FloatArray = msgspec.field(default_factory=lambda: np.zeros(0, dtype=np.float32))


class Journal:
    """Append-only, in SQLite (write-ahead log, ``synchronous=FULL``): committed means on disk.

    `append` opens a transaction when none is open; nothing is durable before `commit`. So a caller
    may learn many labels and pay for one fsync, as long as it gives receipts only after `commit`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA wal_autocheckpoint=128")  # pages: the log stays below a megabyte
            self._db.execute("PRAGMA cache_size=-256")  # KiB; by default 2 MB would fill as labels come
            self._db.executescript(_SCHEMA)
            row = self._db.execute("SELECT max(seq) FROM journal").fetchone()
        except sqlite3.DatabaseError as error:
            raise _typed(error, path) from error
        self.last_seq = max(int(row[0] or 0), int(self.get_meta("pruned_to") or 0))
        self._open = False
        self._committed_seq = self.last_seq

    def append(self, entry: Entry) -> None:
        """Add the next entry (its seq must be `last_seq` + 1); durable after `commit`."""
        if entry.seq != self.last_seq + 1:
            raise ValueError(f"journal entry {entry.seq} does not follow {self.last_seq}")
        feature = np.ascontiguousarray(entry.feature, dtype=np.float32).tobytes()
        t_s = float(entry.t_s) if math.isfinite(entry.t_s) else 0.0
        texts = (str(entry.kind), str(entry.reading_id), str(entry.label), str(entry.source))
        row = (int(entry.seq), *texts, t_s, feature)
        try:
            if not self._open:
                self._db.execute("BEGIN IMMEDIATE")
                self._open = True
            self._db.execute("INSERT INTO journal VALUES (?,?,?,?,?,?,?,?)", (*row, _crc(row)))
        except sqlite3.DatabaseError as error:
            self.rollback()
            raise _typed(error, self.path) from error
        self.last_seq = entry.seq

    def commit(self) -> None:
        """Make everything appended so far durable; raises StateUnwritable and keeps nothing of it."""
        if not self._open:
            return
        try:
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            self.rollback()
            raise _typed(error, self.path) from error
        self._open = False
        self._committed_seq = self.last_seq

    def rollback(self) -> None:
        """Forget what was appended since the last commit."""
        with contextlib.suppress(sqlite3.DatabaseError):
            self._db.execute("ROLLBACK")
        self._open = False
        with contextlib.suppress(sqlite3.DatabaseError):
            row = self._db.execute("SELECT max(seq) FROM journal").fetchone()
            self.last_seq = self._committed_seq = max(int(row[0] or 0), int(self.get_meta("pruned_to") or 0))

    def skip_to(self, seq: int) -> None:
        """Begin after `seq`: a snapshot holds everything up to it."""
        self.prune(seq)
        self.last_seq = self._committed_seq = seq

    @property
    def committed_seq(self) -> int:
        """The last seq that is durable."""
        return self._committed_seq

    def entries(self, after_seq: int) -> Iterator[Entry]:
        """Entries with a seq above `after_seq`, in order; raises StateCorrupt on a damaged one."""
        query = "SELECT * FROM journal WHERE seq > ? ORDER BY seq"
        expected = after_seq + 1
        try:
            for *row, crc in self._db.execute(query, (after_seq,)):
                if row[0] != expected or _crc(tuple(row)) != crc:
                    raise StateCorrupt(f"{self.path}: journal entry {expected} is missing or damaged")
                expected += 1
                yield Entry(
                    seq=row[0],
                    kind=row[1],
                    reading_id=row[2],
                    label=row[3],
                    source=row[4],
                    t_s=row[5],
                    feature=np.frombuffer(row[6], dtype=np.float32),
                )
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error

    def label_of(self, reading_id: str) -> str | None:
        """The last label journalled for a reading, None when there is none."""
        query = "SELECT label FROM journal WHERE reading_id = ? AND kind = 'label' ORDER BY seq DESC LIMIT 1"
        try:
            row = self._db.execute(query, (reading_id,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error
        return None if row is None else str(row[0])

    def was_refused(self, reading_id: str, label: str) -> bool:
        """Whether it was journalled that a reading is not of class `label`."""
        query = "SELECT 1 FROM journal WHERE reading_id = ? AND label = ? AND kind = 'not' LIMIT 1"
        try:
            return self._db.execute(query, (reading_id, label)).fetchone() is not None
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error

    def prune(self, up_to_seq: int) -> None:
        """Drop entries that both snapshots already hold."""
        try:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute("DELETE FROM journal WHERE seq <= ?", (up_to_seq,))
                self._db.execute("INSERT OR REPLACE INTO meta VALUES ('pruned_to', ?)", (str(up_to_seq),))
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error

    @property
    def first_seq(self) -> int:
        """The oldest seq that can still be replayed."""
        return int(self.get_meta("pruned_to") or 0) + 1

    def get_meta(self, key: str) -> str | None:
        """A small value kept beside the journal."""
        try:
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error
        return None if row is None else str(row[0])

    def set_meta(self, key: str, value: str) -> None:
        """Keep a small value, durable at once."""
        try:
            self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error

    def close(self) -> None:
        """Commit nothing more; close the file."""
        self._db.close()


def _crc(row: tuple[object, ...]) -> int:
    text = repr(row[:6]).encode()
    blob = row[6]
    return zlib.crc32(blob if isinstance(blob, bytes) else b"", zlib.crc32(text))


def _typed(error: sqlite3.DatabaseError, path: Path) -> StateUnwritable | StateCorrupt:
    """SQLite's error as ours: a full or failing disk can heal, a damaged file cannot."""
    if isinstance(error, sqlite3.OperationalError):
        return StateUnwritable(
            f"{path}: cannot write learned state ({error}); free some disk space or check the card"
        )
    return StateCorrupt(f"{path}: the journal is damaged ({error})")
