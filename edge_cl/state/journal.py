"""The journal: everything that changed what a device knows, in order, before anything is promised."""

from __future__ import annotations

import contextlib
import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from edge_cl.errors import StateCorrupt, StateUnwritable
from edge_cl.state import entries, migrations
from edge_cl.state.entries import RARE, Entry
from edge_cl.state.journal_files import Mark, log_kept

RECENT = 4096
"""Entries in which the label of a reading is looked for: a message that comes twice comes soon."""
CHECKPOINT_ROWS, CHECKPOINT_COMMITS = 512, 128
"""The write-ahead log goes into the database after so many entries or commits; it stays below 2 MB."""


class DamagedEntry(StateCorrupt):
    """Entry `seq` is missing or failed its checksum."""

    def __init__(self, path: Path, seq: int) -> None:
        super().__init__(f"{path}: journal entry {seq:,} is missing or damaged")
        self.seq = seq


class Journal:
    """Append-only, in SQLite (write-ahead log, ``synchronous=FULL``): committed means on disk.

    `append` opens a transaction when none is open; nothing is durable before `commit`. So a caller
    may learn many labels and pay for one fsync, as long as it gives receipts only after `commit`.

    Each entry carries a hash of itself and of the one before (BLAKE2b, 16 bytes), so damage and later
    changes show. A second file notes, unsynced, how far it was committed: when the end of the log is lost,
    the next start can tell.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []
        """What was found wrong, although it can be used."""
        try:
            self._connect(path)
        except StateUnwritable:  # a full disk has no room for the log's index: keep that in memory
            self._connect(path, locking="EXCLUSIVE")
        self._compare_with_mark()

    def _connect(self, path: Path, *, locking: str = "NORMAL") -> None:
        try:
            self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        except sqlite3.DatabaseError as error:
            raise _typed(error, path) from error
        try:
            with log_kept(path):
                try:
                    self._prepare(path, locking)
                    self._mark = Mark(path.with_suffix(".mark"))
                except BaseException:
                    self._db.close()
                    raise
        except BaseException:
            self._db.close()
            raise

    def _prepare(self, path: Path, locking: str) -> None:
        try:
            self._db.text_factory = _text
            self._db.execute(f"PRAGMA locking_mode={locking}")
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.execute("PRAGMA wal_autocheckpoint=0")  # it would hide a disk that fails
            self._db.execute("PRAGMA secure_delete=FAST")  # what moves between pages leaves no copy behind
            self._db.execute("PRAGMA cache_size=-256")  # KiB; by default 2 MB would fill as labels come
            migrations.migrate(self._db, path)
            if self.get_meta("uid") is None:
                self.set_meta("uid", secrets.token_hex(8))
            self.last_seq, self._chain = self._end()
        except sqlite3.DatabaseError as error:
            raise _typed(error, path) from error
        except UnicodeDecodeError as error:  # SQLite quotes a damaged schema as it is
            raise StateCorrupt(f"{path}: the journal is damaged ({error})") from error
        self._open = False
        self._rows = self._commits = 0
        self._committed_seq = self.last_seq

    # ------------------------------------------------------------------ writing

    def append(self, entry: Entry) -> None:
        """Add the next entry (its seq must be `last_seq` + 1); durable after `commit`."""
        if entry.seq != self.last_seq + 1:
            raise ValueError(f"journal entry {entry.seq} does not follow {self.last_seq}")
        row = entries.row(entry)
        chain = entries.link(self._chain, entries.digest(row))
        try:
            self._begin()
            self._db.execute(entries.INSERT, (*row, chain))
        except sqlite3.DatabaseError as error:
            self.rollback()
            raise _typed(error, self.path) from error
        self.last_seq, self._chain = entry.seq, chain
        self._rows += 1

    def erase(self, seqs: Iterable[int]) -> None:
        """Replace what entries hold by a digest of it, so that nobody can read or relearn them.

        Part of the open transaction; the bytes on disk are overwritten.
        """
        try:
            self._db.execute("PRAGMA secure_delete=ON")
            self._begin()
            for seq in seqs:
                *row, _ = self._db.execute(
                    f"SELECT {entries.COLUMNS}, chain FROM journal WHERE seq = ?", (seq,)
                ).fetchone()
                self._db.execute(
                    "UPDATE journal SET kind = 'forgotten', reading_id = '', label = '', "
                    "detail = CASE kind WHEN 'held' THEN '' ELSE detail END, "
                    "feature = ? WHERE seq = ? AND kind != 'forgotten'",
                    (entries.digest(tuple(row)), seq),
                )
        except sqlite3.DatabaseError as error:
            self.rollback()
            raise _typed(error, self.path) from error

    def mark_damaged(self, seq: int) -> int:
        """Note for good that an entry is lost, with all those that are missing after it, so that what comes
        then can be used. Returns the last of them."""
        try:
            row = self._db.execute("SELECT chain FROM journal WHERE seq = ?", (seq,)).fetchone()
            there = self._db.execute("SELECT min(seq) FROM journal WHERE seq > ?", (seq,)).fetchone()[0]
            last = seq if row or there is None else int(there) - 1
            blanks = (entries.row(Entry(seq=k, kind="damaged")) for k in range(seq, last + 1))
            chain = row[0] if row else b""
            with self._db if not self._open else contextlib.nullcontext():
                if not self._open:
                    self._db.execute("BEGIN IMMEDIATE")
                self._db.execute("DELETE FROM journal WHERE seq = ?", (seq,))
                self._db.executemany(entries.INSERT, ((*blank, chain) for blank in blanks))
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error
        return last

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
        self._mark.write(self.last_seq)
        self._commits += 1

    def checkpoint_if_due(self) -> None:
        """Now and then, after a commit: take the write-ahead log into the database.

        Raises StateUnwritable; what was committed stays, but this disk is not to be trusted.
        """
        if self._rows >= CHECKPOINT_ROWS or self._commits >= CHECKPOINT_COMMITS:
            self._rows = self._commits = 0
            try:
                self._db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            except sqlite3.DatabaseError as error:
                raise _typed(error, self.path) from error

    def shrink_log(self) -> bool:
        """Between two groups: empty the write-ahead log and give its bytes back; False when it has none."""
        log = self.path.with_name(self.path.name + "-wal")
        if not log.exists() or not log.stat().st_size:
            return False
        try:
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error
        return not log.stat().st_size

    def rollback(self) -> None:
        """Forget what was appended since the last commit."""
        with contextlib.suppress(sqlite3.DatabaseError):
            self._db.execute("ROLLBACK")
        self._open = False
        with contextlib.suppress(sqlite3.DatabaseError):
            self.last_seq, self._chain = self._end()
            self._committed_seq = self.last_seq

    def prune(self, up_to_seq: int) -> None:
        """Drop the oldest entries for good, those up to `up_to_seq`."""
        try:
            row = self._db.execute("SELECT chain FROM journal WHERE seq = ?", (up_to_seq,)).fetchone()
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.execute("DELETE FROM journal WHERE seq <= ?", (up_to_seq,))
                self._put_meta("pruned_to", str(up_to_seq))
                self._put_meta("pruned_chain", row[0].hex() if row else "")
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error
        self._pruned_to = up_to_seq

    def skip_to(self, seq: int) -> None:
        """Begin after `seq`: a snapshot holds everything up to it."""
        self.prune(seq)
        self.last_seq, self._chain = self._end()
        self._committed_seq = self.last_seq
        self._mark.write(seq)

    # ------------------------------------------------------------------ reading

    @property
    def committed_seq(self) -> int:
        """The last seq that is durable."""
        return self._committed_seq

    @property
    def first_seq(self) -> int:
        """The oldest seq that is still here."""
        return self._pruned_to + 1

    @property
    def uid(self) -> str:
        """Tells this journal from every other, hex: what was merged from where."""
        return self.get_meta("uid") or ""

    def origin(self, seq: int) -> str:
        """Where an entry that was taught here was first journalled, ``uid:seq``: here, or in the journal that
        this one was restored from."""
        uid = next((uid for uid, last in self._lineage() if seq <= last), self.uid)
        return f"{uid}:{seq}"

    def is_own(self, origin: str) -> bool:
        """Whether `origin` names an entry of this journal, or of one that it was restored from."""
        uid, _, seq = origin.partition(":")
        return uid == self.uid or any(uid == old and int(seq) <= last for old, last in self._lineage())

    def become_another(self) -> None:
        """After a restore: from here on this journal and the one it was copied from differ."""
        lineage = [*self._lineage(), (self.uid, self.last_seq)]
        self.set_meta("lineage", msgspec.json.encode(lineage).decode())
        self.set_meta("uid", secrets.token_hex(8))

    def _lineage(self) -> list[tuple[str, int]]:
        return msgspec.json.decode(self.get_meta("lineage") or "[]", type=list[tuple[str, int]])

    @property
    def chain(self) -> str:
        """Hash of the newest entry, hex: whoever noted it can tell later that nothing before was changed."""
        return self._chain.hex()

    @property
    def in_transaction(self) -> bool:
        """Whether something was appended and not committed yet."""
        return self._open

    @property
    def nbytes(self) -> int:
        """Bytes that the entries take."""
        return self._pages("page_count") - self.free_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes of the file that new entries will use first."""
        return self._pages("freelist_count")

    def _pages(self, which: str) -> int:
        try:
            count, size = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in (which, "page_size"))
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error
        return int(count) * int(size)

    def read(self, first: int, last: int) -> Iterator[Entry]:
        """Entries `first` to `last`, in order, each checked; raises DamagedEntry."""
        chain = self._chain_of(first - 1)
        query = f"SELECT {entries.COLUMNS}, chain FROM journal WHERE seq BETWEEN ? AND ? ORDER BY seq"
        expected = first
        try:
            for *row, stored in self._db.execute(query, (first, last)):
                if row[0] != expected or not entries.sound(row, chain, stored):
                    raise DamagedEntry(self.path, expected)
                chain = stored
                expected += 1
                yield entries.entry(row)
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error
        if expected <= last:
            raise DamagedEntry(self.path, expected)

    def rare(self, *kinds: str) -> list[Entry]:
        """Entries of some of the kinds in `RARE`, in order; not checked."""
        where = ",".join(f"'{kind}'" for kind in RARE)
        query = f"SELECT {entries.COLUMNS} FROM journal WHERE kind IN ({where}) ORDER BY seq"
        try:
            return [found for row in self._db.execute(query) if (found := entries.entry(row)).kind in kinds]
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error

    def said_of(self, reading_id: str) -> list[tuple[int, str, str]]:
        """(seq, ``label`` or ``not``, class) of what was lately said of a reading of its own, in order."""
        query = (
            "SELECT seq, kind, label FROM journal WHERE seq > ? AND kind IN ('label','not') "
            "AND reading_id = ? AND source NOT LIKE 'merge/%' ORDER BY seq"
        )
        try:
            return self._db.execute(query, (self.last_seq - RECENT, reading_id)).fetchall()
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error

    def said_lately(self) -> list[tuple[int, str, str, str]]:
        """(seq, ``label`` or ``not``, reading, class): what was lately said of its own readings."""
        query = (
            "SELECT seq, kind, reading_id, label FROM journal WHERE seq > ? AND kind IN ('label','not') "
            "AND source NOT LIKE 'merge/%' ORDER BY seq"
        )
        try:
            return self._db.execute(query, (self.last_seq - RECENT,)).fetchall()
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error

    def origins(self) -> set[str]:
        """Where labels came from that were merged from other devices: ``uid:seq``."""
        query = "SELECT detail FROM journal WHERE kind IN ('label','not','forgotten') AND detail != ''"
        try:
            return {row[0] for row in self._db.execute(query) if entries.is_origin(row[0])}
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error

    def merged_to(self, uid: str) -> int:
        """The newest entry of another journal that was merged before this one's beginning was cut off."""
        return int(self.get_meta(f"merged {uid}") or 0) if self._pruned_to else 0

    def note_merged(self, origin: str) -> None:
        """Part of the open transaction: entries of that journal up to this one are known here."""
        uid, _, seq = origin.partition(":")
        before = int(self.get_meta(f"merged {uid}") or 0)
        self._put_meta(f"merged {uid}", str(max(before, int(seq))))

    def about(self) -> Iterator[tuple[int, str, str, str, str, float]]:
        """(seq, kind, reading_id, label, source, at_s) of every entry, in order, without features."""
        try:
            yield from self._db.execute(
                "SELECT seq, kind, reading_id, label, source, at_s FROM journal ORDER BY seq"
            )
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error

    def get_meta(self, key: str) -> str | None:
        """A small value kept beside the journal, None when there is none or it was damaged."""
        try:
            row = self._db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error
        if row is None:
            return None
        value, _, check = str(row[0]).rpartition("|")
        if check == entries.check(key, value):
            return value
        self.problems.append(f"{self.path}: its {key} failed its checksum, and was found out anew")
        with contextlib.suppress(sqlite3.DatabaseError):  # a disk that fails says so at the next commit
            self._db.execute("DELETE FROM meta WHERE key = ?", (key,))
        return None

    def set_meta(self, key: str, value: str) -> None:
        """Keep a small value; durable at once, or with the open transaction."""
        try:
            self._put_meta(key, value)
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error

    def close(self) -> None:
        """Commit nothing more; close the file."""
        self._mark.close()
        self._db.close()

    # ------------------------------------------------------------------ within

    def _begin(self) -> None:
        if not self._open:
            self._db.execute("BEGIN IMMEDIATE")
            self._open = True

    def _put_meta(self, key: str, value: str) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, f"{value}|{entries.check(key, value)}")
        )

    def _end(self) -> tuple[int, bytes]:
        """Seq and chain of the newest entry; notes where the journal begins."""
        first = self._db.execute("SELECT min(seq) FROM journal").fetchone()[0]
        row = self._db.execute("SELECT seq, chain FROM journal ORDER BY seq DESC LIMIT 1").fetchone()
        pruned_to = self.get_meta("pruned_to")
        self._pruned_to = int(pruned_to or 0)
        if pruned_to is None and first is not None and first > 1:
            self._pruned_to = int(first) - 1
            self.problems.append(f"{self.path}: entries before {first:,} are missing")
            self._put_meta("pruned_to", str(self._pruned_to))
        if row is None or row[0] < self._pruned_to:
            return self._pruned_to, bytes.fromhex(self.get_meta("pruned_chain") or "")
        return int(row[0]), row[1] if isinstance(row[1], bytes) else b""

    def _chain_of(self, seq: int) -> bytes | None:
        """The chain up to an entry, None when it is not known any more."""
        if not seq:
            return b""
        try:
            row = self._db.execute("SELECT chain FROM journal WHERE seq = ?", (seq,)).fetchone()
        except sqlite3.DatabaseError as error:
            raise _typed(error, self.path) from error
        if row is None:
            known = self.get_meta("pruned_chain")
            return None if known is None else bytes.fromhex(known)
        return row[0] if isinstance(row[0], bytes) else None

    def _compare_with_mark(self) -> None:
        marked = self._mark.read()
        if marked is None:
            self.problems.append(f"{self._mark.path.name} failed its checksum; it was written anew")
        elif marked > self.last_seq:
            self.problems.append(
                f"{self.path}: ends at entry {self.last_seq:,}, but entry {marked:,} had been committed: "
                f"the end of the log is damaged, what came after entry {self.last_seq:,} is lost"
            )
        self._mark.write(self.last_seq)


def _text(raw: bytes) -> str:
    return raw.decode(errors="replace")  # a damaged text shows in its hash


_CAN_HEAL = (3, 5, 6, 7, 8, 10, 13, 14, 23)
"""SQLite's codes for permission, locks, memory, read-only, I/O, full, cannot open, not allowed."""


def _typed(error: sqlite3.DatabaseError, path: Path) -> StateUnwritable | StateCorrupt:
    """SQLite's error as ours: a full or failing disk can heal, a damaged file cannot."""
    if getattr(error, "sqlite_errorcode", 0) & 0xFF in _CAN_HEAL:
        return StateUnwritable(
            f"{path}: cannot write learned state ({error}); free some disk space or check the card"
        )
    return StateCorrupt(f"{path}: the journal is damaged ({error})")
