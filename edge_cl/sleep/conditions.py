"""Whether the surroundings allow a sleep: time of day, power, temperature. The caller reads the clock.

What a board cannot tell does not keep it awake: an unknown temperature or power supply is said (`unknown`),
not waited for. Files: sysfs-class-power and sysfs-class-thermal in the Linux kernel's Documentation/ABI.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

from edge_cl.config import SleepSettings

RELEASE_YEAR = 2026
"""A clock that shows an earlier year was never set: a board without a battery for it starts in 1970."""
LOOK_EVERY = timedelta(seconds=1)
"""Files are read at most so often, since asking a sensor can take milliseconds."""
PLAUSIBLE_CELSIUS = (-60.0, 200.0)
"""Outside of it a zone reports that it has no reading."""
CONSTANT_ZONE = "PMIC"
"""Jetson boards have a zone of this name that always says 100 °C."""


class Surroundings:
    """Power supply and temperature of the board, as the kernel tells them.

    Parameters
    ----------
    root
        Where ``sys`` is; another folder in tests.
    """

    def __init__(self, root: Path = Path("/")) -> None:
        self._root = root
        self._looked_at: datetime | None = None
        self._too_hot = False
        self.on_mains: bool | None = None
        """False on battery, None unknown."""
        self.celsius: float | None = None
        """The hottest thermal zone, None unknown."""

    def look(self, now: datetime) -> None:
        """Read the files again when `LOOK_EVERY` has passed, or the clock was set."""
        if self._looked_at is None or abs(now - self._looked_at) >= LOOK_EVERY:
            self._looked_at = now
            self.on_mains = _on_mains(self._root)
            self.celsius = _celsius(self._root)

    def too_hot(self, max_celsius: float, hysteresis_celsius: float) -> bool:
        """True from `max_celsius` until it is cooler than that less the hysteresis."""
        if not max_celsius or self.celsius is None:
            self._too_hot = False
        else:
            limit = max_celsius - hysteresis_celsius if self._too_hot else max_celsius
            self._too_hot = self.celsius >= limit
        return self._too_hot

    def unknown(self, settings: SleepSettings) -> str:
        """The conditions that were asked for and cannot be known here ("" = none), as of the last look."""
        lacking = []
        if settings.on_mains and self.on_mains is None:
            lacking.append("power supply unknown")
        if settings.max_celsius and self.celsius is None:
            lacking.append("temperature unknown")
        return ", ".join(lacking)


def may_sleep(
    settings: SleepSettings, surroundings: Surroundings, now: datetime, *, asleep: bool = False
) -> str:
    """Why not to sleep now, "" when a sleep may begin, or with `asleep` go on.

    Heat and battery also pause a sleep; the night window only decides when one begins, so that one which runs
    past its end, or meets a clock that is set, still ends.

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
    if not settings.on_mains and not settings.max_celsius:
        return ""
    surroundings.look(now)
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


def _on_mains(root: Path) -> bool | None:
    """Whether the board runs on mains power; only one with a battery of its own can be without.

    A supply that is offline says little alone: a Jetson on its barrel jack has an idle USB-C supply.
    """
    batteries = []
    for supply in sorted((root / "sys/class/power_supply").glob("*")):
        kind = _read(supply / "type")
        if kind in ("Battery", "UPS"):
            if _read(supply / "scope") != "Device":  # else that of a mouse or a headset
                batteries.append(_read(supply / "status"))
        elif _read(supply / "online") not in ("", "0"):
            return True
    if "Discharging" in batteries:
        return False
    return True if {"Charging", "Full", "Not charging"} & set(batteries) else None


def _celsius(root: Path) -> float | None:
    """The hottest thermal zone; zones without a plausible reading are passed over."""
    readings = []
    for zone in (root / "sys/class/thermal").glob("thermal_zone*"):
        text = _read(zone / "temp")
        if not _read(zone / "type").startswith(CONSTANT_ZONE) and text.lstrip("-").isdigit():
            readings.append(int(text) / 1000)
    low, high = PLAUSIBLE_CELSIUS
    return max((celsius for celsius in readings if low < celsius < high), default=None)


def _read(path: Path) -> str:
    """A small file's text, "" when it cannot be read: sensors that are switched off refuse."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
