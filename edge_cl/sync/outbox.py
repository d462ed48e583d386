"""What waits for a server's confirmation: bounded, on disk, in order, never lost once committed."""

from __future__ import annotations

import contextlib
import sqlite3
import time
import uuid
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from edge_cl.sync.outbox_rows import COLUMNS, ROW_BYTES, Keep, Row, prepare

UNSAVED_BYTES = 256 * 1024  # how much may wait in memory for a commit
CACHE_BYTES = 256 * 1024
RETRY_S = 5.0

_PAGE = 8
# After these the open file can still be read, so what it holds goes on being sent.
_WRITE_ONLY_ERRORS = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY)


class Outbox:
    """A queue on disk. One thread owns it.

    `put` keeps a message in memory, `commit` makes all of them durable with one flush of the
    disk, `ready` hands out only durable ones, `done` removes a confirmed one (durable with
    the next commit). When there is no room, first older messages of a kind of which only the newest
    matters (`Keep.NEWEST`) are dropped, then the oldest that are kept `WHILE_ROOM`, then what is left but
    `ALWAYS`; a new message that still does not fit is refused. When the disk fails, nothing raises: messages
    are counted, kept in a small memory and handed out from there until the disk works again; `alarm` says so.

    Parameters
    ----------
    path
        The SQLite file; None keeps everything in memory.
    capacity_bytes
        For the rows. The files take at most about twice that.
    boot_id
        Of this life of the program; drawn when not given.
    """

    def __init__(self, path: Path | None, *, capacity_bytes: int, boot_id: str = "") -> None:
        self.capacity_bytes = capacity_bytes
        self.boot_id = boot_id or uuid.uuid4().hex
        self.epoch = "e" + uuid.uuid4().hex[:15]  # never a number, which SQLite would store as one
        """Numbers belong to it: drawn when the file is made, again when it cannot be read."""
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
        self.notes: dict[str, str] = {}
        """What was noted with `note`, by name."""
        self._unsaved_notes: set[str] = set()
        self._also: list[tuple[str, Sequence[Any]]] = []
        self._began_s = time.monotonic()
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
    def up_s(self) -> float:
        """Seconds since this life of the program began."""
        return time.monotonic() - self._began_s

    @property
    def database(self) -> sqlite3.Connection | None:
        """The open file, to read from; None while it cannot be used."""
        return self._db

    @property
    def n_queued(self) -> int:
        """Messages that are not confirmed."""
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
        """Messages and notes that the next commit makes durable."""
        return len(self._unsaved) + len(self._unsaved_notes)

    @property
    def has_room(self) -> bool:
        """True while less than three quarters are taken."""
        return self.held_bytes < 0.75 * self.capacity_bytes

    @property
    def n_unsaved_removals(self) -> int:
        """Confirmed messages that the next commit removes from the disk."""
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
                "connect it to its fleet server or raise the disk budget"
            )
        return ""

    def put(self, kind: str, body: bytes, keep: Keep) -> int:
        """Add a message; returns its number, or 0 when there is no room for it."""
        made = (time.time(), self.boot_id, self.up_s)
        row = Row(self.seq + 1, uuid.uuid4().hex, kind, int(keep), body, *made)
        self._full = not self._make_room(row.nbytes)
        if self._full:
            self.n_refused += 1
            return 0
        self.seq = row.seq
        self._unsaved[row.seq] = row
        self._unsaved_bytes += row.nbytes
        return row.seq

    def also(self, sql: str, parameters: Sequence[Any]) -> None:
        """Do this in the transaction of the next commit."""
        self._also.append((sql, parameters))

    def note(self, name: str, text: str) -> None:
        """Keep a short text beside the messages, durable with the next commit."""
        self.notes[name] = text
        self._unsaved_notes.add(name)

    def commit(self) -> bool:
        """Make every put and removal durable; False when the disk failed (nothing is forgotten)."""
        if not (self.n_unsaved or self._gone or self._also or self.session != self._saved_session):
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
        self._gone, self._also, self._unsaved_notes = set(), [], set()
        self._saved_session = self.session
        if self._unread:
            self.rewind()
        return True

    def ready(self, limit: int, max_bytes: int = 2**62) -> list[Row]:
        """The next messages to send, oldest first, and at least one; each is handed out once
        until `rewind`.
        """
        rows = self._select("1", self._cursor, limit)
        if self._disk_alarm:
            waiting = (row for row in self._unsaved.values() if row.seq > self._cursor)
            rows += [row for row, _ in zip(waiting, range(limit - len(rows)), strict=False)]
        sizes = accumulate(row.nbytes for row in rows)
        rows = [
            row
            for n, (row, nbytes) in enumerate(zip(rows, sizes, strict=True))
            if not n or nbytes <= max_bytes
        ]
        if rows:
            self._cursor = rows[-1].seq
        return rows

    def rewind(self) -> None:
        """Hand out every message again: after a reconnection nobody knows what arrived."""
        self._cursor = 0
        self._unread = False

    def row(self, seq: int) -> Row | None:
        """Message `seq` if it is still waiting, and durable (or the disk fails)."""
        if seq in self._unsaved:
            return self._unsaved[seq] if self._disk_alarm else None
        return next((row for row in self._select("seq = " + str(int(seq)), seq - 1, 1)), None)

    def holds(self, seq: int) -> bool:
        """True while message `seq` waits here."""
        return seq in self._unsaved or (seq not in self._gone and self._is_saved(seq))

    def held(self, first: int, last: int, limit: int) -> list[int] | None:
        """The oldest `limit` numbers in this range that wait here; None while the disk does not tell."""
        query = "SELECT seq FROM outbox WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?"
        try:
            if self._db is None:
                return None
            saved = self._db.execute(query, (first, last, limit + len(self._gone)))
            found = {seq for (seq,) in saved} - self._gone
        except sqlite3.Error as error:
            self._disk_failed(error)
            return None
        found |= {seq for seq in self._unsaved if first <= seq <= last}
        return sorted(found)[:limit]

    def done(self, row: Row) -> None:
        """`row` was confirmed."""
        if self.holds(row.seq):
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
            if not self._drop(self._saved_droppable() or self._oldest_unsaved_droppable()):
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
        return next((row for row in self._unsaved.values() if row.keep), None)

    def _saved_droppable(self) -> Row | None:
        of_newest = self._select("keep = 1 AND keep > 0", 0, 2)
        if len(of_newest) == 2:
            return of_newest[0]
        return next(iter([*self._select("keep = 2 AND keep > 0", 0, 1), *of_newest]), None)

    # -- disk ---------------------------------------------------------------------------

    def _select(self, where: str, after: int, limit: int) -> list[Row]:
        query = f"SELECT {COLUMNS} FROM outbox WHERE {where} AND seq > ? ORDER BY seq LIMIT ?"
        rows: list[Row] = []
        try:
            page = max(limit, _PAGE)
            while len(rows) < limit and self._db is not None:
                found = [Row(*values) for values in self._db.execute(query, (after, page))]
                rows += [row for row in found if row.seq not in self._gone]
                if len(found) < page:
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
        meta = [("seq", self.seq), ("session", self.session), ("epoch", self.epoch)]
        meta += [(f"note.{name}", self.notes[name]) for name in self._unsaved_notes]
        with self._db as db:
            db.executemany("INSERT INTO outbox VALUES (?, ?, ?, ?, ?, ?, ?, ?)", self._unsaved.values())
            db.executemany("DELETE FROM outbox WHERE seq = ?", [(seq,) for seq in self._gone])
            db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", meta)
            for sql, parameters in self._also:
                db.execute(sql, parameters)
        self._disk_alarm = ""

    def _try_open(self) -> bool:
        try:
            self._open()
        except (sqlite3.Error, OSError) as error:
            self._disk_failed(error)
            self._close()  # half open is not open: nothing that it holds is known
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
        prepare(db)
        self._load(db)

    def _load(self, db: sqlite3.Connection) -> None:
        found = db.execute("SELECT seq, LENGTH(body) FROM outbox")
        sizes = [nbytes + ROW_BYTES for seq, nbytes in found if seq not in self._gone]
        meta = dict(db.execute("SELECT key, value FROM meta"))
        if not self._loaded:
            self._continue(meta)
        self._saved_rows, self._saved_bytes = len(sizes), sum(sizes)
        self._loaded = True

    def _continue(self, meta: dict[str, Any]) -> None:
        """Go on counting where the file ends; what was numbered while it could not be read keeps
        its epoch.
        """
        if self._unsaved and meta.get("seq", 0) >= min(self._unsaved):
            raise sqlite3.OperationalError("its numbers are ahead of the clock; restart the program")
        if not self.seq:
            self.epoch = str(meta.get("epoch", self.epoch))
        notes = {
            key.removeprefix("note."): str(text) for key, text in meta.items() if key.startswith("note.")
        }
        self.notes = notes | self.notes
        self.seq = max(self.seq, int(meta.get("seq", 0)))
        self.session = max(self.session, int(meta.get("session", 0)))
        self._saved_session = int(meta.get("session", 0))

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
