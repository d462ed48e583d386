"""One sleep: a candidate head relearns from remembered exemplars, piece by piece, and is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import ClassVar, Generic, Protocol, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import NumericalError
from edge_cl.memory import Exemplars, ReplayMemory
from edge_cl.records import FloatArray, SleepPlan, SleepProgress, distinct
from edge_cl.sleep import samplers
from edge_cl.sleep.gate import Verdict, answers, judge, loss_on_pinned
from edge_cl.sleep.samplers import Candidates

BLOCK = 32
"""Held-back exemplars judged at once."""
BY_RECALL = "spaced"
"""The sampler that chooses by what was answered right before."""
N_LOOKS = 10
"""Times that a candidate is looked at while it learns by steps."""
PIECE = 64
"""Exemplars that a head learns about so many of per piece, where it learns each once; for the progress."""


def dropped(why: str) -> Verdict:
    """The verdict on a candidate that is not waited for."""
    return Verdict(False, f"dropped: {why}", 0.0, 0.0, 0, {})


class Sleeper(Protocol):
    """What sleep needs of a head."""

    learns_by_steps: ClassVar[bool]

    class_counts: NDArray[np.float64]

    def copy(self) -> Self: ...
    def exam(self, X: FloatArray, y: NDArray[np.int64], *, learned: bool) -> FloatArray: ...
    def settle(self, X: FloatArray, y: NDArray[np.int64]) -> None: ...
    def rehearse(self, exemplars: Exemplars) -> Iterator[None]: ...


H = TypeVar("H", bound=Sleeper)
Features: TypeAlias = Callable[[NDArray[np.int64]], FloatArray]
"""Gives the features (n, D) of rows (n,)."""


class Rehearsal(Generic[H]):
    """One sleep. Its outcome is a pure function of head, memory, plan and the number of steps done.

    Parameters
    ----------
    head
        The head awake; never changed here.
    memory
        Exemplars to rehearse and to judge by; must not change before the end.
    plan
        What to do.
    seed
        Chooses what is rehearsed.
    pinned
        Trusted exemplars X (n, D), y (n,) that are never rehearsed; a candidate that loses on them beyond
        chance is refused, whatever the others say.
    """

    def __init__(
        self,
        head: H,
        memory: ReplayMemory,
        plan: SleepPlan,
        seed: int,
        pinned: tuple[FloatArray, NDArray[np.int64]] | None = None,
    ) -> None:
        self._plan = plan
        self._n_known = int(np.count_nonzero(head.class_counts))
        self.candidate: H = head.copy()
        self.exemplars = _exemplars(memory, plan, seed)
        self._judges = memory.held_back
        self._judge_y = memory.held_back.labels
        self.n_steps = 0
        """Pieces of rehearsal done."""
        self.ended_early = False
        self.looks: list[dict[int, float]] = []
        """Accuracy by class of a candidate that learns by steps, before the first and on the way."""
        self.recalled = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.bool_)
        """Rows that a sampler by recall asked for, and whether the candidate was right about them."""
        self.before, self.after = np.zeros((2, self.n_held_back, 2))
        """Answers of the head awake and of the candidate to what is held back, see `gate.answers`."""
        self._pinned = pinned or (np.zeros((0, 1)), np.zeros(0, dtype=np.int64))
        self._pinned_before, self._pinned_after = np.zeros((2, len(self._pinned[1]), 2))
        self.verdict: Verdict | None = None

    @property
    def n_exemplars(self) -> int:
        """Exemplars to choose from."""
        return len(self.exemplars.y)

    @property
    def n_held_back(self) -> int:
        """Exemplars that judge."""
        return len(self._judge_y)

    def enough(self) -> bool:
        """End the rehearsal after the present step, where the head can; whether it can."""
        self.ended_early = self.ended_early or self.candidate.learns_by_steps
        return self.ended_early

    def pieces(self, n_steps: int | None = None) -> Iterator[SleepProgress]:
        """Work in pieces of a few milliseconds; afterwards `verdict` is set.

        `n_steps`, for repeating a sleep that was ended early, is the number of steps it did.
        """
        yield from self._exams(self.before, self._pinned_before, learned=True)
        if self.candidate.learns_by_steps:
            self._look()
        total = self.exemplars.n_steps if self.candidate.learns_by_steps else self.n_exemplars // PIECE + 1
        try:
            for _ in self.candidate.rehearse(self.exemplars):
                self.n_steps += 1
                if self.candidate.learns_by_steps and self.n_steps % max(total // N_LOOKS, 1) == 0:
                    self._look()
                yield SleepProgress(phase="rehearse", done=min(self.n_steps, total), total=total)
                if self.n_steps == n_steps or (self.ended_early and n_steps is None):
                    self.ended_early = True
                    break
        except NumericalError as error:
            self.verdict = dropped(str(error))
            return
        yield from self._exams(self.after, self._pinned_after, learned=False)
        self.verdict = self._judge()
        if self._plan.sampler == BY_RECALL:
            yield from self._recall()
        if self.verdict.adopted:
            for rows in _blocks(self.n_held_back):
                self.candidate.settle(self._judges.features(rows), self._judge_y[rows])
                yield SleepProgress(phase="judge", done=self.n_held_back, total=self.n_held_back)

    def _recall(self) -> Iterator[SleepProgress]:
        """Ask the candidate about what was due, or, of classes without, all."""
        due = self.exemplars.sampler.select(self.n_exemplars)
        right = np.zeros(len(due), dtype=np.bool_)
        for start in range(0, len(due), BLOCK):
            rows = due[start : start + BLOCK]
            X, y = self.exemplars.features(rows), self.exemplars.y[rows]
            right[start : start + BLOCK] = self.candidate.exam(X, y, learned=False).argmax(axis=1) == y
            yield SleepProgress(phase="judge", done=start + len(rows), total=len(due))
        self.recalled = due, right

    def _look(self) -> None:
        """How well the candidate does just now, on some of the exemplars that judge."""
        if self.n_held_back:
            rows = distinct(np.linspace(0, self.n_held_back - 1, BLOCK).astype(np.int64))
            y = self._judge_y[rows]
            right = self.candidate.exam(self._judges.features(rows), y, learned=False).argmax(axis=1) == y
            self.looks.append({int(c): float(right[y == c].mean()) for c in distinct(y)})

    def _judge(self) -> Verdict:
        verdict = judge(
            self.before,
            self.after,
            self._judge_y,
            n_known=self._n_known,
            class_margin=self._plan.class_margin,
        )
        loss = loss_on_pinned(self._pinned_before, self._pinned_after, self._pinned[1])
        if verdict.adopted and loss:
            return verdict._replace(adopted=False, reason=f"{verdict.reason}; {loss}")
        return verdict

    def _exams(self, held_back: FloatArray, pinned: FloatArray, *, learned: bool) -> Iterator[SleepProgress]:
        """Fill in (n, 2) what the candidate, as it is now, answers to what is held back and to the pinned."""
        yield from self._exam(held_back, self._judges.features, self._judge_y, learned=learned)
        X, y = self._pinned
        yield from self._exam(pinned, lambda rows: X[rows].astype(np.float32), y, learned=learned)

    def _exam(
        self, found: FloatArray, features: Features, y: NDArray[np.int64], *, learned: bool
    ) -> Iterator[SleepProgress]:
        for rows in _blocks(len(y)):
            scores = self.candidate.exam(features(rows), y[rows], learned=learned)
            found[rows] = answers(scores, y[rows])
            yield SleepProgress(phase="judge", done=int(rows[-1]) + 1, total=len(y))


def _blocks(n: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, n, BLOCK):
        yield np.arange(start, min(start + BLOCK, n))


def _exemplars(memory: ReplayMemory, plan: SleepPlan, seed: int) -> Exemplars:
    rehearsed = memory.rehearsed
    y = rehearsed.labels
    candidates = Candidates(
        y=y,
        features=rehearsed.features,
        born=rehearsed.born.astype(np.int64),
        box=rehearsed.box.astype(np.int8),
        due=rehearsed.due.astype(np.int64),
        n_sleep=seed,
        seed=seed,
        n_steps=plan.steps,
    )
    return Exemplars(y, rehearsed.features, samplers.create(plan.sampler, candidates), plan.steps)
