"""Network threads that die, or hang: seconds until the device is connected again."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from edge_cl.sync.link import MqttLink
from tests.mosquitto import Broker

N_LINKS = 20
STUCK_SHARE = 5
"""One in so many hangs instead of dying."""
DEADLINE_S = 60.0


def measure(n: int = 100) -> dict[str, Any]:
    """Kill or block `n` network threads; the longest time to a new connection that works."""
    with tempfile.TemporaryDirectory() as place:
        broker = Broker(Path(place), "persistence false")
        broker.start()
        links = [
            MqttLink(broker.url, device=f"d{k}", site="threads", state_dir=None, confirm="broker")
            for k in range(min(N_LINKS, n))
        ]
        took_s: list[float] = []
        threads = [
            threading.Thread(target=_hurt, args=(link, range(k, n, len(links)), took_s))
            for k, link in enumerate(links)
        ]
        for link, thread in zip(links, threads, strict=True):
            link.start()
            thread.start()
        for thread in threads:
            thread.join()
        for link in links:
            link.stop(1.0)
        broker.stop()
    return {"dead_threads": len(took_s), "restart_worst_s": round(max(took_s), 2) if took_s else None}


def _hurt(link: MqttLink, numbers: range, took_s: list[float]) -> None:
    for number in numbers:
        if not _wait(lambda: link.connected):
            return
        connection = link._pump.dialler.connection
        assert connection is not None
        connection.client.loop_misc = _hang if number % STUCK_SHARE == 0 else _die
        began_s = time.monotonic()
        if not _wait(lambda old=connection: link.connected and link._pump.dialler.connection is not old):
            return
        took_s.append(time.monotonic() - began_s)


def _die() -> None:
    raise SystemExit


def _hang() -> None:
    threading.Event().wait()


def _wait(condition: Any) -> bool:
    deadline_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < deadline_s:
        if condition():
            return True
        time.sleep(0.01)
    return False
