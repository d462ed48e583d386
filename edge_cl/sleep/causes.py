"""Why to rest."""

from __future__ import annotations

from typing import NamedTuple

from edge_cl.config import SleepSettings

GROWTH = 8
"""`after_labels` also needs an eighth more labels than all before: what little is new, sleep cannot use."""


class SleepNeed(NamedTuple):
    """What speaks for a sleep.

    Attributes
    ----------
    labels_since, n_labels
        Labels learned since the last sleep, and ever.
    idle_s
        Seconds without a reading.
    memory_turnover
        Exemplars stored since the last sleep, as a share of the exemplars held.
    accuracy_now, accuracy_best
        Recent accuracy and the best it was since the last sleep, in [0, 1]; None while too few labels tell.
    """

    labels_since: int
    n_labels: int
    idle_s: float = 0.0
    memory_turnover: float = 0.0
    accuracy_now: float | None = None
    accuracy_best: float | None = None


def sleep_cause(settings: SleepSettings, need: SleepNeed) -> str:
    """Why to sleep now ("" = no reason); 0 in the settings turns a cause off.

    Every cause needs new labels, so that nothing, a clock that jumps least of all, makes a device sleep twice
    on the same ones. All but idleness depend only on labels: a device that restarts sleeps at the same one.

    >>> sleep_cause(SleepSettings(after_labels=100), SleepNeed(100, 500))
    '100 labels since the last sleep'
    >>> sleep_cause(SleepSettings(after_labels=100), SleepNeed(100, 5000))
    ''
    >>> sleep_cause(SleepSettings(idle_s=5.0, min_labels=32), SleepNeed(31, 31, idle_s=60.0))
    ''
    >>> sleep_cause(SleepSettings(drift_points=5), SleepNeed(40, 9000, accuracy_now=0.8, accuracy_best=0.9))
    'accuracy fell by 10.0 points, from 90.0 %'
    """
    if settings.after_labels and need.labels_since >= max(settings.after_labels, need.n_labels / GROWTH):
        return f"{need.labels_since} labels since the last sleep"
    if need.labels_since < max(settings.min_labels, 1):
        return ""
    if settings.memory_turnover and need.memory_turnover >= settings.memory_turnover:
        return f"{need.memory_turnover:.0%} of the memory is new since the last sleep"
    if cause := _drift(settings.drift_points, need.accuracy_now, need.accuracy_best):
        return cause
    if settings.idle_s and need.idle_s >= settings.idle_s:
        return f"idle for {need.idle_s:.1f} s"
    return ""


def _drift(drift_points: float, now: float | None, best: float | None) -> str:
    if not drift_points or now is None or best is None or 100 * (best - now) < drift_points:
        return ""
    return f"accuracy fell by {100 * (best - now):.1f} points, from {100 * best:.1f} %"
