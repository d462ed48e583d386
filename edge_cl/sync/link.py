"""The MQTT link: answers out through the outbox, labels and commands in.

Two threads beside the run loop: the network's (`connection.py`), which only puts tasks into a queue, and the
pump (`pump.py`), which does those tasks one after the other and alone owns outbox and windows. So nothing
here blocks the run loop, and no lock is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from edge_cl.budget import MIB
from edge_cl.commands import Adjust, CommandResult, Do, Done
from edge_cl.config import CommandSettings
from edge_cl.records import Answer, Decision, Label, Receipt, SleepReport, SleepRequest, Status
from edge_cl.sync import messages
from edge_cl.sync.broker import Access, create_client, parse_url
from edge_cl.sync.command_inbox import CommandInbox, Order
from edge_cl.sync.delivery import Delivery
from edge_cl.sync.dialler import Dialler
from edge_cl.sync.discovery import NOTE, Discovery
from edge_cl.sync.events import EventGate
from edge_cl.sync.inbox import LabelInbox
from edge_cl.sync.orders import CommandGate
from edge_cl.sync.outbox import Outbox
from edge_cl.sync.pump import Pump, Task
from edge_cl.sync.reception import Chunk, Reception
from edge_cl.sync.reconnect import Backoff
from edge_cl.sync.summaries import Summariser

MAX_TASKS = 10_000
RECEIPTS_AT_ONCE = 256


class Pace(NamedTuple):
    """How often decisions are summed up and health is told, seconds; shortest and longest wait to
    reconnect.
    """

    summary_s: float = 60.0
    health_s: float = 300.0
    backoff_s: tuple[float, float] = (0.5, 30.0)


class History(Protocol):
    """Where receipts can be made again from: a device's journal."""

    @property
    def history_id(self) -> str:
        """Tells it from every other; "" when nothing is kept."""
        ...

    @property
    def committed_seq(self) -> int:
        """The newest entry on disk."""
        ...

    def sleep_reports(self) -> Sequence[SleepReport]:
        """Of the last sleeps, oldest first."""
        ...

    def receipts_after(self, seq: int, limit: int) -> Sequence[Receipt]:
        """Receipts of the oldest `limit` labels after entry `seq`."""
        ...


class Obeys(Protocol):
    """Who carries out commands, on the run loop's thread."""

    def obey(self, order_id: str, do: Do, source: str) -> Done:
        """Do it; raises nothing."""
        ...

    def look_back(self, order_id: str, ask: str) -> Done:
        """What came of a command that an earlier life of the program accepted and did not finish."""
        ...

    def adjust(self, named: dict[str, Any]) -> object:
        """Use these settings from now on."""
        ...

    def settings(self) -> dict[str, Any]:
        """The settings that may be changed, as they are."""
        ...


class MqttLink:
    """A sink for answers and a source of labels, over MQTT 5, or 3.1.1 where the broker knows no better.

    Receipts, sleep reports, summaries and health wait on disk until a server has confirmed that they are in
    its store; the newest state is sent when the broker is there; decisions are sent at best once and only
    when they say something new. An absent broker never blocks and never raises.

    Parameters
    ----------
    url
        ``mqtt://host[:port]`` or ``mqtts://host[:port]``.
    state_dir
        Where the outbox lives; None keeps it in memory.
    disk_bytes
        The outbox's share of the disk budget, file overhead included.
    confirm
        Whose word removes a message from the outbox: the ``server``'s, or, where there is none, the
        ``broker``'s.
    mqtt_5
        Which version to try first; the other is tried when the broker does not know it.
    discovery
        Home Assistant's discovery prefix; "" for none, and to be forgotten there.
    """

    def __init__(  # noqa: PLR0913  who, where, how
        self,
        url: str,
        *,
        device: str,
        site: str,
        state_dir: Path | None,
        disk_bytes: int = 8 * MIB,
        confirm: str = "server",
        mqtt_5: bool = True,
        access: Access = Access(),  # noqa: B008  immutable
        commands: CommandSettings = CommandSettings(),  # noqa: B008
        pace: Pace = Pace(),  # noqa: B008
        discovery: str = "",
    ) -> None:
        self.url = url
        self.name = f"{site}/{device}"
        root = messages.topic_root(site, device)
        broker = parse_url(url)
        make_client = partial(create_client, f"edgecl-{site}-{device}", broker, access)
        make_client()  # settings that cannot be used are known before the first thread starts
        path = None if state_dir is None else Path(state_dir) / "outbox.db"
        # Half of the disk share is for the free pages and the write-ahead log of the file.
        self._outbox = Outbox(path, capacity_bytes=MIB if path is None else disk_bytes // 2)
        self.boot_id = self._outbox.boot_id
        by_server = confirm == "server"
        self._delivery = Delivery(self._outbox, by_server=by_server)
        self._inbox = LabelInbox(allowed="label" in commands.unsigned)
        self._pump = Pump(self._outbox, self._delivery, self._inbox, root=root, url=url, by_server=by_server)
        self._pump.discovery = Discovery(
            discovery,
            self.name,
            root=root,
            unsigned=commands.unsigned,
            noted=self._outbox.notes.get(NOTE, ""),
        )
        self._pump.dialler = Dialler(
            make_client,
            broker,
            url=url,
            ears=self._pump,
            put=self._pump.put,
            backoff=Backoff(*pace.backoff_s),
            session=self._outbox.session,
            mqtt_5=mqtt_5,
        )
        self._pump.reception = Reception(self._pump, root)
        self._pump.commands = CommandInbox(
            self._outbox,
            self._inbox,
            CommandGate(commands.keys, device=self.name, boot_id=self.boot_id),
            commands.unsigned,
        )
        self._obeys: Obeys | None = None
        self._history: History | None = None
        self.on_chunk: Callable[[Chunk], None] | None = None
        """Takes pieces of bundles, in `poll`."""
        self._gate = EventGate()
        self._summariser = Summariser()
        self._pace = pace
        self._summary_at_s = time.monotonic() + pace.summary_s
        self._health_at_s = 0.0
        self._n_overrun = 0

    # -- for the run loop ------------------------------------------------------------------

    def start(self) -> None:
        """Begin connecting in the background; returns at once, broker or not."""
        self._pump.start()

    def sink(self, answer: Answer) -> None:
        """Send an answer when and how its kind needs it; returns at once."""
        now_s = time.monotonic()
        if isinstance(answer, Decision):
            self._summariser.add(answer)
            if self.connected and self._gate.passes(answer, now_s):
                self._pump.put(partial(self._pump.publish_event, answer))
        elif isinstance(answer, Status):
            self._pump.put(partial(self._pump.note_status, answer))
            if now_s >= self._health_at_s:
                self._health_at_s = now_s + self._pace.health_s
                self._put(partial(self._pump.keep, "health", messages.encode(answer)))
        elif isinstance(answer, Receipt):
            if not self._put(partial(self._pump.keep_receipt, answer)):
                self._pump.put(self._pump.receipts.fall_behind)  # after what waits before it
        else:
            self._put(partial(self._pump.receipts.keep_sleep, answer))
        if now_s >= self._summary_at_s:
            self._sum_up()

    def obey_with(self, obeys: Obeys) -> None:
        """Let `obeys` carry out commands, in `poll`; tell it first what was set from afar before
        a restart.
        """
        self._obeys = obeys
        if "settings" in self._outbox.notes:
            obeys.adjust(msgspec.json.decode(self._outbox.notes["settings"], type=dict[str, Any]))
        self._pump.bearing.reported = obeys.settings()

    def follow(self, history: History) -> None:
        """Make receipts of `history` again that got lost on their way into the outbox."""
        self._history = history if history.history_id else None
        if self._history is not None:
            now = (history.history_id, history.committed_seq, history.sleep_reports())
            self._pump.put(partial(self._pump.receipts.follow, *now))

    def poll(self) -> Sequence[Label | SleepRequest]:
        """Labels and requests that arrived since the last call; never blocks. Carries out commands."""
        while self._pump.reception.chunks and self.on_chunk is not None:
            self.on_chunk(self._pump.reception.chunks.popleft())
        self._catch_up()
        if self._obeys is not None:
            for order in self._pump.commands.take():
                self._carry_out(order, self._obeys)
        return self._inbox.poll()

    def want(self, sha256: str, first: int, n: int) -> None:
        """Ask the server for chunks `first` to `first + n - 1` of a bundle."""
        self._pump.put(partial(self._pump.want, sha256, first, n))

    def tell(self, record: messages.InstallReport) -> None:
        """How far an installation is: kept until a server has it."""
        self._put(partial(self._pump.keep, "install", messages.encode(record)))
        self._pump.put(partial(self._pump.bearing.note_install, record))

    def stop(self, timeout_s: float = 5.0) -> None:
        """Send what waits if the broker is there, say goodbye, disconnect; what is left stays on disk."""
        if not self._pump.is_alive:
            return
        self._sum_up()
        self._pump.put(partial(self._pump.finish_by, time.monotonic() + timeout_s))
        self._pump.join(timeout_s + 2.0)

    @property
    def is_alive(self) -> bool:
        """Whether the pump's thread runs; it starts the network's again by itself."""
        return self._pump.is_alive

    @property
    def connected(self) -> bool:
        """True while the broker is there."""
        return self._pump.dialler.is_up

    @property
    def counts(self) -> dict[str, int]:
        """Messages by fate.

        ``sent`` were handed to the network with QoS 1, ``delivered`` of them acknowledged by the broker,
        ``confirmed`` are in a server's store, ``resent`` were sent again, ``queued`` wait in the outbox,
        ``dropped`` were lost for want of room, ``events`` went out at QoS 0; ``bad_inbound`` labels were
        refused as unreadable. ``most_in_flight`` is the most that the broker had not acknowledged at once,
        ``restarts`` counts network threads that were found dead or stuck.
        """
        return {
            "sent": self._pump.n_sent,
            "delivered": self._delivery.n_acknowledged,
            "confirmed": self._delivery.n_confirmed,
            "resent": self._delivery.n_resent,
            "most_in_flight": self._delivery.most_in_flight,
            "dropped": self._n_overrun + self._outbox.n_dropped + self._outbox.n_refused,
            "queued": self._outbox.n_queued,
            "events": self._pump.n_events,
            "connections": self._pump.n_connections,
            "restarts": self._pump.dialler.n_restarts,
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
        return self._pump.alarm

    def _catch_up(self) -> None:
        """Receipts that a restart or a full outbox cost are made again from the journal, as there is room."""
        pump = self._pump
        if (
            self._history is not None
            and pump.receipts.behind
            and not pump.receipts.catching_up
            and self._outbox.has_room
        ):
            pump.receipts.catching_up = True
            pump.put(
                partial(
                    pump.receipts.catch_up,
                    self._history.receipts_after(pump.receipts.told_seq, RECEIPTS_AT_ONCE),
                )
            )

    def _carry_out(self, order: Order, obeys: Obeys) -> None:
        if order.do is None:
            done = obeys.look_back(order.id, order.ask)
        else:
            done = obeys.obey(order.id, order.do, order.source)
        self._pump.bearing.reported = obeys.settings()
        named: dict[str, Any] = {}
        if isinstance(order.do, Adjust) and done.status == "done":
            asked = msgspec.structs.asdict(order.do)
            named = {name: value for name, value in asked.items() if value is not None}
        result = CommandResult(
            id=order.id, ask=order.ask, status=done.status, message=done.message, data=done.data
        )
        self._pump.put(partial(self._pump.finish, result, done.body, named))

    def _put(self, task: Task) -> bool:
        if self._pump.n_tasks >= MAX_TASKS:
            self._n_overrun += 1
            return False
        self._pump.put(task)
        return True

    def _sum_up(self) -> None:
        self._summary_at_s = time.monotonic() + self._pace.summary_s
        if (summary := self._summariser.take()) is not None:
            self._put(partial(self._pump.keep, "summary", messages.encode(summary)))
