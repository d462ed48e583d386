"""What a label does, from its arrival to its receipt, and what a revision does to the labels before it."""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from edge_cl import receipts
from edge_cl.config import Settings
from edge_cl.durable import DurableKnowledge
from edge_cl.errors import BudgetExceeded, StateUnwritable
from edge_cl.knowledge import Knowledge, Lesson
from edge_cl.memory import Pending, PendingFeature
from edge_cl.records import Label, Receipt
from edge_cl.rest import Rest
from edge_cl.revisions import Outcome, Revision, Rollback
from edge_cl.trust import PrequentialAccuracy, trust_in

log = logging.getLogger(__name__)

N_COMPARED = 16
"""A receipt says which of this many last readings would now be answered differently."""
MOST_WAITING = 1000
"""Labels that wait while knowledge is rebuilt; one more makes everybody wait until it is done."""


class Teaching:
    """Judges, journals and learns labels, and gives receipts once they are durable.

    Parameters
    ----------
    durable
        What learns.
    rest
        Hears of labels, and of knowledge that is no more.
    pending
        Readings that wait for a label.
    accuracy
        Counts answers right or wrong.
    settings
        Whom to trust, and how often to commit.
    """

    def __init__(
        self,
        durable: DurableKnowledge,
        rest: Rest,
        pending: Pending,
        accuracy: PrequentialAccuracy,
        settings: Settings,
    ) -> None:
        self._durable, self._rest = durable, rest
        self._pending, self._accuracy, self._settings = pending, accuracy, settings
        self.refusing = ""
        """Why nothing can be learned now, or ""."""
        self._uncommitted: list[Receipt] = []
        self._owed: list[Receipt] = []  # durable, or never to be; to be given with the next
        self._waiting: deque[Label] = deque()  # for knowledge to be rebuilt
        self._names_then: list[str] = []
        self._committed_at = time.monotonic()
        self._commit_s = settings.state.commit_ms / 1000

    @property
    def knowledge(self) -> Knowledge:
        """Everything learned."""
        return self._durable.knowledge

    # ------------------------------------------------------------------ one label

    def hear(self, label: Label) -> list[Receipt]:
        """Learn a label, or let it wait while knowledge is rebuilt; receipts that may be given at once."""
        if self._durable.rebuilding and len(self._waiting) < MOST_WAITING:
            self._waiting.append(label)
            return []
        self.rebuilt()
        return [*self.hear_waiting(), *self._teach(label)]

    def hear_waiting(self) -> list[Receipt]:
        """Learn the labels that came while knowledge was rebuilt; the receipts that may be given at once."""
        given: list[Receipt] = []
        while self._waiting:
            given += self._teach(self._waiting.popleft())
        return given

    def teach(self, label: Label) -> Receipt:
        """Learn one label now, durably; its receipt."""
        self.rebuilt()
        at_once = self._teach(label)
        given = at_once or self.commit()
        self._owed += given[:-1]  # of labels that were heard before; they are given next
        return given[-1]

    def _teach(self, label: Label) -> list[Receipt]:
        """Journal and learn one label. Returns the receipts that may be given at once; one that
        promises something waits for the commit."""
        reading_id = label.reading_id or self._pending.newest_id
        known = self._pending.get(reading_id)
        refusal = self._refuse(label, reading_id, known)
        if known is None or refusal is not None:
            return [refusal] if refusal else []
        trust = trust_in(self._settings.trust, label.source)
        verdict = self._durable.judge(label, known.feature, trust=trust)
        if verdict.action == "refuse":
            return [receipts.refusal(label, reading_id, "refused", verdict.reason)]
        try:
            if verdict.action == "hold":
                seq = self._durable.hold(label, reading_id, known.feature, trust=trust, why=verdict.reason)
                self._uncommitted.append(receipts.held(label, reading_id, seq, verdict.reason))
                return []
            seq, lesson = self._durable.learn(label, reading_id, known.feature, trust=trust)
        except StateUnwritable as error:
            lost = self.predict_only(error)
            return [*lost, receipts.refusal(label, reading_id, "refused", self.refusing)]
        except BudgetExceeded as error:
            return [receipts.refusal(label, reading_id, "refused", str(error))]
        self._note(label, known, lesson)
        changed, n_compared = self._compare()
        self._uncommitted.append(receipts.learned(label, reading_id, seq, lesson, changed, n_compared))
        return []

    def _refuse(self, label: Label, reading_id: str, known: PendingFeature | None) -> Receipt | None:
        """The receipt for a label that teaches nothing, None for one that can be learned."""
        meant = self.knowledge.naming.resolve(label.label)
        if problem := receipts.unusable(label, meant, self.knowledge.class_names):
            return receipts.refusal(label, reading_id, "refused", problem)
        if self._durable.past.heard(label, reading_id, known):
            return receipts.duplicate(label, reading_id)
        return receipts.not_remembered(label, reading_id, self._pending.capacity) if known is None else None

    def _note(self, label: Label, known: PendingFeature, lesson: Lesson) -> None:
        """Remember that a reading was labelled, and count its answer right or wrong."""
        taught = label.kind == "is"  # "not" tells of wrong answers only: counted, it would bias the accuracy
        if taught or known.taught == lesson.class_index:
            self._pending.mark_taught(known.reading_id, lesson.class_index if taught else -1)
        if taught and known.answer >= 0:
            self._accuracy.update(known.answer == lesson.class_index)
            self._rest.note_label()

    def _renumber(self, names: Sequence[str]) -> None:
        """What is noted of readings by class number, in `names`, is brought up to date with what counts."""
        self._pending.rename(
            [self.knowledge.naming.resolve(name) for name in names], self.knowledge.class_names
        )
        self._pending.set_taught(self._durable.past.taught_lately())
        self.refresh()

    def refresh(self) -> None:
        """Note how a head that just changed would answer the last readings, so that no label is blamed."""
        ids, features, _ = self._pending.recent(N_COMPARED)
        if ids:
            self._pending.set_current(ids, self.knowledge.answers(features))

    def _compare(self) -> tuple[dict[str, str], int]:
        """Answers to the last readings that the newest label changed: {id: "old → new"}."""
        ids, features, old = self._pending.recent(N_COMPARED)
        new = self.knowledge.answers(features)
        changed = np.flatnonzero((new != old) & (old >= 0))
        self._pending.set_current([ids[i] for i in changed], new[changed])
        names = [*self.knowledge.class_names, "(none)"]
        return {ids[i]: f"{names[old[i]]} → {names[new[i]]}" for i in changed}, len(ids)

    # ------------------------------------------------------------------ promises

    @property
    def commit_due(self) -> bool:
        """Whether it is time to commit."""
        return time.monotonic() - self._committed_at >= self._commit_s

    def commit(self) -> list[Receipt]:
        """Make what was learned durable; only now its receipts may be given."""
        self._committed_at = time.monotonic()
        try:
            self._durable.commit()
        except StateUnwritable as error:
            return self.predict_only(error)
        given, self._uncommitted = self._uncommitted, []
        if given:
            self.refusing = ""
            self._commit_s = self._durable.wear.commit_s(self._settings.state.commit_ms / 1000)
        given, self._owed = self._owed + given, []
        try:
            self._hold_back()
            if not self._durable.rebuilding:
                self._durable.snapshot_if_due()
        except StateUnwritable as error:  # those given are durable all the same
            self.predict_only(error)
        return given

    def settle(self) -> None:
        """Commit now; receipts are given with the next ones."""
        self._owed += self.commit()

    def _hold_back(self) -> None:
        """What a source taught before it became suspect is to be known no more."""
        names = list(self.knowledge.class_names)
        if done := self._durable.hold_back():
            log.warning("%s", done)
            self._names_then = names
            self._rest.forget()

    def predict_only(self, error: StateUnwritable) -> list[Receipt]:
        """The disk takes nothing: what could not be kept is forgotten and refused; predicting goes on.

        Every later label tries again, so the device comes back by itself when there is room.
        """
        self.refusing = f"predicting only, not learned: {error}"
        log.error("%s", self.refusing)
        self._rest.forget()
        names = self._names_then if self._durable.rebuilding else list(self.knowledge.class_names)
        self._durable.rollback()
        waited, self._uncommitted = self._uncommitted, []
        kept = [r for r in waited if r.seq <= self._durable.seq]  # a sleep's begin or end took them along
        lost = waited[len(kept) :]
        self._renumber(names)
        return [*kept, *(receipts.taken_back(receipt, self.refusing) for receipt in lost)]

    def owe_after(self, error: StateUnwritable) -> None:
        """As `predict_only`, with the receipts to be given later."""
        self._owed += self.predict_only(error)

    # ------------------------------------------------------------------ the past

    @property
    def anything_waits(self) -> bool:
        """Whether labels wait for knowledge to be rebuilt."""
        return bool(self._waiting)

    def revise(self, asked: Revision, *, source: str, wait: bool) -> Outcome:
        """See `Learner.revise`."""
        self.rebuilt()
        self.settle()
        self._names_then = list(self.knowledge.class_names)
        began = time.monotonic()
        try:
            outcome = self._durable.revise(asked, source)
        except StateUnwritable as error:
            self.owe_after(error)
            raise
        self._rest.forget()
        if isinstance(asked, Rollback):
            self._accuracy.restart()
        if not wait:
            return outcome
        self.rebuilt()
        took_s = round(time.monotonic() - began, 3)
        return msgspec.structs.replace(outcome, n_replayed=self._durable.n_replayed, took_s=took_s)

    def rebuilt(self, slice_s: float = math.inf, busy: Callable[[], bool] = bool) -> bool:
        """Go on learning anew what counts after a revision; whether it is done."""
        if not self._durable.rebuilding:
            return True
        try:
            if not self._durable.rebuild(slice_s, busy):
                return False
        except StateUnwritable as error:  # learned anew it is, but what follows cannot be journalled
            self.owe_after(error)
        self._renumber(self._names_then)
        return True
