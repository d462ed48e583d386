"""A fall of accuracy on trusted labels is tried before anything is taken back.

Heads, one after the other, learn again what was learned since: all of it, all but what checked sources
taught, and all but what one of them did, so that a bad source does not hide among good ones. All start where
the real head was before it fell, and none sleeps, so that they compare. What they answer to the same trusted
labels is the evidence; :func:`edge_cl.trust.try_without` judges it.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterator
from typing import NamedTuple

import numpy as np

from edge_cl.errors import NumericalError, StateError
from edge_cl.heads import Head
from edge_cl.knowledge import Knowledge
from edge_cl.naming import ClassNames
from edge_cl.state import Entry, StateStore
from edge_cl.trust import TRUSTED, Trial, try_without

log = logging.getLogger(__name__)

READ_AT_ONCE = 32
"""Journal entries in memory at a time; the journal is written to between two reads."""
MOST_APART = 4
"""Sources that are each left out alone: every one costs another head's learning."""
MOST_NAMED = 3
"""Sources that a message names."""


class Doubted(NamedTuple):
    """Labels without which the device is better, by journal number, and why for a person."""

    seqs: list[int]
    why: str


class Arm:
    """One head of a trial, and whether it answered each trusted label right before it learned it.

    Parameters
    ----------
    head, naming
        Where it starts; both are changed.
    """

    def __init__(self, head: Head, naming: ClassNames) -> None:
        self._head, self._naming = head, naming
        self.right: list[bool] = []

    def take(self, entry: Entry, *, exam: bool) -> None:
        """Learn a label, or the new name of a class; with `exam` it is asked first."""
        naming = self._naming
        if entry.kind == "rename":
            naming.rename(entry.label, entry.detail)
            return
        name = naming.resolve(entry.label)
        known = naming.of_head(name) if name in naming.names else []
        scores = self._head.predict_one(entry.feature) if exam or len(known) > 1 else np.zeros(0)
        if exam:
            self.right.append(bool(scores.any()) and int(scores.argmax()) in known)
        if not known:
            naming.add(name)
            known = [self._head.add_class()]
        k = known[0] if len(known) == 1 else max(known, key=lambda k: float(scores[k]))
        self._head.learn_one(entry.feature, k)


class Trials:
    """Makes a trial when it is due, in slices between other work.

    It holds one head more, in the room that the budget keeps for a sleep: never while the device sleeps.
    Nothing of it is remembered over a stop: whatever it finds, only taking back changes what is known, and
    that is journalled. A head that learns by steps depends on its rehearsals too much to be tried so.
    """

    def __init__(self, store: StateStore) -> None:
        self._store = store
        self._work: Iterator[None] | None = None
        self._knowledge: Knowledge | None = None
        self._looked_at = self._tried = 0
        self._promising = False
        self._base_seq = -1  # entry that the first head started from
        self.found: Doubted | None = None
        """What a trial says to take back, until that is done."""

    def go_on(self, knowledge: Knowledge, slice_s: float, busy: Callable[[], bool]) -> bool:
        """Begin a trial when one is due, or go on with it for about `slice_s` seconds or until `busy()`.

        Returns whether it is not at its end then, or what it found waits to be taken back.
        """
        if self._work is not None and self._knowledge is not knowledge:  # built anew since
            self.forget()
        if self._work is None:
            if self.found or not self._due(knowledge):
                return self.found is not None
            self._knowledge, self._work = knowledge, self._pieces(knowledge)
        began = time.monotonic()
        for _ in self._work:
            if time.monotonic() - began >= slice_s or busy():
                return True
        self._tried = self._looked_at
        self._work = self._knowledge = None
        return self.found is not None

    def stop(self) -> None:
        """Drop a trial under way; it begins again when it is due still."""
        self._work, self._knowledge, self._looked_at = None, None, 0

    def forget(self) -> None:
        """What was tried is no more: knowledge is built anew."""
        self.stop()
        self.found = None

    def _due(self, knowledge: Knowledge) -> bool:
        answers = knowledge.guard.answers
        if answers.newest_seq == self._looked_at or knowledge.head.learns_by_steps:
            return False
        self._looked_at = answers.newest_seq
        return answers.fell(after_seq=self._tried) or (self._promising and answers.new(self._tried))

    def _pieces(self, knowledge: Knowledge) -> Iterator[None]:
        """The trial, label by label."""
        since, last = knowledge.guard.answers.since_seq, self._store.journal.committed_seq
        sources: dict[int, str] = {}
        try:
            for entry in self._counting(since, last):
                if entry.kind == "label" and entry.trust < TRUSTED:
                    sources[entry.seq] = entry.source
                yield
            if not sources:
                self._promising = False
                return
            self._base_seq = -1
            right = yield from self._arm(knowledge, since, last, ())
            tried = groups_of(sources)
            found: list[tuple[Trial, list[int]]] = []
            for group in tried:
                without = yield from self._arm(knowledge, since, last, frozenset(group))
                found.append((try_without(np.array(right), np.array(without), n_tried=len(tried)), group))
        except (StateError, NumericalError) as error:
            log.warning("accuracy on trusted labels fell; what others taught is not tried: %s", error)
            return
        trial, group = max(found, key=lambda one: (one[0].take_back, one[0].gain))
        why = f"labels of {_named([sources[seq] for seq in group])}: {trial.reason}"
        log.warning("accuracy on trusted labels fell; %s %s", "bad are" if trial.take_back else "not", why)
        self._promising = any(one.promising for one, _ in found)
        if trial.take_back:
            self.found = Doubted(group, why)

    def _arm(
        self, knowledge: Knowledge, since: int, last: int, left_out: Collection[int]
    ) -> Generator[None, None, list[bool]]:
        """One head from before `since` learns what counts up to `last` but `left_out`.

        Returns how it answered the trusted labels from `since` on.
        """
        base = self._store.head_before(since)
        naming = ClassNames(knowledge.bundle_classes)
        if base is None:
            head, after = knowledge.first_head(), 0
        else:
            head, after = knowledge.head_of(base.meta, base.arrays), base.seq
            naming.restore(base.meta)
            del base
        if self._base_seq not in (-1, after):
            raise StateError(f"the head at entry {self._base_seq:,} was dropped meanwhile")
        self._base_seq = after
        arm = Arm(head, naming)
        for entry in self._counting(after + 1, last):
            if entry.kind in ("label", "rename") and entry.seq not in left_out:
                trusted = entry.kind == "label" and entry.trust >= TRUSTED
                arm.take(entry, exam=trusted and entry.seq >= since)
            yield
        return arm.right

    def _counting(self, first: int, last: int) -> Iterator[Entry]:
        """Entries `first` to `last` that count."""
        for begin, end in self._store.counts:
            for low in range(max(begin, first), min(end, last) + 1, READ_AT_ONCE):
                yield from list(self._store.journal.read(low, min(low + READ_AT_ONCE - 1, end, last)))


def groups_of(sources: dict[int, str]) -> list[list[int]]:
    """Left out in turn of labels by journal number: all, and those of each of the commonest sources."""
    common = Counter(sources.values()).most_common(MOST_APART)
    apart = [[seq for seq, who in sources.items() if who == name] for name, _ in common]
    return [list(sources), *(group for group in apart if len(group) < len(sources))]


def _named(sources: list[str]) -> str:
    """Who they are of, the most first."""
    common = Counter(sources).most_common()
    named = ", ".join(who for who, _ in common[:MOST_NAMED])
    return named + (f" and {len(common) - MOST_NAMED} more" if len(common) > MOST_NAMED else "")
