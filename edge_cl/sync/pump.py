"""The pump: one thread that does every task of the MQTT link, one after the other, and alone owns
the outbox.
"""

from __future__ import annotations

import contextlib
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from edge_cl.commands import CommandResult
from edge_cl.errors import EdgeCLError
from edge_cl.records import Decision, Receipt, Status
from edge_cl.sync import messages
from edge_cl.sync.alarms import Alarms
from edge_cl.sync.command_inbox import CommandInbox
from edge_cl.sync.connection import Connection
from edge_cl.sync.delivery import Delivery
from edge_cl.sync.dialler import Dialler
from edge_cl.sync.discovery import NOTE, Discovery
from edge_cl.sync.inbox import Arrival, LabelInbox
from edge_cl.sync.outbox import Outbox
from edge_cl.sync.outbox_rows import Keep, Row
from edge_cl.sync.presence import Bearing
from edge_cl.sync.receipt_log import ReceiptLog
from edge_cl.sync.reception import Reception

COMMIT_S = 0.2  # at most five commits a second, however many receipts
CLEANUP_S = 2.0  # confirmed rows may linger: after a crash they are only sent twice
SUPERVISE_S = 2.0
TASKS_AT_ONCE = 500  # however many more come, commits and messages go on
SUBSCRIPTIONS = {
    "cmd/label": 1,
    "cmd/sleep": 1,
    "cmd/undo": 1,
    "cmd/do": 1,
    "cmd/chunk/+/+": 1,
    "cmd/ack": 0,
    "cmd/resend": 0,
    "status": 0,
}
"""Topics below the device's own and their QoS; with 0 the broker keeps nothing for a device that is away."""
KEEP = {
    "summary": Keep.WHILE_ROOM,
    "sleep": Keep.WHILE_ROOM,
    "gone": Keep.WHILE_ROOM,
    "health": Keep.NEWEST,
}
"""What may be dropped when the outbox is full; every other kind never is."""

Task = Callable[[], None]


class Pump:
    """What goes on behind :class:`edge_cl.sync.link.MqttLink`; also the `Ears` of its connections.

    Every method but `start`, `put`, `join` and the properties is called on the pump's own thread.
    """

    def __init__(
        self, outbox: Outbox, delivery: Delivery, inbox: LabelInbox, *, root: str, url: str, by_server: bool
    ) -> None:
        self.outbox, self.delivery, self.inbox = outbox, delivery, inbox
        self.dialler: Dialler
        self.commands: CommandInbox
        self.reception: Reception
        self.discovery: Discovery
        self.bearing = Bearing(outbox)
        self.receipts = ReceiptLog(outbox)
        self.n_sent = self.n_events = self.n_connections = 0
        self.internal = ""
        self.alarms = Alarms(url, root, by_server=by_server)
        self._root, self._by_server = root, by_server
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="edge-cl-mqtt", daemon=True)
        self._birth_is_due = False
        self._stop_at_s: float | None = None
        self._commit_at_s: float | None = None
        self._supervise_at_s = 0.0

    # -- from other threads ------------------------------------------------------------------

    def start(self) -> None:
        """Begin; connects by itself."""
        self._thread.start()

    def put(self, task: Task) -> None:
        """Do `task` on the pump's thread."""
        self._tasks.put(task)

    @property
    def n_tasks(self) -> int:
        """How many wait."""
        return self._tasks.qsize()

    @property
    def is_alive(self) -> bool:
        """True until `finish_by` was done."""
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        """Wait for the end of the thread."""
        self._thread.join(timeout_s)

    @property
    def alarm(self) -> str:
        """What a person should know, or ""."""
        found = (self.internal, self.outbox.alarm, self.dialler.trouble, self.alarms.text)
        return "; ".join(filter(None, (*found, self.discovery.problem)))

    def will(self, session: int) -> tuple[str, bytes]:
        """What the broker says when connection `session` breaks."""
        return f"{self._root}/status", self.bearing.end(session, "lost")

    # -- tasks of the run loop ----------------------------------------------------------------

    def keep(self, kind: messages.Kind, body: bytes, then: Task | None = None) -> None:
        """A message for the outbox; `then` once it is there."""
        self.outbox.put(kind, body, KEEP.get(kind, Keep.ALWAYS))
        if then is not None:
            then()

    def keep_receipt(self, receipt: Receipt) -> None:
        """A receipt; the label that it answers need not be delivered again once it is on disk."""
        self.inbox.settle(receipt)
        self.receipts.keep(receipt)

    def publish_event(self, decision: Decision) -> None:
        """A decision, for whoever watches now."""
        if self.dialler.connection is not None and self.dialler.is_up:
            self.dialler.connection.publish(f"{self._root}/event", messages.encode(decision), qos=0)
            self.inbox.shown = decision.reading_id
            self.n_events += 1

    def finish(self, result: CommandResult, body: bytes, named: dict[str, Any]) -> None:
        """An order was carried out: all that has to be kept of it goes into one transaction.

        `named` are the settings that it changed; others stay those of the settings file.
        """
        for part in messages.parts(result.id, body) if body else ():
            self.outbox.put("part", messages.encode(part), Keep.ALWAYS)
        if named:
            before = msgspec.json.decode(self.outbox.notes.get("settings", "{}"), type=dict[str, Any])
            self.outbox.note("settings", msgspec.json.encode(before | named).decode())
        self.outbox.put("result", messages.encode(result), Keep.ALWAYS)
        self.commands.finish(result)
        self._commit()

    def want(self, sha256: str, first: int, n: int) -> None:
        """Ask the server for chunks of a bundle; asked again later if nothing comes."""
        if self.dialler.is_up and self.delivery.room > 0:
            self._publish("want", messages.encode(messages.Want(sha256=sha256, first=first, n=n)))

    def note_status(self, status: Status) -> None:
        """The newest state; sent when there is room."""
        self.discovery.note_status(status)
        if self.bearing.note_status(status):
            self.say_birth()

    def finish_by(self, at_s: float) -> None:
        """Send what waits, say goodbye, end; at `at_s` in any case."""
        self._stop_at_s = at_s

    # -- the thread --------------------------------------------------------------------------

    def _work(self) -> None:
        while not self._flushed():
            self._step()
        self._farewell()
        self.outbox.close()
        self.dialler.close(timeout_s=2.0)

    def _step(self) -> None:
        """Do the waiting tasks, then what time or an acknowledgement made due."""
        with contextlib.suppress(queue.Empty):
            self._guard(self._tasks.get(timeout=self._wait_s()))
            for _ in range(TASKS_AT_ONCE):
                self._guard(self._tasks.get_nowait())
        for due in (self._commit_if_due, self._send, self._supervise):
            self._guard(due)

    def _guard(self, task: Task) -> None:
        # One bad message must not end the device's networking.
        try:
            task()
        except (
            EdgeCLError,
            OSError,
            ValueError,
            RuntimeError,
            TypeError,
            LookupError,
            AttributeError,
            ArithmeticError,
            sqlite3.Error,
        ) as error:
            self.internal = f"the MQTT pump met an unexpected error and went on: {error!r}; please report it"

    def _wait_s(self) -> float:
        resend_s = self.delivery.next_due_s() if self.dialler.is_up and self.delivery.room else None
        found = (self._commit_at_s, self._stop_at_s, self._supervise_at_s, self.dialler.due_s, resend_s)
        return max(0.0, min(at for at in found if at is not None) - time.monotonic())

    def _supervise(self) -> None:
        now_s = time.monotonic()
        due_s = self.dialler.due_s
        if now_s >= self._supervise_at_s or (due_s is not None and now_s >= due_s):
            self._supervise_at_s = now_s + SUPERVISE_S
            self.dialler.tick(now_s)
            waits_since_s = self.delivery.waits_since_s()
            self.alarms.look(now_s, waits_since_s=waits_since_s, n_waiting=self.outbox.n_queued)

    def _commit_if_due(self) -> None:
        now_s = time.monotonic()
        if self._commit_at_s is None:
            if self.outbox.n_unsaved or self.inbox.n_settled:
                self._commit_at_s = now_s + COMMIT_S
            elif self.outbox.n_unsaved_removals:
                self._commit_at_s = now_s + CLEANUP_S
        elif self.outbox.n_unsaved:
            self._commit_at_s = min(self._commit_at_s, now_s + COMMIT_S)
        hurry = self._stop_at_s is not None and self.outbox.n_unsaved > 0
        if hurry or (self._commit_at_s is not None and now_s >= self._commit_at_s):
            self._commit()

    def _commit(self) -> None:
        self._commit_at_s = None
        connection = self.dialler.connection
        if not self.outbox.commit():
            return
        self.commands.committed()
        if connection is not None:
            for mid in self.inbox.take_settled(connection.session):
                connection.acknowledge(mid)

    def _send(self) -> None:
        connection = self.dialler.connection
        if connection is None or not self.dialler.is_up:
            return
        now_s = time.monotonic()
        self._send_birth()
        for row in self.delivery.due(now_s):
            self._publish(row.kind, self._wrap(row, connection), row=row)
        if self.delivery.room > 0 and (state := self.bearing.take_state()) is not None:
            self._publish("state", state, retain=True)
        while self.delivery.room > 0 and (found := self.discovery.take()) is not None:
            self._announce(*found)

    def _send_birth(self) -> None:
        if self._birth_is_due and self.delivery.room > 0:
            self._birth_is_due = False
            self._publish("status", self.bearing.birth(), retain=True)

    def _announce(self, topic: str, body: bytes) -> None:
        self._note_discovery()
        if self.dialler.connection is not None:
            mid = self.dialler.connection.publish(topic, body, retain=True)
            self.delivery.sent(mid, None, time.monotonic())
            self.discovery.sent(topic, mid)

    def _note_discovery(self) -> None:
        if self.outbox.notes.get(NOTE, "") != self.discovery.note:
            self.outbox.note(NOTE, self.discovery.note)
            self._commit_at_s = 0.0

    def _wrap(self, row: Row, connection: Connection) -> bytes:
        up_s = self.outbox.up_s
        return messages.wrap(
            row.body,
            id=row.id,
            epoch=self.outbox.epoch,
            seq=row.seq,
            boot_id=self.outbox.boot_id,
            session=connection.session,
            up_s=round(up_s, 3),
            at_s=round(row.at_s, 3),
            age_s=round(up_s - row.up_s, 3) if row.boot_id == self.outbox.boot_id else None,
        )

    def _publish(self, kind: str, body: bytes, *, row: Row | None = None, retain: bool = False) -> int:
        connection = self.dialler.connection
        mid = 0 if connection is None else connection.publish(f"{self._root}/{kind}", body, retain=retain)
        if mid:
            self.delivery.sent(mid, row, time.monotonic())
            self.n_sent += 1
        return mid

    def say_birth(self) -> None:
        """Say that the device is there, when there is room."""
        self._birth_is_due = True

    # -- what a connection tells ----------------------------------------------------------------

    def connected(self, connection: Connection) -> None:
        """The broker took it: births and subscriptions, then everything again that is not confirmed."""
        if connection is not self.dialler.connection:
            return
        self.n_connections += 1
        self.alarms.connected(time.monotonic(), reasons=connection.speaks_5)
        self.dialler.up()
        self.outbox.session = connection.session
        self._commit()  # before the birth: a number that was seen must not be used again
        self.delivery.restart()
        self.reception.connected()
        topics = [(f"{self._root}/{topic}", qos) for topic, qos in SUBSCRIPTIONS.items()]
        hellos = [(topic, 0) for topic in (messages.HELLO, self.discovery.birth_topic) if topic]
        connection.subscribe([*topics, *hellos])
        self.say_birth()
        self._send_birth()  # at once, before any task that waits: nothing goes before it
        self.bearing.again()
        self.discovery.again()

    def ended(self, connection: Connection, reason: str, code: int) -> None:
        """It is over: what was on its way may come again."""
        if self.dialler.ended(connection, reason, code):
            self.forget_connection()

    def acknowledged(self, connection: Connection, mid: int, problem: str) -> None:
        """The broker has a message, or refuses it."""
        if connection is not self.dialler.connection:
            return
        self.dialler.answered(refused=bool(problem))
        self.delivery.acknowledged(mid, refused=bool(problem))
        if self.discovery.acknowledged(mid, problem):
            self._note_discovery()
        elif problem:
            self.alarms.refused_write(problem, time.monotonic())

    def subscribed(self, connection: Connection, problem: str) -> None:
        """The broker answered the subscriptions."""
        if problem and connection is self.dialler.connection:
            self.alarms.refused_read(problem)

    def received(self, connection: Connection, arrival: Arrival) -> None:
        """A message came."""
        if connection is self.dialler.connection:
            self.reception.receive(arrival)

    def forget_connection(self) -> None:
        """What was on its way may come again."""
        self.delivery.restart()
        self.inbox.forget_connection()
        self.alarms.ended()

    def commit_soon(self) -> None:
        """Something waits for being safe."""
        self._commit_at_s = 0.0

    # -- the end ---------------------------------------------------------------------------

    def _flushed(self) -> bool:
        if self._stop_at_s is None:
            return False
        if time.monotonic() >= self._stop_at_s or self.dialler.unreachable:
            return True
        if (
            not self.dialler.is_up
            or self.outbox.n_unsaved
            or self.bearing.is_new
            or self.delivery.n_in_flight
        ):
            return False
        # without a server's word so far there is none to wait for
        return not self.outbox.n_queued or (self._by_server and not self.delivery.n_confirmed)

    def _farewell(self) -> None:
        if self.dialler.is_up and self._stop_at_s is not None:
            mid = self._publish("status", self.bearing.end(self.outbox.session, "stopped"), retain=True)
            while self.delivery.flies(mid) and time.monotonic() < self._stop_at_s:
                self._step()
