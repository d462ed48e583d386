"""What motion sensors have in common: channels by name and unit, times of buffered samples."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edge_cl.errors import BadReading, ConfigError, SensorUnavailable
from edge_cl.manifest import Manifest
from edge_cl.records import FloatArray
from edge_cl.sensing.host_clock import HostClock
from edge_cl.sensing.lines import Item, Samples
from edge_cl_device.i2c import Chip

NAMES = tuple(f"{kind}_{axis}" for kind in ("acc", "gyro") for axis in "xyz")
G = 9.80665
_UNITS = {
    "acc": {"m/s²": 1.0, "m/s^2": 1.0, "m/s2": 1.0, "g": 1 / G},
    "gyro": {"rad/s": 1.0, "°/s": 180 / math.pi, "deg/s": 180 / math.pi, "dps": 180 / math.pi},
}
READ_EVERY_S = 0.05
SILENT_S = 1.0
"""A buffer that stays empty for longer is that of a sensor that lost its settings with its power."""


class ImuOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What every motion sensor has.

    Attributes
    ----------
    bus, address
        ``/dev/i2c-<bus>`` and the chip's address on it.
    rate_hz
        0: the bundle's, or the next higher one that the chip knows.
    channels
        Which of ``acc_x … gyro_z`` each channel of the bundle is, where the names differ; ``-acc_x`` turns
        an axis round.
    """

    bus: Annotated[int, Meta(ge=0, le=255)] = 1
    address: Annotated[int, Meta(ge=0x08, le=0x77)] = 0x68
    rate_hz: Annotated[float, Meta(ge=0)] = 0.0
    channels: dict[str, str] = {}


class Axes:
    """From raw rows (n, 6), accelerometer then gyroscope, to the bundle's channels and units.

    Parameters
    ----------
    steps
        What one step of the accelerometer is in m/s², and of the gyroscope in rad/s.

    Raises
    ------
    ConfigError
        For a channel that is none of a motion sensor's, or in a unit that it cannot be told in.
    """

    def __init__(
        self, driver: str, manifest: Manifest, channels: dict[str, str], steps: tuple[float, float]
    ) -> None:
        self._columns: list[int] = []
        scales = []
        known = [channel.name for channel in manifest.channels]
        for name in channels:
            if name not in known:
                raise ConfigError(
                    f"{driver}: option channels names {name}; the bundle's channels are {', '.join(known)}"
                )
        for channel in manifest.channels:
            axis = channels.get(channel.name, channel.name)
            sign = -1 if axis.startswith("-") else 1
            axis = axis.removeprefix("-")
            if axis not in NAMES:
                raise ConfigError(
                    f"{driver} gives {', '.join(NAMES)}; the bundle wants {channel.name} ({channel.unit}): "
                    f'say which one that is, as in channels = {{ {channel.name} = "acc_x" }}, or take '
                    "a bundle that was trained on such a sensor"
                )
            kind = axis.partition("_")[0]
            units = _UNITS[kind]
            if channel.unit not in units:
                raise ConfigError(
                    f"{driver}: the bundle wants {channel.name} in {channel.unit!r}; allowed: "
                    f"{', '.join(units)}; "
                    "write the units of its channels into the export"
                )
            self._columns.append(NAMES.index(axis))
            scales.append(sign * units[channel.unit] * steps[kind == "gyro"])
        self._scales: NDArray[np.float64] = np.array(scales)
        self.full_scale: FloatArray = 32768 * np.abs(self._scales)

    def of(self, raw: NDArray[np.int16]) -> NDArray[np.float32]:
        """(n, n_channels) in the bundle's units."""
        return (raw[:, self._columns] * self._scales).astype(np.float32)


class Buffered:
    """Reads a chip's buffer every twentieth of a second; its own clock says how far samples are apart.

    Parameters
    ----------
    rate_hz
        That the chip was set to.
    take
        Empties the buffer: numbers of the samples since the beginning, and their raw rows (n, 6).
    """

    def __init__(
        self,
        axes: Axes,
        rate_hz: float,
        take: Callable[[], tuple[Sequence[int], NDArray[np.int16]]],
        *,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._axes, self._take, self._clock, self._wait = axes, take, clock, wait
        self._host = HostClock(1 / rate_hz)
        self._heard_s = clock()

    def read(self) -> list[Item | BadReading]:
        """The samples since the last call."""
        self._wait(READ_EVERY_S)
        numbers, raw = self._take()
        now_s = self._clock()
        if not len(numbers):
            if now_s - self._heard_s > SILENT_S:
                raise SensorUnavailable(
                    f"it answers but gave no sample for {SILENT_S:g} s; did it lose its power for a moment?"
                )
            return []
        self._heard_s = now_s
        times = self._host.times(np.asarray(numbers), now_s)
        return [Samples(times, self._axes.of(raw), [""] * len(times))]


class Imu(ABC):
    """A `Sensor`: a chip on the bus that keeps samples in a buffer. A driver says how both are used."""

    def __init__(self, chip: Chip, axes: Axes, rate_hz: float) -> None:
        self.rate_hz, self.full_scale = rate_hz, axes.full_scale
        self._chip = chip
        try:
            self._set_up()
        except BaseException:
            chip.close()
            raise
        self._buffered = Buffered(axes, rate_hz, self._take)

    def read(self) -> list[Item | BadReading]:
        """What its buffer holds."""
        return self._buffered.read()

    def close(self) -> None:
        """Let go of the bus; the chip goes on by itself."""
        self._chip.close()

    @abstractmethod
    def _set_up(self) -> None:
        """Make the chip that it is, with the settings that were asked for; raises SensorUnavailable."""

    @abstractmethod
    def _take(self) -> tuple[Sequence[int], NDArray[np.int16]]:
        """As `Buffered` wants it."""


def overflowed() -> SensorUnavailable:
    """The chip's buffer was full: what comes next has nothing to do with what came before."""
    return SensorUnavailable("its buffer overflowed because nobody read it in time; it begins anew")


def check_chip(found: int, wanted: int, name: str, known: dict[int, str], where: Any) -> None:
    """Raise SensorUnavailable when another chip answers than `name`, which calls itself `wanted`."""
    if found == wanted:
        return
    other = f", which is a {known[found]}" if found in known else ""
    raise SensorUnavailable(
        f"the chip at {where} calls itself 0x{found:02x}{other}; a {name} says 0x{wanted:02x}: "
        "check the options address and bus, or name another sensor"
    )
