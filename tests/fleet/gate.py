"""A gate before a broker that hangs up on whoever speaks MQTT 5, as a broker does that knows only 3.1.1."""

from __future__ import annotations

import contextlib
import socket
import threading


class Gate:
    """Serves a port of its own inside a ``with`` block."""

    def __init__(self, broker_port: int) -> None:
        self.n_refused = 0
        self._broker_port = broker_port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])

    def __enter__(self) -> Gate:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                hello = client.recv(4096)
                name = hello.index(b"MQTT")
                if hello[name + 4] == 5:
                    self.n_refused += 1
                    client.close()
                    continue
                broker = socket.create_connection(("127.0.0.1", self._broker_port))
                broker.sendall(hello)
                for one, other in ((client, broker), (broker, client)):
                    threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while some := source.recv(65536):
            sink.sendall(some)
    for one in (source, sink):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
