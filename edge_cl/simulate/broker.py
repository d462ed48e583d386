"""An MQTT broker inside this process, for a demo that needs nothing else."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from types import TracebackType
from typing import Any

from edge_cl.errors import SyncError

START_S = 10.0


class LocalBroker:
    """An amqtt broker on a free loopback port, in its own thread, for the length of a ``with``."""

    def __init__(self) -> None:
        self._port = _free_port()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="demo-broker", daemon=True)
        self._broker: Any = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"mqtt://127.0.0.1:{self._port}"

    def __enter__(self) -> LocalBroker:
        try:
            from amqtt.broker import Broker
        except ImportError as error:
            raise SyncError(
                "no MQTT broker to run inside the demo: amqtt is not installed; "
                "`pip install 'edge-cl[demo]'`, or name a broker with --broker"
            ) from error
        for name in ("amqtt", "transitions"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        config = {
            "listeners": {"default": {"type": "tcp", "bind": f"127.0.0.1:{self._port}"}},
            "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
        }
        self._thread.start()
        self._broker = self._do(_made(Broker, config))
        self._do(self._broker.start())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self._broker.shutdown())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(START_S)
        self._loop.close()

    def _do(self, work: Any) -> Any:
        """Run a coroutine on the broker's own loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(START_S)


async def _made(broker: Any, config: dict[str, Any]) -> Any:
    """The broker looks for the running loop when it is made, so it is made there."""
    return broker(config)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
