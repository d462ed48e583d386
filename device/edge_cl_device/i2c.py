"""A chip on an I²C bus: registers in and out, and what a failure means."""

from __future__ import annotations

import errno
import os
from typing import Any

from edge_cl.errors import ConfigError, SensorUnavailable
from edge_cl_device.permission import join

_NOBODY = (errno.ENXIO, errno.EREMOTEIO, errno.EIO)


class Chip:
    """The chip at `address` of ``/dev/i2c-<bus>``; `name` is its driver's, for messages.

    Raises
    ------
    ConfigError
        When the library is missing.
    SensorUnavailable
        Here and from every method, with what mends it.
    """

    def __init__(self, name: str, bus: int, address: int) -> None:
        try:
            import smbus2
        except ImportError as error:
            raise ConfigError(f"sensor {name} needs smbus2: pip install 'edge-cl[i2c]'") from error
        self._name, self._bus, self._address = name, bus, address
        self._message = smbus2.i2c_msg
        try:
            self._port: Any = smbus2.SMBus(bus)
        except OSError as error:
            raise SensorUnavailable(self._explain(error)) from error

    def write(self, register: int, value: int) -> None:
        """Set one register."""
        self._transfer(self._message.write(self._address, [register, value]))

    def read(self, register: int, n: int = 1) -> bytes:
        """`n` bytes from `register` on, in one transfer."""
        answer = self._message.read(self._address, n)
        self._transfer(self._message.write(self._address, [register]), answer)
        return bytes(answer)

    def close(self) -> None:
        """Let go of the bus."""
        self._port.close()

    def _transfer(self, *messages: Any) -> None:
        try:
            self._port.i2c_rdwr(*messages)
        except OSError as error:
            raise SensorUnavailable(self._explain(error)) from error

    def _explain(self, error: OSError) -> str:
        device = f"/dev/i2c-{self._bus}"
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return (
                f"there is no {device}: I²C is off (sudo raspi-config nonint do_i2c 0, then sudo reboot), "
                "or it is another bus (i2cdetect -l lists them; option bus)"
            )
        if error.errno in (errno.EACCES, errno.EPERM):
            return f"no permission for {device}: {join('i2c')}"
        if error.errno in _NOBODY:
            return (
                f"nobody answers at address 0x{self._address:02x} on bus {self._bus} "
                f"({os.strerror(error.errno)}): "
                f"check the wiring, and the address (i2cdetect -y {self._bus} shows which do)"
            )
        if error.errno == errno.EBUSY:
            return (
                f"address 0x{self._address:02x} on bus {self._bus} is in use by a driver of the kernel: "
                "take its dtoverlay line out of config.txt, then sudo reboot"
            )
        if error.errno == errno.ETIMEDOUT:
            return f"bus {self._bus} is held down: is a wire loose or shorted? switch the sensor off and on"
        return f"{device}: {error.strerror or error}"
