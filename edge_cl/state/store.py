"""One state folder: locked, matched to its bundle, recovered, kept within its bytes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import msgspec

from edge_cl.budget import Ledger
from edge_cl.errors import StateCorrupt, StateError, StateUnwritable
from edge_cl.state.entries import LEARNED, REVISIONS, Entry
from edge_cl.state.journal import DamagedEntry, Journal
from edge_cl.state.retention import Retention
from edge_cl.state.snapshots import Snapshot, Snapshots, aside, read_arrays, read_snapshot
from edge_cl.state.timeline import Back, Ranges, Taken, Timeline, holds, union

JOURNAL = "journal.db"
KINDS: dict[str, tuple[str, ...]] = {
    "journal": ("journal.",),
    "snapshots": ("head-", "slot-"),
    "exemplars": ("exemplars",),
    "outbox": ("outbox",),
}
"""What lies in the folder, by how the names of its files begin."""
CHECK_EVERY = 8
"""Journal entries between two looks at the folder's size."""
N_NAMED = 8
"""Spans of lost entries that are named."""


class StateStore:
    """Journal and snapshots of one device.

    Learned state at any moment is a fold over the journal's entries that counted then; see
    :class:`Timeline`. A snapshot only makes that fold shorter, so all but two of them can go, and the
    journal's beginning can go once a snapshot stands for it.

    Parameters
    ----------
    folder
        Made when absent. Locked while open: two processes never learn into one folder.
    bundle_id
        The bundle this state belongs to; "" for whatever it is.
    capacity_bytes
        What the folder may hold.
    history_bytes
        What the journal may hold before its beginning is dropped.
    beside
        Bytes that others hold of the same capacity: those of other bundles of this device.

    Raises
    ------
    StateError
        When another process holds the folder, or it belongs to another bundle.
    """

    def __init__(
        self,
        folder: str | Path,
        bundle_id: str,
        capacity_bytes: int,
        *,
        history_bytes: int = 2**62,
        beside: Callable[[], int] = int,
    ) -> None:
        self.folder = Path(folder)
        self.disk = Ledger(capacity_bytes, setting="budget.disk_mb")
        """Who holds how much of the disk."""
        for kind in (*KINDS, "other files"):
            self.disk.register(kind, lambda kind=kind: self._nbytes(kind))  # type: ignore[misc]
        self.disk.register("other slots", beside)
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateUnwritable(
                f"{self.folder}: cannot make the state folder ({error.strerror})"
            ) from error
        self._lock = locked(self.folder)
        self._check_at = 0
        self._lost: Ranges = []
        self._said_lost = ""
        self.problems: list[str] = []
        self.snapshots = Snapshots(self.folder)
        try:
            self.journal = self._open_journal()
            self.journal.problems = self.problems = [*self.problems, *self.journal.problems]
            self.bundle_id = bundle_id or self.journal.get_meta("bundle_id") or ""
            self._match(self.journal.get_meta("bundle_id"))
            self.timeline = Timeline(self.rare(*REVISIONS))
            """Which entries count."""
            self._drop_tainted()  # a stop may have come between a forget and this
        except BaseException:
            with contextlib.suppress(AttributeError):
                self.journal.close()
            os.close(self._lock)
            raise
        self.retention = Retention(history_bytes)

    # ------------------------------------------------------------------ what is there

    @property
    def counts(self) -> Ranges:
        """The entries that count now."""
        return self.timeline.at(self.journal.last_seq)

    def usable(self) -> Iterator[Snapshot]:
        """Sound snapshots that what counts now can be built upon, newest first; damaged ones are set aside.

        When there is none, what counts can be built from nothing, or this raises StateCorrupt: the journal
        does not reach back to the beginning.
        """
        newer: StateError | None = None
        found = False
        for seq, path in reversed(self.snapshots.paths().items()):
            last = self.journal.last_seq
            if seq + 1 < self.journal.first_seq or (seq <= last and not self.timeline.leads_to(seq, last)):
                continue
            try:
                snapshot = self.snapshots.read(path)
            except StateCorrupt as error:
                self.problems.append(f"{error}; it was set aside")
                continue
            except StateError as error:
                newer = error
                self.problems.append(str(error))
                continue
            self._match(snapshot.bundle_id)
            found = True
            yield snapshot
        if newer is not None and not found:
            raise newer
        if not found and self.journal.first_seq > 1:
            raise StateCorrupt(
                f"{self.folder}: {'; '.join(self.problems) or 'snapshots are missing'}, and the journal "
                f"begins at entry {self.journal.first_seq:,}; restore a backup, or start with an empty folder"
            )

    def head_before(self, seq: int) -> Snapshot | None:
        """The newest sound snapshot that what counts can be built upon and that knows nothing from `seq` on,
        with the head's arrays alone; None when the history begins with nothing.

        Raises StateError when there is none and the journal does not reach back to the beginning.
        """
        for known, path in reversed(self.snapshots.paths().items()):
            fits = self.journal.first_seq - 1 <= known < seq
            if fits and self.timeline.leads_to(known, self.journal.last_seq):
                with contextlib.suppress(StateCorrupt):  # for the next start to set aside
                    return read_arrays(path, "head.")
        if self.journal.first_seq > 1:
            raise StateError(f"no head from before entry {seq:,} is kept; raise state.history_mb")
        return None

    def begin(self, snapshot: Snapshot | None, bundle_classes: Sequence[str] = ()) -> None:
        """Learned state was taken from `snapshot`, None for nothing: it stands for what the journal lacks."""
        if self.journal.get_meta("bundle_id") is None:
            self.journal.set_meta("bundle_id", self.bundle_id)
        if self.journal.get_meta("bundle_classes") is None and bundle_classes:
            self.journal.set_meta("bundle_classes", msgspec.json.encode(bundle_classes).decode())
        if snapshot is not None and self.journal.last_seq < snapshot.seq:
            self.journal.skip_to(snapshot.seq)

    def entries(self, after: int) -> Iterator[Entry]:
        """Entries after `after` that learned state is made of: those that count, and, as ``held``, labels
        that wait for a review or were rejected. Raises DamagedEntry."""
        counts = self.counts
        for first, last in self.timeline.noted(self.journal.last_seq):
            if last > after:
                for entry in self.journal.read(max(first, after + 1), last):
                    if entry.kind == "held" or (entry.kind in LEARNED and holds(counts, entry.seq)):
                        yield entry
                    elif entry.kind == "label":
                        yield msgspec.structs.replace(entry, kind="held")

    def sound(self, first: int, last: int) -> Iterator[Entry]:
        """Entries `first` to `last`; a damaged one is noted as lost."""
        while first <= last:
            try:
                for entry in self.journal.read(first, last):
                    first = entry.seq + 1
                    yield entry
            except DamagedEntry as error:
                self.repair(error.seq)

    def rare(self, *kinds: str) -> list[Entry]:
        """The sound entries of some of the kinds that an index finds, in order."""
        found = self.journal.rare(*kinds)
        return [entry for one in found for entry in self.sound(one.seq, one.seq) if entry.kind in kinds]

    # ------------------------------------------------------------------ what changes it

    def append(self, entry: Entry) -> None:
        """Journal one entry; durable after `journal.commit`. Raises StateUnwritable when there is no room."""
        if entry.seq >= self._check_at and not self.journal.in_transaction:
            self._make_room(0)
            self._check_at = entry.seq + CHECK_EVERY
        self.journal.append(entry)

    def take_out(self, kind: str, ranges: Ranges, *, what: str, source: str, at_s: float) -> None:
        """Let entries count no more, ever: ``forget`` erases them, ``hold`` leaves them for a review.

        Durable on return. Snapshots that know them go at once: what counts is built anew from an older one
        or from nothing.
        """
        detail = msgspec.json.encode(Taken(ranges=ranges, what=what)).decode()
        seq = self.journal.last_seq + 1
        entry = Entry(seq=seq, kind=kind, source=source, at_s=at_s, detail=detail)  # type: ignore[arg-type]
        self._require_base(entry)
        self.journal.append(entry)
        if kind == "forget":
            self.journal.erase(seq for first, last in ranges for seq in range(first, last + 1))
        self._revised()
        self._drop_tainted()
        if kind == "forget":
            with contextlib.suppress(StateUnwritable):  # it goes with the next try, or at the stop
                self.journal.shrink_log()  # what was erased is still in there

    def go_back(self, to: int, *, why: str, source: str, at_s: float) -> None:
        """Let count what counted at entry `to`, except what was taken out since; durable on return."""
        seq = self.journal.last_seq + 1
        detail = msgspec.json.encode(Back(to=to, why=why)).decode()
        entry = Entry(seq=seq, kind="rollback", source=source, at_s=at_s, detail=detail)
        self._require_base(entry)
        self.journal.append(entry)
        self._revised()

    def _revised(self) -> None:
        self.journal.commit()
        self.timeline = Timeline(self.rare(*REVISIONS))

    def _drop_tainted(self) -> None:
        for seq, path in self.snapshots.paths().items():
            if self.timeline.tainted(seq):
                self.snapshots.delete(path)

    def _require_base(self, revision: Entry) -> None:
        """Raise StateError when no sound snapshot were left to build what counts after `revision` upon."""
        first, last = self.journal.first_seq, self.journal.last_seq
        if first == 1:
            return
        timeline = Timeline([*self.rare(*REVISIONS), revision])
        for seq, path in reversed(self.snapshots.paths().items()):
            if first - 1 <= seq <= last and timeline.leads_to(seq, revision.seq):
                with contextlib.suppress(StateCorrupt):
                    read_snapshot(path)
                    return
        raise StateError(
            f"{self.folder}: the history begins at entry {first:,}, and no sound head is left that this "
            "could be built upon; nothing was changed"
        )

    def save(self, snapshot: Snapshot) -> None:
        """Write a snapshot; older ones, and the journal's beginning, go as the limits ask."""
        self._make_room(sum(array.nbytes for array in snapshot.arrays.values()))
        self.snapshots.write(snapshot)
        self.retention.tidy(self.journal, self.snapshots, self.timeline)

    def repair(self, seq: int) -> None:
        """Keep a copy of a journal with a damaged entry, and note the entry as lost."""
        kept = self.folder / f"{JOURNAL}.damaged"
        if not kept.exists():
            try:
                shutil.copyfile(self.folder / JOURNAL, kept)
            except OSError as error:
                raise StateUnwritable(
                    f"{kept}: cannot be written ({error.strerror}); free some disk"
                ) from error
        last = self.journal.mark_damaged(seq)
        self._lost = union([self._lost, [(seq, last)]])
        if self._said_lost in self.problems:
            self.problems.remove(self._said_lost)
        self._said_lost = _lost_text(self._lost, kept.name)
        self.problems.append(self._said_lost)

    def replace_journal(self, snapshot: Snapshot) -> None:
        """Set a damaged journal aside and begin a new one at `snapshot`, which holds what was readable."""
        self.journal.close()
        self.journal = self._fresh_journal()
        self.journal.set_meta("bundle_id", self.bundle_id)
        for seq, path in self.snapshots.paths().items():
            if seq > snapshot.seq:  # of a way that was rolled back, which nobody can tell any more
                aside(path)
        self.snapshots.write(snapshot)
        self.journal.skip_to(snapshot.seq)
        self.timeline = Timeline()

    def check_all(self) -> None:
        """Read everything and check every hash; what is wrong is added to `problems`, nothing is changed."""
        for path in self.snapshots.paths().values():
            try:
                read_snapshot(path)
            except StateError as error:
                self.problems.append(str(error))
        first = self.journal.first_seq
        while first <= self.journal.last_seq:
            try:
                for entry in self.journal.read(first, self.journal.last_seq):
                    first = entry.seq + 1
                return
            except DamagedEntry as error:
                self.problems.append(str(error))
                first = error.seq + 1
            except StateCorrupt as error:
                self.problems.append(str(error))
                return

    def close(self) -> None:
        """Close the journal and let the folder go."""
        self.journal.close()
        os.close(self._lock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------ within

    def _make_room(self, nbytes: int) -> None:
        for give in (self.journal.shrink_log, self._give):
            while True:
                held = self.disk.held()
                total = sum(held.values()) + nbytes
                if total <= self.disk.capacity_bytes:
                    return
                if not give():
                    break
        who = ", ".join(f"{kind} {n:,}" for kind, n in held.items() if n)
        raise StateUnwritable(
            f"{self.folder}: would hold {total:,} bytes of a disk budget of {self.disk.capacity_bytes:,} "
            f"(now {who}); raise {self.disk.setting}"
        )

    def _give(self) -> bool:
        given = self.retention.give(self.journal, self.snapshots, self.timeline)
        self.journal.shrink_log()  # dropping entries is written there, too
        return given

    def _nbytes(self, kind: str) -> int:
        """Bytes of the folder's files of one kind; pages that the journal can use again do not count."""
        known = tuple(begins for begin in KINDS.values() for begins in begin)
        total = -self.journal.free_bytes if kind == "journal" else 0
        for entry in os.scandir(self.folder):
            mine = entry.name.startswith(KINDS[kind]) if kind in KINDS else not entry.name.startswith(known)
            with contextlib.suppress(FileNotFoundError):  # others make and drop files here, too
                total += entry.stat().st_size if mine and entry.is_file() else 0
        return total

    def _open_journal(self) -> Journal:
        kept = sorted(self.folder.glob("before-restore-*"))
        if kept and not (self.folder / JOURNAL).exists():
            self.problems.append(
                f"{self.folder}: a restore was cut off; stop and restore again, what it knew before "
                f"is in {kept[-1].name}"
            )
        try:
            return Journal(self.folder / JOURNAL)
        except StateCorrupt as error:
            self.problems.append(f"{error}; it was set aside, labels after the last snapshot are lost")
            return self._fresh_journal()

    def _fresh_journal(self) -> Journal:
        for suffix in ("", "-wal", "-shm"):
            part = self.folder / (JOURNAL + suffix)
            if part.exists():
                aside(part)
        return Journal(self.folder / JOURNAL)

    def _match(self, found: str | None) -> None:
        if found is not None and found != self.bundle_id:
            raise StateError(
                f"{self.folder}: learned with bundle {found[:12]}…, not with {self.bundle_id[:12]}…; "
                "choose another --state folder for this bundle, or run the bundle it belongs to"
            )


def _lost_text(lost: Ranges, kept: str) -> str:
    """One sentence however many they are: it is part of every status."""
    n = sum(last - first + 1 for first, last in lost)
    which = ", ".join(f"{a:,}" if a == b else f"{a:,} to {b:,}" for a, b in lost[:N_NAMED])
    more = ", …" if len(lost) > N_NAMED else ""
    what = "entry" if n == 1 else f"entries ({n:,})"
    whose = "was damaged, its label is lost" if n == 1 else "were damaged, their labels are lost"
    return f"journal {what} {which}{more} {whose}; a copy of the journal is in {kept}"


def locked(folder: Path, name: str = "lock") -> int:
    """An exclusive lock on the folder for this process's life; the kernel frees it on any death."""
    try:
        lock = os.open(folder / name, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StateUnwritable(
            f"{folder}: cannot lock the state folder ({error.strerror}); check the card, and who owns it"
        ) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise StateError(
            f"{folder}: in use by process {holder}; stop it first, or choose another --state folder"
        ) from None
    with contextlib.suppress(OSError):  # who holds it is for people only
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock
