"""What a sensor's driver offers, and where drivers are found.

A driver is a class that an entry point of the group ``edge_cl.sensors`` names. It is made with the manifest
and the options of the settings, and raises `SensorUnavailable` when the hardware is not there: it is then
made again later, with longer and longer waits. All else (windows, gaps, flags, threads) is the work of
:class:`edge_cl.sensing.live.LiveStream`.
"""

from __future__ import annotations

from typing import Any, Protocol

from edge_cl.bundle import Manifest
from edge_cl.records import FloatArray
from edge_cl.sensing.lines import Item

SENSORS = "edge_cl.sensors"
LABEL_SOURCES = "edge_cl.label_sources"


class Sensor(Protocol):
    """One open sensor. Used by one thread only, which may block in `read`."""

    full_scale: FloatArray | None
    """(n_channels,) largest magnitude that it can report, physical units; None when unknown."""

    def read(self) -> list[Item]:
        """What has come, after waiting at most about 0.1 s; times in seconds of ``time.monotonic()``.

        Raises
        ------
        SensorUnavailable
            When the hardware is gone; the driver is closed and made again later.
        BadReading
            When what came cannot be used; it is counted, and reading goes on.
        """
        ...

    def close(self) -> None:
        """Let go of the hardware; never raises."""
        ...


class SensorFactory(Protocol):
    """What an entry point of the group ``edge_cl.sensors`` names."""

    def __call__(self, manifest: Manifest, options: dict[str, Any]) -> Sensor:
        """Open it. Raises ConfigError for wrong options, SensorUnavailable when it is not there."""
        ...
