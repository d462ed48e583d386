"""One worker of the fleet server: the parts put together, watched over, and ended in order.

Workers know nothing of each other: the broker deals messages out among those of one group; they share the
store.
"""

from __future__ import annotations

import logging
import re
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Protocol

from edge_cl.errors import ConfigError, EdgeCLError
from edge_cl.sync.messages import HELLO, Hello, encode
from edge_cl_fleet.chunks import ChunkServer
from edge_cl_fleet.collector import Collector
from edge_cl_fleet.connection import Connection, Login, Publish
from edge_cl_fleet.gaps import GapDuty
from edge_cl_fleet.store import FleetStore

TICK_S = 1.0
STUCK_S = 60.0
_GROUP = re.compile(r"[A-Za-z0-9_-]{1,63}")

log = logging.getLogger(__name__)


class Duty(Protocol):
    """Something to do besides collecting: sending commands, moving rollouts on."""

    def tick(self, now_s: float, publish: Publish) -> None:
        """Called about once a second by every worker, each on its own; `now_s` is Unix time."""
        ...


class Worker:
    """Collects from the broker at `login` into `store`, as one of `group`.

    Parameters
    ----------
    duties
        Are done while there is a connection; what one of them raises is logged, and it is called again.

    Attributes
    ----------
    name
        Its MQTT client id; drawn at random.
    tick_s
        How often it looks after its threads and does its duties.
    collector, connection, chunks, gaps
        Its parts, for whoever counts.
    """

    def __init__(
        self, store: FleetStore, login: Login, *, group: str = "fleet", duties: Sequence[Duty] = ()
    ) -> None:
        if not _GROUP.fullmatch(group):
            raise ConfigError(f"the group is {group!r}; write up to 63 letters, digits, _ or -")
        self.name = f"edgecl-fleet-{uuid.uuid4().hex[:12]}"
        self.n_restarted = 0
        self.tick_s = TICK_S
        self.connection = Connection(
            login,
            self.name,
            # Retained words come by the second only, says MQTT 5: who died while no worker was there.
            [f"$share/{group}/edgecl/1/+/+/+", "edgecl/1/+/+/status"],
            lambda got: self.collector.received(got),
            connected=self._say_hello,
        )
        publish = self.connection.publish
        self.chunks = ChunkServer(store, publish)
        self.gaps = GapDuty(store)
        self.collector = Collector(
            store, publish, self.connection.confirm, wanted=self.chunks.wanted, heard=self.gaps.heard
        )
        self._duties: list[Duty] = [self.gaps, *duties]
        self._stopping = threading.Event()

    @property
    def alarm(self) -> str:
        """What a person should know, or ""."""
        silent_s = time.monotonic() - self.connection.beat_s
        stuck = f"the network thread has not moved for {silent_s:.0f} s" if silent_s > STUCK_S else ""
        return self.collector.alarm or stuck or self.connection.trouble

    def run(self, ready: Callable[[], None] = lambda: None) -> None:
        """Work until `stop` is called; a thread that died is started again."""
        self.chunks.start()
        self.collector.start()
        self.connection.start()
        ready()
        try:
            while not self._stopping.wait(self.tick_s):
                self._supervise()
                if self.connection.is_up:
                    self._do_duties()
        finally:
            self._end()

    def stop(self) -> None:
        """Make `run` return; from any thread, or a signal handler."""
        self._stopping.set()

    def _supervise(self) -> None:
        for part, name in ((self.connection, "network"), (self.collector, "storing")):
            if part.supervise():
                self.n_restarted += 1
                log.error("the %s thread had died and was started again; please report it", name)

    def _do_duties(self) -> None:
        for duty in self._duties:
            try:
                duty.tick(time.time(), self.connection.publish)
            except EdgeCLError as error:
                log.error("%s: %s", type(duty).__name__, error)
            except Exception:  # a duty that fails must not end the collecting
                log.exception("%s failed; it will be called again", type(duty).__name__)

    def _say_hello(self) -> None:
        log.info("connected as %s", self.name)
        self.connection.publish(HELLO, encode(Hello(worker=self.name)))

    def _end(self) -> None:
        # What has arrived is stored and confirmed before the goodbye; the rest is sent again by its devices.
        self.collector.stop()
        self.chunks.stop()
        self.connection.stop()
