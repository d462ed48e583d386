"""What a device does with what comes on ``cmd/do``, without a broker: reads orders from standard input.

Each is 5 bytes (length, retained) and the payload. At the end it writes what it carried out.
"""

from __future__ import annotations

import json
import resource
import sqlite3
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_cl.commands import CommandResult
from edge_cl.config import Settings, settings_from
from edge_cl.errors import CommandRefused
from edge_cl.sync.accepted import Accepted
from edge_cl.sync.orders import CommandGate

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
    """The receiving path: the gate, then what was accepted before, then (here) no more than a note."""

    def __init__(self, asked: dict[str, Any], outbox: PlainOutbox) -> None:
        self.executed: list[str] = []
        self.n = self.crashes = 0
        self.gate = CommandGate(
            read_settings(asked).commands.keys, device=asked["to"], boot_id=asked["boot_id"]
        )
        self._accepted = Accepted(outbox)
        self._outbox = outbox
        self._started_s = time.monotonic()
        self._warm_mb = rss_mb()

    def receive(self, payload: bytes, retained: bool) -> None:
        """Obey or refuse; whatever else happens is a crash."""
        self.n += 1
        if self.n == WARM_AFTER:
            self._warm_mb = rss_mb()
        try:
            self._obey(payload, retained)
        except CommandRefused:
            pass
        except Exception:  # noqa: BLE001  this is what is counted
            self.crashes += 1
            traceback.print_exc()
        if self.n % COMMIT_EVERY == 0:
            self._outbox.commit()

    def growth_mb(self) -> float:
        """Memory held more than when it was warm."""
        return rss_mb() - self._warm_mb if self.n >= WARM_AFTER else 0.0

    def _obey(self, payload: bytes, retained: bool) -> None:
        up_s = time.monotonic() - self._started_s
        command = self.gate.check(payload, up_s, retained=retained)
        if self._accepted.known(command.id) is None:
            self._accepted.accept(command, up_s)
            self.executed.append(command.id)
            self._accepted.finish(command.id, CommandResult(id=command.id, ask=command.ask, status="done"))


def main() -> None:
    """Obey until standard input ends."""
    with tempfile.TemporaryDirectory() as folder:
        receiver = Receiver(json.loads(sys.argv[1]), PlainOutbox(Path(folder) / "outbox.db"))
        while header := sys.stdin.buffer.read(5):
            length, retained = struct.unpack("<I?", header)
            receiver.receive(sys.stdin.buffer.read(length), retained)
    found = {
        "executed": receiver.executed,
        "crashes": receiver.crashes,
        "growth_mb": receiver.growth_mb(),
        "refused": receiver.gate.refused,
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
