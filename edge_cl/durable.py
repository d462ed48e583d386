"""Knowledge that survives: journalled before it is promised, restored exactly after any stop."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Literal

import msgspec

from edge_cl.errors import BudgetExceeded, StateCorrupt, StateError, StateUnwritable
from edge_cl.knowledge import Knowledge, Lesson
from edge_cl.past import Past
from edge_cl.records import FloatArray, Label, SleepPlan, SleepProgress, Status
from edge_cl.recovery import HELD_NOT, Recovery, Woken, learn
from edge_cl.revisions import Outcome, Revision
from edge_cl.state import (
    DamagedEntry,
    Entry,
    Journal,
    Snapshot,
    StateStore,
    Wear,
    holds,
    last_hold,
    ranges_of,
    revise,
    took_back,
)
from edge_cl.trial import Doubted, Trials
from edge_cl.trust import Origin, Verdict

log = logging.getLogger(__name__)

ROW_BYTES = 256
"""What a journal entry takes on disk beside its feature."""
TRY_AGAIN = 64
"""Journal entries until a snapshot that could not be written is tried again."""
TOLD_FOR = 1000
"""Journal entries for which the status says that labels were taken back, unless they are reviewed before."""
FIXED_BYTES = 64 * 1024
"""What a snapshot takes beside head and memory."""


class DurableKnowledge:
    """Knowledge, its journal and its snapshots kept in step.

    `learn` and `sleep` change knowledge and journal together; nothing of it may be promised before
    `commit` returns. After a failed commit `rollback` makes knowledge what the disk holds.

    Parameters
    ----------
    make
        Makes the knowledge of a new device, not begun.
    store
        The state folder, or None to keep nothing on disk.
    snapshot_labels
        Journal entries between two snapshots: bounds the replay after a stop.
    describe
        Gives the status that a snapshot keeps for whoever looks at a stopped device.
    wear
        Counts what is written and paces it.
    """

    def __init__(
        self,
        make: Callable[[], Knowledge],
        store: StateStore | None,
        *,
        snapshot_labels: int,
        describe: Callable[[], Status],
        wear: Wear,
    ) -> None:
        self._make = make
        self._store = store
        self._snapshot_labels = snapshot_labels
        self.wear = wear
        self._describe = describe
        self._alarm = self._recovery_alarm = ""
        self._held_back = 0, ""
        self._distrust = False  # a write failed: what the disk holds is to be written anew
        self._checked = self._snapshot_again = 0
        self.recovered = "nothing is kept on disk"
        self.seq = self._snapshot_seq = 0
        self._rebuilding: Recovery | None = None
        self._why = ""  # what it is rebuilt for
        self._n_held: int | None = None
        self.n_replayed = 0
        """Journal entries that were learned anew when knowledge was last built."""
        self.knowledge = make()
        """What is known; while it is rebuilt, what has been relearned of it."""
        self._trials = Trials(store) if store else None
        if store is None:
            self.knowledge.begin()
        else:
            self._require_room(store)

    def _require_room(self, store: StateStore) -> None:
        """Two snapshots, a third while it is written, the journal between them and exemplars in a file must
        fit on the disk."""
        needed = self.disk_bytes
        if needed > store.disk.capacity_bytes:
            raise BudgetExceeded(
                f"{store.folder}: snapshots, journal and exemplars need {needed:,} bytes of disk, the budget "
                f"is {store.disk.capacity_bytes:,}; raise budget.disk_mb, lower memory.max_mb, or choose a "
                "smaller head"
            )
        if self.knowledge.memory.disk_bytes:
            store.retention.extra = 0  # a file of exemplars goes with the two newest snapshots only

    def _snapshot_bytes(self) -> int:
        knowledge = self.knowledge
        return knowledge.head.nbytes + knowledge.memory.nbytes + knowledge.refusals.nbytes + FIXED_BYTES

    @property
    def alarms(self) -> list[str]:
        """What a person should know: a snapshot that could not be written, damage found at the start."""
        held_back_at, held_back = self._held_back
        lately = self.seq - held_back_at < TOLD_FOR
        return [self._alarm, self._recovery_alarm, held_back if lately else ""]

    def learn(
        self, label: Label, reading_id: str, feature: FloatArray, *, trust: float = 1.0
    ) -> tuple[int, Lesson]:
        """Journal and learn one label; returns its journal number and what it changed.

        Raises StateUnwritable or BudgetExceeded, and has then learned nothing of it.
        """
        refused = label.kind == "not"
        if not refused:
            self.knowledge.check_room(label.label)
            if self.knowledge.must_wake(label.label):
                self.end_sleep()
        entry = self._journal_label("not" if refused else "label", label, reading_id, feature, trust)
        return entry.seq, learn(self.knowledge, entry, look=True)

    def carry(self, entry: Entry) -> None:
        """Journal and learn a label of another journal of this device; raises as `learn`."""
        if entry.kind == "label":
            self.knowledge.check_room(entry.label)
            if self.knowledge.must_wake(entry.label):
                self.end_sleep()
        entry = msgspec.structs.replace(entry, seq=self.seq + 1)
        self._journal(entry)
        learn(self.knowledge, entry)

    @property
    def past(self) -> Past:
        """What was said before."""
        return Past(self._store, self.knowledge)

    @property
    def journal(self) -> Journal | None:
        """The journal, None when nothing is kept on disk."""
        return None if self._store is None else self._store.journal

    @property
    def disk_bytes(self) -> int:
        """What its state folder needs at least."""
        knowledge = self.knowledge
        journal = 4 * self._snapshot_labels * (4 * knowledge.head.n_features + ROW_BYTES)
        return 3 * self._snapshot_bytes() + journal + knowledge.memory.disk_bytes

    def judge(self, label: Label, feature: FloatArray, *, trust: float) -> Verdict:
        """Whether to learn a label that comes now; changes nothing."""
        origin = Origin(source=label.source, trust=trust, at_s=time.time())
        return self.knowledge.judge(feature, label.label, origin, refused=label.kind == "not")

    def hold(self, label: Label, reading_id: str, feature: FloatArray, *, trust: float, why: str) -> int:
        """Journal a label that is not learned but waits for a review; returns its journal number."""
        if label.kind == "not":
            why = f"{HELD_NOT}{why}"
        entry = self._journal_label("held", label, reading_id, feature, trust, detail=why)
        learn(self.knowledge, entry)
        self._n_held = self.n_held + 1 if self._n_held is not None else None
        return entry.seq

    def _journal_label(
        self,
        kind: Literal["label", "not", "held"],
        label: Label,
        reading_id: str,
        feature: FloatArray,
        trust: float,
        *,
        detail: str = "",
    ) -> Entry:
        entry = Entry(
            seq=self.seq + 1,
            kind=kind,
            label=label.label,
            reading_id=reading_id,
            source=label.source,
            trust=trust,
            t_s=label.t_s,
            at_s=round(time.time(), 3),
            detail=detail,
            feature=feature,
        )
        self._journal(entry)
        return entry

    def sleep(
        self, plan: SleepPlan, *, slice_s: float, cpu_s: float, busy: Callable[[], bool]
    ) -> Iterator[SleepProgress]:
        """Journal that a sleep begins, work through it in slices, journal how it ended, snapshot.

        A slice ends after about `slice_s` seconds, or sooner when `busy()`. After `cpu_s` seconds of work the
        rehearsal ends early, or, where the head cannot, the sleep is dropped, and its labels count as slept
        on: another try would take as long. A sleep that a stop cut off is
        taken up again instead, by its own plan.
        """
        if self._trials is not None:
            self._trials.stop()  # it has the room that a sleep needs
        if not self.knowledge.asleep:
            self._journal(
                Entry(
                    seq=self.seq + 1,
                    kind="sleep",
                    label=plan.cause,
                    at_s=plan.began_s,
                    detail=msgspec.json.encode(plan).decode(),
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
        if knowledge is self.knowledge and (
            knowledge.head.learns_by_steps or self.wear.affords(self._snapshot_bytes())
        ):  # another head sleeps again as fast as a card is read
            self.snapshot(f"sleep {knowledge.n_sleeps}")

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
            Entry(
                seq=self.seq + 1,
                kind="wake",
                at_s=round(time.time(), 3),
                detail=msgspec.json.encode(woken).decode(),
            )
        )
        self.knowledge.wake(drop=drop, tried=tried, cpu_s=cpu_s)

    def commit(self) -> None:
        """Make everything learned so far durable.

        Raises StateUnwritable; call `rollback` then, to know again what the disk holds.
        """
        if self._store is None:
            return
        try:
            self._store.journal.commit()
        except StateUnwritable:
            self._distrust = True
            raise
        try:
            self._store.journal.checkpoint_if_due()
        except StateUnwritable as error:  # what was committed is in the log all the same
            self._distrust, self._alarm = True, str(error)
            log.error("%s", error)

    def snapshot_if_due(self) -> None:
        """After a commit: a snapshot when the journal has grown long; a sleep that stands in its way ends.

        Raises StateUnwritable when that end cannot be journalled; call `rollback` then. What was committed
        stays.
        """
        if self._store is None or self._rebuilding is not None or self.seq < self._snapshot_again:
            return
        if self._distrust:
            self.end_sleep()
            self.snapshot("the disk had failed")
            return
        grown = self.seq - self._snapshot_seq
        usual = self._snapshot_labels * (2 if self.knowledge.asleep else 1)
        if grown >= usual and self.wear.snapshot_due(grown, usual, self._snapshot_bytes()):
            self.end_sleep()
            self.snapshot(f"{grown:,} journal entries")

    def rollback(self) -> None:
        """Forget what was not committed."""
        if self._store is not None and self.seq != self._store.journal.committed_seq:
            self._store.journal.rollback()
            self.recover()

    def revise(self, asked: Revision, source: str) -> Outcome:
        """Take labels back, go back, rename or review: journalled on return, known after `rebuild`.

        Raises StateError when it cannot be done, StateUnwritable when the disk takes nothing.
        """
        if self._store is None:
            raise StateError(
                "this device keeps nothing on disk, so nothing can be taken back; give it a state folder"
            )
        self.end_sleep(drop=f"{asked.__class__.__name__.lower()} was asked")
        self.commit()
        outcome = revise(
            self._store,
            asked,
            source=source,
            at_s=round(time.time(), 3),
            class_names=self.knowledge.class_names,
        )
        self._begin_rebuilding(outcome.message)
        return outcome

    @property
    def rebuilding(self) -> str:
        """How far knowledge is rebuilt after a revision, "" when it is whole."""
        recovery = self._rebuilding
        if recovery is None:
            return ""
        return f"learning anew: {recovery.n_replayed:,} of {recovery.n_to_replay:,} entries"

    def rebuild(self, slice_s: float = math.inf, busy: Callable[[], bool] = bool) -> bool:
        """Go on learning anew what counts, for about `slice_s` or until `busy()`; whether it is done.

        Until then `knowledge` answers by what it has relearned, and must not be taught.
        """
        recovery = self._rebuilding
        if recovery is None:
            return True
        began = time.monotonic()
        try:
            for _ in recovery:
                self.knowledge = recovery.knowledge
                if time.monotonic() - began >= slice_s or busy():
                    return False
        except BaseException:  # half of it must never pass for the whole
            self._begin_rebuilding(self._why)
            raise
        self._recovered(recovery)
        self.end_sleep(drop="it had not ended at the moment that was returned to")
        self.snapshot(self._why)
        return True

    def recover(self) -> None:
        """Knowledge becomes what counts."""
        if self._store is not None:
            self._begin_rebuilding("")
            assert self._rebuilding is not None
            self._rebuilding.finish()
            self._recovered(self._rebuilding)

    def _begin_rebuilding(self, why: str) -> None:
        assert self._store is not None
        if self._trials is not None:
            self._trials.forget()
        self._rebuilding, self._why = Recovery(self._make, self._store, self._as_snapshot), why
        self.knowledge, self.seq, self._n_held = self._rebuilding.knowledge, self._rebuilding.seq, None

    def _recovered(self, recovery: Recovery) -> None:
        self._rebuilding = None
        self.knowledge, self.seq, self._snapshot_seq = recovery.knowledge, recovery.seq, recovery.base_seq
        self.n_replayed, self.recovered = recovery.n_replayed, recovery.describe()
        self.wear.written_before = self.wear.written_before or recovery.written_bytes
        self._held_back = last_hold(self._store) if self._store else (0, "")
        self._note_problems()

    def try_without(self, slice_s: float, busy: Callable[[], bool]) -> bool:
        """A slice of a trial of what checked sources taught, when one is due.

        A sleep, and knowledge that is rebuilt, come first. Returns whether no sleep may begin: the trial goes
        on, or what it found waits for `hold_back`.
        """
        if self._trials is None or self._rebuilding is not None or self.knowledge.asleep:
            return False
        return self._trials.go_on(self.knowledge, slice_s, busy)

    def hold_back(self) -> str:
        """After a commit: learned labels that turned out to be doubtful wait for a review from now on.

        They are those of a source that became suspect, from when that began, and those without which a trial
        was better. Returns what was done in words, "" for nothing; then go on with `rebuild`: what is known
        afterwards is what never learned them. Raises StateUnwritable.
        """
        store, doubted = self._store, self._doubted()
        if store is None or doubted is None:
            return ""
        counts = store.counts
        seqs = sorted({seq for seq in doubted.seqs if holds(counts, seq)})
        if seqs and self._take_back(store, seqs, doubted.why):
            self._begin_rebuilding(doubted.why)
            return took_back(len(seqs), doubted.why)
        self.knowledge.guard.suspected = []
        if self._trials is not None:
            self._trials.forget()
        return ""

    def _take_back(self, store: StateStore, seqs: list[int], why: str) -> bool:
        """Let labels wait for a review; False when nothing is left that could be built upon without them."""
        self.end_sleep(drop="labels are held back")
        store.journal.commit()
        try:
            at_s = round(time.time(), 3)
            store.take_out("hold", ranges_of(seqs), what=why, source="edge-cl", at_s=at_s)
        except StateUnwritable:
            raise
        except StateError as error:
            self._alarm = f"labels that are in doubt stay learned: {error}"
            log.error("%s", self._alarm)
            return False
        return True

    def _doubted(self) -> Doubted | None:
        """Labels to be held back."""
        guard = self.knowledge.guard
        if guard.suspected:
            suspects = ", ".join(guard.teachers.suspects)
            why = f"labels of {suspects}: contradicted trusted labels too often; held are its labels since"
            return Doubted(guard.suspected, f"{why} that began")
        return self._trials.found if self._trials else None

    @property
    def committed_seq(self) -> int:
        """The newest journal entry that is on disk."""
        return self.seq if self._store is None else self._store.journal.committed_seq

    @property
    def n_held(self) -> int:
        """How many labels wait for a review."""
        if self._n_held is None:
            self._n_held = len(self.past.held_labels())
        return self._n_held

    def snapshot(self, cause: str) -> None:
        """Write everything learned; a failure raises the alarm and only costs a longer replay."""
        if self._store is None or self.seq == self._snapshot_seq or self._rebuilding is not None:
            return
        self._store.journal.commit()
        try:
            self._store.save(self._as_snapshot(self.knowledge, self.seq, cause))
            self.knowledge.memory.persisted()
        except StateUnwritable as error:
            self._alarm = f"no snapshot was written: {error}"
            self._snapshot_again = self.seq + TRY_AGAIN
            log.error("%s", self._alarm)
            return
        self._snapshot_seq, self._alarm, self._distrust = self.seq, "", False

    def check_history(self, n_entries: int) -> bool:
        """Read on through the whole journal and check the next so many entries; whether it is through.

        What is damaged there is reported in `alarms`: it is not needed for what is known now, but was lost
        for taking back and going back.
        """
        store = self._store
        if store is None or self._checked >= store.journal.committed_seq:
            return True
        first = max(self._checked + 1, store.journal.first_seq)
        last = min(first + n_entries - 1, store.journal.committed_seq)
        try:
            for entry in store.journal.read(first, last):
                self._checked = entry.seq
        except DamagedEntry as error:
            store.repair(error.seq)
            self._note_problems()
        except StateCorrupt as error:
            store.problems.append(str(error))
            self._note_problems()
            self._checked = store.journal.committed_seq
        return self._checked >= store.journal.committed_seq

    def close(self, *, save: bool) -> None:
        """Let the folder go, after a commit and a snapshot when `save` is true.

        A sleep under way is left to the next start.
        """
        if self._store is None:
            return
        try:
            if save:
                self.commit()
                if not self.knowledge.asleep and not self.rebuilding:
                    self.snapshot("stopped")
        finally:
            self._store.close()
            self._store = None

    def _journal(self, entry: Entry) -> None:
        if self._store is not None:
            self._store.append(entry)
        self.seq = entry.seq

    def _note_problems(self) -> None:
        problems = "; ".join(self._store.problems) if self._store else ""
        if problems != self._recovery_alarm:
            self._recovery_alarm = problems
            log.error("%s", problems)

    def _as_snapshot(self, knowledge: Knowledge, seq: int, cause: str) -> Snapshot:
        meta, arrays = knowledge.state()
        status = self._describe()
        meta["status"] = msgspec.to_builtins(status)
        meta["cause"], meta["at_s"] = cause, round(time.time(), 3)
        meta["written_bytes"] = self.wear.written_bytes
        return Snapshot(seq=seq, bundle_id=status.bundle_id, meta=meta, arrays=arrays)
