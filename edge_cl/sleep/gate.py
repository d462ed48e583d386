"""Whether to wake with the new head: judged on exemplars that were held back.

The question is not whether the new head did worse on them, but how sure it is that it is not worse
elsewhere. Right or wrong says little when few judge, so what counts is the *sureness* of the true class
against its best rival: its change, less its error, must stay above `-TOLERANCE`. Right answers must not fall
either, beyond chance once enough judge. Losses alone make the error: one more right answer never turns a yes
into a no. The constants are chosen on sleeps of heads in trouble, ``python -m bench.gate``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_cl.records import FloatArray, distinct

MIN_HELD_BACK = 8
"""With fewer held-back exemplars no head can be judged, and the old one stays."""
CLASS_MARGIN = 0.2
"""No class may lose more than this; where fewer than `MIN_HELD_BACK` judge it: of sureness, and surely."""
TOLERANCE = 0.01
"""Balanced accuracy that an adopted head may lose."""
ERRORS, MORE_ERRORS = 1.0, 16.0
"""The change must be above -TOLERANCE by ERRORS + MORE_ERRORS / n standard errors, n exemplars."""
LEAST_ERROR = 0.3
"""Divided by n: what was not seen to change still may."""
ENOUGH = 40
"""Right answers may fall by `TOLERANCE`, and with n judges, more than these, by 1 - ENOUGH / n errors."""
POOLED = 3.0
"""Exemplars of average loss that count to every class besides: of few, the own spread says little."""
UNJUDGED_VAR = 0.1
"""Variance of the change of a class that the head knows and nobody can judge."""
PINNED_P = 0.01
"""A head loses on pinned exemplars, or on those of one class, when so many are so rarely lost by chance."""


class Verdict(NamedTuple):
    """The gate's answer; accuracies are in [0, 1], the overall ones class-balanced."""

    adopted: bool
    reason: str
    accuracy_before: float
    accuracy_after: float
    n_judged: int
    by_class: dict[int, tuple[float, float]]
    """Class index → accuracy before and after, of the classes that were judged."""


class _Change(NamedTuple):
    """A class-balanced mean with its standard error, and the same per judged class (C,)."""

    mean: float
    error: float
    by_class: FloatArray
    class_errors: FloatArray


def answers(scores: FloatArray, y: NDArray[np.int64]) -> FloatArray:
    """Probability of the true class and of its best rival: (n, C) scores, (n,) classes → (n, 2)."""
    rows = np.arange(len(y))
    rivals = np.array(scores, dtype=np.float64)
    rivals[rows, y] = 0
    return np.stack([scores[rows, y], rivals.max(axis=1)], axis=1)


def judge(
    before: FloatArray,
    after: FloatArray,
    y: NDArray[np.int64],
    *,
    n_known: int = 0,
    class_margin: float = CLASS_MARGIN,
) -> Verdict:
    """Compare two heads on the same held-back exemplars.

    Parameters
    ----------
    before, after
        (n, 2) what the old and the new head answer, see `answers`.
    y
        (n,) true classes.
    n_known
        Classes that the old head knows; those of them that are not in y count as unknown, not as unchanged.
    class_margin
        No class may lose a larger share; up to twice that when balanced accuracy gains as much, since a new
        class that looks like an old one takes some of its answers.
    """
    n = len(y)
    right = [found[:, 0] > found[:, 1] for found in (before, after)]
    by_class = {int(c): (float(right[0][y == c].mean()), float(right[1][y == c].mean())) for c in distinct(y)}
    was, would_be = np.mean(list(by_class.values()) or [(0.0, 0.0)], axis=0).tolist()
    if n < MIN_HELD_BACK:
        reason = f"only {n} held-back exemplars; {MIN_HELD_BACK} are needed"
        return Verdict(False, reason, was, would_be, n, by_class)
    sureness = _change(_sureness(after) - _sureness(before), y, n_known)
    accuracy = _change(right[1] * 1.0 - right[0], y, n_known)
    possible = (ERRORS + MORE_ERRORS / n) * sureness.error - sureness.mean
    fall = -accuracy.mean - max(1 - ENOUGH / n, 0) * accuracy.error
    few = np.bincount(np.unique(y, return_inverse=True)[1]) < MIN_HELD_BACK
    worst = float(np.where(few, sureness.by_class + sureness.class_errors, accuracy.by_class).min())
    found = f"balanced accuracy {would_be - was:+.1%}, sureness {sureness.mean:+.1%} on {n} held back"
    if n_known > len(by_class):
        found += f", {n_known - len(by_class)} of {n_known} classes unjudged"
    if max(possible, fall) > TOLERANCE:
        reason = f"{found} leaves a fall of {max(possible, fall):.1%} possible; {TOLERANCE:.0%} is allowed"
    elif worst < -class_margin - min(max(accuracy.mean, 0.0), class_margin):
        reason = f"a class would lose {-worst:.0%}"
    else:
        return Verdict(True, found, was, would_be, n, by_class)
    return Verdict(False, reason, was, would_be, n, by_class)


def loss_on_pinned(before: FloatArray, after: FloatArray, y: NDArray[np.int64]) -> str:
    """What a head loses on pinned exemplars beyond chance, "" for nothing.

    An exact sign test of answers that changed, on all of them and, at a level shared among the classes, on
    each class: before, after (n, 2) as in `judge`, y (n,).
    """
    was_right, is_right = (found[:, 0] > found[:, 1] for found in (before, after))
    lost, won = was_right & ~is_right, is_right & ~was_right
    if _by_chance(int(lost.sum()), int(won.sum())) <= PINNED_P:
        return f"it loses {lost.sum()} of {len(y)} pinned exemplars and wins {won.sum()}"
    classes = distinct(y)
    for c in classes:
        n_lost, n_won = int((lost & (y == c)).sum()), int((won & (y == c)).sum())
        if _by_chance(n_lost, n_won) <= PINNED_P / len(classes):
            return f"it loses {n_lost} of {(y == c).sum()} pinned exemplars of a class and wins {n_won}"
    return ""


def _by_chance(n_lost: int, n_won: int) -> float:
    """Probability of at least `n_lost` heads in `n_lost + n_won` throws of a coin."""
    n = n_lost + n_won
    return sum(math.comb(n, k) for k in range(n_lost, n + 1)) * 0.5**n


def _sureness(found: FloatArray) -> FloatArray:
    """Of the true class against its best rival, in [0, 1], above a half when right: (n, 2) → (n,)."""
    sureness: FloatArray = found[:, 0] / np.maximum(found.sum(axis=1), 1e-12)
    return sureness


def _change(gains: FloatArray, y: NDArray[np.int64], n_known: int) -> _Change:
    """Mean gain of classes alike, and its error from what was lost: (n,), in [-1, 1], at least one.

    Were gains and losses alike, their variance would be twice the mean square of the losses.
    """
    _, which, n = np.unique(y, return_inverse=True, return_counts=True)
    means = np.bincount(which, weights=gains) / n
    squares = np.minimum(gains, 0) ** 2
    spread = (np.bincount(which, weights=squares) + POOLED * squares.mean()) / (n + POOLED)
    variances = 2 * spread / n
    n_classes = max(len(n), n_known)
    variance = (variances.sum() + (n_classes - len(n)) * UNJUDGED_VAR) / n_classes**2
    error = float(np.sqrt(variance + (LEAST_ERROR / len(y)) ** 2))
    return _Change(float(means.sum()) / n_classes, error, means, np.sqrt(variances))
