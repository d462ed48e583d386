"""Whether to wake with the new head: judged on exemplars that were held back."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MIN_HELD_BACK = 8
"""With fewer held-back exemplars no head can be judged, and the old one stays."""
CLASS_MARGIN = 0.2
"""No class with at least `MIN_HELD_BACK` exemplars may lose more than this."""


class Verdict(NamedTuple):
    """The gate's answer; accuracies are class-balanced, in [0, 1]."""

    adopted: bool
    reason: str
    accuracy_before: float
    accuracy_after: float


def judge(before: NDArray[np.bool_], after: NDArray[np.bool_], y: NDArray[np.int64]) -> Verdict:
    """Compare two heads on the same held-back exemplars.

    The new head is adopted unless its balanced accuracy is lower by more than one standard error of the
    paired difference, or a class loses more than `CLASS_MARGIN`.

    Parameters
    ----------
    before, after
        (n,) whether the old and the new head are right.
    y
        (n,) true classes.
    """
    if len(y) < MIN_HELD_BACK:
        return Verdict(False, f"only {len(y)} held-back exemplars; {MIN_HELD_BACK} are needed", 0.0, 0.0)
    classes = [y == c for c in np.unique(y)]
    accuracy_before = float(np.mean([before[c].mean() for c in classes]))
    accuracy_after = float(np.mean([after[c].mean() for c in classes]))
    gain = after.astype(np.float64) - before
    variances = [gain[c].var() / c.sum() for c in classes]
    standard_error = float(np.sqrt(np.sum(variances))) / len(classes)
    worst = min(
        (after[c].mean() - before[c].mean() for c in classes if c.sum() >= MIN_HELD_BACK), default=0.0
    )
    change = accuracy_after - accuracy_before
    if change < -standard_error:
        reason = f"balanced accuracy would fall by {-change:.1%}, more than its error of {standard_error:.1%}"
        return Verdict(False, reason, accuracy_before, accuracy_after)
    if worst < -CLASS_MARGIN:
        return Verdict(False, f"a class would lose {-worst:.0%}", accuracy_before, accuracy_after)
    return Verdict(True, f"balanced accuracy {change:+.1%}", accuracy_before, accuracy_after)
