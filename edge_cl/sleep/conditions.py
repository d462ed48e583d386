"""Whether the surroundings allow a sleep: time of day, power, temperature. The caller reads the clock.

What a board cannot tell does not keep it awake: an unknown temperature or power supply is said (`unknown`),
not waited for.
"""

from __future__ import annotations

from datetime import datetime

from edge_cl.config import SleepSettings
from edge_cl.sleep.surroundings import Surroundings

RELEASE_YEAR = 2026
"""A clock that shows an earlier year was never set: a board without a battery for it starts in 1970."""


def may_sleep(
    settings: SleepSettings, surroundings: Surroundings, now: datetime, *, asleep: bool = False
) -> str:
    """Why not to sleep now, "" when a sleep may begin, or with `asleep` go on.

    Heat, battery and a weak power supply also pause a sleep; the night window only decides when one begins,
    so that one which runs past its end, or meets a clock that is set, still ends.

    Parameters
    ----------
    settings
        The conditions.
    surroundings
        Looked at here, at most every `LOOK_EVERY`.
    now
        Local wall clock. It may jump: nothing is concluded from an earlier call's.
    asleep
        Whether a sleep has begun.
    """
    if not asleep and (reason := _awaits_night(settings.night, now)):
        return reason
    surroundings.look(now)
    if surroundings.under_voltage:  # it may be gone in a moment, and work makes that likelier
        return "under-voltage, waiting for a stronger power supply"
    if settings.on_mains and surroundings.on_mains is False:
        return "on battery, waiting for mains power"
    if surroundings.too_hot(settings.max_celsius, settings.hysteresis_celsius):
        resume = settings.max_celsius - settings.hysteresis_celsius
        return f"{surroundings.celsius:.0f} °C, waiting for {resume:g} °C"
    return ""


def _awaits_night(night: str, now: datetime) -> str:
    if not night:
        return ""
    if now.year < RELEASE_YEAR:
        return f"the clock shows {now.year} and was never set, so the night window {night} is not known"
    begin, end = (_minutes(part) for part in night.split("-"))
    minute = now.hour * 60 + now.minute
    inside = begin <= minute < end if begin < end else minute >= begin or minute < end
    return "" if inside else f"waiting for the night window {night}"


def _minutes(time_of_day: str) -> int:
    hours, minutes = time_of_day.split(":")
    return 60 * int(hours) + int(minutes)
