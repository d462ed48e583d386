"""The board's power supply and temperature, as the kernel tells them in files.

Files: sysfs-class-power, sysfs-class-thermal and hwmon's sysfs-interface in the Linux kernel's Documentation;
the bits of ``get_throttled`` in the Raspberry Pi documentation of ``vcgencmd``.
"""

from __future__ import annotations

import contextlib
from datetime import datetime, timedelta
from pathlib import Path

from edge_cl.config import SleepSettings

LOOK_EVERY = timedelta(seconds=1)
"""Files are read at most so often, since asking a sensor can take milliseconds."""
PLAUSIBLE_CELSIUS = (-60.0, 200.0)
"""Outside of it a zone reports that it has no reading."""
CONSTANT_ZONE = "PMIC"
"""Jetson boards have a zone of this name that always says 100 °C."""
PI_THROTTLED = "sys/devices/platform/soc*/soc*:firmware/get_throttled"
"""Raspberry Pi: bits in hexadecimal; bit 0 is under-voltage now. On a Pi 5 the soc has its
address in its name.
"""
PI_VOLTAGE_SENSOR = "rpi_volt"
"""Its hwmon device, on kernels that hide the file above from users."""


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
        self.under_voltage: bool | None = None
        """Whether the power supply is too weak right now, None unknown."""

    def look(self, now: datetime) -> None:
        """Read the files again when `LOOK_EVERY` has passed, or the clock was set."""
        if self._looked_at is None or abs(now - self._looked_at) >= LOOK_EVERY:
            self._looked_at = now
            self.on_mains = _on_mains(self._root)
            self.celsius = _celsius(self._root)
            self.under_voltage = _under_voltage(self._root)

    @property
    def power(self) -> str:
        """For a person: ``under-voltage``, ``battery``, ``mains``, or "" when the board cannot tell."""
        if self.under_voltage:
            return "under-voltage"
        return {True: "mains", False: "battery", None: ""}[self.on_mains]

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


def throttled_bits(root: Path) -> int | None:
    """What a Raspberry Pi's firmware says of its supply and heat, None when there is no such file."""
    for path in root.glob(PI_THROTTLED):
        with contextlib.suppress(ValueError):
            return int(_read(path), 16)
    return None


def _under_voltage(root: Path) -> bool | None:
    """Whether the voltage of a Raspberry Pi is below what it needs; other boards do not say."""
    bits = throttled_bits(root)
    if bits is not None:
        return bool(bits & 1)
    for sensor in (root / "sys/class/hwmon").glob("hwmon*"):
        if _read(sensor / "name") == PI_VOLTAGE_SENSOR:
            alarm = _read(sensor / "in0_lcrit_alarm")
            return alarm == "1" if alarm in ("0", "1") else None
    return None


def _read(path: Path) -> str:
    """A small file's text, "" when it cannot be read: sensors that are switched off refuse."""
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""
