"""What a device does with what comes on ``cmd/do``: reads orders from standard input, as from a broker.

All of the link but the network: gate, what was accepted before, outbox, answers, and a run loop that carries
out. Each order is 5 bytes (length, retained) and the payload. First it writes its boot id, at the end what it
did.
"""

from __future__ import annotations

import json
import resource
import sqlite3
import struct
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_cl.commands import Do, Done
from edge_cl.config import Settings, settings_from
from edge_cl.sync.inbox import Arrival
from edge_cl.sync.link import MqttLink

WARM_AFTER = 2_000
COMMIT_EVERY = 50


class PlainOutbox:
    """As much of the outbox as `Accepted` needs."""

    def __init__(self, path: Path) -> None:
        self.database: sqlite3.Connection | None = sqlite3.connect(path)
        self._waiting: list[tuple[str, Sequence[Any]]] = []

    def also(self, sql: str, params: Sequence[Any]) -> None:
        """Run a statement with the next commit."""
        self._waiting.append((sql, params))

    def commit(self) -> None:
        """Make it all durable at once."""
        if self.database is not None:
            with self.database:
                for sql, params in self._waiting:
                    self.database.execute(sql, params)
            self._waiting.clear()


def read_settings(asked: dict[str, Any]) -> Settings:
    """The settings of the device that is described."""
    site, _, name = asked["to"].partition("/")
    return settings_from({"device": {"site": site, "name": name}, "commands": asked["commands"]})


def rss_mb() -> float:
    """Memory that this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


class Receiver:
    """A link that is not connected, and a run loop behind it that notes what it is told to do."""

    def __init__(self, asked: dict[str, Any], folder: Path) -> None:
        self.executed: list[str] = []
        self.n = self.crashes = 0
        settings = read_settings(asked)
        self.link = MqttLink(
            "mqtt://127.0.0.1:1",
            device=settings.device.name,
            site=settings.device.site,
            state_dir=folder,
            disk_bytes=2**20,
            commands=settings.commands,
        )
        self.link.obey_with(self)
        self._pump = self.link._pump
        self._topic = f"edgecl/1/{asked['to']}/cmd/do"
        self._warm_mb = rss_mb()

    def obey(self, order_id: str, do: Do, source: str) -> Done:
        """Note it."""
        self.executed.append(order_id)
        return Done("done", "")

    def look_back(self, order_id: str, ask: str) -> Done:
        """There was no earlier life."""
        return Done("interrupted", "")

    def adjust(self, named: dict[str, Any]) -> None:
        """There is nothing to adjust."""

    def settings(self) -> dict[str, Any]:
        """None."""
        return {}

    def receive(self, payload: bytes, retained: bool) -> None:
        """As the pump does it; whatever is raised is a crash."""
        self.n += 1
        if self.n == WARM_AFTER:
            self._warm_mb = rss_mb()
        try:
            self._pump.received(self._pump.dialler.connection, Arrival(self._topic, payload, 1, 1, retained))
            if self.n % COMMIT_EVERY == 0:
                self.turn()
        except Exception:  # noqa: BLE001  this is what is counted
            self.crashes += 1
            traceback.print_exc()

    def turn(self) -> None:
        """Commit, carry out, commit the results."""
        self._pump._commit()
        self._pump.inbox.forget_connection()
        self.link.poll()
        while self._pump.n_tasks:
            self._pump._tasks.get()()

    @property
    def refused(self) -> dict[str, int]:
        """How many were refused, by code."""
        return self._pump.commands._gate.refused

    def growth_mb(self) -> float:
        """Memory held more than when it was warm."""
        return rss_mb() - self._warm_mb if self.n >= WARM_AFTER else 0.0


def main() -> None:
    """Obey until standard input ends."""
    with tempfile.TemporaryDirectory() as folder:
        receiver = Receiver(json.loads(sys.argv[1]), Path(folder))
        print(receiver.link.boot_id, flush=True)
        while header := sys.stdin.buffer.read(5):
            length, retained = struct.unpack("<I?", header)
            receiver.receive(sys.stdin.buffer.read(length), retained)
        receiver.turn()
    found = {
        "executed": receiver.executed,
        "crashes": receiver.crashes,
        "growth_mb": receiver.growth_mb(),
        "refused": receiver.refused,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
