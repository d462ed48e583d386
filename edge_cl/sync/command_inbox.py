"""Commands that came over MQTT: checked, written down, handed to the run loop once, answered.

A command is accepted on disk before the broker hears that it arrived, and its result becomes durable together
with the word that it is finished. Only the life of the program that accepted it carries it out.
"""

from __future__ import annotations

import uuid
from collections import deque
from typing import NamedTuple

from edge_cl.commands import CommandResult, Do, ResultStatus, SleepNow
from edge_cl.errors import CommandRefused
from edge_cl.revisions import Forget
from edge_cl.sync import messages
from edge_cl.sync.accepted import Accepted, Repeats
from edge_cl.sync.inbox import Arrival, LabelInbox
from edge_cl.sync.orders import CommandGate
from edge_cl.sync.outbox import Outbox

MAX_WAITING = 256
_ANSWERED: dict[str, ResultStatus] = {
    "not-allowed": "refused",
    "busy": "refused",
    "too-far": "refused",
    "expired": "expired",
}
"""Codes of refused commands whose signature was right, and that were for this life: a server
waits for them.
"""


class Order(NamedTuple):
    """What the run loop is to do: `do`, in the name of `source`; None for what an earlier life
    left undone.
    """

    id: str
    ask: str
    do: Do | None
    source: str


class CommandInbox:
    """Takes commands in and remembers what came of them.

    `take` is called on the run loop's thread, the rest on the pump's.

    Parameters
    ----------
    gate
        Says which signed commands are obeyed.
    unsigned
        Which of ``label``, ``sleep`` and ``undo`` need no signature.
    """

    def __init__(
        self, outbox: Outbox, labels: LabelInbox, gate: CommandGate, unsigned: tuple[str, ...]
    ) -> None:
        self._outbox, self._labels, self._gate, self._unsigned = outbox, labels, gate, unsigned
        self._accepted = Accepted(outbox)
        self._orders: deque[Order] = deque(
            Order(entry.id, entry.ask, None, "") for entry in self._accepted.interrupted(outbox.boot_id)
        )
        self._unsafe: list[Order] = []
        self._repeats = Repeats()

    def take(self) -> list[Order]:
        """What is to be done now; never blocks."""
        orders = []
        while self._orders:
            orders.append(self._orders.popleft())
        return orders

    def receive(self, arrival: Arrival) -> CommandResult | None:
        """A message on ``cmd/do``; gives the answer when there is one already."""
        up_s = self._outbox.up_s
        try:
            command = self._gate.check(arrival.payload, up_s, retained=arrival.retained)
            known = self._accepted.known(command.id)
            if known is not None:
                return known.result if self._repeats.may_answer(command.id, up_s) else None
            if len(self._orders) + len(self._unsafe) >= MAX_WAITING:
                raise CommandRefused("busy", f"{MAX_WAITING} commands wait already; try later", command.id)
            self._accepted.accept(command, up_s)
        except CommandRefused as refusal:
            return self._answer(refusal, up_s)
        by = messages.decode("do", arrival.payload).by
        # a revision is found again by its id; labels of one key share an account
        source = f"fleet/{by}" if command.ask == "label" else f"fleet/{by} {command.id}"
        self._unsafe.append(Order(command.id, command.ask, command.do, source))
        return None

    def committed(self) -> None:
        """What was accepted is on disk: now it may be carried out."""
        self._orders.extend(self._unsafe)
        self._unsafe.clear()

    def receive_unsigned(self, ask: str, arrival: Arrival) -> CommandResult | None:
        """A message on ``cmd/sleep`` or ``cmd/undo``: what is behind it can always be taken back."""
        if arrival.retained or arrival.redelivered:
            return None  # it was meant for another moment
        order_id = uuid.uuid4().hex
        if ask not in self._unsigned:
            problem = f"{ask} without a signature is not allowed here; see commands.unsigned in the settings"
            return CommandResult(id=order_id, ask=ask, status="refused", message=problem)
        if ask == "sleep":
            self._append(Order(order_id, ask, SleepNow(), "mqtt"))
            return None
        last = self._labels.last_learned
        if last is None:
            problem = "no label has come by MQTT since the device started"
            return CommandResult(id=order_id, ask=ask, status="failed", message=problem)
        self._labels.last_learned = None
        undo = Forget(reading=last.reading_id, source=last.source, class_name=last.label)
        self._append(Order(order_id, ask, undo, "mqtt"))
        return None

    def finish(self, result: CommandResult) -> None:
        """The run loop did it; durable with the outbox's next commit, as the result is."""
        if self._accepted.known(result.id) is not None:
            self._accepted.finish(result.id, result)
        self._accepted.forget_expired(self._outbox.up_s)

    def _append(self, order: Order) -> None:
        if len(self._orders) < MAX_WAITING:
            self._orders.append(order)

    def _answer(self, refusal: CommandRefused, up_s: float) -> CommandResult | None:
        status = _ANSWERED.get(refusal.code)
        if status is None or not refusal.command_id or not self._repeats.may_answer(refusal.command_id, up_s):
            return None
        return CommandResult(id=refusal.command_id, ask="", status=status, message=str(refusal))
