"""One sleep of what a device knows: the rehearsal, and the labels that come while it lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from edge_cl.heads import Head
from edge_cl.memory import ReplayMemory
from edge_cl.records import FloatArray, SleepPlan, SleepProgress, SleepReport
from edge_cl.sleep import Rehearsal, dropped, recall_after
from edge_cl.trust import Calibrator, Stability

MAX_LEARNED = 256
"""Labels kept for the waking head and the memory; then the sleep has to end."""

Teach = Callable[[Head, Calibrator, FloatArray, int], tuple[float, bool]]
"""Lets a head learn features (D,) of a class, and its calibration with it."""


class Nap:
    """A sleep under way.

    Parameters
    ----------
    head, memory
        As they are when it begins. The memory must stay so to the end; the head may go on learning.
    plan
        What to do.
    n_sleep
        Number of the sleep; seeds its choices.
    log_temperature
        Of the calibration when it begins.
    labels_before
        Labels that it sleeps on.
    pinned
        Trusted exemplars that guard it, see :class:`edge_cl.sleep.Rehearsal`.
    """

    def __init__(
        self,
        head: Head,
        memory: ReplayMemory,
        plan: SleepPlan,
        *,
        n_sleep: int,
        log_temperature: float,
        labels_before: int,
        pinned: tuple[FloatArray, NDArray[np.int64]] | None = None,
    ) -> None:
        self.plan = plan
        self.n_sleep = n_sleep
        self.labels_before = labels_before
        self.rehearsal: Rehearsal[Head] = Rehearsal(head, memory, plan, seed=n_sleep, pinned=pinned)
        self.calibrate = Calibrator(log_temperature)
        """Of the candidate."""
        self.learned: list[tuple[FloatArray, int, bool]] = []
        """Features and classes of the labels that came meanwhile, and whether they are trusted."""
        self._n_caught_up = 0
        self._work: Iterator[SleepProgress] | None = None

    @property
    def full(self) -> bool:
        """Whether no more labels may come before it ends."""
        return len(self.learned) >= MAX_LEARNED

    @property
    def adopted(self) -> bool:
        """Whether the candidate was found good enough."""
        verdict = self.rehearsal.verdict
        return verdict is not None and verdict.adopted

    def pieces(self, teach: Teach, n_steps: int | None = None) -> Iterator[SleepProgress]:
        """The next pieces of work, each of a few milliseconds, until it may end.

        May be left and taken up again by another call. An adopted candidate learns what came meanwhile, in
        order, so that everything is as if the sleep had taken no time. `n_steps` repeats a sleep that was
        ended early.
        """
        if self._work is None:
            self._work = self.rehearsal.pieces(n_steps)
        for progress in self._work:  # noqa: UP028  closing this generator must not close the work
            yield progress
        while self.adopted and self._n_caught_up < len(self.learned):
            x, y, _ = self.learned[self._n_caught_up]
            teach(self.rehearsal.candidate, self.calibrate, x, y)
            self._n_caught_up += 1
            yield SleepProgress(phase="catch up", done=self._n_caught_up, total=len(self.learned))

    def note_recall(self, memory: ReplayMemory) -> None:
        """After a sleep that chose by recall: what was answered right rests, what was wrong comes back."""
        rows, right = self.rehearsal.recalled
        if len(rows):
            box, due = recall_after(memory.rehearsed.box[rows].astype(np.int8), right, self.n_sleep)
            memory.rehearsed.rest(rows, box.astype(np.uint8), np.minimum(due, 65_535).astype(np.uint16))

    def report(
        self, class_names: Sequence[str], awake: Stability, *, drop: str, cpu_s: float, held_bytes: int
    ) -> SleepReport:
        """What it did; `drop` says why it was not waited for, `awake` how steady the head was before."""
        rehearsal = self.rehearsal
        verdict = rehearsal.verdict
        if verdict is None or drop:
            verdict = dropped(drop)
        asleep = Stability()
        for accuracy_by_class in rehearsal.looks:
            asleep.update(accuracy_by_class)
        return SleepReport(
            n_sleep=self.n_sleep,
            cause=self.plan.cause,
            sampler=self.plan.sampler,
            began_s=self.plan.began_s,
            n_exemplars=rehearsal.n_exemplars,
            n_held_back=rehearsal.n_held_back,
            n_steps=rehearsal.n_steps,
            accuracy_before=verdict.accuracy_before,
            accuracy_after=verdict.accuracy_after,
            by_class={class_names[c]: pair for c, pair in verdict.by_class.items()},
            adopted=verdict.adopted,
            reason=verdict.reason,
            min_acc=awake.min_acc or 0.0,
            wc_acc=awake.wc_acc,
            stability_gap=awake.gap,
            gap_asleep=asleep.gap,
            cpu_s=round(cpu_s, 4),
            held_bytes=held_bytes,
        )
