"""One MQTT connection from its first byte to its last, in a thread of its own.

paho is used through its interface for other event loops, because that alone shows whether the thread that
serves the network lives and moves. Its callbacks, and the end of the thread, only put a task into the pump's
queue.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes

from edge_cl.sync.broker import Broker, properties
from edge_cl.sync.certificates import explain
from edge_cl.sync.inbox import Arrival

KEEPALIVE_S = 30
TURN_S = 1.0
STUCK_S = 6.0
"""A network thread that has not turned for so long is given up; one turn takes at most a second."""
CONNECT_S = 30.0
"""For name, TCP and TLS together."""
ANSWER_S = 4.0
"""For the broker's answer; one that knows no MQTT 5 may give none."""
SESSION_S = 7 * 24 * 3600
WILL_DELAY_S = 5
RECEIVE_MAXIMUM = 100
"""Messages to the device that it has not acknowledged: labels that wait for their receipts."""
MAX_ARRIVALS = 500
"""Messages that wait for the pump; beyond that those of QoS 0 are dropped, which whoever needs them sends
again. Those of QoS 1 the broker holds back itself.
"""
HUNG_UP = "it hung up without a word"
TAKEN_OVER = 0x8E
OTHER_PROTOCOL = (0x81, 0x82, 0x84)
"""Malformed packet, protocol error, unsupported version: what MQTT 3.1.1 looks like to MQTT 5."""


class Ears(Protocol):
    """Who hears of a connection, on the pump's thread."""

    def will(self, session: int) -> tuple[str, bytes]:
        """Topic and body of what the broker says when connection `session` breaks."""
        ...

    def connected(self, connection: Connection) -> None:
        """The broker took it."""

    def ended(self, connection: Connection, reason: str, code: int) -> None:
        """It is over, or never began; `code` is MQTT's reason, 0 when there was none."""

    def acknowledged(self, connection: Connection, mid: int, problem: str) -> None:
        """The broker answered a message; `problem` says why it did not take it, or ""."""

    def subscribed(self, connection: Connection, problem: str) -> None:
        """The broker answered the subscriptions; `problem` names one that it refused, and why, or is ""."""

    def received(self, connection: Connection, arrival: Arrival) -> None:
        """A message came."""


class Connection:
    """Connects at once, and only once.

    Parameters
    ----------
    client
        A paho client made by :func:`edge_cl.sync.broker.create_client`.
    will
        Topic and body of what the broker says when the connection breaks.
    put
        Takes tasks for the pump; never blocks.
    session
        The connection's number.
    n_mute
        Attempts since the last success in which nobody answered; the more, the longer this one waits.
    """

    def __init__(
        self,
        client: paho.Client,
        broker: Broker,
        *,
        will: tuple[str, bytes],
        ears: Ears,
        put: Callable[[Callable[[], None]], None],
        session: int,
        max_inbound_bytes: int,
        n_mute: int = 0,
    ) -> None:
        self.client = client
        self.session = session
        self.is_up = self.was_reached = False
        self.turned_s = time.monotonic()
        self._broker, self._ears, self._put = broker, ears, put
        self._max_inbound_bytes, self._n_mute = max_inbound_bytes, n_mute
        self._closing = False
        self._reason, self._code = "", 0
        self._topics: list[str] = []
        self._n_came = self._n_heard = 0
        self._said = _LastError()
        self._wake, self._waker = socket.socketpair()
        for end in (self._wake, self._waker):
            end.setblocking(False)
        delay = None
        if self.speaks_5:  # a short break of the link is nobody's business
            delay = properties(PacketTypes.WILLMESSAGE, WillDelayInterval=WILL_DELAY_S)
        client.will_set(will[0], will[1], qos=1, retain=True, properties=delay)
        client.enable_logger(self._said.logger)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_socket_register_write = self._on_want_write
        self.thread = threading.Thread(target=self._serve, name="edge-cl-network", daemon=True)

    def start(self) -> None:
        """Begin to connect; `ears` hear what comes of it."""
        self.thread.start()

    @property
    def speaks_5(self) -> bool:
        """True for MQTT 5."""
        return self.client.protocol == paho.MQTTv5

    def problem(self, now_s: float) -> str:
        """Why this connection has to be given up, or ""."""
        if not self.thread.is_alive():
            return "its thread ended"
        # Two attempts, one in each version, with each patience: a slow broker is not one of another version.
        answer_s = ANSWER_S * 2 ** min(self._n_mute // 2, 3)
        if not self.is_up and now_s - self.turned_s > (answer_s if self.was_reached else CONNECT_S):
            return "the broker does not answer"
        if self.is_up and now_s - self.turned_s > STUCK_S:
            return "its thread is stuck"
        return ""

    def publish(self, topic: str, body: bytes, *, qos: int = 1, retain: bool = False) -> int:
        """Hand a message to paho; gives its number, 0 when it was not taken."""
        info = self.client.publish(topic, body, qos=qos, retain=retain)
        return info.mid if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS else 0

    def subscribe(self, topics: list[tuple[str, int]]) -> None:
        """Ask for these, each with its QoS; once."""
        self._topics = [topic for topic, _ in topics]
        self.client.subscribe(topics)

    def acknowledge(self, mid: int) -> None:
        """Tell the broker that message `mid` of this connection is safe."""
        self.client.ack(mid, 1)

    def close(self, timeout_s: float = 0.0) -> None:
        """Say goodbye to the broker if it is there, and end; wait at most so long for the thread."""
        if self.is_up:
            self.client.disconnect()
        self._closing = True
        self._nudge()
        if timeout_s:
            self.thread.join(timeout_s)

    # -- the network thread ------------------------------------------------------------------

    def _serve(self) -> None:
        try:
            self._connect()
            while self._turn() == MQTTErrorCode.MQTT_ERR_SUCCESS:
                if self.is_up:
                    self.turned_s = time.monotonic()
        except (OSError, ValueError, paho.WebsocketConnectionError) as error:
            self._reason = self._reason or explain(error, self._broker)
        finally:
            # also after what nobody foresaw: without this word the pump would wait for a dead thread
            with contextlib.suppress(OSError):
                if (sock := self.client.socket()) is not None:
                    sock.close()
            self._put(partial(self._ears.ended, self, self._reason, self._code))

    def _connect(self) -> None:
        limits = None
        if self.speaks_5:
            limits = properties(
                PacketTypes.CONNECT,
                SessionExpiryInterval=SESSION_S,
                ReceiveMaximum=RECEIVE_MAXIMUM,
                MaximumPacketSize=self._max_inbound_bytes + 1024,
            )
        host, port = self._broker.host, self._broker.port
        clean: Any = False if self.speaks_5 else paho.MQTT_CLEAN_START_FIRST_ONLY
        self.client.connect(host, port, keepalive=KEEPALIVE_S, clean_start=clean, properties=limits)
        self.was_reached, self.turned_s = True, time.monotonic()

    def _turn(self) -> MQTTErrorCode:
        """Wait for the network or a message to send, at most a second, and do what there is."""
        sock = self.client.socket()
        if sock is None:
            return MQTTErrorCode.MQTT_ERR_CONN_LOST
        poll = select.poll()  # select() cannot take file numbers above 1,023
        poll.register(sock, select.POLLIN | (select.POLLOUT if self.client.want_write() else 0))
        poll.register(self._wake, select.POLLIN)
        pending = getattr(sock, "pending", None)  # TLS may hold bytes that the socket no longer shows
        ready = dict(poll.poll(0 if pending is not None and pending() else TURN_S * 1000))
        if self._wake.fileno() in ready:
            self._wake.recv(4096)
        code = MQTTErrorCode.MQTT_ERR_SUCCESS
        if pending is not None or sock.fileno() in ready:
            code = self.client.loop_read()
        if code == MQTTErrorCode.MQTT_ERR_SUCCESS and self.client.want_write():
            code = self.client.loop_write()
        if code == MQTTErrorCode.MQTT_ERR_SUCCESS:
            code = self.client.loop_misc()
        if self._closing and not self.client.want_write():
            return MQTTErrorCode.MQTT_ERR_NO_CONN
        return code

    def _nudge(self) -> None:
        with contextlib.suppress(OSError):  # full: it is awake anyway
            self._waker.send(b"\0")

    # -- paho's callbacks: they only enqueue -----------------------------------------------------

    def _on_want_write(self, *_: object) -> None:
        self._nudge()

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._reason, self._code = str(reason), reason.value
        else:
            self.is_up, self.turned_s = True, time.monotonic()
            self._put(partial(self._ears.connected, self))

    def _on_disconnect(self, _client: Any, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if self._reason:
            return
        if flags.is_disconnect_packet_from_server:
            self._reason, self._code = str(reason), reason.value
        elif self._said.error is not None:  # paho keeps the cause to itself
            self._reason = explain(self._said.error, self._broker)
        else:
            self._reason = HUNG_UP if reason == "Unspecified error" else str(reason)

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        problem = str(reason) if reason is not None and reason.is_failure else ""
        self._put(partial(self._ears.acknowledged, self, mid, problem))

    def _on_subscribe(self, _client: Any, _data: Any, _mid: int, reasons: Any, _properties: Any) -> None:
        problems = [
            f"{topic} ({reason})"
            for topic, reason in zip(self._topics, reasons, strict=False)
            if reason.is_failure
        ]
        self._put(partial(self._ears.subscribed, self, problems[0] if problems else ""))

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        if not message.qos and self._n_came - self._n_heard >= MAX_ARRIVALS:
            return
        try:
            topic = message.topic
        except UnicodeDecodeError:
            topic = ""
        arrival = Arrival(
            topic=topic,
            payload=bytes(message.payload[: self._max_inbound_bytes + 1]),
            mid=message.mid if message.qos else 0,
            session=self.session,
            retained=message.retain,
            redelivered=message.dup,
        )
        self._n_came += 1
        self._put(partial(self._hear, arrival))

    def _hear(self, arrival: Arrival) -> None:  # on the pump's thread
        self._n_heard += 1
        self._ears.received(self, arrival)


class _LastError(logging.Handler):
    """Why paho's last use of the socket failed; it says so nowhere but in its log."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.error: OSError | None = None
        self.logger = logging.Logger("paho", logging.ERROR)
        self.logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the cause, if there is one."""
        causes = record.args if isinstance(record.args, tuple) else ()
        self.error = next((cause for cause in causes if isinstance(cause, OSError)), self.error)
