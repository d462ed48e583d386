"""A new bundle beside the one that acts: it answers the same readings and learns the same labels, unheard."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import msgspec

from edge_cl import encoders
from edge_cl.bundle import Bundle
from edge_cl.config import Settings
from edge_cl.errors import BundleError
from edge_cl.learner import Learner
from edge_cl.records import Answer, Decision, FloatArray, Reading, Receipt
from edge_cl.release import encoder_hash, other_sensors
from edge_cl.revisions import Rename
from edge_cl.state import FROM_OTHERS, JOURNAL, Entry, Journal, hand_on, labels_of, last_revision, origin_of
from edge_cl.statistics import NEW_CLASSES
from edge_cl.upgrade.comparison import Answers, Comparison
from edge_cl.upgrade.slots import BUNDLE

log = logging.getLogger(__name__)

BATCH = 8
"""Journal entries carried over between two looks at the clock."""


def check_bundle(bundle: Bundle, old: Learner) -> None:
    """Raise BundleError unless `bundle` can take the place of the one that `old` runs: same sensors, and its
    encoder gives what it gave where it was made."""
    if differs := other_sensors(old.bundle.manifest, bundle.manifest):
        raise BundleError(f"bundle {bundle.manifest.name!r} is a bundle for other sensors: {differs}")
    encoder = encoders.create(bundle, old.settings.encoder, old.choice)
    if differs := encoders.self_test(encoder, bundle):
        raise BundleError(
            f"bundle {bundle.manifest.name!r} failed its self-test: {differs}; update the runtime, or export "
            "it for here"
        )


class Position(NamedTuple):
    """How far the old journal was followed: its last entry, and its last revision then."""

    seq: int
    revision: int


class Shadow:
    """The new learner and what it takes to keep it in step with the old one.

    It follows the old one's journal, for which every label was judged already. Where both have the same
    encoder, from the beginning on: what was learned before and what is learned now. Else a label is learned
    when both have answered its reading, of which the new one has its own feature.

    Parameters
    ----------
    old
        The learner that acts.
    bundle, folder
        The new bundle, checked, and where its learned state lies; what is there is gone on with.
    known_to
        Entry of the old journal up to which the new bundle's prior holds the labels already.
    seen
        The comparison so far.
    """

    def __init__(
        self,
        old: Learner,
        bundle: Bundle,
        folder: Path,
        *,
        settings: Settings,
        beside: Callable[[], int],
        known_to: int,
        seen: Comparison,
    ) -> None:
        self._old, self._bundle, self._folder = old, bundle, folder
        self._settings, self._beside, self._known_to = settings, beside, known_to
        self._same = encoder_hash(bundle) == encoder_hash(old.bundle)
        self.seen = seen
        self.answers = Answers()
        self.in_step = False
        """Whether it knows all that the old one does, as far as it can; nothing is compared before."""
        self._said: Decision | None = None
        self._looked_at = -1
        self.new = self._open()
        if self._past_changed():
            self._begin_anew()

    # ------------------------------------------------------------------ the same things happen to it

    def answer(self, reading: Reading, old: Decision, busy: Callable[[], bool] = bool) -> None:
        """Answer a reading that the old one has answered, and compare; raises whatever is wrong."""
        self._said = None
        self.new.turn(reading, [self._hear_itself], busy=busy)
        new = self._said
        if new is None or not math.isfinite(new.confidence) or not _finite(new):
            raise BundleError(f"no usable answer to reading {reading.id}, which the old one answered")
        if not self.in_step:
            return
        sure = not (old.abstained or new.abstained)
        self.seen = msgspec.structs.replace(
            self.seen,
            n_readings=self.seen.n_readings + 1,
            n_sure=self.seen.n_sure + sure,
            n_agreed=self.seen.n_agreed + (sure and self._meant(new.label) == self._meant(old.label)),
        )
        self.answers.add(reading.id, old.label, new.label)

    def hear(self, receipt: Receipt, *, trusted: bool) -> None:
        """The old one has answered a label: compare what both had answered to its reading."""
        if (receipt.status, receipt.kind) != ("learned", "is"):
            return
        answers = self.answers.take(receipt.reading_id)
        if answers is None:
            return
        truth = self._meant(receipt.label)
        old, new = (self._meant(answer or "") == truth for answer in answers)
        self.new.accuracy.update(new)
        if trusted:
            self.seen = msgspec.structs.replace(
                self.seen,
                n_trusted=self.seen.n_trusted + 1,
                right_old=self.seen.right_old + old,
                right_new=self.seen.right_new + new,
            )

    def step(self, slice_s: float, busy: Callable[[], bool]) -> None:
        """A slice of what is to be done: carry labels over, commit, sleep."""
        if self._past_changed():
            self._begin_anew()
        if self._follow(slice_s, busy):
            self.in_step = True
            self.new.turn(None, busy=busy)
        else:
            self.new.commit()

    def finish(self) -> None:
        """Everything that the old one has learned is known and on disk."""
        if self._past_changed():
            self._begin_anew()
        self._follow(math.inf, bool)
        if self._old.journal and self.new.journal:
            hand_on(self._old.journal, self.new.journal)
        self.new.note_carried()
        self.new.commit()

    def close(self) -> None:
        """Let the folder go; it is gone on with at the next start."""
        self.new.close()

    def drop(self) -> None:
        """Let the folder go; nothing of it is needed any more."""
        self.new.__exit__(BundleError, None, None)

    # ------------------------------------------------------------------ within

    def _open(self) -> Learner:
        new = Learner.from_bundle(
            self._bundle,
            state_dir=self._folder,
            settings=self._settings,
            beside=self._beside,
            choice=self._old.choice,
        )
        try:
            self._position = self._position_of(new)
        except BaseException:
            new.__exit__(BundleError, None, None)
            raise
        return new

    def _position_of(self, new: Learner) -> Position:
        """How far it had followed the old one; one that begins takes on what classes are called."""
        assert new.journal is not None
        noted = new.journal.get_meta("followed")
        if noted is None:
            self._carry_names(new)
            if self._old.journal:
                hand_on(self._old.journal, new.journal)
            done = 0 if self._same or self._old.journal is None else self._old.journal.committed_seq
            revision = last_revision(self._old.journal) if self._old.journal else 0
            noted = f"{done} {revision}"
            new.journal.set_meta("followed", noted)
        return Position(*map(int, noted.split()))

    def _carry_names(self, new: Learner) -> None:
        """What a person called classes of the old bundle, those of the new one are called, too."""
        for entry in self._old.journal.rare("rename") if self._old.journal else ():
            name = self._meant(entry.label)
            if entry.label in new.class_names and name != entry.label:
                new.revise(Rename(old=entry.label, new=name, merge=name in new.class_names))

    def _past_changed(self) -> bool:
        """Whether labels of the old one were taken back, accepted or renamed since the new one began."""
        journal = self._old.journal
        if journal is None or journal.committed_seq == self._looked_at:
            return False
        self._looked_at = journal.committed_seq
        return last_revision(journal) != self._position.revision

    def _begin_anew(self) -> None:
        """Labels were taken back, or mean something else now: what never learned them is made anew."""
        log.info("the past was changed: bundle %s begins anew", self._bundle.manifest.name)
        self.drop()
        forget_learned(self._folder)
        self.seen, self.in_step, self.answers = Comparison(), False, Answers()
        self.new = self._open()

    def _follow(self, slice_s: float, busy: Callable[[], bool]) -> bool:
        """Learn what the old one's journal has besides; whether that is all."""
        old = self._old.journal
        if old is None or old.committed_seq <= self._position.seq:
            return True
        began = time.monotonic()
        while (first := self._position.seq + 1) <= old.committed_seq:
            last = min(first + BATCH - 1, old.committed_seq)
            self.new.carry(self._to_carry(old, first, last))
            self._note(Position(last, self._position.revision))
            if time.monotonic() - began >= slice_s or busy():
                return self._position.seq >= old.committed_seq
        return True

    def _to_carry(self, old: Journal, first: int, last: int) -> list[Entry]:
        found = []
        for entry in labels_of(old, first, last):
            feature = self._feature_of(entry)
            if feature is not None and not self._is_known(entry):
                found.append(msgspec.structs.replace(entry, detail=origin_of(old, entry), feature=feature))
        return found

    def _is_known(self, entry: Entry) -> bool:
        """Whether the new bundle's prior holds this label already."""
        merged, me = self._bundle.manifest.merged, self._settings.device
        left_out = merged.left_out.get(f"{me.site}/{me.name}", []) if merged else []
        new = entry.label not in self._old.bundle.manifest.class_names
        told = entry.label not in left_out and not (NEW_CLASSES in left_out and new)
        counted = entry.kind == "label" and told and not entry.source.startswith(FROM_OTHERS)
        return counted and entry.seq <= self._known_to

    def _feature_of(self, entry: Entry) -> FloatArray | None:
        """What the new encoder made of a labelled reading; None for one that it has not seen."""
        if self._same:
            return entry.feature
        known = self.new.pending.get(entry.reading_id)
        return None if known is None else known.feature

    def _note(self, position: Position) -> None:
        """With the labels up to there, or, after a cut, neither."""
        journal = self.new.journal
        assert journal is not None
        journal.set_meta("followed", f"{position.seq} {position.revision}")
        self._position = position

    def _hear_itself(self, answer: Answer) -> None:
        if isinstance(answer, Decision):
            self._said = answer

    def _meant(self, name: str) -> str:
        return self._old.knowledge.naming.resolve(name)


def forget_learned(folder: Path) -> None:
    """Remove what was learned in a slot; the journal last, so that a cut leaves something to be told by."""
    paths = [path for path in folder.iterdir() if path.is_file() and path.name not in (BUNDLE, "lock")]
    for path in sorted(paths, key=lambda path: path.name.startswith(JOURNAL)):
        path.unlink(missing_ok=True)


def _finite(decision: Decision) -> bool:
    return all(math.isfinite(score) for score in decision.scores.values())
