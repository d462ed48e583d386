"""An order on its whole way: store, worker, broker, the device's gate, and its result back."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import msgspec
from edge_cl_fleet.connection import Login
from edge_cl_fleet.orders import Orders
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.tables import commands
from edge_cl_fleet.worker import Worker
from sqlalchemy import Row, select

from edge_cl.commands import CommandResult, Teach
from edge_cl.config import settings_from
from edge_cl.sync import signing
from edge_cl.sync.orders import CommandGate
from tests.fleet.devices import Board, Radio
from tests.mosquitto import Broker, wait_until

PRIVATE = signing.make_key()
SETTINGS = {"commands": {"keys": {"fleet": {"public": signing.public_of(PRIVATE), "allow": ["label"]}}}}


def test_an_order_goes_out_and_its_result_comes_back(tmp_path: Path, broker: Broker) -> None:
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    worker = Worker(store, Login(broker.url), duties=[Orders(store.engine, "fleet", PRIVATE)])
    thread = threading.Thread(target=worker.run)
    thread.start()
    radio = Radio(broker.port, "edgecl/1/lab/dev1/cmd/#")
    try:
        wait_until(lambda: worker.connection.is_up, "the worker is connected")
        board = Board(boot_id="b" * 32)
        radio.sends(board.presence(at_s=time.time()), board.state(at_s=time.time(), up_s=50.0))
        asked = Teach(label="walk", reading_id="r1")
        command_id = Orders(store.engine).ask("lab", "dev1", asked, valid_s=60)

        def orders() -> list[bytes]:
            return [payload for topic, payload in radio.heard if topic.endswith("/cmd/do")]

        wait_until(orders, "the order arrives")
        keys = settings_from(SETTINGS).commands.keys
        gate = CommandGate(keys, device="lab/dev1", boot_id="b" * 32)
        command = gate.check(orders()[0], 55.0, retained=False)
        assert (command.id, command.do) == (command_id, asked)

        result = CommandResult(id=command.id, ask="label", status="done", message="learned")
        radio.sends(board.says("result", result, at_s=time.time()))

        def row() -> Row[tuple[object, ...]]:
            with store.reading.connect() as connection:
                return connection.execute(select(commands)).one()

        wait_until(lambda: row().state == "done", "the result is in the store")
        assert row().message == "learned" and row().n_sent == 1
        assert msgspec.json.decode(row().result, type=CommandResult) == result
    finally:
        radio.close()
        worker.stop()
        thread.join(20)
        store.close()
