"""Orders from the store to a device: signed for its present life, sent until a result comes, each once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from edge_cl_fleet.arrivals import Arrival, Word, read
from edge_cl_fleet.orders import ADJUST_AGAIN_S, REFUSED_AGAIN_S, RESEND_S, Orders
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.tables import commands, devices, messages
from sqlalchemy import insert, select, update

from edge_cl.commands import MAX_VALID_S, Adjust, Command, CommandResult, Report, SleepNow, Teach
from edge_cl.config import settings_from
from edge_cl.errors import CommandRefused, FleetError, SyncError
from edge_cl.revisions import Forget
from edge_cl.sync import signing
from edge_cl.sync.orders import CommandGate
from tests.fleet.devices import Board

PRIVATE = signing.make_key()
ALLOW = ["label", "sleep", "set", "report", "forget"]
KEYS = settings_from(
    {"commands": {"keys": {"fleet": {"public": signing.public_of(PRIVATE), "allow": ALLOW}}}}
).commands.keys
NOW_S = 1_800_000_000.0


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: making one in PostgreSQL takes half a second."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path_factory.mktemp('store')}/fleet.db"
    return str(request.getfixturevalue("postgres").url())


@pytest.fixture
def store(url: str) -> Iterator[FleetStore]:
    store = FleetStore(url)
    yield store
    with store.engine.begin() as connection:
        for table in (commands, devices, messages):
            connection.execute(table.delete())
    store.close()


@pytest.fixture
def orders(store: FleetStore) -> Orders:
    return Orders(store.engine, "fleet", PRIVATE)


class Device:
    """A row of the store, and the gate that the device has."""

    def __init__(self, store: FleetStore, name: str = "wrist", **changes: Any) -> None:
        self.store, self.name, self.n_boots = store, name, 1
        row = {"site": "home", "device": name, "online": True, "first_seen_s": 0, "last_seen_s": 0}
        row |= {"boot_id": "1" * 32, "up_s": 100.0, "up_at_s": NOW_S} | changes
        with store.engine.begin() as connection:
            connection.execute(insert(devices), row)
        self.gate = CommandGate(KEYS, device=f"home/{name}", boot_id="1" * 32)

    def change(self, **changes: Any) -> None:
        with self.store.engine.begin() as connection:
            connection.execute(update(devices).where(devices.c.device == self.name).values(**changes))

    def restart(self, up_at_s: float) -> None:
        self.n_boots += 1
        boot_id = f"{self.n_boots}" * 32
        self.gate = CommandGate(KEYS, device=f"home/{self.name}", boot_id=boot_id)
        self.change(boot_id=boot_id, up_s=1.0, up_at_s=up_at_s)

    def answer(self, command_id: str, status: str) -> None:
        """As the collector notes a result."""
        with self.store.engine.begin() as connection:
            connection.execute(update(commands).where(commands.c.id == command_id).values(state=status))


class Wire:
    """What was published."""

    def __init__(self, works: bool = True) -> None:
        self.sent: list[tuple[str, bytes, int, int]] = []
        self.works = works

    def __call__(self, topic: str, payload: bytes, *, qos: int = 0, expires_s: int = 0) -> bool:
        if self.works:
            self.sent.append((topic, payload, qos, expires_s))
        return self.works

    def only(self) -> bytes:
        assert len(self.sent) == 1
        return self.sent.pop()[1]


def state_of(store: FleetStore, command_id: str) -> str:
    with store.reading.connect() as connection:
        return str(
            connection.execute(select(commands.c.state).where(commands.c.id == command_id)).scalar_one()
        )


def ids(store: FleetStore, *states: str) -> list[str]:
    with store.reading.connect() as connection:
        return list(connection.execute(select(commands.c.id).where(commands.c.state.in_(states))).scalars())


def heard(arrival: Arrival) -> Word:
    word = read(arrival)
    assert word is not None
    return word


def taken(device: Device, payload: bytes, up_s: float) -> Command:
    return device.gate.check(payload, up_s, retained=False)


def test_an_order_arrives_as_the_device_takes_it(store: FleetStore, orders: Orders) -> None:
    device, wire = Device(store), Wire()
    asked = Teach(label="walk", reading_id="r7")
    command_id = orders.ask("home", "wrist", asked, valid_s=600, now_s=NOW_S)
    assert orders.send(NOW_S + 50, wire) == 1
    topic, payload, qos, expires_s = wire.sent[0]
    assert (topic, qos, expires_s) == ("edgecl/1/home/wrist/cmd/do", 1, 550)
    found = taken(device, payload, 160.0)
    assert (found.id, found.do) == (command_id, asked)
    assert state_of(store, command_id) == "sent"


def test_it_is_void_on_the_device_no_later_than_here(store: FleetStore, orders: Orders) -> None:
    """The word of its uptime took 7 s to come, so that the device has been up for longer than is thought."""
    device, wire = Device(store, up_s=100.0, up_at_s=NOW_S), Wire()
    orders.ask("home", "wrist", SleepNow(), valid_s=600, now_s=NOW_S)
    orders.send(NOW_S + 50, wire)
    payload = wire.only()
    true_up_s_at_the_end = 107.0 + 600
    assert taken(device, payload, true_up_s_at_the_end - 7)
    with pytest.raises(CommandRefused, match="too late"):
        taken(device, payload, true_up_s_at_the_end)


@pytest.mark.parametrize(
    "away", [{"online": False}, {"up_s": None, "up_at_s": None}, {"site": "elsewhere"}], ids=str
)
def test_who_is_not_there_is_not_asked(store: FleetStore, orders: Orders, away: dict[str, Any]) -> None:
    Device(store, **away)
    wire = Wire()
    command_id = orders.ask("home", "wrist", SleepNow(), now_s=NOW_S)
    assert orders.send(NOW_S, wire) == 0 and not wire.sent
    assert state_of(store, command_id) == "waiting"


def test_it_is_sent_again_until_a_result_comes(store: FleetStore, orders: Orders) -> None:
    device, wire = Device(store), Wire()
    command_id = orders.ask("home", "wrist", SleepNow(), now_s=NOW_S)
    orders.send(NOW_S, wire)
    first = taken(device, wire.only(), 100.0)
    assert orders.send(NOW_S + RESEND_S, wire) == 0
    assert orders.send(NOW_S + RESEND_S + 1, wire) == 1
    assert taken(device, wire.only(), 160.0).id == first.id == command_id
    device.answer(command_id, "done")
    assert orders.send(NOW_S + 5 * RESEND_S, wire) == 0


def test_a_restarted_device_gets_it_signed_anew_at_once(store: FleetStore, orders: Orders) -> None:
    device, wire = Device(store), Wire()
    command_id = orders.ask("home", "wrist", SleepNow(), now_s=NOW_S)
    orders.send(NOW_S, wire)
    old = wire.only()
    device.restart(NOW_S + 10)
    orders.send(NOW_S + 11, wire)
    assert taken(device, wire.only(), 3.0).id == command_id
    with pytest.raises(CommandRefused) as caught:
        taken(device, old, 3.0)
    assert caught.value.code == "other-boot"


def test_what_a_restart_interrupted_is_asked_again(store: FleetStore, orders: Orders) -> None:
    device, wire = Device(store), Wire()
    command_id = orders.ask("home", "wrist", SleepNow(), valid_s=600, now_s=NOW_S)
    orders.send(NOW_S, wire)
    device.answer(command_id, "interrupted")
    wire.sent.clear()
    assert orders.send(NOW_S + 1, wire) == 1
    device.answer(command_id, "interrupted")
    assert orders.send(NOW_S + 601, wire) == 0
    assert state_of(store, command_id) == "expired"


def test_it_expires_by_the_servers_clock(store: FleetStore, orders: Orders) -> None:
    device, wire = Device(store, online=False), Wire()
    command_id = orders.ask("home", "wrist", SleepNow(), valid_s=600, now_s=NOW_S)
    orders.send(NOW_S + 599, wire)
    assert state_of(store, command_id) == "waiting"
    orders.send(NOW_S + 600, wire)
    assert state_of(store, command_id) == "expired"
    device.change(online=True)
    assert orders.send(NOW_S + 601, wire) == 0


def test_what_could_not_be_published_goes_out_later(store: FleetStore, orders: Orders) -> None:
    Device(store)
    orders.ask("home", "wrist", SleepNow(), now_s=NOW_S)
    assert orders.send(NOW_S, Wire(works=False)) == 0
    wire = Wire()
    assert orders.send(NOW_S + 1, wire) == 0
    assert orders.send(NOW_S + RESEND_S + 1, wire) == 1


def test_a_week_is_the_longest(store: FleetStore, orders: Orders) -> None:
    device, wire = Device(store), Wire()
    with pytest.raises(FleetError, match="604,800"):
        orders.ask("home", "wrist", SleepNow(), valid_s=MAX_VALID_S + 1, now_s=NOW_S)
    orders.ask("home", "wrist", SleepNow(), valid_s=MAX_VALID_S, now_s=NOW_S)
    orders.send(NOW_S, wire)
    assert taken(device, wire.only(), 99.0)


def test_what_no_device_would_take_is_not_kept(store: FleetStore, orders: Orders) -> None:
    with pytest.raises(FleetError, match="a device reads"):
        orders.ask("home", "wrist", Forget(reading="x" * 70_000), now_s=NOW_S)
    with pytest.raises(FleetError, match="a device reads"):
        orders.ask("home", "wrist", Forget(reading='"' * 33_000), now_s=NOW_S)
    with pytest.raises(SyncError, match="label is empty"):
        orders.ask("home", "wrist", Teach(label=" "), now_s=NOW_S)
    assert ids(store, "waiting") == []


def test_workers_that_tick_at_once_send_each_once(store: FleetStore, url: str) -> None:
    Device(store)
    asking = Orders(store.engine)
    asked = {asking.ask("home", "wrist", Report(), now_s=NOW_S) for _ in range(40)}
    wires = [Wire() for _ in range(4)]
    stores = [FleetStore(url) for _ in wires]
    start = threading.Barrier(len(wires))

    def work(own: FleetStore, wire: Wire) -> None:
        mine = Orders(own.engine, "fleet", PRIVATE)
        start.wait()
        mine.send(NOW_S, wire)

    threads = [threading.Thread(target=work, args=pair) for pair in zip(stores, wires, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for own in stores:
        own.close()
    sent = [msgspec.json.decode(payload)["command"] for wire in wires for _, payload, _, _ in wire.sent]
    assert sorted(msgspec.json.decode(text)["id"] for text in sent) == sorted(asked)


# -- settings -------------------------------------------------------------------------------


def test_desired_settings_are_asked_for_until_they_are_reported(store: FleetStore, orders: Orders) -> None:
    device, wire = Device(store, settings='{"min_confidence":0.5,"night":""}'), Wire()
    assert orders.desire("home", "wrist", Adjust(min_confidence=0.7)) == {"min_confidence": 0.7}
    assert orders.desire("home", "wrist", Adjust(night="")) == {"min_confidence": 0.7, "night": ""}
    orders.send(NOW_S + 50, wire)
    found = taken(device, wire.only(), 150.0)
    assert found.do == Adjust(min_confidence=0.7)  # the night is as desired already
    assert orders.send(NOW_S + 51, wire) == orders.send(NOW_S + 62, wire) == 0
    device.answer(found.id, "done")
    assert orders.send(NOW_S + 63, wire) == 0  # it has not reported yet
    device.change(settings='{"min_confidence":0.7,"night":""}')
    assert orders.send(NOW_S + 10 * ADJUST_AGAIN_S, wire) == 0
    device.change(settings='{"min_confidence":0.5,"night":""}')  # its state folder was replaced
    assert orders.send(NOW_S + 11 * ADJUST_AGAIN_S, wire) == 1
    assert taken(device, wire.only(), 760.0).id != found.id


def test_a_server_whose_clock_was_ahead_goes_on_asking(store: FleetStore, orders: Orders) -> None:
    device, wire = Device(store, settings='{"min_confidence":0.5}'), Wire()
    ahead_s = NOW_S + 365 * 86400
    command_id = orders.ask("home", "wrist", SleepNow(), now_s=ahead_s)
    orders.desire("home", "wrist", Adjust(min_confidence=0.7))
    assert orders.send(ahead_s, wire) == 2
    asked = next(one for one in ids(store, "sent") if one != command_id)
    device.answer(asked, "done")  # and the device lost it since
    wire.sent.clear()
    assert orders.send(NOW_S + 1, wire) == 2
    assert orders.send(NOW_S + 2, wire) == 0
    for _, payload, *_ in wire.sent:
        device.gate.check(payload, 101.0, retained=False)


def test_settings_that_a_device_refuses_are_not_asked_for_all_the_time(
    store: FleetStore, orders: Orders
) -> None:
    device, wire = Device(store), Wire()
    orders.desire("home", "wrist", Adjust(min_confidence=7.0))
    orders.send(NOW_S, wire)
    device.answer(taken(device, wire.only(), 100.0).id, "refused")
    assert orders.send(NOW_S + REFUSED_AGAIN_S - 1, wire) == 0
    orders.desire("home", "wrist", Adjust(min_confidence=0.7))
    assert orders.send(NOW_S + REFUSED_AGAIN_S - 1, wire) == 1


def test_newer_wishes_replace_those_under_way(store: FleetStore, orders: Orders) -> None:
    device, wire = Device(store), Wire()
    orders.desire("home", "wrist", Adjust(after_labels=10))
    orders.send(NOW_S, wire)
    orders.desire("home", "wrist", Adjust(after_labels=20))
    wire.sent.clear()
    orders.send(NOW_S + RESEND_S + 1, wire)
    assert taken(device, wire.only(), 161.0).do == Adjust(after_labels=20)


def test_a_setting_for_nobody_is_an_error(orders: Orders) -> None:
    with pytest.raises(FleetError, match=r"home/none.*edge-cl fleet devices"):
        orders.desire("home", "none", Adjust(after_labels=1))


def test_a_result_from_the_device_ends_it(store: FleetStore, orders: Orders) -> None:
    """By way of the store itself, as the collector writes it."""
    board, wire = Board("dev1", boot_id="1" * 32), Wire()
    store.insert([heard(board.presence()), heard(board.state(up_s=100.0))])
    command_id = orders.ask("lab", "dev1", SleepNow(), now_s=NOW_S)
    assert orders.send(NOW_S + 1, wire) == 1
    result = CommandResult(id=command_id, ask="sleep", status="done", message="slept")
    store.insert([heard(board.says("result", result))])
    assert state_of(store, command_id) == "done"
    assert orders.send(NOW_S + 2 * RESEND_S, wire) == 0
