"""When this device sleeps: causes, conditions, requests, the peace that an urgent reading asks for."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from datetime import datetime

from edge_cl.config import SleepSettings
from edge_cl.durable import DurableKnowledge
from edge_cl.records import SleepPlan, SleepProgress, SleepReport
from edge_cl.sleep import SleepNeed, Surroundings, may_sleep, sleep_cause
from edge_cl.trust import PrequentialAccuracy

log = logging.getLogger(__name__)

AFTER_URGENT_S = 10.0
"""No sleep for so long after an urgent reading."""
LOG_EVERY_S = 10.0
MOST_PUT_OFF = 3
"""Events in a row that are served before a sleep goes on while others wait: a sleep has to end, too."""


class Rest:
    """Begins sleeps, works through them slice by slice, pauses and stops them.

    Parameters
    ----------
    durable
        What sleeps.
    settings
        Causes, conditions and amounts.
    accuracy
        Prequential, of the device.
    """

    def __init__(
        self, durable: DurableKnowledge, settings: SleepSettings, accuracy: PrequentialAccuracy
    ) -> None:
        self._durable = durable
        self._settings = settings
        self._accuracy = accuracy
        self._best: float | None = None
        self._surroundings = Surroundings()
        self._idle_since = self._logged_at = time.monotonic()
        self._n_put_off = 0
        self._not_before = 0.0
        self._requested = self._on_request = False
        self._waits_for = ""
        self._nap: Iterator[SleepProgress] | None = None
        self._progress: SleepProgress | None = None

    @property
    def asleep(self) -> bool:
        """Whether a sleep is under way."""
        return self._nap is not None

    @property
    def waits(self) -> bool:
        """Whether the surroundings kept a sleep from going on when it was last its turn."""
        return bool(self._waits_for)

    def look_around(self) -> Surroundings:
        """Power supply and temperature of the board, as of about now."""
        self._surroundings.look(datetime.now())
        return self._surroundings

    @property
    def drift_points(self) -> float | None:
        """How many points accuracy is below its best since the last sleep; None when it cannot be told."""
        now = self._accuracy.value
        if now is None or self._best is None or not self._accuracy.full:
            return None
        return max(0.0, 100 * (self._best - now))

    def note_reading(self, *, urgent: bool) -> None:
        """A reading came."""
        self._idle_since = time.monotonic()
        if urgent:
            self._not_before = self._idle_since + AFTER_URGENT_S

    def note_label(self) -> None:
        """A label was learned."""
        now = self._accuracy.value
        if now is not None and self._accuracy.full:
            self._best = now if self._best is None else max(self._best, now)

    def request(self) -> None:
        """Somebody asks for a sleep: it needs no other cause, and conditions do not matter.

        One that is under way is the one asked for.
        """
        if self.asleep:
            self._on_request = True
        else:
            self._requested = True

    def doze(self, busy: Callable[[], bool]) -> SleepReport | None:
        """One slice of sleep, when asleep or when it is time to be; the report at the end of a sleep.

        Raises StateUnwritable; call `forget` then.
        """
        if self._nap is None and not self._fall_asleep(busy):
            return None
        if self._nap is None or self._put_off(busy) or not self._allowed(self._on_request, asleep=True):
            return None
        self._progress = next(self._nap, None)
        if self._progress is None:
            return self._woken()
        if time.monotonic() - self._logged_at >= LOG_EVERY_S:
            self._logged_at = time.monotonic()
            log.info("%s", self.describe())
        return None

    def sleep(self, cause: str, busy: Callable[[], bool] = bool) -> Iterator[SleepProgress]:
        """Sleep through, slice by slice; takes up a sleep that a stop cut off instead, if there is one."""
        s = self._settings
        plan = SleepPlan(
            cause=cause,
            sampler=s.sampler,
            steps=s.steps,
            class_margin=s.class_margin,
            began_s=round(time.time(), 3),
        )
        yield from self._durable.sleep(plan, slice_s=s.slice_ms / 1000, cpu_s=s.cpu_s or math.inf, busy=busy)
        self._best = None

    def stop(self, why: str) -> SleepReport | None:
        """Drop the sleep under way, if any; its report. A request whose sleep has not begun stands."""
        if self._nap is None:
            return None
        if self._progress is None and not self._durable.knowledge.asleep:
            self.forget()
            return None
        self._durable.end_sleep(drop=why)
        return self._woken()

    def forget(self) -> None:
        """The knowledge that slept is no more; a request for that sleep stands."""
        self._requested = self._requested or (self.asleep and self._on_request)
        self._nap = self._progress = None

    def adjust(self, settings: SleepSettings) -> None:
        """Rest by these settings from now on."""
        self._settings = settings

    def describe(self) -> str:
        """For a person: how far a sleep is, what it waits for, or how much there would be to sleep on."""
        if self._progress is not None and self._durable.knowledge.asleep:
            doing = f"asleep: {self._progress.phase} {self._progress.done:,} of {self._progress.total:,}"
        else:
            doing = f"awake, {self._durable.knowledge.labels_since_sleep:,} labels since the last sleep"
        unknown = self._surroundings.unknown(self._settings)
        return "; ".join(filter(None, [doing, self._waits_for, unknown]))

    def _put_off(self, busy: Callable[[], bool]) -> bool:
        self._n_put_off = self._n_put_off + 1 if busy() and self._n_put_off < MOST_PUT_OFF else 0
        return self._n_put_off > 0

    def _fall_asleep(self, busy: Callable[[], bool]) -> bool:
        cut_off = self._durable.knowledge.asleep
        cause = "asked" if self._requested or cut_off else self._cause()
        if not cause or not self._allowed(self._requested, asleep=cut_off):
            return False
        log.info("sleep begins: %s", "taken up again" if cut_off else cause)
        self._on_request, self._requested = self._requested, False
        self._nap = self.sleep(cause, busy)
        return True

    def _woken(self) -> SleepReport | None:
        self._nap = self._progress = None
        report = self._durable.knowledge.last_sleep
        if report is not None:
            log.info("sleep %d ended: %s", report.n_sleep, report.reason)
        return report

    def _allowed(self, on_request: bool, *, asleep: bool) -> bool:
        """Whether the surroundings let a sleep begin, or, `asleep`, go on."""
        now = datetime.now()
        self._waits_for = (
            "" if on_request else may_sleep(self._settings, self._surroundings, now, asleep=asleep)
        )
        return not self._waits_for

    def _cause(self) -> str:
        if time.monotonic() < self._not_before:
            return ""
        known = self._durable.knowledge
        need = SleepNeed(
            known.labels_since_sleep,
            known.n_labels,
            idle_s=time.monotonic() - self._idle_since,
            memory_turnover=known.memory_turnover() if self._settings.memory_turnover else 0.0,
            accuracy_now=self._accuracy.value if self._accuracy.full else None,
            accuracy_best=self._best,
        )
        return sleep_cause(self._settings, need)
