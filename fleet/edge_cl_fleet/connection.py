"""One MQTT connection of a worker: paho as a dumb pipe, driven by one thread of ours that never gives up.

What arrives goes to a function that must only enqueue; what is to be sent is enqueued from any thread. Speaks
MQTT 5, and 3.1.1 to a broker that knows no other.
"""

from __future__ import annotations

import contextlib
import logging
import random
import select
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from edge_cl.sync.broker import Access, Broker, create_client, parse_url, properties

KEEPALIVE_S = 30
CONNECT_S = 10.0
MAX_UNCONFIRMED = 8_000
"""Messages that a broker hands over before it must hear that the first is stored (MQTT 5)."""
MAX_PACKET_BYTES = 256 * 1024
MAX_WAITING_BYTES = 64 * 1024 * 1024
"""Given to it and not yet taken by the broker; beyond that nothing more is taken."""
READS = 200
_WRONG_PROTOCOL = ("Unsupported protocol version", "Protocol error", "hung up")

log = logging.getLogger(__name__)


class Login(NamedTuple):
    """How to get into the broker; the password comes from the environment."""

    url: str
    username: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""


class Got(NamedTuple):
    """A message from the broker. `mid` and `connection` are what it is confirmed by; `mid` 0 needs none."""

    topic: str
    payload: bytes
    retained: bool
    mid: int
    connection: int


class Publish(Protocol):
    """Sends something now, or not at all when there is no connection."""

    def __call__(self, topic: str, payload: bytes, *, qos: int = 0, expires_s: int = 0) -> bool:
        """False when it was not even tried. `expires_s`: the broker (MQTT 5) drops it after that."""
        ...


class Connection:
    """The connection, in a thread of its own from `start` to `stop`.

    Parameters
    ----------
    topics
        Subscribed with QoS 1 at each connection.
    received
        Called for each message, on the connection's thread; must return at once.
    connected
        Called after each successful subscription, on the connection's thread.
    backoff_s
        Shortest and longest wait between attempts, before random spread.

    Attributes
    ----------
    trouble
        What a person should know of the connection, or "".
    n_connections, beat_s
        Connections made; when the thread last came round (monotonic).
    """

    def __init__(
        self,
        login: Login,
        client_id: str,
        topics: list[str],
        received: Callable[[Got], None],
        *,
        connected: Callable[[], None] = lambda: None,
        backoff_s: tuple[float, float] = (0.5, 30.0),
    ) -> None:
        self.trouble, self.n_connections, self.beat_s = "", 0, time.monotonic()
        self.is_up = False
        self._login, self._client_id, self._topics = login, client_id, topics
        self._broker: Broker = parse_url(login.url)
        self._received, self._connected, self._backoff_s = received, connected, backoff_s
        self._protocol = paho.MQTTv5
        self._outgoing: deque[Callable[[paho.Client], Any]] = deque()
        self._wake_read, self._wake_write = socket.socketpair()
        self._wake_read.setblocking(False)
        self._wake_write.setblocking(False)
        self._counting = threading.Lock()
        self._waiting_bytes = 0
        self._sent_bytes: dict[int, int] = {}
        self._stopping = False
        self._attempt = 0
        self._n_read = 0
        self._create_client()  # here, so that settings that cannot work are refused at once
        self._thread = threading.Thread(target=self._run, name="fleet-mqtt", daemon=True)

    # -- from any thread -------------------------------------------------------------------------

    def start(self) -> None:
        """Begin connecting; returns at once."""
        self._thread.start()

    def supervise(self) -> bool:
        """Start the thread again if it died; true when it had."""
        if self._stopping or self._thread.is_alive():
            return False
        self.is_up = False
        self._thread = threading.Thread(target=self._run, name="fleet-mqtt", daemon=True)
        self._thread.start()
        return True

    def stop(self, timeout_s: float = 5.0) -> None:
        """Send what waits, say goodbye, end the thread."""
        self._stopping = True
        self._wake()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def publish(self, topic: str, payload: bytes, *, qos: int = 0, expires_s: int = 0) -> bool:
        """As :class:`Publish` has it."""
        with self._counting:
            if not self.is_up or self._waiting_bytes + len(payload) > MAX_WAITING_BYTES:
                return False
            self._waiting_bytes += len(payload)
        expiry = None
        if expires_s > 0 and self._protocol == paho.MQTTv5:
            expiry = properties(PacketTypes.PUBLISH, MessageExpiryInterval=min(expires_s, 2**32 - 1))
        self._outgoing.append(lambda client: self._send(client, topic, payload, qos, expiry))
        self._wake()
        return True

    def confirm(self, got: list[Got]) -> None:
        """Tell the broker that it may forget these."""
        mids = [(one.mid, one.connection) for one in got if one.mid]
        if mids:
            self._outgoing.append(lambda client: self._send_confirmations(client, mids))
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is awake already
            self._wake_write.send(b"\0")

    # -- on the thread ---------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._connect_and_serve()
            except (OSError, ValueError, RuntimeError, TypeError, KeyError, IndexError) as error:
                self.trouble = f"{self._login.url} cannot be reached ({error}); trying again"
            finally:
                self.is_up = False
            self._forget()
            if not self._stopping:
                log.warning("%s", self.trouble)
                self._pause()
                self._create_client()

    def _forget(self) -> None:
        # What was under way is for whoever gave it to give again.
        self._outgoing.clear()
        self._sent_bytes.clear()
        with self._counting:
            self._waiting_bytes = 0

    def _pause(self) -> None:
        shortest_s, longest_s = self._backoff_s
        wait_s = min(longest_s, shortest_s * 2 ** min(self._attempt, 16)) * random.uniform(0.5, 1.0)
        self._attempt += 1
        until_s = time.monotonic() + wait_s
        while not self._stopping and (left_s := until_s - time.monotonic()) > 0:
            self.beat_s = time.monotonic()
            select.select([self._wake_read], [], [], min(left_s, 1.0))
            self._drain_wakes()

    def _create_client(self) -> None:
        is_v5 = self._protocol == paho.MQTTv5
        access = Access(*self._login[1:], section="--")
        client = create_client(self._client_id, self._broker, access, mqtt_5=is_v5, clean=True)
        client.on_connect, client.on_subscribe = self._on_connect, self._on_subscribe
        client.on_message, client.on_disconnect = self._on_message, self._on_disconnect
        client.on_publish = self._on_publish
        # Without it paho would send each packet at once, from whichever thread gave it.
        client.on_socket_register_write = lambda *_: None
        client.max_inflight_messages_set(0)
        client.connect_timeout = CONNECT_S
        self._client = client

    def _connect_and_serve(self) -> None:
        options: dict[str, Any] = {}
        if self._protocol == paho.MQTTv5:
            limits = properties(
                PacketTypes.CONNECT,
                SessionExpiryInterval=0,
                ReceiveMaximum=MAX_UNCONFIRMED,
                MaximumPacketSize=MAX_PACKET_BYTES,
            )
            options = {"clean_start": True, "properties": limits}
        self.trouble = f"{self._login.url} did not answer; trying again"
        refused_by_s = time.monotonic() + CONNECT_S
        self._client.connect(self._broker.host, self._broker.port, KEEPALIVE_S, **options)
        while self._turn():
            if not self.is_up and time.monotonic() > refused_by_s:
                break
        if self.n_connections == 0 and any(word in self.trouble for word in _WRONG_PROTOCOL):
            # A broker that does not know MQTT 5 says so, or hangs up; one that just restarts hangs up, too.
            self._protocol = paho.MQTTv311 if self._protocol == paho.MQTTv5 else paho.MQTTv5

    def _turn(self) -> bool:
        """Wait for something to do, and do it; false when the connection has ended."""
        client = self._client
        sock = client.socket()
        if sock is None:
            return False
        writes = [sock] if client.want_write() else []
        pending = isinstance(sock, ssl.SSLSocket) and sock.pending() > 0
        readable, _, _ = select.select([sock, self._wake_read], writes, [], 0.0 if pending else 1.0)
        self.beat_s = time.monotonic()
        if self._wake_read in readable:
            self._drain_wakes()
        if pending or sock in readable:
            self._read()
        while self._outgoing and self.is_up:
            self._outgoing.popleft()(client)
        code = client.loop_write() if client.want_write() else MQTTErrorCode.MQTT_ERR_SUCCESS
        if client.loop_misc() or code:
            return False
        if self._stopping and not client.want_write():
            client.disconnect()
            client.loop_write()
            return False
        return True

    def _read(self) -> None:
        # paho reads one packet per call and does not say whether there was one.
        for _ in range(READS):
            before = self._n_read
            if self._client.loop_read() or self._n_read == before:
                return

    def _drain_wakes(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while len(self._wake_read.recv(4096)) == 4096:
                pass

    def _send(
        self, client: paho.Client, topic: str, payload: bytes, qos: int, properties: Properties | None
    ) -> None:
        info = client.publish(topic, payload, qos, properties=properties)
        self._sent_bytes[info.mid] = len(payload)

    def _send_confirmations(self, client: paho.Client, mids: list[tuple[int, int]]) -> None:
        for mid, connection in mids:
            if connection == self.n_connections:  # another connection's numbers mean other messages
                client.ack(mid, 1)

    # -- paho's callbacks, on the thread ---------------------------------------------------------

    def _on_connect(self, client: paho.Client, _userdata: Any, _flags: Any, reason: Any, _p: Any) -> None:
        if reason.is_failure:
            self.trouble = (
                f"{self._login.url} refused the connection ({reason}); check the user and its rights"
            )
            return
        self.n_connections += 1
        client.subscribe([(topic, 1) for topic in self._topics])

    def _on_subscribe(self, _client: paho.Client, _userdata: Any, _mid: int, reasons: Any, _p: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            said = ", ".join(sorted({str(reason) for reason in reasons if reason.is_failure}))
            self.trouble = (
                f"{self._login.url} does not let this user read {', '.join(self._topics)} ({said}); "
                "allow it in the broker"
            )
            log.error("%s", self.trouble)
            return
        self.trouble, self._attempt, self.is_up = "", 0, True
        self._connected()

    def _on_disconnect(self, _client: paho.Client, _userdata: Any, _flags: Any, reason: Any, _p: Any) -> None:
        refused = self.trouble and "did not answer" not in self.trouble
        if not refused:
            how = "was lost" if self.is_up else "hung up"
            self.trouble = f"the connection to {self._login.url} {how} ({reason}); trying again"
        self.is_up = False

    def _on_publish(self, _client: paho.Client, _userdata: Any, mid: int, _reason: Any, _p: Any) -> None:
        with self._counting:
            self._waiting_bytes -= self._sent_bytes.pop(mid, 0)

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        self._n_read += 1
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        mid = message.mid if message.qos else 0
        self._received(Got(topic, bytes(message.payload), message.retain, mid, self.n_connections))
