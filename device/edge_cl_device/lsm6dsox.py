"""ST LSM6DSOX: accelerometer and gyroscope on I²C, read from its tagged buffer.

Registers, rates and sensitivities after ST data sheet DS12814, revision 4.
"""

from __future__ import annotations

import math
import time
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from edge_cl.errors import ConfigError, SensorUnavailable
from edge_cl.manifest import Manifest
from edge_cl.sensing.drivers import read_options
from edge_cl_device.i2c import Chip
from edge_cl_device.imu import Axes, G, Imu, ImuOptions, check_chip, overflowed

FIFO_CTRL3, FIFO_CTRL4, WHO_AM_I = 0x09, 0x0A, 0x0F
CTRL1_XL, CTRL2_G, CTRL3_C, CTRL9_XL = 0x10, 0x11, 0x12, 0x18
FIFO_STATUS1, FIFO_DATA_OUT_TAG = 0x3A, 0x78

IDENTITY = 0x6C
OTHERS = {0x68: "MPU-6050", 0x69: "LSM6DS3", 0x6A: "LSM6DSL", 0x6B: "LSM6DSR"}
SW_RESET, WHOLE_AND_RISING = 0x01, 0x44
"""Of CTRL3_C: reset; BDU and IF_INC, so that both bytes of a value belong together."""
NO_I3C = 0xE2
CONTINUOUS, BYPASS = 0x06, 0x00
OVERRUN = 0x48
"""Of FIFO_STATUS2: overrun now, or since it was last read."""
RATES_HZ = (12.5, 26.0, 52.0, 104.0, 208.0, 417.0, 833.0, 1667.0)
"""By ODR code from 1 on; the same for both parts and for the buffer."""
RANGES_G = {2: (0, 0.061), 4: (2, 0.122), 8: (3, 0.244), 16: (1, 0.488)}
"""FS_XL and mg a step."""
RANGES_DPS = {
    125: (0x02, 4.375),
    250: (0x00, 8.75),
    500: (0x04, 17.5),
    1000: (0x08, 35.0),
    2000: (0x0C, 70.0),
}
"""FS_G with FS_125, in place, and m°/s a step."""
GYRO, ACCELEROMETER = 0x01, 0x02
WORD = 7
MOST_WORDS = 512
RESET_S = 0.05


class Lsm6dsoxOptions(ImuOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`range_g` and `range_dps`: largest acceleration (g) and rate of turn (°/s) that it can tell."""

    address: Annotated[int, Meta(ge=0x08, le=0x77)] = 0x6A
    range_g: Literal[2, 4, 8, 16] = 4
    range_dps: Literal[125, 250, 500, 1000, 2000] = 500


class Lsm6dsox(Imu):
    """A `Sensor`."""

    def __init__(self, manifest: Manifest, options: dict[str, Any]) -> None:
        asked = read_options("sensor lsm6dsox", options, Lsm6dsoxOptions)
        wanted = asked.rate_hz or manifest.rate_hz
        fitting = [code for code, hz in enumerate(RATES_HZ, 1) if hz >= wanted]
        if not fitting:
            raise ConfigError(
                f"sensor lsm6dsox: {wanted:g} Hz is asked for; allowed: up to {RATES_HZ[-1]:g} Hz over I²C"
            )
        steps = (RANGES_G[asked.range_g][1] * G / 1000, math.radians(RANGES_DPS[asked.range_dps][1] / 1000))
        axes = Axes("sensor lsm6dsox", manifest, asked.channels, steps)
        self._asked, self._odr, self._slots = asked, fitting[0], _Slots()
        super().__init__(Chip("lsm6dsox", asked.bus, asked.address), axes, RATES_HZ[fitting[0] - 1])

    def _set_up(self) -> None:
        chip, asked, odr = self._chip, self._asked, self._odr
        where = f"address 0x{asked.address:02x} on bus {asked.bus}"
        check_chip(chip.read(WHO_AM_I)[0], IDENTITY, "LSM6DSOX", OTHERS, where)
        chip.write(CTRL3_C, SW_RESET)
        time.sleep(RESET_S)
        if chip.read(CTRL3_C)[0] & SW_RESET:
            raise SensorUnavailable(f"it does not come back from a reset within {RESET_S:g} s")
        chip.write(CTRL3_C, WHOLE_AND_RISING)
        chip.write(CTRL9_XL, NO_I3C)
        chip.write(FIFO_CTRL4, BYPASS)  # empties it
        chip.write(FIFO_CTRL3, odr << 4 | odr)
        chip.write(CTRL1_XL, odr << 4 | RANGES_G[asked.range_g][0] << 2)
        chip.write(CTRL2_G, odr << 4 | RANGES_DPS[asked.range_dps][0])
        chip.write(FIFO_CTRL4, CONTINUOUS)

    def _take(self) -> tuple[list[int], NDArray[np.int16]]:
        low, high = self._chip.read(FIFO_STATUS1, 2)
        if high & OVERRUN:
            raise overflowed()
        n = min((high & 0x03) << 8 | low, MOST_WORDS)
        return self._slots.take(self._chip.read(FIFO_DATA_OUT_TAG, n * WORD) if n else b"")


class _Slots:
    """Pairs words of the buffer: those with the same counter in their tag are of the same moment.

    The gyroscope needs longer to begin than the accelerometer, so that words cannot be paired by their order.
    """

    def __init__(self) -> None:
        self._n = -1
        self._counter = -1
        self._of_slot: dict[int, bytes] = {}

    def take(self, data: bytes) -> tuple[list[int], NDArray[np.int16]]:
        """Numbers and raw rows (n, 6) of the slots that are complete."""
        numbers: list[int] = []
        rows: list[bytes] = []
        for k in range(0, len(data), WORD):
            sensor, counter = data[k] >> 3, data[k] >> 1 & 0x03
            if counter != self._counter:
                self._n, self._counter = self._n + 1, counter
                self._of_slot = {}
            self._of_slot[sensor] = data[k + 1 : k + WORD]
            if sensor in (GYRO, ACCELEROMETER) and {GYRO, ACCELEROMETER} <= self._of_slot.keys():
                numbers.append(self._n)
                rows.append(self._of_slot[ACCELEROMETER] + self._of_slot[GYRO])
        return numbers, np.frombuffer(b"".join(rows), "<i2").astype(np.int16).reshape(len(rows), 6)
