"""What to rehearse: a candidate head relearns from remembered exemplars, slice by slice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Generic, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from edge_cl.memory import Exemplars, ReplayMemory
from edge_cl.records import FloatArray, SleepProgress
from edge_cl.sleep.gate import Verdict, judge

MAX_EXEMPLARS = 4096
"""Rehearsed at most per sleep, all classes alike: bounds the work and the memory of a sleep."""


class Sleeper(Protocol):
    """What sleep needs of a head."""

    @property
    def n_classes(self) -> int: ...
    def copy(self) -> Self: ...
    def exam(self, X: FloatArray, y: NDArray[np.int64], *, learned: bool) -> FloatArray: ...
    def settle(self, X: FloatArray, y: NDArray[np.int64]) -> None: ...
    def rehearse(self, exemplars: Exemplars) -> Iterator[None]: ...


H = TypeVar("H", bound=Sleeper)


class Rehearsal(Generic[H]):
    """One sleep: everything it depends on is taken at its start, so its outcome is a pure
    function of head, memory and seed, whatever is learned meanwhile.

    Parameters
    ----------
    head
        The head awake; never changed here.
    memory
        Exemplars to rehearse and to judge by.
    seed
        Chooses the rehearsed exemplars.
    """

    def __init__(self, head: H, memory: ReplayMemory, seed: int) -> None:
        per_class = max(MAX_EXEMPLARS // max(head.n_classes, 1), 1)
        self._X, self._y = memory.rehearsed.sample(per_class, np.random.default_rng(seed))
        self._test_X, self._test_y = memory.held_back.exemplars()
        self.candidate: H = head.copy()
        self._before = self._correct(self.candidate, learned=True)
        self.verdict: Verdict | None = None
        self.cpu_s = 0.0

    @property
    def n_exemplars(self) -> int:
        """Exemplars rehearsed."""
        return len(self._y)

    @property
    def n_held_back(self) -> int:
        """Exemplars that judge."""
        return len(self._test_y)

    def slices(self, slice_s: float) -> Iterator[SleepProgress]:
        """Work in slices of about `slice_s` seconds each; afterwards `verdict` is set."""
        total = max(len(self._X) // 64, 1)
        began, cpu_began = time.monotonic(), time.process_time()
        for done, _ in enumerate(self.candidate.rehearse(Exemplars.of(self._X, self._y)), start=1):
            if time.monotonic() - began >= slice_s:
                self.cpu_s += time.process_time() - cpu_began
                yield SleepProgress(phase="rehearse", done=min(done, total), total=total)
                began, cpu_began = time.monotonic(), time.process_time()
        self.verdict = judge(self._before, self._correct(self.candidate, learned=False), self._test_y)
        if self.verdict.adopted:
            self.candidate.settle(self._test_X, self._test_y)
        self.cpu_s += time.process_time() - cpu_began
        yield SleepProgress(phase="gate", done=total, total=total)

    def _correct(self, head: H, *, learned: bool) -> NDArray[np.bool_]:
        if not len(self._test_X):
            return np.zeros(0, dtype=np.bool_)
        scores = head.exam(self._test_X, self._test_y, learned=learned)
        return np.asarray(scores.argmax(axis=1) == self._test_y)
