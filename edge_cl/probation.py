"""The first labels after a bundle took over: is it as accurate as the one before?"""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from edge_cl.comparison import Verdict, judge_probation
from edge_cl.records import Decision, Receipt
from edge_cl.shadow import Answers
from edge_cl.slots import Slots


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
