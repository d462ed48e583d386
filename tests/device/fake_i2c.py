"""An I²C bus with chips as their data sheets describe them, and the kernel's errors.

MPU-6050 after RM-MPU-6000A rev. 4.2 (reset values of section 3, the buffer of sections 4.29 and 4.30),
LSM6DSOX after DS12814 rev. 4 (section 9; the buffer's words of section 9.97).
"""

from __future__ import annotations

import errno
import os
from collections import deque
from threading import Lock
from typing import Any, ClassVar

import smbus2


class Chip:
    """256 registers, a pointer that moves on, and perhaps a buffer behind one of them."""

    reset_values: ClassVar[dict[int, int]] = {}

    def __init__(self) -> None:
        self.registers = bytearray(256)
        self.pointer = 0
        self.fifo: deque[int] = deque()
        self.overrun = False
        self.reset()

    def reset(self) -> None:
        self.registers[:] = bytes(256)
        for register, value in self.reset_values.items():
            self.registers[register] = value
        self.fifo.clear()
        self.overrun = False

    def write(self, data: bytes) -> None:
        self.pointer = data[0]
        for value in data[1:]:
            self.set(self.pointer, value)
            self.pointer += 1

    def read(self, n: int) -> bytes:
        found = bytearray()
        for _ in range(n):
            found.append(self.get(self.pointer))
            self.pointer = self.after(self.pointer)
        return bytes(found)

    def set(self, register: int, value: int) -> None:
        self.registers[register] = value

    def get(self, register: int) -> int:
        return self.registers[register]

    def after(self, register: int) -> int:
        return register + 1


class Mpu6050(Chip):
    """Sleeps after a reset; its buffer takes 1024 bytes and then loses the oldest."""

    reset_values: ClassVar[dict[int, int]] = {0x6B: 0x40, 0x75: 0x68}

    def set(self, register: int, value: int) -> None:
        if register == 0x6B and value & 0x80:
            self.reset()
            return
        if register == 0x6A and value & 0x04:
            self.fifo.clear()
            value &= ~0x04
        super().set(register, value)

    def get(self, register: int) -> int:
        if register == 0x72:
            return len(self.fifo) >> 8
        if register == 0x73:
            return len(self.fifo) & 0xFF
        if register == 0x74:
            return self.fifo.popleft() if self.fifo else 0
        if register == 0x3A:
            found, self.overrun = 0x10 * self.overrun & self.registers[0x38] | 0x01, False
            return found
        return super().get(register)

    def after(self, register: int) -> int:
        return register if register == 0x74 else register + 1

    def sample(self, values: list[int]) -> None:
        """One sample of ax, ay, az, gx, gy, gz, as far as it is awake and its buffer is on."""
        on = self.registers[0x6A] & 0x40 and not self.registers[0x6B] & 0x40
        kinds = self.registers[0x23]
        if not on:
            return
        wanted = [bool(kinds & 0x08)] * 3 + [bool(kinds & bit) for bit in (0x40, 0x20, 0x10)]
        for value, want in zip(values, wanted, strict=True):
            if want:
                self.fifo.extend((value & 0xFFFF).to_bytes(2, "big"))
        while len(self.fifo) > 1024:
            self.fifo.popleft()
            self.overrun = True


class Lsm6dsox(Chip):
    """Words of tag and six bytes; the gyroscope begins some samples after the accelerometer."""

    reset_values: ClassVar[dict[int, int]] = {0x0F: 0x6C, 0x12: 0x04, 0x18: 0xE0}
    n_starting = 3

    def reset(self) -> None:
        super().reset()
        self.n_slots = 0

    def set(self, register: int, value: int) -> None:
        if register == 0x12 and value & 0x01:
            self.reset()
            return
        if register == 0x0A and value & 0x07 == 0:
            self.fifo.clear()
        super().set(register, value)

    def get(self, register: int) -> int:
        words = len(self.fifo) // 7
        if register == 0x3A:
            return words & 0xFF
        if register == 0x3B:
            found, self.overrun = words >> 8 & 0x03 | 0x48 * self.overrun, False
            return found
        if 0x78 <= register <= 0x7E:
            return self.fifo.popleft() if self.fifo else 0
        return super().get(register)

    def after(self, register: int) -> int:
        if not self.registers[0x12] & 0x04:  # IF_INC
            return register
        return 0x78 if register == 0x7E else register + 1

    def sample(self, values: list[int]) -> None:
        """One sample of ax, ay, az, gx, gy, gz."""
        on = self.registers[0x0A] & 0x07 == 0x06 and self.registers[0x10] >> 4 and self.registers[0x11] >> 4
        if not on:
            return
        counter = self.n_slots % 4
        self.n_slots += 1
        if self.n_slots > self.n_starting:
            self._word(0x01, counter, values[3:])
        self._word(0x02, counter, values[:3])
        self._word(0x03, counter, [25, 0, 0])  # the temperature, which nobody asked for
        while len(self.fifo) > 512 * 7:
            for _ in range(7):
                self.fifo.popleft()
            self.overrun = True

    def _word(self, tag: int, counter: int, values: list[int]) -> None:
        self.fifo.append(tag << 3 | counter << 1)
        for value in values:
            self.fifo.extend((value & 0xFFFF).to_bytes(2, "little"))


class Bus:
    """Stands in for ``smbus2.SMBus`` on bus 1, with these chips; `fails` is what the kernel says."""

    def __init__(self, **chips: Chip) -> None:
        self.chips = {int(name.removeprefix("at_"), 16): chip for name, chip in chips.items()}
        self.fails_open: int | None = None
        self.fails: int | None = None
        self.n_open = 0
        self.lock = Lock()

    def __call__(self, bus: int) -> Bus:
        if bus != 1:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self.fails_open is not None:
            raise OSError(self.fails_open, os.strerror(self.fails_open))
        self.n_open += 1
        return self

    def i2c_rdwr(self, *messages: Any) -> None:
        assert self.n_open > 0
        if self.fails is not None:
            raise OSError(self.fails, os.strerror(self.fails))
        with self.lock:
            self._transfer(messages)

    def _transfer(self, messages: tuple[Any, ...]) -> None:
        for message in messages:
            chip = self.chips.get(message.addr)
            if chip is None:
                raise OSError(errno.EREMOTEIO, os.strerror(errno.EREMOTEIO))
            if message.flags & 1:
                for k, value in enumerate(chip.read(message.len)):
                    message.buf[k] = value
            else:
                chip.write(bytes(message))

    def close(self) -> None:
        self.n_open -= 1


def plug(monkeypatch: Any, **chips: Chip) -> Bus:
    """The bus that drivers find from now on."""
    bus = Bus(**chips)
    monkeypatch.setattr(smbus2, "SMBus", bus)
    return bus
