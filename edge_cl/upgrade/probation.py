"""The first labels after a bundle took over: is it as accurate as the one before? And the way back."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable

import msgspec

from edge_cl.bundle import Bundle
from edge_cl.config import Settings
from edge_cl.errors import EdgeCLError
from edge_cl.learner import Learner
from edge_cl.records import Decision, Receipt
from edge_cl.sync.messages import InstallReport
from edge_cl.upgrade.comparison import Answers, Verdict, judge_probation
from edge_cl.upgrade.slots import Slots

log = logging.getLogger(__name__)


class Watch:
    """Counts right answers to trusted labels while the pointer has a probation.

    Parameters
    ----------
    slots
        Where the counts are kept, over restarts.
    n_trusted
        Labels that a probation takes.
    """

    def __init__(self, slots: Slots, n_trusted: int) -> None:
        self._slots, self._n_trusted = slots, n_trusted
        self._answers = Answers()

    def answered(self, decision: Decision) -> None:
        """The active one answered a reading."""
        if self._slots.pointer.probation is not None:
            self._answers.add(decision.reading_id, decision.label)

    def hear(self, receipt: Receipt, meant: Callable[[str], str]) -> Verdict:
        """A trusted label was learned; `meant` resolves renamed classes. Raises StateUnwritable."""
        probation, answers = self._slots.pointer.probation, self._answers.take(receipt.reading_id)
        if probation is None or answers is None:
            return Verdict("wait")
        probation = msgspec.structs.replace(
            probation,
            n_trusted=probation.n_trusted + 1,
            right=probation.right + (meant(answers[0]) == meant(receipt.label)),
        )
        verdict = judge_probation(probation, self._n_trusted)
        self._slots.note(probation=None if verdict.action == "commit" else probation)
        return verdict


def go_back(slots: Slots, new: Learner, settings: Settings, reason: str) -> tuple[Learner, InstallReport]:
    """The learner of the slot before, which is the active one from now on; `new` is closed.

    It is opened before `new` is let go: when that fails, `new` stays, and the report says why.
    """
    old: Learner | None = None
    name, slot = new.bundle.manifest.name, slots.pointer.previous
    place = slots.place(slot)
    try:
        carried = slots.carry_back()
        old = Learner.from_bundle(
            Bundle.load(place.bundle),
            state_dir=place.folder,
            settings=settings,
            beside=slots.beside(slot),
            choice=new.choice,
        )
        slots.point_back(f"went back from bundle {name}: {reason}; {carried}")
    except (EdgeCLError, OSError) as error:
        if old is not None:
            old.__exit__(type(error), error, None)
        slots.note(probation=None)
        why = f"was to be rolled back ({reason}), but the bundle before cannot be opened: {error}"
        log.error("bundle %s stays: it %s", name, why)
        id, sha256, bundle_id = slots.pointer.installed
        return new, InstallReport(id=id, sha256=sha256, bundle_id=bundle_id, phase="failed", reason=why)
    with contextlib.suppress(EdgeCLError):  # all that counts is in the other one
        new.close()
    slots.tidy()
    return old, msgspec.convert(slots.pointer.untold, InstallReport)
