"""Tells systemd that the device is up and well, and stops telling it when it is not.

The run loop calls :meth:`Heartbeat.beat` at every event. A loop that stalls therefore says nothing, and one
that turns while something it needs is stuck says nothing either: after ``WatchdogSec`` systemd ends the
process and starts it again. The protocol is sd_notify(3): a datagram to the socket that ``NOTIFY_SOCKET``
names.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger(__name__)

Check = Callable[[], str]
"""What is wrong, "" when nothing is; quick, never raises."""

STATUS_EVERY_S = 10.0
"""How often the line that ``systemctl status`` shows is sent."""
UNWATCHED_S = 5.0
"""How often checks are made when no watchdog waits: what they find is logged all the same."""


class Heartbeat:
    """Readiness, watchdog and status line of this process.

    Parameters
    ----------
    checks
        Each must find nothing wrong for the watchdog to be fed.
    describe
        The status line.
    environment
        Where ``NOTIFY_SOCKET``, ``WATCHDOG_USEC`` and ``WATCHDOG_PID`` are; without the first nothing is
        sent.

    Attributes
    ----------
    alarm
        What the last checks found, "" when all is well.
    """

    def __init__(
        self,
        checks: Sequence[Check],
        describe: Callable[[], str] = str,
        *,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.alarm = ""
        self._checks, self._describe, self._clock = list(checks), describe, clock
        self._address = _address(environment.get("NOTIFY_SOCKET", ""))
        watchdog_s = _watchdog_s(environment)
        self._every_s = watchdog_s / 3 if watchdog_s else UNWATCHED_S
        self._watched = watchdog_s > 0
        self._due_s = self._status_due_s = clock()
        self._ready = False

    def beat(self) -> None:
        """The loop has turned: say what is due."""
        now_s = self._clock()
        if now_s < self._due_s:
            return
        self._due_s = now_s + self._every_s
        self._examine()
        said = []
        if not self._ready:
            said.append("READY=1")
        if self._watched and not self.alarm:
            said.append("WATCHDOG=1")
        if now_s >= self._status_due_s or self.alarm:
            self._status_due_s = now_s + STATUS_EVERY_S
            said.append(f"STATUS={self.alarm or self._describe()}".replace("\n", " "))
        if self._send(said):  # said again when systemd had no room for it: it ends what is never ready
            self._ready = True

    def stopping(self) -> None:
        """The loop has ended; what is left is saving."""
        self._send(["STOPPING=1"])

    def _examine(self) -> None:
        found = "; ".join(filter(None, (check() for check in self._checks)))
        if found and found != self.alarm:
            then = (
                ": systemd is not told that all is well, and will start the device again"
                if self._watched
                else ""
            )
            log.warning("%s%s", found, then)
        self.alarm = found

    def _send(self, lines: list[str]) -> bool:
        if not (self._address and lines):
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)  # a service manager that does not listen must not stop the loop
                out.sendto("\n".join(lines).encode(errors="replace"), self._address)
        except OSError as error:
            log.debug("the service manager cannot be told: %s", error)
            return False
        return True


def _address(name: str) -> str:
    """The socket's address; one that begins with @ has no file."""
    return "\0" + name[1:] if name.startswith("@") else name


def _watchdog_s(environment: Mapping[str, str]) -> float:
    """How long systemd waits for a sign of life, 0 when it does not, or waits for another process."""
    meant_for = environment.get("WATCHDOG_PID", "")
    usec = environment.get("WATCHDOG_USEC", "")
    if not usec.isdigit() or meant_for not in ("", str(os.getpid())):
        return 0.0
    return int(usec) / 1e6
