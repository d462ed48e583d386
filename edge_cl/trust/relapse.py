"""Accuracy on trusted labels falls: is that drift, or what others have taught?

Both make it fall. So the question is put to the labels themselves: would a head that had learned everything
but what checked sources taught since then have answered the same trusted labels better? Drift says no, for
such a head knows less of it; poison says yes. Replaying the journal makes that head.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

N_KEPT, N_LAST = 192, 48
"""Trusted labels whose answers are kept, and those of them that are compared with the rest."""
FALL = 2.0
"""Standard errors that make a fall worth a replay."""
TAKE_BACK_P = 0.001
"""Chance of taking labels back where both heads are alike."""
PROMISING_P = 0.05
"""As `TAKE_BACK_P`, for looking again."""
LEAST_GAIN = 0.03
"""Of accuracy: less is not worth anybody's labels."""


class Trial(NamedTuple):
    """Whether to take back what checked sources taught, and the evidence for a person."""

    take_back: bool
    gain: int
    """Labels that more were answered right without."""
    promising: bool
    """Whether more labels may show what these do not: worth another trial even if nothing falls again."""
    reason: str


def try_without(right: NDArray[np.bool_], right_without: NDArray[np.bool_], *, n_tried: int = 1) -> Trial:
    """Compare two heads on the same trusted labels, each answered before it was learned.

    Parameters
    ----------
    right
        (n,) of the head as it was.
    right_without
        (n,) of the head without the labels in question.
    n_tried
        How many such heads are compared, so that chance has as many (Bonferroni).

    Notes
    -----
    An exact sign test on the labels that only one of them answered right (McNemar).
    """
    n = len(right)
    better, worse = int((right_without & ~right).sum()), int((right & ~right_without).sum())
    p = sum(math.comb(better + worse, k) for k in range(better, better + worse + 1)) * 0.5 ** (better + worse)
    found = (
        f"of {n} trusted labels {100 * right.mean():.0f} % were answered right, without them "
        f"{100 * right_without.mean():.0f} % ({better} more, {worse} fewer, chance {p:.2g})"
        if n
        else "no trusted label to try it on"
    )
    gain = better - worse
    enough = gain >= LEAST_GAIN * n
    return Trial(enough and p * n_tried <= TAKE_BACK_P, gain, enough and p <= PROMISING_P, found)


class TrustedAnswers:
    """How the last trusted labels were answered before they were learned, by journal number."""

    def __init__(self) -> None:
        self._answers: list[tuple[int, bool]] = []

    def note(self, seq: int, *, right: bool) -> None:
        """Trusted label `seq` was answered right, or not."""
        self._answers = [*self._answers[1 - N_KEPT :], (seq, right)]

    def fell(self, *, after_seq: int = 0) -> bool:
        """Whether the last were answered worse than those before, beyond chance.

        No when one of them came before journal entry `after_seq`, or is it.
        """
        right = np.array([right for _, right in self._answers], dtype=np.float64)
        before, last = right[:-N_LAST], right[-N_LAST:]
        if len(before) < N_LAST or not self.new(after_seq):
            return False
        share = right.mean()
        error = math.sqrt(share * (1 - share) * (1 / len(before) + 1 / len(last)))
        return bool(before.mean() - last.mean() > FALL * error)

    def new(self, after_seq: int) -> bool:
        """Whether there are enough answers after journal entry `after_seq` to ask again."""
        return len(self._answers) >= N_LAST and self._answers[-N_LAST][0] > after_seq

    @property
    def newest_seq(self) -> int:
        """The last of them, 0 for none."""
        return self._answers[-1][0] if self._answers else 0

    @property
    def since_seq(self) -> int:
        """The first of them: checked labels after it are in question."""
        return self._answers[0][0] if self._answers else 0

    @property
    def right(self) -> NDArray[np.bool_]:
        """(n,) how each was answered, in order."""
        return np.array([right for _, right in self._answers], dtype=np.bool_)

    def state(self) -> dict[str, Any]:
        """JSON values that `restore` takes back."""
        return {"answers": list(self._answers)}

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._answers = [(int(seq), bool(right)) for seq, right in state["answers"]]
