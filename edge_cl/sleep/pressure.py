"""When to rest."""

from __future__ import annotations

from edge_cl.config import SleepSettings

GROWTH = 8
"""Pressure also needs an eighth more labels than all before: what little is new, sleep cannot use."""


def sleep_cause(settings: SleepSettings, labels_since: int, n_labels: int, idle_s: float) -> str:
    """Why to sleep now ("" = no reason).

    Parameters
    ----------
    settings
        Thresholds; 0 turns a cause off.
    labels_since, n_labels
        Labels learned since the last sleep, and ever. Pressure depends on them alone, so a device that
        restarts sleeps at the same label.
    idle_s
        Seconds without a reading.

    >>> sleep_cause(SleepSettings(after_labels=100), 100, 500, 0.0)
    '100 labels since the last sleep'
    >>> sleep_cause(SleepSettings(after_labels=100), 100, 5000, 0.0)
    ''
    >>> sleep_cause(SleepSettings(idle_s=5.0, min_labels=32), 31, 31, 60.0)
    ''
    """
    if settings.after_labels and labels_since >= max(settings.after_labels, n_labels / GROWTH):
        return f"{labels_since} labels since the last sleep"
    if settings.idle_s and idle_s >= settings.idle_s and labels_since >= max(settings.min_labels, 1):
        return f"idle for {idle_s:.1f} s"
    return ""
