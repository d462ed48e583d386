"""One state folder: locked, matched to its bundle, recovered."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from edge_cl.budget import Ledger
from edge_cl.errors import StateCorrupt, StateError, StateUnwritable
from edge_cl.state.journal import Entry, Journal
from edge_cl.state.snapshots import Snapshot, Snapshots

JOURNAL = "journal.db"
KINDS = {"journal": JOURNAL, "snapshots": "slot-", "exemplars": "exemplars", "outbox": "outbox"}
"""What lies in the folder, by how the names of its files begin."""
CHECK_EVERY = 8
"""Journal entries between two looks at the folder's size."""


class StateStore:
    """Journal and snapshots of one device.

    Parameters
    ----------
    folder
        Made when absent. Locked while open: two processes never learn into one folder.
    bundle_id
        The bundle this state belongs to.
    capacity_bytes
        What the folder may hold.

    Raises
    ------
    StateError
        When another process holds the folder, or it belongs to another bundle.
    """

    def __init__(self, folder: str | Path, bundle_id: str, capacity_bytes: int) -> None:
        self.folder = Path(folder)
        self.disk = Ledger(capacity_bytes, setting="budget.disk_mb")
        """Who holds how much of the disk."""
        for kind in (*KINDS, "other files"):
            self.disk.register(kind, lambda kind=kind: self._nbytes(kind))  # type: ignore[misc]
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateUnwritable(
                f"{self.folder}: cannot make the state folder ({error.strerror})"
            ) from error
        self._lock = _locked(self.folder)
        self.bundle_id = bundle_id
        self.problems: list[str] = []
        self.snapshots = Snapshots(self.folder)
        try:
            self.journal = self._open_journal()
            self._match(self.journal.get_meta("bundle_id"))
        except BaseException:
            os.close(self._lock)
            raise

    def recover(self) -> Snapshot | None:
        """The newest sound snapshot; the journal's later entries are to be replayed onto it.

        Raises StateCorrupt when the journal does not reach back to it: then nothing here can be trusted
        to be complete.
        """
        snapshot, problems = self.snapshots.newest()
        self.problems += problems
        self._match(snapshot.bundle_id if snapshot else None)
        if self.journal.get_meta("bundle_id") is None:
            self.journal.set_meta("bundle_id", self.bundle_id)
        reached = snapshot.seq if snapshot else 0
        if self.journal.first_seq > reached + 1:
            raise StateCorrupt(
                f"{self.folder}: {'; '.join(problems) or 'snapshots are missing'}, and the journal begins at "
                f"entry {self.journal.first_seq}; restore a backup of the folder, or start with an empty one"
            )
        if self.journal.last_seq < reached:
            self.journal.skip_to(reached)
        return snapshot

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot and drop journal entries that both slots now hold."""
        self._require_room(sum(array.nbytes for array in snapshot.arrays.values()))
        older = self.snapshots.write(snapshot)
        if older:
            self.journal.prune(older)

    def append(self, entry: Entry) -> None:
        """Journal one entry; durable after `journal.commit`. Raises StateUnwritable when there is no room."""
        if entry.seq % CHECK_EVERY == 0:
            self._require_room(0)
        self.journal.append(entry)

    def replace_journal(self, snapshot: Snapshot) -> None:
        """Set a damaged journal aside and begin a new one at `snapshot`, which holds what was readable."""
        self.journal.close()
        self.journal = self._fresh_journal()
        self.journal.set_meta("bundle_id", self.bundle_id)
        self.snapshots.write(snapshot)
        self.journal.skip_to(snapshot.seq)

    def _require_room(self, nbytes: int) -> None:
        held = self.disk.held()
        total = sum(held.values()) + nbytes
        if total > self.disk.capacity_bytes:
            who = ", ".join(f"{kind} {n:,}" for kind, n in held.items() if n)
            raise StateUnwritable(
                f"{self.folder}: would hold {total:,} bytes of a disk budget of {self.disk.capacity_bytes:,} "
                f"(now {who}); raise {self.disk.setting}"
            )

    def _nbytes(self, kind: str) -> int:
        """Bytes of the folder's files of one kind."""
        known = tuple(KINDS.values())
        return sum(
            entry.stat().st_size
            for entry in os.scandir(self.folder)
            if entry.is_file()
            and (entry.name.startswith(KINDS[kind]) if kind in KINDS else not entry.name.startswith(known))
        )

    def close(self) -> None:
        """Close the journal and let the folder go."""
        self.journal.close()
        os.close(self._lock)

    def _open_journal(self) -> Journal:
        try:
            return Journal(self.folder / JOURNAL)
        except StateCorrupt as error:
            self.problems.append(f"{error}; it was set aside, labels after the last snapshot are lost")
            return self._fresh_journal()

    def _fresh_journal(self) -> Journal:
        for suffix in ("", "-wal", "-shm"):
            part = self.folder / (JOURNAL + suffix)
            if part.exists():
                part.rename(part.with_name(part.name + ".damaged"))
        return Journal(self.folder / JOURNAL)

    def _match(self, found: str | None) -> None:
        if found is not None and found != self.bundle_id:
            raise StateError(
                f"{self.folder}: learned with bundle {found[:12]}…, not with {self.bundle_id[:12]}…; "
                "choose another --state folder for this bundle, or run the bundle it belongs to"
            )


def _locked(folder: Path) -> int:
    """An exclusive lock on the folder for this process's life; the kernel frees it on any death."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise StateError(
            f"{folder}: in use by process {holder}; stop it first, or choose another --state folder"
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock
