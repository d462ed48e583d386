"""How far accuracy falls on the way: what an average over the end of the road does not show."""

from __future__ import annotations

import math
from typing import Any


class Stability:
    """Worst-case accuracy over a run of evaluations, awake or asleep. O(C) per update, one row per class.

    A class counts as old from the evaluation after its first one. Accuracies are in [0, 1], classes weigh
    alike, and a class that an evaluation leaves out keeps its last accuracy. Source: Soutif-Cormerais et al.
    (arXiv 2306.16817), equations 1 to 4, with classes as tasks.
    """

    def __init__(self) -> None:
        self._now: dict[int, float] = {}
        self._lowest: dict[int, float] = {}  # of old classes, their first evaluation excluded
        self._before: dict[int, float] = {}
        self._worst_after: float | None = None
        self._sum_of_means = 0.0
        self.n_evaluations = 0

    def update(self, accuracy_by_class: dict[int, float]) -> None:
        """Count one evaluation: class index → accuracy, of the classes that it could judge."""
        if not accuracy_by_class:
            return
        for c, accuracy in accuracy_by_class.items():
            if c in self._now:
                self._lowest[c] = min(accuracy, self._lowest.get(c, accuracy))
        self._now |= accuracy_by_class
        self.n_evaluations += 1
        self._sum_of_means += _mean(self._now)
        if not self._before:
            self.mark()
            return
        after = _mean({c: self._now[c] for c in self._before})
        self._worst_after = after if self._worst_after is None else min(after, self._worst_after)

    def mark(self) -> None:
        """From here on `gap` compares with what the last evaluation found: call it when a sleep begins."""
        self._before, self._worst_after = dict(self._now), None

    @property
    def accuracy(self) -> float:
        """Mean over classes at the last evaluation; 0 before the first."""
        return _mean(self._now)

    @property
    def average_accuracy(self) -> float:
        """AAA: mean over evaluations of the mean accuracy of the classes known then; 0 before the first."""
        return self._sum_of_means / max(self.n_evaluations, 1)

    @property
    def min_acc(self) -> float | None:
        """min-ACC: mean over old classes of the lowest accuracy after their first evaluation, or None."""
        return _mean(self._lowest) if self._lowest else None

    @property
    def wc_acc(self) -> float:
        """WC-ACC: as `min_acc`, with classes that have one evaluation so far at that; 0 before the first."""
        return _mean(self._now | self._lowest)

    @property
    def gap(self) -> float:
        """Accuracy at the mark (else the first evaluation) less the worst after it, on the classes of then.

        Negative when it only rose; 0 before there is an evaluation after.
        """
        return 0.0 if self._worst_after is None else _mean(self._before) - self._worst_after

    def state(self) -> dict[str, Any]:
        """JSON values that `restore` takes back."""
        return {
            "now": sorted(self._now.items()),
            "lowest": sorted(self._lowest.items()),
            "before": sorted(self._before.items()),
            "worst_after": self._worst_after,
            "sum_of_means": self._sum_of_means,
            "n_evaluations": self.n_evaluations,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave."""
        self._now, self._lowest, self._before = (
            {int(c): float(accuracy) for c, accuracy in state[key]} for key in ("now", "lowest", "before")
        )
        self._worst_after = state["worst_after"]
        self._sum_of_means, self.n_evaluations = state["sum_of_means"], state["n_evaluations"]


def _mean(accuracies: dict[int, float]) -> float:
    return math.fsum(accuracies.values()) / len(accuracies) if accuracies else 0.0
