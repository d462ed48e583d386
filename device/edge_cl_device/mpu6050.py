"""InvenSense MPU-6050: accelerometer and gyroscope on I²C, read from its 1024-byte buffer.

Registers after InvenSense RM-MPU-6000A, revision 4.2, ranges after PS-MPU-6000A, revision 3.4.
"""

from __future__ import annotations

import math
import time
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from edge_cl.manifest import Manifest
from edge_cl.sensing.drivers import read_options
from edge_cl_device.i2c import Chip
from edge_cl_device.imu import Axes, G, Imu, ImuOptions, check_chip, overflowed

SMPLRT_DIV, CONFIG, GYRO_CONFIG, ACCEL_CONFIG, FIFO_EN = 0x19, 0x1A, 0x1B, 0x1C, 0x23
INT_ENABLE, INT_STATUS, SIGNAL_PATH_RESET, USER_CTRL, PWR_MGMT_1 = 0x38, 0x3A, 0x68, 0x6A, 0x6B
FIFO_COUNT, FIFO_R_W, WHO_AM_I = 0x72, 0x74, 0x75

IDENTITY = 0x68
OTHERS = {0x70: "MPU-6500", 0x71: "MPU-9250", 0x73: "MPU-9255", 0x6C: "LSM6DSOX"}
DEVICE_RESET, CLOCK_BY_GYRO_X = 0x80, 0x01
RESET_PATHS = 0x07
FIFO_ON, FIFO_RESET = 0x40, 0x04
FIFO_OF_ALL = 0x78
"""Gyroscope x, y, z and accelerometer; not the temperature."""
FIFO_OVERFLOW = 0x10
FIFO_BYTES = 1024
GYRO_RATE_HZ = 1000.0
"""With the low-pass filter on, before the divider."""
BANDWIDTHS_HZ = {1: 184, 2: 94, 3: 44, 4: 21, 5: 10, 6: 5}
"""Of the accelerometer by DLPF_CFG."""
ROW = 12
RESET_S = 0.1


class Mpu6050Options(ImuOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`range_g` and `range_dps`: largest acceleration (g) and rate of turn (°/s) that it can tell."""

    range_g: Literal[2, 4, 8, 16] = 4
    range_dps: Literal[250, 500, 1000, 2000] = 500


class Mpu6050(Imu):
    """A `Sensor`; its low-pass filter is set below half the rate."""

    def __init__(self, manifest: Manifest, options: dict[str, Any]) -> None:
        asked = read_options("sensor mpu6050", options, Mpu6050Options)
        divider = min(max(math.floor(GYRO_RATE_HZ / (asked.rate_hz or manifest.rate_hz)), 1), 256)
        steps = (asked.range_g * G / 32768, math.radians(asked.range_dps) / 32768)
        axes = Axes("sensor mpu6050", manifest, asked.channels, steps)
        self._asked, self._divider, self._n = asked, divider, 0
        super().__init__(Chip("mpu6050", asked.bus, asked.address), axes, GYRO_RATE_HZ / divider)

    def _set_up(self) -> None:
        chip, asked, divider = self._chip, self._asked, self._divider
        where = f"address 0x{asked.address:02x} on bus {asked.bus}"
        check_chip(chip.read(WHO_AM_I)[0], IDENTITY, "MPU-6050", OTHERS, where)
        chip.write(PWR_MGMT_1, DEVICE_RESET)
        time.sleep(RESET_S)
        chip.write(SIGNAL_PATH_RESET, RESET_PATHS)
        time.sleep(RESET_S)
        chip.write(PWR_MGMT_1, CLOCK_BY_GYRO_X)  # it sleeps after a reset
        fitting = [code for code, hz in BANDWIDTHS_HZ.items() if hz <= self.rate_hz / 2]
        chip.write(CONFIG, min(fitting, default=max(BANDWIDTHS_HZ)))
        chip.write(SMPLRT_DIV, divider - 1)
        chip.write(GYRO_CONFIG, (250, 500, 1000, 2000).index(asked.range_dps) << 3)
        chip.write(ACCEL_CONFIG, (2, 4, 8, 16).index(asked.range_g) << 3)
        chip.write(INT_ENABLE, FIFO_OVERFLOW)
        chip.write(USER_CTRL, FIFO_RESET)
        chip.write(FIFO_EN, FIFO_OF_ALL)
        chip.write(USER_CTRL, FIFO_ON)

    def _take(self) -> tuple[range, NDArray[np.int16]]:
        full = self._chip.read(INT_STATUS)[0] & FIFO_OVERFLOW
        held = int.from_bytes(self._chip.read(FIFO_COUNT, 2), "big")
        if full or held > FIFO_BYTES - ROW:  # the next sample would not fit, and rows begin anywhere
            raise overflowed()
        n = held // ROW
        data = self._chip.read(FIFO_R_W, n * ROW) if n else b""
        self._n += n
        return range(self._n - n, self._n), np.frombuffer(data, ">i2").astype(np.int16).reshape(n, 6)
