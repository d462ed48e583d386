"""When and how to connect: MQTT 5 or 3.1.1, waits between attempts, a thread that died, a second board of
this name.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Protocol

import paho.mqtt.client as paho

from edge_cl.sync.broker import PASSWORD_VARIABLE, Broker
from edge_cl.sync.connection import OTHER_PROTOCOL, TAKEN_OVER, Connection, Ears
from edge_cl.sync.messages import CHUNK_BYTES
from edge_cl.sync.reconnect import HOLD_OFF_S, Backoff

STEADY_S = 10.0
"""A connection that broke sooner, and gave nothing back, was none: the next waits are longer."""
CLONE_S = 10 * HOLD_OFF_S
"""So long after the last sign of a second board it may still be there: it gives way, too."""


class _MakeClient(Protocol):
    def __call__(self, *, mqtt_5: bool) -> paho.Client: ...


class Dialler:
    """Keeps one connection, one after the other. The pump's thread calls it.

    Parameters
    ----------
    make_client
        A fresh paho client.
    put
        Takes tasks for the pump.
    session
        Number of the connection before the first.
    mqtt_5
        What to try first.
    """

    def __init__(
        self,
        make_client: _MakeClient,
        broker: Broker,
        *,
        url: str,
        ears: Ears,
        put: Callable[[Callable[[], None]], None],
        backoff: Backoff,
        session: int,
        mqtt_5: bool = True,
    ) -> None:
        self.backoff = backoff
        self.connection: Connection | None = None
        self.session = session
        self.n_restarts = 0
        """Connections that were given up because their thread was dead or stuck."""
        self._make_client, self._broker, self._url = make_client, broker, url
        self._ears, self._put = ears, put
        self._mqtt_5 = mqtt_5
        self._mute = 0
        self._greeted = False
        self._steady_s = math.inf
        self._n_unserved = 0
        self._trouble = self._clone = ""
        self._clone_until_s = 0.0
        self._at_s: float | None = 0.0

    @property
    def is_up(self) -> bool:
        """True while the broker is there, from the moment that `up` was told of it."""
        return self.connection is not None and self._greeted

    @property
    def trouble(self) -> str:
        """What a person should know of it, or ""."""
        return self._clone if time.monotonic() < self._clone_until_s else self._trouble

    @property
    def unreachable(self) -> bool:
        """True after an attempt failed, until one succeeds."""
        return self.connection is None and self._at_s != 0.0

    @property
    def due_s(self) -> float | None:
        """When the next attempt is to be made."""
        return self._at_s

    def tick(self, now_s: float) -> None:
        """Connect when it is time; give up a connection whose thread is dead or stuck."""
        if self.connection is not None and (problem := self.connection.problem(now_s)):
            self.n_restarts += 1
            self.connection.close()
            self.ended(self.connection, problem, 0)
        elif self._at_s is not None and now_s >= self._at_s:
            self._dial()

    def up(self) -> None:
        """The broker took the connection."""
        self._mute, self._greeted = 0, True

    def answered(self, *, refused: bool) -> None:
        """The broker took a message or, `refused`, did not."""
        self._trouble = ""
        self._steady_s = min(self._steady_s, math.inf if refused else time.monotonic() + STEADY_S)

    def served(self) -> None:
        """The broker gave a message back: the connection is of use."""
        self._steady_s = 0.0

    def ended(self, connection: Connection, reason: str, code: int) -> bool:
        """The connection is over; False when it was given up before."""
        if connection is not self.connection:
            return False
        self.connection, self._greeted = None, False
        if connection.is_up and code == TAKEN_OVER:
            self.clone("the broker gave the connection to it")
        elif connection.is_up:
            self._lost(reason)
        else:
            self._failed(connection, reason, code)
        return True

    def clone(self, evidence: str) -> None:
        """Another board calls itself as this one: say so, and give way for a while."""
        self._clone = (
            f"another board connects to {self._url} under this device's name ({evidence}); "
            "each board needs a name of its own: --device, or device.name in the settings"
        )
        self._clone_until_s = time.monotonic() + CLONE_S
        if self.connection is not None:
            self.connection.close()
        self.connection, self._greeted = None, False
        self._wait(self.backoff.hold_off())

    def close(self, timeout_s: float) -> None:
        """Disconnect for good."""
        connection, self.connection, self._at_s = self.connection, None, None
        if connection is not None:
            connection.close(timeout_s)

    def _dial(self) -> None:
        self.session += 1
        self._at_s, self._greeted, self._steady_s = None, False, math.inf
        client = self._make_client(mqtt_5=self._mqtt_5)
        topic, body = self._ears.will(self.session)
        self.connection = Connection(
            client,
            self._broker,
            will=(topic, body),
            ears=self._ears,
            put=self._put,
            session=self.session,
            max_inbound_bytes=CHUNK_BYTES,
            n_mute=self._mute,
        )
        self.connection.start()

    def _lost(self, reason: str) -> None:
        if time.monotonic() >= self._steady_s:
            self._n_unserved = 0
            self._trouble = f"the connection to {self._url} was lost ({reason}); trying again"
            self._wait(self.backoff.after_loss())
            return
        self._n_unserved += 1
        self._trouble = (
            f"{self._url} takes the connection and ends it at once ({reason}), "
            f"{self._n_unserved:,} times so far; look into the broker's log. Messages wait in the outbox"
        )
        self._wait(self.backoff.after_failure() if self._n_unserved > 1 else self.backoff.after_loss())

    def _failed(self, connection: Connection, reason: str, code: int) -> None:
        # An old broker refuses MQTT 5 by name, or hangs up without a word.
        if code in OTHER_PROTOCOL or (connection.was_reached and not code):
            self._mqtt_5 = not self._mqtt_5
            self._mute += 1
            if self._mute == 1:
                self._at_s = time.monotonic()
                return
            if not self._broker.tls:
                reason += "; if this port is for TLS, write mqtts://"
        if code:
            self._trouble = (
                f"{self._url} refused the connection ({reason}); check mqtt.username and {PASSWORD_VARIABLE}"
            )
        else:
            self._trouble = (
                f"{self._url} cannot be reached ({reason}); messages wait in the outbox, trying again"
            )
        self._wait(self.backoff.after_failure())

    def _wait(self, wait_s: float) -> None:
        self._at_s = time.monotonic() + wait_s
