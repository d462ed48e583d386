"""Binary frames on a serial line: found again after noise, none lost that arrived whole.

=========  =====================================================================================
2 bytes    ``A5 5A``
u16        bytes of samples, n
u32        number of the first sample, counted by the sender from its start on, modulo 2³²
n bytes    samples, one after the other, each channel's value in the bundle's order
u16        CRC-16/CCITT-FALSE (polynomial 1021, initial value FFFF) of all between sync and CRC
=========  =====================================================================================

All numbers are little-endian; values are int16 or float32. At most 4096 bytes of samples a frame.
"""

from __future__ import annotations

import binascii
import struct
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import BadReading

SYNC = b"\xa5\x5a"
HEADER = struct.Struct("<HI")
CRC = struct.Struct("<H")
MOST_BYTES = 4096
_WRAP = 1 << 32


class Frame(NamedTuple):
    """Samples (n, n_channels) as they were sent, and the number of the first."""

    first: int
    rows: NDArray[np.float32]


def encode_frame(first: int, rows: NDArray[np.generic]) -> bytes:
    """The frame of some samples, int16 or float32; what a sender's firmware has to do.

    >>> encode_frame(7, np.array([[1, -1]], "<i2")).hex(" ")
    'a5 5a 04 00 07 00 00 00 01 00 ff ff af e0'
    """
    body = HEADER.pack(rows.nbytes, first % _WRAP) + rows.tobytes()
    return SYNC + body + CRC.pack(binascii.crc_hqx(body, 0xFFFF))


class FrameParser:
    """Bytes in, frames out, however they are split.

    Parameters
    ----------
    kind
        ``int16`` or ``float32``.
    """

    def __init__(self, n_channels: int, kind: str) -> None:
        self._n_channels = n_channels
        self._kind = np.dtype(kind).newbyteorder("<")
        self._row = n_channels * self._kind.itemsize
        self._buffer = bytearray()
        self._n_skipped = 0
        self._last: int | None = None
        self._first = 0

    def feed(self, data: bytes) -> list[Frame | BadReading]:
        """Frames that are complete now; bytes that belong to none are told of once, before the next frame."""
        self._buffer += data
        found: list[Frame | BadReading] = []
        while (frame := self._next()) is not None:
            if self._n_skipped:
                found.append(self._skipped())
            found.append(frame)
        if self._n_skipped > MOST_BYTES:
            found.append(self._skipped())
        return found

    def _next(self) -> Frame | None:
        """The next frame that is whole, None when more bytes are needed."""
        while True:
            at = self._buffer.find(SYNC)
            if at < 0:
                at = len(self._buffer) - self._buffer.endswith(SYNC[:1])
                self._skip(at)
                return None
            self._skip(at)
            begin = len(SYNC) + HEADER.size
            if len(self._buffer) < begin:
                return None
            n, first = HEADER.unpack_from(self._buffer, len(SYNC))
            if not 0 < n <= MOST_BYTES or n % self._row:
                self._skip(1)
                continue
            end = begin + n + CRC.size
            if len(self._buffer) < end:
                return None
            body = bytes(self._buffer[len(SYNC) : end - CRC.size])
            if CRC.unpack_from(self._buffer, end - CRC.size)[0] != binascii.crc_hqx(body, 0xFFFF):
                self._skip(1)  # of a false beginning only: a frame may begin inside it
                continue
            del self._buffer[:end]
            rows = np.frombuffer(body, self._kind, offset=HEADER.size).astype(np.float32)
            return Frame(self._unwrapped(first), rows.reshape(-1, self._n_channels))

    def _unwrapped(self, first: int) -> int:
        """The number without its wrapping; smaller than the last one when the sender began anew."""
        step = 0 if self._last is None else (first - self._last) % _WRAP
        self._first = self._first + step if self._last is not None and step < _WRAP // 2 else first
        self._last = first
        return self._first

    def _skip(self, n: int) -> None:
        del self._buffer[:n]
        self._n_skipped += n

    def _skipped(self) -> BadReading:
        n, self._n_skipped = self._n_skipped, 0
        return BadReading(f"{n} bytes that belong to no frame")
