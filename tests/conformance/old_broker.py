"""As much of an MQTT 3.1.1 broker as shows how a client behaves; it refuses every other version by name."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import IO

TOO_NEW = b"\x20\x02\x00\x01"
WELCOME = b"\x20\x02\x00\x00"


class OldBroker:
    """Takes one client at a time.

    Parameters
    ----------
    acknowledges
        Whether publications are acknowledged.
    """

    def __init__(self, *, acknowledges: bool = True) -> None:
        self._acknowledges = acknowledges
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        self.versions: list[int] = []
        self.unacknowledged: list[int] = []
        self.n_published = 0
        self._connection: socket.socket | None = None
        threading.Thread(target=self._serve, daemon=True).start()

    def hang_up(self) -> None:
        """Break the connection."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> OldBroker:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.hang_up()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connection = connection
            with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError):
                self._talk(connection, stream)

    def _talk(self, connection: socket.socket, stream: IO[bytes]) -> None:
        while head := stream.read(1):
            body = stream.read(_length(stream))
            kind, qos = head[0] & 0xF0, head[0] >> 1 & 3
            if kind == 0x10:
                self.versions.append(body[6])
                connection.sendall(WELCOME if body[6] == 4 else TOO_NEW)
                if body[6] != 4:
                    return
                self.unacknowledged.append(0)
            elif kind == 0x30 and qos:
                self.n_published += 1
                mid = body[2 + int.from_bytes(body[:2], "big") :][:2]
                if self._acknowledges:
                    connection.sendall(b"\x40\x02" + mid)
                else:
                    self.unacknowledged[-1] += 1
            elif kind == 0x80:
                connection.sendall(b"\x90" + _suback(body))
            elif kind == 0xC0:
                connection.sendall(b"\xd0\x00")
            elif kind == 0xE0:
                return


def _length(stream: IO[bytes]) -> int:
    length = shift = 0
    while True:
        (byte,) = stream.read(1) or b"\0"
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return length


def _suback(body: bytes) -> bytes:
    at, granted = 2, b""
    while at < len(body):
        at += 2 + int.from_bytes(body[at : at + 2], "big")
        granted += body[at : at + 1]
        at += 1
    return bytes([2 + len(granted)]) + body[:2] + granted
