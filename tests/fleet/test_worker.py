"""A worker with a real broker and a real store: stored once, confirmed after, whatever breaks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest
from edge_cl_fleet.connection import Login
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.worker import Worker
from sqlalchemy import text

from edge_cl.sync import messages
from tests.fleet.devices import Board, Radio
from tests.mosquitto import Broker, wait_until


@contextmanager
def working(store: FleetStore, url: str, **options: object) -> Iterator[Worker]:
    """A worker that runs."""
    worker = Worker(store, Login(url), **options)  # type: ignore[arg-type]
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        wait_until(lambda: worker.connection.is_up, "the worker is connected")
        yield worker
    finally:
        worker.stop()
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def store(store_url: str) -> Iterator[FleetStore]:
    store = FleetStore(store_url)
    yield store
    store.close()


def stored(store: FleetStore) -> list[str]:
    with store.reading.connect() as connection:
        return list(connection.execute(text("SELECT id FROM messages ORDER BY n")).scalars())


def test_stores_once_and_confirms(store: FleetStore, broker: Broker) -> None:
    radio = Radio(broker.port, "edgecl/1/+/+/cmd/#", messages.HELLO)
    with working(store, broker.url) as worker:
        board = Board()
        sent = [board.says("receipt") for _ in range(300)]
        radio.sends(board.presence(), *sent, *sent[:50])
        ids = [msgspec.json.decode(one.payload)["id"] for one in sent]
        wait_until(lambda: worker.collector.counts.stored == 350, "all are stored")
        wait_until(lambda: radio.acked() == set(ids), "all are confirmed")
        assert stored(store) == ids
        assert any(topic == messages.HELLO for topic, _ in radio.heard)
    radio.close()


def test_nonsense_is_counted_and_stops_nothing(store: FleetStore, broker: Broker) -> None:
    radio = Radio(broker.port)
    with working(store, broker.url) as worker:
        board = Board()
        good = board.says("receipt")
        radio.sends(
            good._replace(payload=b"\xff\x00{"),
            good._replace(payload=b"{" * 100_000),
            good._replace(topic="edgecl/1/LAB/dev1/receipt"),
            good._replace(payload=b"x" * 200_000),
            good,
        )
        wait_until(lambda: worker.collector.counts.stored == 1, "the good one is stored")
        assert sum(worker.collector.counts.bad.values()) == 4
    radio.close()


def test_goes_on_after_the_broker_returns(stopped_broker: Broker, tmp_path: object) -> None:
    stopped_broker.start()
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    with working(store, stopped_broker.url) as worker:
        for n in range(3):
            radio = Radio(stopped_broker.port)
            radio.sends(Board(f"dev{n}").says("receipt"))
            wait_until(lambda n=n: worker.collector.counts.stored == n + 1, "it is stored")
            stopped_broker.stop(kill=True)
            radio.close()
            wait_until(lambda: not worker.connection.is_up, "the worker saw it go")
            stopped_broker.start()
            wait_until(lambda: worker.connection.is_up, "the worker is back")
        assert worker.connection.n_connections == 4
    store.close()
