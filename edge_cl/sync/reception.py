"""What a device does with each message that comes, by its topic; on the pump's thread."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from edge_cl.commands import CommandResult
from edge_cl.errors import SyncError
from edge_cl.sync import messages
from edge_cl.sync.inbox import Arrival
from edge_cl.sync.outbox_rows import Keep

if TYPE_CHECKING:
    from edge_cl.sync.pump import Pump

HELLO_SPREAD_S = 3.0
MAX_CHUNKS = 32


class Chunk(NamedTuple):
    """A piece of the bundle whose SHA-256 begins with `sha256`."""

    sha256: str
    number: int
    body: bytes


class Reception:
    """Takes messages in for a pump."""

    def __init__(self, pump: Pump, root: str) -> None:
        self.chunks: deque[Chunk] = deque(maxlen=MAX_CHUNKS)
        """Pieces of bundles that nobody took yet."""
        self._pump, self._root = pump, root
        self._is_born = self._was_born = False
        self._handlers: dict[str, Callable[[Arrival], None]] = {
            "cmd/label": self._on_label,
            "cmd/ack": self._on_ack,
            "cmd/resend": self._on_resend,
            "status": self._on_own_status,
            "cmd/do": self._on_command,
            "cmd/sleep": partial(self._on_unsigned, "sleep"),
            "cmd/undo": partial(self._on_unsigned, "undo"),
        }

    def connected(self) -> None:
        """The connection is new: its birth was not seen yet."""
        self._is_born = False

    def receive(self, arrival: Arrival) -> None:
        """A message to its handler."""
        pump = self._pump
        if arrival.topic == messages.HELLO:
            pump.delivery.hurry(time.monotonic() + random.uniform(0.0, HELLO_SPREAD_S))
        elif arrival.topic == pump.discovery.birth_topic:
            if arrival.payload == b"online" and not arrival.retained:
                pump.discovery.again()
        elif arrival.topic.startswith(f"{self._root}/"):
            handler = self._handlers.get(arrival.topic.removeprefix(f"{self._root}/"), self._on_other)
            handler(arrival)
        if arrival.topic != f"{self._root}/cmd/label":  # a label is settled by its receipt
            pump.inbox.note_settled(arrival)

    def _on_label(self, arrival: Arrival) -> None:
        refusal = self._pump.inbox.receive(arrival)
        if refusal is not None:
            # Anybody can send nonsense: it may not push out the receipts of real labels.
            self._pump.outbox.put("receipt", messages.encode(refusal), Keep.WHILE_ROOM)

    def _on_ack(self, arrival: Arrival) -> None:
        ack = self._from_server("ack", arrival)
        if isinstance(ack, messages.Ack):
            self._pump.delivery.confirmed(ack.ids)
            self._pump.alarms.confirmed()
            self._pump.dialler.backoff.n_devices = max(0, min(ack.fleet, 10**6))

    def _on_resend(self, arrival: Arrival) -> None:
        asked = self._from_server("resend", arrival)
        if isinstance(asked, messages.Resend) and asked.epoch == self._pump.outbox.epoch:
            gone = self._pump.delivery.resend(asked.seqs, time.monotonic())
            if gone:
                self._pump.keep("gone", messages.encode(messages.Gone(epoch=asked.epoch, seqs=gone)))

    def _on_own_status(self, arrival: Arrival) -> None:
        """A birth of this name that is not this program's, after its own was seen: a second board.

        The late will of an earlier connection would hide this one from whoever cannot compare sessions.
        """
        try:
            seen = messages.decode("status", arrival.payload)
        except SyncError:
            return
        ours = seen.boot_id == self._pump.outbox.boot_id
        if not seen.online:
            is_late = not (ours and seen.session == self._pump.outbox.session)
            if is_late and self._is_born and not arrival.retained:
                self._pump.say_birth()
        elif ours:
            self._is_born = self._was_born = True
            self._pump.alarms.saw_birth()
            self._pump.dialler.served()
        elif self._was_born if arrival.retained else self._is_born:
            self._pump.dialler.clone(f"its program started as {seen.boot_id[:8]}…")
            self._pump.forget_connection()

    def _on_command(self, arrival: Arrival) -> None:
        self._answer(self._pump.commands.receive(arrival))
        self._pump.commit_soon()

    def _on_unsigned(self, ask: str, arrival: Arrival) -> None:
        self._answer(self._pump.commands.receive_unsigned(ask, arrival))

    def _answer(self, result: CommandResult | None) -> None:
        if result is not None:  # it may come from a replayer: it may not push out results
            self._pump.outbox.put("result", messages.encode(result), Keep.WHILE_ROOM)

    def _on_other(self, arrival: Arrival) -> None:
        """A chunk of a bundle, or nothing that this version knows."""
        what, _, rest = arrival.topic.removeprefix(f"{self._root}/cmd/").partition("/")
        sha256, _, index = rest.partition("/")
        if what == "chunk" and index.isdecimal() and len(index) < 8:
            self.chunks.append(Chunk(sha256, int(index), arrival.payload))

    def _from_server(self, kind: str, arrival: Arrival) -> object:
        try:
            found = messages.decode(kind, arrival.payload)
        except SyncError as error:
            self._pump.alarms.foreign(str(error), messages.PROTOCOL)
            return None
        if found.v != messages.PROTOCOL:
            self._pump.alarms.foreign(f"its {kind} has version {found.v}", messages.PROTOCOL)
            return None
        return found
