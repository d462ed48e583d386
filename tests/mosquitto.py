"""A real Mosquitto that a test may stop, kill and start again."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

MOSQUITTO = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A TCP port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object], what: str, timeout_s: float = 15.0) -> None:
    """Fail unless `condition` becomes true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline_s:
            pytest.fail(f"after {timeout_s:g} s still not: {what}")
        time.sleep(0.005)


class Broker:
    """A Mosquitto process on a port of its own; `url` stays the same over restarts."""

    def __init__(self, folder: Path, *more_lines: str) -> None:
        self.port = free_port()
        self.url = f"mqtt://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        lines = [
            f"listener {self.port} 127.0.0.1",
            "allow_anonymous true",
            "persistence true",
            f"persistence_location {folder}/",
            "max_inflight_messages 0",
            "max_queued_messages 0",
            "queue_qos0_messages true",
            "log_dest none",
            *more_lines,
        ]
        if os.geteuid() == 0:
            lines.append("user root")  # else it drops to a user who may not write here
        (folder / "mosquitto.conf").write_text("\n".join(lines) + "\n")

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        command = [str(MOSQUITTO), "-c", str(self._folder / "mosquitto.conf")]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_until(self._accepts, "the broker accepts connections")

    def stop(self, *, kill: bool = False) -> None:
        """End it, with SIGKILL if `kill` (then it saves nothing)."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self._process.wait(timeout=10)
        self._process = None

    def save(self) -> None:
        """Make it write its sessions and retained messages to disk."""
        database = self._folder / "mosquitto.db"
        database.unlink(missing_ok=True)
        if self._process is not None:
            self._process.send_signal(signal.SIGUSR1)
        wait_until(database.exists, "the broker saved its state")

    def _accepts(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0
