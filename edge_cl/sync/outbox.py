"""What waits for the broker: bounded, on disk, in order, never lost once committed."""

from __future__ import annotations

import contextlib
import sqlite3
import time
import uuid
from pathlib import Path
from typing import NamedTuple

ROW_BYTES = 160  # what SQLite and the message's id add to a body
UNSAVED_BYTES = 256 * 1024  # how much may wait in memory for a commit
CACHE_BYTES = 256 * 1024
RETRY_S = 5.0

_PAGE = 32
_FORMAT = 1
# After these the open file can still be read, so what it holds goes on being sent.
_WRITE_ONLY_ERRORS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS outbox (
  seq INTEGER PRIMARY KEY, id TEXT NOT NULL, stream TEXT NOT NULL, vital INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS droppable ON outbox (seq) WHERE vital = 0;
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = 1;
"""


class Row(NamedTuple):
    """One waiting message. Only rows that are not `vital` are dropped to make room."""

    seq: int
    id: str
    stream: str
    vital: bool | int
    body: bytes

    @property
    def nbytes(self) -> int:
        """What the row counts against the capacity."""
        return len(self.body) + ROW_BYTES


class Outbox:
    """A queue on disk. One thread owns it.

    `put` keeps a message in memory, `commit` makes all of them durable with one flush of the
    disk, `ready` hands out only durable ones, `done` removes an acknowledged one (durable with
    the next commit). When the disk fails, nothing raises: messages are counted, kept in a small
    memory and handed out from there until the disk works again; `alarm` says so.

    Parameters
    ----------
    path
        The SQLite file; None keeps everything in memory.
    capacity_bytes
        For the rows. The files take at most about twice that.
    """

    def __init__(self, path: Path | None, *, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.seq = 0
        self.session = 0
        self.n_dropped = 0
        self.n_refused = 0
        self.n_disk_errors = 0
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._unsaved: dict[int, Row] = {}
        self._unsaved_bytes = 0
        self._gone: set[int] = set()
        self._saved_rows = 0
        self._saved_bytes = 0
        self._saved_session = 0
        self._cursor = 0
        self._unread = False
        self._full = False
        self._disk_alarm = ""
        self._retry_s = 0.0
        self._loaded = False
        if not self._try_open():
            # The numbers given so far are out of reach; milliseconds since 1970 are surely beyond them.
            self.seq = time.time_ns() // 1_000_000

    @property
    def n_queued(self) -> int:
        """Messages that are not acknowledged."""
        return self._saved_rows + len(self._unsaved)

    @property
    def held_bytes(self) -> int:
        """What the waiting messages count against the capacity."""
        return self._saved_bytes + self._unsaved_bytes

    @property
    def nbytes(self) -> int:
        """Memory held: what waits for a commit, and SQLite's cache or, without a file, everything."""
        return self._unsaved_bytes + (CACHE_BYTES if self._path else self._saved_bytes)

    @property
    def n_unsaved(self) -> int:
        """Messages that the next commit makes durable."""
        return len(self._unsaved)

    @property
    def n_unsaved_removals(self) -> int:
        """Acknowledged messages that the next commit removes from the disk."""
        return len(self._gone)

    @property
    def alarm(self) -> str:
        """What a person should know, or ""."""
        if self._disk_alarm:
            return self._disk_alarm
        if self._full:
            return (
                f"the outbox is full ({self.held_bytes:,} of {self.capacity_bytes:,} bytes wait) "
                f"and refuses new messages ({self.n_refused:,} so far); "
                "connect the broker or raise the disk budget"
            )
        return ""

    def put(self, stream: str, body: bytes, *, vital: bool) -> int:
        """Add a message; returns its number, or 0 when there is no room for it."""
        row = Row(self.seq + 1, uuid.uuid4().hex, stream, vital, body)
        self._full = not self._make_room(row.nbytes)
        if self._full:
            self.n_refused += 1
            return 0
        self.seq = row.seq
        self._unsaved[row.seq] = row
        self._unsaved_bytes += row.nbytes
        return row.seq

    def commit(self) -> bool:
        """Make every put and removal durable; False when the disk failed (nothing is forgotten)."""
        if not (self._unsaved or self._gone or self.session != self._saved_session):
            return True
        if self._disk_alarm and time.monotonic() < self._retry_s:
            return False
        if self._db is None and not self._try_open():
            return False
        try:
            self._write()
        except sqlite3.Error as error:
            self._disk_failed(error)
            return False
        self._saved_rows += len(self._unsaved)
        self._saved_bytes += self._unsaved_bytes
        self._unsaved, self._unsaved_bytes = {}, 0
        self._gone = set()
        self._saved_session = self.session
        if self._unread:
            self.rewind()
        return True

    def ready(self, limit: int) -> list[Row]:
        """The next messages to send, oldest first; each is handed out once until `rewind`."""
        rows = self._read(limit)
        if self._disk_alarm:
            waiting = (row for row in self._unsaved.values() if row.seq > self._cursor)
            rows += [row for row, _ in zip(waiting, range(limit - len(rows)), strict=False)]
        if rows:
            self._cursor = rows[-1].seq
        return rows

    def rewind(self) -> None:
        """Hand out every message again: after a reconnection nobody knows what arrived."""
        self._cursor = 0
        self._unread = False

    def done(self, row: Row) -> None:
        """`row` was acknowledged."""
        if row.seq in self._unsaved or self._is_saved(row.seq):
            self._remove(row)

    def close(self) -> None:
        """Make everything durable that can be, and let go of the file."""
        self.commit()
        self._close()

    # -- room ---------------------------------------------------------------------------

    def _make_room(self, nbytes: int) -> bool:
        if nbytes > min(self.capacity_bytes, UNSAVED_BYTES):
            return False
        if self._unsaved_bytes + nbytes > UNSAVED_BYTES:
            self.commit()
        while self._unsaved_bytes + nbytes > UNSAVED_BYTES:
            if not self._drop(self._oldest_unsaved_droppable()):
                return False
        while self.held_bytes + nbytes > self.capacity_bytes:
            if not self._drop(self._oldest_saved_droppable() or self._oldest_unsaved_droppable()):
                return False
        return True

    def _drop(self, row: Row | None) -> bool:
        if row is None:
            return False
        self._remove(row)
        self.n_dropped += 1
        return True

    def _remove(self, row: Row) -> None:
        if self._unsaved.pop(row.seq, None) is not None:
            self._unsaved_bytes -= row.nbytes
        elif row.seq not in self._gone:
            self._gone.add(row.seq)
            self._saved_rows -= 1
            self._saved_bytes -= row.nbytes

    def _oldest_unsaved_droppable(self) -> Row | None:
        return next((row for row in self._unsaved.values() if not row.vital), None)

    def _oldest_saved_droppable(self) -> Row | None:
        return next(iter(self._select("vital = 0", 0, 1)), None)

    # -- disk ---------------------------------------------------------------------------

    def _read(self, limit: int) -> list[Row]:
        return self._select("1", self._cursor, limit)

    def _select(self, where: str, after: int, limit: int) -> list[Row]:
        columns = "seq, id, stream, vital, body"
        query = f"SELECT {columns} FROM outbox WHERE {where} AND seq > ? ORDER BY seq LIMIT ?"
        rows: list[Row] = []
        try:
            while len(rows) < limit and self._db is not None:
                found = [Row(*values) for values in self._db.execute(query, (after, _PAGE))]
                rows += [row for row in found if row.seq not in self._gone]
                if len(found) < _PAGE:
                    break
                after = found[-1].seq
        except sqlite3.Error as error:
            self._disk_failed(error)
            self._close()
        self._unread |= self._db is None
        return rows[:limit]

    def _write(self) -> None:
        if self._db is None:
            raise sqlite3.OperationalError("the outbox is not open")
        meta = [("seq", self.seq), ("session", self.session)]
        with self._db as db:
            db.executemany("INSERT INTO outbox VALUES (?, ?, ?, ?, ?)", self._unsaved.values())
            db.executemany("DELETE FROM outbox WHERE seq = ?", [(seq,) for seq in self._gone])
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta)
        self._disk_alarm = ""

    def _try_open(self) -> bool:
        try:
            self._open()
        except (sqlite3.Error, OSError) as error:
            self._disk_failed(error)
            return False
        return True

    def _open(self) -> None:
        target = ":memory:" if self._path is None else str(self._path)
        db = self._db = sqlite3.connect(target, timeout=1.0, check_same_thread=False)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute(f"PRAGMA cache_size = -{CACHE_BYTES // 1024}")
        db.execute("PRAGMA wal_autocheckpoint = 64")
        db.execute("PRAGMA journal_size_limit = 262144")
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version not in (0, _FORMAT):
            raise sqlite3.OperationalError(f"it has format {version}, this program reads {_FORMAT}")
        db.executescript(_SCHEMA)
        self._load(db)

    def _load(self, db: sqlite3.Connection) -> None:
        found = db.execute("SELECT seq, LENGTH(body) FROM outbox")
        sizes = [nbytes + ROW_BYTES for seq, nbytes in found if seq not in self._gone]
        meta = dict(db.execute("SELECT key, value FROM meta"))
        if not self._loaded and self._unsaved and meta.get("seq", 0) >= min(self._unsaved):
            raise sqlite3.OperationalError("its numbers are ahead of the clock; restart the program")
        self._saved_rows, self._saved_bytes = len(sizes), sum(sizes)
        if not self._loaded:
            self.seq = max(self.seq, meta.get("seq", 0))
            self.session = max(self.session, meta.get("session", 0))
            self._saved_session = meta.get("session", 0)
        self._loaded = True

    def _is_saved(self, seq: int) -> bool:
        try:
            found = self._db and self._db.execute("SELECT 1 FROM outbox WHERE seq = ?", (seq,)).fetchone()
        except sqlite3.Error as error:
            self._disk_failed(error)
            return True
        return self._db is None or found is not None

    def _disk_failed(self, error: sqlite3.Error | OSError) -> None:
        self.n_disk_errors += 1
        self._retry_s = time.monotonic() + RETRY_S
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code not in _WRITE_ONLY_ERRORS:
            self._close()
        advice = "new messages wait in memory and are lost if the device restarts; free disk space"
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            advice = f"it was set aside as {self._set_aside()} and a new one is begun"
            self._retry_s = 0.0
        self._disk_alarm = f"the outbox {self._path} cannot be used ({error}); {advice}"

    def _set_aside(self) -> str:
        if self._path is None:
            return ""
        aside = self._path.with_suffix(".damaged")
        with contextlib.suppress(OSError):
            self._path.replace(aside)
            for suffix in ("-wal", "-shm"):
                self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
        self._saved_rows = self._saved_bytes = 0
        self._gone = set()
        return aside.name

    def _close(self) -> None:
        if self._db is not None:
            with contextlib.suppress(sqlite3.Error):
                self._db.close()
        self._db = None
