"""What a sensor's driver offers, where drivers are found, and how their options are read.

A driver is a class that an entry point of the group ``edge_cl.sensors`` names. It is made with the manifest
and the options of the settings, and raises `SensorUnavailable` when the hardware is not there: it is then
made again later, with longer and longer waits. All else (windows, gaps, flags, threads) is the work of
:class:`edge_cl.sensing.live.LiveStream`.
"""

from __future__ import annotations

import re
from typing import Any, Protocol, TypeVar

import msgspec

from edge_cl.errors import BadReading, ConfigError
from edge_cl.manifest import Manifest
from edge_cl.records import FloatArray, LabelDriver
from edge_cl.sensing.lines import Item

SENSORS = "edge_cl.sensors"
LABEL_SOURCES = "edge_cl.label_sources"
T = TypeVar("T", bound=msgspec.Struct)


class Sensor(Protocol):
    """One open sensor. Made, read and closed by one thread only, which may block in `read`."""

    full_scale: FloatArray | None
    """(n_channels,) largest magnitude that it can report, physical units; None when unknown."""

    rate_hz: float
    """Samples a second that it was set to; 0 when it knows no better than the bundle, or gives windows."""

    def read(self) -> list[Item | BadReading]:
        """What has come, after waiting at most about 0.1 s; times in seconds of ``time.monotonic()``.

        A `BadReading` among it is counted and logged, an `Interrupted` says that samples are missing.
        :class:`edge_cl.sensing.host_clock.HostClock` makes times of a sensor's own count.

        Raises
        ------
        SensorUnavailable, OSError
            When the hardware is gone; the driver is closed and made again later.
        BadReading
            When nothing of what came can be used.
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


class LabelFactory(Protocol):
    """What an entry point of the group ``edge_cl.label_sources`` names."""

    def __call__(self, options: dict[str, Any]) -> LabelDriver:
        """Open it; raises as a `SensorFactory`."""
        ...


def find_driver(group: str, name: str, built_in: tuple[str, ...] = ()) -> Any:
    """The class that an installed package registered as `name`.

    Raises
    ------
    ConfigError
        Names what is installed when there is no such driver, or what it misses to be imported.
    """
    import importlib.metadata  # half a megabyte that most devices need not hold

    found = {entry.name: entry for entry in importlib.metadata.entry_points(group=group)}
    if name not in found:
        kind = "sensor" if group == SENSORS else "label source"
        known = sorted({*found, *built_in})
        raise ConfigError(
            f"no {kind} {name!r} is installed{nearest(name, known)}; installed: {', '.join(known)}"
        )
    try:
        return found[name].load()
    except ImportError as error:
        raise ConfigError(f"{name} cannot be loaded ({error}); install {found[name].value} again") from error


def read_options(driver: str, options: dict[str, Any], kind: type[T]) -> T:
    """The options of the settings as a driver's own typed record.

    Raises
    ------
    ConfigError
        Names the option, what was found and what is allowed; an unknown one suggests the nearest.
    """
    known = [field.encode_name for field in msgspec.structs.fields(kind)]
    for key in options:
        if key not in known:
            raise ConfigError(
                f"{driver}: unknown option {key}{nearest(key, known)}; known: {', '.join(known)}"
            )
    try:
        return msgspec.convert(options, kind)
    except msgspec.ValidationError as error:
        said, _, path = str(error).partition(" - at `$")
        key = path.rstrip("`").lstrip(".")
        missing = re.search(r"missing required field `(\w+)`", said)
        if missing:
            raise ConfigError(
                f"{driver}: the option {missing[1]} is missing; known: {', '.join(known)}"
            ) from error
        top = options.get(key.partition("[")[0].partition(".")[0])
        allowed = said.removeprefix("Expected ").replace("`", "")
        raise ConfigError(f"{driver}: option {key} is {top!r}; allowed: {allowed}") from error


def nearest(found: str, known: list[str]) -> str:
    """``; did you mean …?`` when something known is spelt alike, else nothing."""
    import difflib  # only for a message

    close = difflib.get_close_matches(found, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
