"""Building knowledge from a state folder: the newest snapshot that leads to what counts, then the journal."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import msgspec

from edge_cl.errors import BudgetExceeded, StateCorrupt, StateError
from edge_cl.knowledge import Knowledge, Lesson
from edge_cl.records import SleepPlan
from edge_cl.state import DamagedEntry, Entry, Snapshot, StateStore
from edge_cl.trust import Origin

HELD_NOT = "not: "
"""Before the reason why a "not" is held."""


class Woken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a sleep ended: all that its repetition must know besides its plan.

    `n_steps` is set when it was ended early, `drop` when it was not waited for, `tried` when it then counts
    as slept all the same.
    """

    n_steps: int | None = None
    drop: str = ""
    tried: bool = False
    cpu_s: float = 0.0


class Recovery:
    """One building of knowledge, piece by piece.

    Parameters
    ----------
    make
        Makes the knowledge of a new device, not begun.
    store
        The state folder.
    snapshot_of
        Makes a snapshot of knowledge at an entry, for a cause: when the journal cannot be read to its end.
    """

    def __init__(
        self,
        make: Callable[[], Knowledge],
        store: StateStore,
        snapshot_of: Callable[[Knowledge, int, str], Snapshot],
    ) -> None:
        self._make = make
        self._store = store
        self._snapshot_of = snapshot_of
        self.knowledge = make()
        """What is built so far; answers, and must not be taught before the last piece."""
        self._bundle_classes = list(self.knowledge.class_names)
        self.seq = store.journal.last_seq
        """The entry that it leads to."""
        self.base_seq = 0
        """The entry of the snapshot that it builds upon, 0 for none."""
        self.written_bytes = 0
        """Written to disk before that snapshot."""
        self.n_replayed = self.n_to_replay = 0
        self._pieces = self._build()

    def __iter__(self) -> Iterator[None]:
        """The pieces that are left, each of some milliseconds."""
        return self._pieces

    def finish(self) -> Knowledge:
        """All pieces that are left; what was built."""
        for _ in self._pieces:
            pass
        return self.knowledge

    def describe(self) -> str:
        """What it was built from, for a person."""
        start = f"snapshot at entry {self.base_seq:,}" if self.base_seq else "a new start"
        text = f"{start}, {self.n_replayed:,} journal entries replayed"
        return "; ".join([text, *self._store.problems])

    def _build(self) -> Iterator[None]:
        store = self._store
        snapshot = self._restore()
        store.begin(snapshot, self._bundle_classes)
        if snapshot is not None:
            self.base_seq, self.written_bytes = snapshot.seq, snapshot.meta.get("written_bytes", 0)
        self.seq, after = store.journal.last_seq, self.base_seq
        self.n_to_replay = sum(last - max(first - 1, after) for first, last in store.counts if last > after)
        while True:
            try:
                for entry in store.entries(after):
                    yield from self._replay(entry)
                    after = entry.seq
                    self.n_replayed += 1
                break
            except DamagedEntry as error:
                store.repair(error.seq)
            except StateCorrupt as error:
                self._cut_off(after, error)
                break
        self.knowledge.look()

    def _restore(self) -> Snapshot | None:
        """Take the newest snapshot that can be built upon, None for a new start."""
        refused: StateError | None = None
        for snapshot in self._store.usable():
            try:
                self.knowledge.restore(snapshot.meta, snapshot.arrays)
            except StateError as error:
                if not self.knowledge.memory.disk_bytes:
                    raise
                refused = error  # of an older file of exemplars
                continue
            return snapshot
        if refused is not None:
            if self._store.journal.first_seq > 1:
                raise refused
            self.knowledge = self._make()
        self.knowledge.begin()
        return None

    def _cut_off(self, after: int, error: StateCorrupt) -> None:
        """The journal cannot be read on: what is known goes on without it."""
        self._store.problems.append(f"{error}; it was set aside, labels after entry {after:,} are lost")
        if self.knowledge.asleep:
            self.knowledge.wake(drop="the journal after its beginning is damaged")
        self._store.replace_journal(self._snapshot_of(self.knowledge, after, "the journal was damaged"))
        self.seq = self.base_seq = after

    def _replay(self, entry: Entry) -> Iterator[None]:
        """Learn an entry exactly as it was learned then."""
        knowledge = self.knowledge
        if entry.kind in ("label", "not", "held"):
            try:
                learn(knowledge, entry)
            except BudgetExceeded as error:  # accepted or merged while nobody could tell
                self._store.problems.append(f"journal entry {entry.seq:,} was not learned: {error}")
        elif entry.kind == "rename":
            knowledge.rename(entry.label, entry.detail)
        elif entry.kind == "sleep":
            if knowledge.asleep:  # how the one before ended is lost
                knowledge.wake(drop="how it ended is lost")
            knowledge.begin_sleep(msgspec.json.decode(entry.detail, type=SleepPlan))
        elif entry.kind == "wake" and knowledge.asleep:
            woken = msgspec.json.decode(entry.detail, type=Woken)
            if not woken.drop:
                for _ in knowledge.sleep_pieces(woken.n_steps):
                    yield
            knowledge.wake(drop=woken.drop, tried=woken.tried, cpu_s=woken.cpu_s)
        yield


def learn(knowledge: Knowledge, entry: Entry, *, look: bool = False) -> Lesson:
    """Let knowledge learn a ``label`` or ``not``, or note one that is ``held``; see `Knowledge.learn`."""
    origin = Origin(entry.seq, entry.source, entry.trust, entry.at_s)
    if entry.kind == "label":
        return knowledge.learn(entry.feature, entry.label, look=look, origin=origin)
    if entry.kind == "not":
        return knowledge.learn_not(entry.feature, entry.label, origin=origin)
    refused = entry.detail.startswith(HELD_NOT)
    knowledge.hold(entry.feature, entry.label, origin, refused=refused)
    return Lesson(-1, False, 0.0, 0.0)
