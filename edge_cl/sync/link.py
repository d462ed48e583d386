"""The MQTT pump: answers out through the outbox, labels in.

Two threads beside the run loop: paho's, whose callbacks only put a task into a queue, and the
pump, which does those tasks one after the other and alone owns the outbox. So nothing here
blocks the run loop, and no lock is needed.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import MQTTErrorCode

from edge_cl.budget import MIB
from edge_cl.errors import EdgeCLError
from edge_cl.records import Answer, Decision, Label, Receipt, Status
from edge_cl.sync import messages
from edge_cl.sync.broker import PASSWORD_VARIABLE, create_client, parse_url, spread_reconnects
from edge_cl.sync.events import EventGate
from edge_cl.sync.inbox import Arrival, LabelInbox
from edge_cl.sync.outbox import Outbox, Row

WINDOW = 16  # paho ignores its own limit when it reconnects, so it never holds more than this
COMMIT_S = 0.2  # at most five flushes of the disk a second, however many receipts
CLEANUP_S = 2.0  # acknowledged rows may linger: after a crash they are only sent twice
SUPERVISE_S = 5.0
MAX_TASKS = 10_000
KEEPALIVE_S = 30


class MqttLink:
    """A sink for answers and a source of labels, over MQTT 3.1.1.

    Receipts and sleep reports wait on disk until the broker has acknowledged them; the newest
    state is sent when the broker is there; decisions are sent at best once and only when they
    say something new. An absent broker never blocks and never raises.

    Parameters
    ----------
    url
        ``mqtt://host[:port]`` or ``mqtts://host[:port]``.
    state_dir
        Where the outbox lives; None keeps it in memory.
    disk_bytes
        The outbox's share of the disk budget, file overhead included.
    username
        The password comes from the environment variable ``EDGE_CL_MQTT_PASSWORD``.
    backoff_s
        Shortest and longest wait between attempts to connect, before random spread.
    """

    def __init__(
        self,
        url: str,
        *,
        device: str,
        site: str,
        state_dir: Path | None,
        disk_bytes: int = 8 * MIB,
        username: str = "",
        ca_file: str = "",
        backoff_s: tuple[float, float] = (1.0, 120.0),
    ) -> None:
        self.url = url
        self.connected = False
        self._broker = parse_url(url)
        self._root = messages.topic_root(site, device)
        self._client = create_client(
            f"edgecl-{site}-{device}", self._broker, username=username, ca_file=ca_file
        )
        spread_reconnects(self._client, *backoff_s)
        path = None if state_dir is None else Path(state_dir) / "outbox.db"
        # Half of the disk share is for the free pages and the write-ahead log of the file.
        self._outbox = Outbox(path, capacity_bytes=MIB if path is None else disk_bytes // 2)
        self._tasks: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._inbox = LabelInbox()
        self._gate = EventGate()
        self._pump_thread = threading.Thread(target=self._work, name="edge-cl-mqtt", daemon=True)
        self._boot_id = uuid.uuid4().hex
        self._since_s = time.time()
        self._session = self._outbox.session
        self._bundle = ("", "")
        self._state: bytes | None = None
        self._inflight: dict[int, Row | None] = {}
        self._counts = dict.fromkeys(("sent", "delivered", "dropped", "events", "connections"), 0)
        self._trouble = ""
        self._internal = ""
        self._unreachable = False
        self._stopped = False
        self._stop_at_s: float | None = None
        self._commit_at_s: float | None = None
        self._supervise_at_s = 0.0

    # -- for the run loop ------------------------------------------------------------------

    def start(self) -> None:
        """Begin connecting in the background; returns at once, broker or not."""
        client = self._client
        client.on_pre_connect = self._on_pre_connect
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.connect_async(self._broker.host, self._broker.port, keepalive=KEEPALIVE_S)
        self._pump_thread.start()

    def sink(self, answer: Answer) -> None:
        """Send an answer when and how its kind needs it; returns at once."""
        if isinstance(answer, Decision):
            if self.connected and self._gate.passes(answer, time.monotonic()):
                self._tasks.put(partial(self._publish_event, messages.encode(answer)))
        elif isinstance(answer, Status):
            bundle = (answer.bundle_id, answer.head)
            self._tasks.put(partial(self._new_state, messages.encode(answer), bundle))
        elif self._tasks.qsize() >= MAX_TASKS:
            self._counts["dropped"] += 1
        else:
            self._tasks.put(partial(self._keep, answer, messages.encode(answer)))

    def poll(self) -> list[Label]:
        """Labels that arrived since the last call; never blocks."""
        return self._inbox.poll()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Send what waits if the broker is there, say goodbye, disconnect; what is left stays on disk."""
        if not self._pump_thread.is_alive():
            return
        self._tasks.put(partial(self._finish_by, time.monotonic() + timeout_s))
        self._pump_thread.join(timeout_s + 2.0)

    @property
    def counts(self) -> dict[str, int]:
        """Messages by fate.

        ``sent`` were handed to the network with QoS 1, ``delivered`` of them acknowledged by the
        broker, ``queued`` wait in the outbox, ``dropped`` were lost for want of room, ``events``
        went out at QoS 0; ``bad_inbound`` labels were refused as unreadable.
        """
        lost = self._outbox.n_dropped + self._outbox.n_refused
        return self._counts | {
            "dropped": self._counts["dropped"] + lost,
            "queued": self._outbox.n_queued,
            "bad_inbound": self._inbox.n_bad,
            "disk_errors": self._outbox.n_disk_errors,
        }

    @property
    def nbytes(self) -> int:
        """Memory held by messages, for the byte ledger."""
        return self._outbox.nbytes

    @property
    def alarm(self) -> str:
        """What a person should know, or ""."""
        return self._internal or self._outbox.alarm or self._trouble

    # -- callbacks, on paho's thread: they only enqueue --------------------------------------

    def _on_pre_connect(self, client: paho.Client, _userdata: Any) -> None:
        # The pump sends again from the outbox, so what paho still holds would only arrive twice.
        client.drop_out_messages()
        self._session += 1
        will = messages.Presence(online=False, boot_id=self._boot_id, session=self._session, reason="lost")
        client.will_set(f"{self._root}/status", messages.encode(will), qos=1, retain=True)

    def _on_connect(
        self, client: paho.Client, _userdata: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        if reason.is_failure:
            self._tasks.put(partial(self._refused, str(reason)))
        elif self._stopped:
            client.disconnect()
        else:
            self._tasks.put(partial(self._connection_made, self._session))

    def _on_connect_fail(self, _client: paho.Client, _userdata: Any) -> None:
        # paho does not pass the reason, but it calls this while it handles the exception.
        self._tasks.put(partial(self._connect_failed, str(sys.exc_info()[1])))

    def _on_disconnect(self, _client: paho.Client, _userdata: Any, _flags: Any, reason: Any, _p: Any) -> None:
        self._tasks.put(partial(self._connection_lost, str(reason)))

    def _on_publish(
        self, _client: paho.Client, _userdata: Any, mid: int, _reason: Any, _properties: Any
    ) -> None:
        self._tasks.put(partial(self._acknowledged, mid))

    def _on_subscribe(self, _client: paho.Client, _userdata: Any, _mid: int, reasons: Any, _p: Any) -> None:
        if any(reason.is_failure for reason in reasons):
            self._tasks.put(self._subscription_refused)

    def _on_message(self, _client: paho.Client, _userdata: Any, message: paho.MQTTMessage) -> None:
        if self._tasks.qsize() < MAX_TASKS:
            arrival = Arrival(
                payload=bytes(message.payload[: messages.MAX_INBOUND_BYTES + 1]),
                mid=message.mid if message.qos else 0,
                session=self._session,
                retained=message.retain,
                redelivered=message.dup,
            )
            self._tasks.put(partial(self._received, arrival))

    # -- the pump --------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._flushed():
            self._step()
        self._farewell()
        self._outbox.close()
        self._disconnect()

    def _step(self) -> None:
        """Do every waiting task, then what time or an acknowledgement made due."""
        try:
            task = self._tasks.get(timeout=self._wait_s())
            while True:
                self._guard(task)
                task = self._tasks.get_nowait()
        except queue.Empty:
            pass
        self._guard(self._commit_if_due)
        self._guard(self._send)
        self._guard(self._supervise)

    def _guard(self, task: Callable[[], None]) -> None:
        # One bad message must not end the device's networking.
        try:
            task()
        except (EdgeCLError, OSError, ValueError, RuntimeError, TypeError) as error:
            self._internal = f"the MQTT pump met an unexpected error and went on: {error!r}; please report it"

    def _wait_s(self) -> float:
        due = [at for at in (self._commit_at_s, self._stop_at_s, self._supervise_at_s) if at is not None]
        return max(0.0, min(due) - time.monotonic())

    def _supervise(self) -> None:
        now_s = time.monotonic()
        if now_s < self._supervise_at_s:
            return
        self._supervise_at_s = now_s + SUPERVISE_S
        # Starts paho's thread the first time, and again should it ever have died.
        self._client.loop_start()

    def _commit_if_due(self) -> None:
        now_s = time.monotonic()
        if self._commit_at_s is None:
            if self._outbox.n_unsaved or self._inbox.n_settled:
                self._commit_at_s = now_s + COMMIT_S
            elif self._outbox.n_unsaved_removals:
                self._commit_at_s = now_s + CLEANUP_S
        elif self._outbox.n_unsaved:
            self._commit_at_s = min(self._commit_at_s, now_s + COMMIT_S)
        hurry = self._stop_at_s is not None and self._outbox.n_unsaved > 0
        if hurry or (self._commit_at_s is not None and now_s >= self._commit_at_s):
            self._commit()

    def _commit(self) -> None:
        self._commit_at_s = None
        if self._outbox.commit():
            for mid in self._inbox.take_settled(self._session):
                self._client.ack(mid, 1)

    def _send(self) -> None:
        if not self.connected:
            return
        busy = {row.seq for row in self._inflight.values() if row is not None}
        for row in self._outbox.ready(WINDOW - len(self._inflight)):
            if row.seq not in busy:
                body = messages.wrap(row.id, row.seq, row.body)
                self._publish(row.stream, body, row=row)
        if self._state is not None and len(self._inflight) < WINDOW:
            state, self._state = self._state, None
            self._publish("state", state, retain=True)

    def _publish(
        self, kind: messages.Kind | str, body: bytes, *, row: Row | None = None, retain: bool = False
    ) -> int:
        info = self._client.publish(f"{self._root}/{kind}", body, qos=1, retain=retain)
        if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._inflight[info.mid] = row
            self._counts["sent"] += 1
        return info.mid

    def _publish_event(self, body: bytes) -> None:
        if self.connected:
            self._client.publish(f"{self._root}/event", body, qos=0)
            self._counts["events"] += 1

    # -- tasks -----------------------------------------------------------------------------

    def _connection_made(self, session: int) -> None:
        self._counts["connections"] += 1
        self.connected, self._unreachable, self._trouble = True, False, ""
        self._outbox.session = session
        self._commit()  # before the birth: a number that was seen must not be used again
        self._outbox.rewind()
        self._inflight.clear()
        self._client.subscribe(f"{self._root}/cmd/label", qos=1)
        self._publish_birth()

    def _publish_birth(self) -> None:
        bundle_id, head = self._bundle
        birth = messages.Presence(
            online=True,
            boot_id=self._boot_id,
            session=self._outbox.session,
            seq=self._outbox.seq,
            bundle_id=bundle_id,
            head=head,
            since_s=self._since_s,
        )
        self._publish("status", messages.encode(birth), retain=True)

    def _connection_lost(self, reason: str) -> None:
        self.connected, self._unreachable = False, True
        self._inflight.clear()
        self._inbox.forget_connection()
        self._trouble = self._trouble or f"the connection to {self.url} was lost ({reason}); trying again"

    def _connect_failed(self, reason: str) -> None:
        self._unreachable = True
        self._trouble = f"{self.url} cannot be reached ({reason}); messages wait in the outbox, trying again"

    def _refused(self, reason: str) -> None:
        self._unreachable = True
        self._trouble = (
            f"{self.url} refused the connection ({reason}); check mqtt.username and {PASSWORD_VARIABLE}"
        )

    def _subscription_refused(self) -> None:
        self._trouble = (
            f"{self.url} does not let this device read {self._root}/cmd/label; allow it in the broker"
        )

    def _acknowledged(self, mid: int) -> None:
        if mid not in self._inflight:
            return
        row = self._inflight.pop(mid)
        self._counts["delivered"] += 1
        if row is not None:
            self._outbox.done(row)

    def _new_state(self, body: bytes, bundle: tuple[str, str]) -> None:
        self._state = body
        if bundle != self._bundle:
            self._bundle = bundle
            if self.connected:
                self._publish_birth()

    def _keep(self, answer: Answer, body: bytes) -> None:
        if not isinstance(answer, Receipt):
            self._outbox.put("sleep", body, vital=False)
            return
        self._outbox.put("receipt", body, vital=True)
        self._inbox.settle(answer)

    def _received(self, arrival: Arrival) -> None:
        refusal = self._inbox.receive(arrival)
        if refusal is not None:
            # Anybody can send nonsense: it may not push out the receipts of real labels.
            self._outbox.put("receipt", messages.encode(refusal), vital=False)

    # -- the end ---------------------------------------------------------------------------

    def _finish_by(self, at_s: float) -> None:
        self._stop_at_s = at_s

    def _flushed(self) -> bool:
        if self._stop_at_s is None:
            return False
        if time.monotonic() >= self._stop_at_s or self._unreachable:
            return True
        return self.connected and not (self._outbox.n_queued or self._inflight or self._state)

    def _farewell(self) -> None:
        if self.connected and self._stop_at_s is not None:
            gone = messages.Presence(
                online=False, boot_id=self._boot_id, session=self._outbox.session, reason="stopped"
            )
            mid = self._publish("status", messages.encode(gone), retain=True)
            while mid in self._inflight and time.monotonic() < self._stop_at_s:
                self._step()

    def _disconnect(self) -> None:
        was_connected, self.connected, self._stopped = self.connected, False, True
        self._client.disconnect()
        if was_connected:
            # Until the goodbye is on its way, the broker would send the last will.
            self._client.loop_stop()
