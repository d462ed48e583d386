"""Knowledge that survives: journalled before it is promised, restored exactly after any stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import msgspec

from edge_cl.errors import BudgetExceeded, StateCorrupt, StateUnwritable
from edge_cl.knowledge import Knowledge, Lesson
from edge_cl.records import FloatArray, Label, SleepProgress, Status
from edge_cl.state import Entry, Snapshot, StateStore

log = logging.getLogger(__name__)

ROW_BYTES = 256
"""What a journal entry takes on disk beside its feature."""
FIXED_BYTES = 64 * 1024
"""What a snapshot takes beside head and memory."""


class DurableKnowledge:
    """Knowledge, its journal and its snapshots kept in step.

    `learn` and `sleep` change knowledge and journal together; nothing of it may be promised before
    `commit` returns. After a failed commit `rollback` makes knowledge what the disk holds.

    Parameters
    ----------
    make
        Makes the knowledge of a new device.
    store
        The state folder, or None to keep nothing on disk.
    snapshot_labels
        Journal entries between two snapshots: bounds the replay after a stop.
    describe
        Gives the status that a snapshot keeps for whoever looks at a stopped device.
    """

    def __init__(
        self,
        make: Callable[[], Knowledge],
        store: StateStore | None,
        *,
        snapshot_labels: int,
        describe: Callable[[], Status],
    ) -> None:
        self._make = make
        self._store = store
        self._snapshot_labels = snapshot_labels
        self._describe = describe
        self._alarm = self._recovery_alarm = ""
        self.recovered = "nothing is kept on disk"
        self.seq = self._snapshot_seq = 0
        self.knowledge = make()
        if store is not None:
            self._require_room(store)

    def _require_room(self, store: StateStore) -> None:
        """Two snapshots, a third while it is written, and the journal between them must fit on the disk."""
        knowledge = self.knowledge
        snapshot = knowledge.head.nbytes + knowledge.memory.nbytes + FIXED_BYTES
        journal = 4 * self._snapshot_labels * (4 * knowledge.head.n_features + ROW_BYTES)
        if 3 * snapshot + journal > store.capacity_bytes:
            raise BudgetExceeded(
                f"{store.folder}: snapshots and journal need {3 * snapshot + journal:,} bytes of disk, "
                f"the budget is {store.capacity_bytes:,}; raise budget.disk_mb, or choose a smaller head"
            )

    @property
    def alarms(self) -> list[str]:
        """What a person should know: a snapshot that could not be written, damage found at the start."""
        return [self._alarm, self._recovery_alarm]

    def learn(self, label: Label, reading_id: str, feature: FloatArray) -> tuple[int, Lesson]:
        """Journal and learn one label; returns its journal number and what it changed.

        Raises StateUnwritable or BudgetExceeded, and has then learned nothing of it.
        """
        self.knowledge.check_room(label.label)
        entry = Entry(
            seq=self.seq + 1,
            kind="label",
            label=label.label,
            reading_id=reading_id,
            source=label.source,
            t_s=label.t_s,
            feature=feature,
        )
        self._journal(entry)
        return entry.seq, self.knowledge.learn(feature, label.label)

    def sleep(self, cause: str, slice_s: float) -> Iterator[SleepProgress]:
        """Journal that a sleep begins, then work through it, then snapshot."""
        if not self.knowledge.asleep:
            self._journal(Entry(seq=self.seq + 1, kind="sleep", label=cause))
            self.knowledge.begin_sleep(cause, slice_s)
        knowledge = self.knowledge
        yield from knowledge.sleep_slices()
        yield SleepProgress(phase="snapshot", done=0, total=1)
        if knowledge is self.knowledge:
            self.snapshot()

    def label_of(self, reading_id: str) -> str | None:
        """The label the journal holds for a reading, None when it holds none."""
        return self._store.journal.label_of(reading_id) if self._store else None

    def commit(self) -> None:
        """Make everything learned so far durable.

        Raises StateUnwritable; call `rollback` then, to know again what the disk holds.
        """
        if self._store is None:
            return
        self._store.journal.commit()
        if self.seq - self._snapshot_seq >= self._snapshot_labels * (2 if self.knowledge.asleep else 1):
            self.knowledge.finish_sleep()
            self.snapshot()

    def rollback(self) -> None:
        """Forget what was not committed."""
        if self._store is not None and self.seq != self._store.journal.committed_seq:
            self._store.journal.rollback()
            self.knowledge = self._make()
            self.recover()

    def snapshot(self) -> None:
        """Write everything learned; a failure raises the alarm and only costs a longer replay."""
        if self._store is None or self.seq == self._snapshot_seq:
            return
        self._store.journal.commit()
        try:
            self._store.save(self._as_snapshot())
        except StateUnwritable as error:
            self._alarm = f"no snapshot was written: {error}"
            log.error("%s", self._alarm)
            return
        self._snapshot_seq, self._alarm = self.seq, ""

    def close(self, *, save: bool) -> None:
        """Let the folder go, after a commit and a snapshot when `save` is true."""
        if self._store is None:
            return
        try:
            if save:
                self.commit()
                self.knowledge.finish_sleep()
                self.snapshot()
        finally:
            self._store.close()
            self._store = None

    def _journal(self, entry: Entry) -> None:
        if self._store is not None:
            self._store.append(entry)
        self.seq = entry.seq

    def recover(self) -> None:
        """New knowledge becomes what the newest sound snapshot and the journal after it hold."""
        self.seq = self._snapshot_seq = 0
        if self._store is None:
            return
        snapshot = self._store.recover()
        if snapshot is not None:
            self.knowledge.restore(snapshot.meta, snapshot.arrays)
            self.seq = self._snapshot_seq = snapshot.seq
        self._replay(self._store)
        start = f"snapshot at entry {self._snapshot_seq}" if snapshot else "a new start"
        problems = "; ".join(self._store.problems)
        self.recovered = f"{start}, {self.seq - self._snapshot_seq} journal entries replayed"
        if problems:
            self.recovered += f"; {problems}"
            self._recovery_alarm = problems
            log.error("%s", problems)

    def _replay(self, store: StateStore) -> None:
        """Relearn what the journal holds after the snapshot, exactly as it was learned then."""
        try:
            for entry in store.journal.entries(self.seq):
                self._replay_one(entry)
                self.seq = entry.seq
        except StateCorrupt as error:
            store.problems.append(f"{error}; it was set aside, labels after it are lost")
            store.replace_journal(self._as_snapshot())
            self._snapshot_seq = self.seq

    def _replay_one(self, entry: Entry) -> None:
        if entry.kind == "label":
            self.knowledge.learn(entry.feature, entry.label)
            return
        self.knowledge.begin_sleep(entry.label, slice_s=1.0)
        self.knowledge.finish_sleep()

    def _as_snapshot(self) -> Snapshot:
        meta, arrays = self.knowledge.state()
        meta["status"] = msgspec.to_builtins(self._describe())
        return Snapshot(seq=self.seq, bundle_id=self._describe().bundle_id, meta=meta, arrays=arrays)
