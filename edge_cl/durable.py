"""Knowledge that survives: journalled before it is promised, restored exactly after any stop."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator

import msgspec

from edge_cl.errors import BudgetExceeded, StateCorrupt, StateUnwritable
from edge_cl.knowledge import Knowledge, Lesson
from edge_cl.memory import PendingFeature
from edge_cl.records import FloatArray, Label, SleepPlan, SleepProgress, Status
from edge_cl.state import Entry, Snapshot, StateStore

log = logging.getLogger(__name__)

ROW_BYTES = 256
"""What a journal entry takes on disk beside its feature."""
FIXED_BYTES = 64 * 1024
"""What a snapshot takes beside head and memory."""


class Woken(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a sleep ended: all that its repetition must know besides its plan.

    `n_steps` is set when it was ended early, `drop` when it was not waited for, `tried` when it then counts
    as slept all the same.
    """

    n_steps: int | None = None
    drop: str = ""
    tried: bool = False
    cpu_s: float = 0.0


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
        """Two snapshots, a third while it is written, the journal between them and exemplars in a file must
        fit on the disk."""
        knowledge = self.knowledge
        snapshot = knowledge.head.nbytes + knowledge.memory.nbytes + knowledge.refusals.nbytes + FIXED_BYTES
        journal = 4 * self._snapshot_labels * (4 * knowledge.head.n_features + ROW_BYTES)
        needed = 3 * snapshot + journal + knowledge.memory.disk_bytes
        if needed > store.disk.capacity_bytes:
            raise BudgetExceeded(
                f"{store.folder}: snapshots, journal and exemplars need {needed:,} bytes of disk, the budget "
                f"is {store.disk.capacity_bytes:,}; raise budget.disk_mb, lower memory.max_mb, or choose a "
                "smaller head"
            )

    @property
    def alarms(self) -> list[str]:
        """What a person should know: a snapshot that could not be written, damage found at the start."""
        return [self._alarm, self._recovery_alarm]

    def learn(self, label: Label, reading_id: str, feature: FloatArray) -> tuple[int, Lesson]:
        """Journal and learn one label; returns its journal number and what it changed.

        Raises StateUnwritable or BudgetExceeded, and has then learned nothing of it.
        """
        refused = label.kind == "not"
        if not refused:
            self.knowledge.check_room(label.label)
            if self.knowledge.must_wake(label.label):
                self.end_sleep()
        entry = Entry(
            seq=self.seq + 1,
            kind="not" if refused else "label",
            label=label.label,
            reading_id=reading_id,
            source=label.source,
            t_s=label.t_s,
            feature=feature,
        )
        self._journal(entry)
        learn = self.knowledge.learn_not if refused else self.knowledge.learn
        return entry.seq, learn(feature, label.label)

    def sleep(
        self, plan: SleepPlan, *, slice_s: float, cpu_s: float, busy: Callable[[], bool]
    ) -> Iterator[SleepProgress]:
        """Journal that a sleep begins, work through it in slices, journal how it ended, snapshot.

        A slice ends after about `slice_s` seconds, or sooner when `busy()`. After `cpu_s` seconds of work the
        rehearsal ends early, or, where the head cannot, the sleep is dropped, and its labels count as slept
        on: another try would take as long. A sleep that a stop cut off is
        taken up again instead, by its own plan.
        """
        if not self.knowledge.asleep:
            self._journal(
                Entry(
                    seq=self.seq + 1,
                    kind="sleep",
                    label=plan.cause,
                    source=msgspec.json.encode(plan).decode(),
                    t_s=plan.began_s,
                )
            )
            self.knowledge.begin_sleep(plan)
            if self._store is not None:
                self._store.journal.commit()
        knowledge = self.knowledge
        spent_s, began, cpu_began = 0.0, time.monotonic(), time.process_time()
        drop = ""
        for progress in knowledge.sleep_pieces():
            used_s = spent_s + time.process_time() - cpu_began
            if used_s > cpu_s and not knowledge.enough():
                drop = f"it takes more than {cpu_s:g} s of processor time (sleep.cpu_s)"
                break
            if time.monotonic() - began >= slice_s or busy():
                spent_s = used_s
                yield progress
                if knowledge is not self.knowledge or not knowledge.asleep:
                    return
                began, cpu_began = time.monotonic(), time.process_time()
        self._wake(drop, spent_s + time.process_time() - cpu_began, tried=bool(drop))
        yield SleepProgress(phase="snapshot", done=0, total=1)
        if knowledge is self.knowledge:
            self.snapshot()

    def end_sleep(self, drop: str = "") -> None:
        """End a sleep under way at once: with its verdict as soon as the head allows, or, for the reason
        `drop`, without."""
        if not self.knowledge.asleep:
            return
        began = time.process_time()
        if not drop:
            self.knowledge.enough()
            for _ in self.knowledge.sleep_pieces():
                pass
        self._wake(drop, time.process_time() - began)

    def _wake(self, drop: str, cpu_s: float, *, tried: bool = False) -> None:
        n_steps, ended_early = self.knowledge.steps_done()
        woken = Woken(n_steps=n_steps if ended_early else None, drop=drop, tried=tried, cpu_s=round(cpu_s, 4))
        self._journal(
            Entry(seq=self.seq + 1, kind="wake", label="", source=msgspec.json.encode(woken).decode())
        )
        self.knowledge.wake(drop=drop, tried=tried, cpu_s=cpu_s)

    def heard_before(self, label: Label, reading_id: str, known: PendingFeature | None) -> bool:
        """Whether this was said of the reading already; of one no longer `known` the journal tells."""
        if known is not None:
            if label.kind == "not":
                return self.knowledge.refuses(known.feature, label.label)
            return known.taught >= 0 and self.knowledge.class_names[known.taught] == label.label
        if self._store is None or not reading_id:
            return False
        if label.kind == "not":
            return self._store.journal.was_refused(reading_id, label.label)
        return self._store.journal.label_of(reading_id) == label.label

    def commit(self) -> None:
        """Make everything learned so far durable.

        Raises StateUnwritable; call `rollback` then, to know again what the disk holds.
        """
        if self._store is not None:
            self._store.journal.commit()

    def snapshot_if_due(self) -> None:
        """After a commit: a snapshot when the journal has grown long; a sleep that stands in its way ends.

        Raises StateUnwritable when that end cannot be journalled; call `rollback` then. What was committed
        stays.
        """
        if self._store is None:
            return
        if self.seq - self._snapshot_seq >= self._snapshot_labels * (2 if self.knowledge.asleep else 1):
            self.end_sleep()
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
            self.knowledge.memory.persisted()
        except StateUnwritable as error:
            self._alarm = f"no snapshot was written: {error}"
            log.error("%s", self._alarm)
            return
        self._snapshot_seq, self._alarm = self.seq, ""

    def close(self, *, save: bool) -> None:
        """Let the folder go, after a commit and a snapshot when `save` is true.

        A sleep under way is left to the next start.
        """
        if self._store is None:
            return
        try:
            if save:
                self.commit()
                if not self.knowledge.asleep:
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
            if self.knowledge.asleep:
                self.knowledge.wake(drop="the journal after its beginning is damaged")
            store.replace_journal(self._as_snapshot())
            self._snapshot_seq = self.seq

    def _replay_one(self, entry: Entry) -> None:
        if entry.kind == "label":
            self.knowledge.learn(entry.feature, entry.label)
        elif entry.kind == "not":
            self.knowledge.learn_not(entry.feature, entry.label)
        elif entry.kind == "sleep":
            self.knowledge.begin_sleep(msgspec.json.decode(entry.source, type=SleepPlan))
        else:
            woken = msgspec.json.decode(entry.source, type=Woken)
            if not woken.drop:
                for _ in self.knowledge.sleep_pieces(woken.n_steps):
                    pass
            self.knowledge.wake(drop=woken.drop, tried=woken.tried, cpu_s=woken.cpu_s)

    def _as_snapshot(self) -> Snapshot:
        meta, arrays = self.knowledge.state()
        meta["status"] = msgspec.to_builtins(self._describe())
        return Snapshot(seq=self.seq, bundle_id=self._describe().bundle_id, meta=meta, arrays=arrays)
