"""Whether to wake with the new head: judged on exemplars that were held back.

The question is not whether the new head did worse on them, but how sure it is that it is not worse
elsewhere: of a handful of exemplars "as good as before" says next to nothing. So the paired change of
balanced accuracy must, less its error, stay above `-TOLERANCE`; the error never is 0, and counts for more the
fewer judge. Chosen on sleeps of heads in trouble, ``python -m bench.gate``.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_cl.records import FloatArray

MIN_HELD_BACK = 8
"""With fewer held-back exemplars no head can be judged, and the old one stays."""
CLASS_MARGIN = 0.2
"""No class may lose more than this; with fewer than `MIN_HELD_BACK` exemplars, by more than its error."""
TOLERANCE = 0.01
"""Balanced accuracy that an adopted head may lose."""
PSEUDO_COUNT = 0.1
"""Answers gained, and lost, that counted to every class besides: what was not seen to change still may."""
ERRORS, MORE_ERRORS = 1.0, 16.0
"""The change must be above -TOLERANCE by ERRORS + MORE_ERRORS / n standard errors, n exemplars."""
UNJUDGED_VAR = 0.1
"""Variance of the change of a class that the head knows and nobody can judge."""


class Verdict(NamedTuple):
    """The gate's answer; accuracies are in [0, 1], the overall ones class-balanced."""

    adopted: bool
    reason: str
    accuracy_before: float
    accuracy_after: float
    n_judged: int
    by_class: dict[int, tuple[float, float]]
    """Class index → accuracy before and after, of the classes that were judged."""


def judge(
    before: NDArray[np.bool_],
    after: NDArray[np.bool_],
    y: NDArray[np.int64],
    *,
    n_known: int = 0,
    class_margin: float = CLASS_MARGIN,
) -> Verdict:
    """Compare two heads on the same held-back exemplars.

    Parameters
    ----------
    before, after
        (n,) whether the old and the new head are right.
    y
        (n,) true classes.
    n_known
        Classes that the old head knows; those of them that are not in y count as unknown, not as unchanged.
    class_margin
        No class may lose a larger share.
    """
    classes = np.unique(y)
    by_class = {int(c): (float(before[y == c].mean()), float(after[y == c].mean())) for c in classes}
    was, would_be = np.mean(list(by_class.values()) or [(0.0, 0.0)], axis=0).tolist()
    if len(y) < MIN_HELD_BACK:
        reason = f"only {len(y)} held-back exemplars; {MIN_HELD_BACK} are needed"
        return Verdict(False, reason, was, would_be, len(y), by_class)
    n = np.array([np.count_nonzero(y == c) for c in classes], dtype=np.float64)
    gained = np.array([np.count_nonzero((after & ~before)[y == c]) for c in classes], dtype=np.float64)
    lost = np.array([np.count_nonzero((before & ~after)[y == c]) for c in classes], dtype=np.float64)
    changes, variances = _changes(n, gained, lost)
    n_unjudged = max(n_known - len(classes), 0)
    n_classes = len(classes) + n_unjudged
    error = float(np.sqrt(variances.sum() + n_unjudged * UNJUDGED_VAR)) / n_classes
    least = float(changes.sum()) / n_classes - (ERRORS + MORE_ERRORS / len(y)) * error
    worst = float(np.where(n < MIN_HELD_BACK, changes + np.sqrt(variances), (gained - lost) / n).min())
    found = f"balanced accuracy {would_be - was:+.1%} on {len(y)} held back"
    if n_unjudged:
        found += f", {n_unjudged} of {n_known} classes unjudged"
    if least < -TOLERANCE:
        reason = f"{found} leaves a fall of {-least:.1%} possible; {TOLERANCE:.0%} is allowed"
    elif worst < -class_margin:
        reason = f"a class would lose {-worst:.0%}"
    else:
        return Verdict(True, found, was, would_be, len(y), by_class)
    return Verdict(False, reason, was, would_be, len(y), by_class)


def _changes(n: FloatArray, gained: FloatArray, lost: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Expected change of each class's accuracy, and its variance: (C,) counts → (C,), (C,).

    The posterior of (gained, lost, as before) under a Dirichlet prior of `PSEUDO_COUNT` for the first two and
    none for the third.
    """
    total = n + 2 * PSEUDO_COUNT
    means = (gained - lost) / total
    variances = ((gained + lost + 2 * PSEUDO_COUNT) / total - means**2) / (total + 1)
    return means, variances
