"""A worker with a real broker and a real store: stored once, confirmed after, whatever breaks."""

from __future__ import annotations

import hashlib
import random
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from edge_cl_fleet import tables
from edge_cl_fleet.arrivals import Arrival, Word
from edge_cl_fleet.collector import Collector
from edge_cl_fleet.connection import Connection, Got, Login, Publish
from edge_cl_fleet.queries import find_device
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.worker import Worker
from sqlalchemy import insert, text

from edge_cl.errors import ConfigError, StoreUnavailable
from edge_cl.sync import messages
from tests.fleet.conftest import Working
from tests.fleet.devices import Board, Radio
from tests.mosquitto import Broker, wait_until
from tests.postgres import MISSING, PostgreSQL


def stored(store: FleetStore) -> list[str]:
    with store.reading.connect() as connection:
        return list(connection.execute(text("SELECT id FROM messages ORDER BY n")).scalars())


def id_of(arrival: Arrival) -> str:
    return str(msgspec.json.decode(arrival.payload)["id"])


def test_stores_once_and_confirms(store: FleetStore, broker: Broker, working: Working) -> None:
    radio = Radio(broker.port, "edgecl/1/+/+/cmd/#", messages.HELLO)
    with working(store, broker.url) as worker:
        board = Board()
        sent = [board.says("receipt") for _ in range(300)]
        radio.sends(board.presence(), *sent, *sent[:50])
        ids = [id_of(one) for one in sent]
        wait_until(lambda: worker.collector.counts.stored == 350, "all are stored")
        wait_until(lambda: radio.acked() == set(ids), "all are confirmed")
        assert stored(store) == ids
        assert any(topic == messages.HELLO for topic, _ in radio.heard)
    radio.close()


def test_who_died_while_no_worker_was_there_is_known_to_be_gone(
    store: FleetStore, broker: Broker, working: Working
) -> None:
    radio, board = Radio(broker.port), Board()
    with working(store, broker.url) as worker:
        radio.sends(board.presence(retained=True), board.says("receipt"))
        wait_until(lambda: worker.collector.counts.stored == 1, "the worker knows it")
    assert find_device(store, "dev1").online
    radio.sends(board.presence(False, retained=True))
    with working(store, broker.url):
        wait_until(lambda: not find_device(store, "dev1").online, "the worker hears that it is gone")
    radio.close()


def test_two_workers_share_the_messages(store: FleetStore, broker: Broker, working: Working) -> None:
    radio = Radio(broker.port)
    with working(store, broker.url) as one, working(store, broker.url) as other:
        boards = [Board(f"dev{n}") for n in range(10)]
        sent = [board.says("receipt") for _ in range(40) for board in boards]
        radio.sends(*sent)
        n_stored = lambda: [worker.collector.counts.stored for worker in (one, other)]  # noqa: E731
        wait_until(lambda: sum(n_stored()) == 400, "all are stored")
        assert min(n_stored()) > 50
        assert sorted(stored(store)) == sorted(map(id_of, sent))
    radio.close()


def test_nonsense_is_counted_and_stops_nothing(store: FleetStore, broker: Broker, working: Working) -> None:
    radio = Radio(broker.port)
    with working(store, broker.url) as worker:
        good = Board().says("receipt")
        radio.sends(
            good._replace(payload=b"\xff\x00{"),
            good._replace(payload=b"[" * 100_000),
            good._replace(topic="edgecl/1/LAB/dev1/receipt"),
            good._replace(payload=b"x" * 200_000),
            good._replace(payload=b""),
            good,
        )
        wait_until(lambda: worker.collector.counts.stored == 1, "the good one is stored")
        assert sum(worker.collector.counts.bad.values()) == 4
        assert not worker.alarm
    radio.close()


def test_goes_on_after_the_broker_returns(stopped_broker: Broker, tmp_path: Path, working: Working) -> None:
    stopped_broker.start()
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    with working(store, stopped_broker.url) as worker:
        for n in range(2):
            radio = Radio(stopped_broker.port)
            radio.sends(Board(f"dev{n}").says("receipt"))
            wait_until(lambda n=n: worker.collector.counts.stored == n + 1, "it is stored")
            stopped_broker.stop(kill=True)
            radio.close()
            wait_until(lambda: not worker.connection.is_up, "the worker saw it go")
            stopped_broker.start()
            wait_until(lambda: worker.connection.is_up, "the worker is back")
        assert worker.connection.n_connections == 3
    store.close()


@pytest.mark.skipif(bool(MISSING), reason=MISSING)
def test_confirms_nothing_while_the_database_is_away(broker: Broker, working: Working) -> None:
    server = PostgreSQL()
    try:
        server.start()
        store = FleetStore(server.url())
        radio = Radio(broker.port, "edgecl/1/+/+/cmd/ack")
        with working(store, broker.url) as worker:
            server.stop()
            sent = [Board().says("receipt") for _ in range(3)]
            radio.sends(*sent)
            wait_until(lambda: worker.collector.alarm, "the worker says so")
            assert "PostgreSQL runs" in worker.alarm
            assert radio.acked() == set()
            server.start()
            wait_until(lambda: radio.acked() == set(map(id_of, sent)), "all are confirmed", 30)
            assert not worker.alarm
        radio.close()
        store.close()
    finally:
        server.remove()


def test_what_a_worker_takes_with_it_is_not_confirmed(
    stopped_broker: Broker, tmp_path: Path, working: Working
) -> None:
    """Brokers may drop what a worker had in hand when it died: its devices must not believe it stored."""
    stopped_broker.start()
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    radio = Radio(stopped_broker.port, "edgecl/1/+/+/cmd/ack", messages.HELLO)
    sent = [Board().says("receipt") for _ in range(5)]
    with working(store, stopped_broker.url) as first:
        hears: list[Got] = []
        first.collector.received = hears.append  # type: ignore[method-assign]  # and does nothing
        radio.sends(*sent)
        wait_until(lambda: len(hears) == 5, "it has them in hand")
    assert radio.acked() == set()
    with working(store, stopped_broker.url):
        wait_until(lambda: len([1 for topic, _ in radio.heard if topic == messages.HELLO]) == 2, "a hello")
        radio.sends(*sent)
        wait_until(lambda: radio.acked() == set(map(id_of, sent)), "the next one has them")
    radio.close()
    store.close()


class Deadly:
    """A payload that ends the thread that looks at it."""

    def __len__(self) -> int:
        sys.exit()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_threads_that_die_are_started_again(broker: Broker, tmp_path: Path, working: Working) -> None:
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    radio = Radio(broker.port)
    with working(store, broker.url) as worker:
        for n in range(3):
            worker.connection._outgoing.append(lambda client: sys.exit())
            worker.connection._wake()
            worker.collector._waiting.put((Got("edgecl/1/a/b/receipt", Deadly(), False, 0, 1), 0.0))  # type: ignore[arg-type]
            wait_until(lambda n=n: worker.n_restarted >= 2 * n + 2, "both are back")
            wait_until(lambda: worker.connection.is_up, "connected again")
        radio.sends(Board().says("receipt"))
        wait_until(lambda: worker.collector.counts.stored == 1, "it stores")
    radio.close()
    store.close()


def test_chunks_are_answered(
    store: FleetStore, broker: Broker, working: Working, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_cl_fleet.chunks.MAX_CHUNKS", 2)
    body = random.Random(1).randbytes(3 * messages.CHUNK_BYTES + 10)
    sha256 = hashlib.sha256(body).hexdigest()
    with store.engine.begin() as connection:
        row = dict.fromkeys(("name", "bundle_id", "release", "signed_by", "signature"), "x")
        connection.execute(insert(tables.bundles).values(sha256=sha256, added_s=0.0, body=body, **row))
    radio = Radio(broker.port, "edgecl/1/lab/dev1/cmd/chunk/+/+")
    with working(store, broker.url) as worker:
        wants = [
            messages.Want(sha256=sha256, first=1, n=99),
            messages.Want(sha256="../" + sha256, first=0, n=1),
        ]
        radio.sends(*(Arrival("edgecl/1/lab/dev1/want", messages.encode(want), 0.0) for want in wants))
        wait_until(lambda: len(radio.heard) == 2, "the two chunks from the second on")
        assert worker.chunks.n_sent == 2
    heard = {topic.rsplit("/", 1)[1]: payload for topic, payload in radio.heard}
    assert heard["1"] + heard["2"] == body[messages.CHUNK_BYTES : 3 * messages.CHUNK_BYTES]
    assert radio.heard[0][0].startswith(f"edgecl/1/lab/dev1/cmd/chunk/{sha256[:16]}/")
    radio.close()


def test_a_duty_that_fails_stops_nothing(broker: Broker, tmp_path: Path, working: Working) -> None:
    class Failing:
        n = 0

        def tick(self, now_s: float, publish: Publish) -> None:
            self.n += 1
            raise ZeroDivisionError

    store, duty = FleetStore(f"sqlite:///{tmp_path}/fleet.db"), Failing()
    with working(store, broker.url, duties=[duty]):
        wait_until(lambda: duty.n >= 2, "it is called again")
    store.close()


def test_a_full_queue_drops_and_confirms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_cl_fleet.collector.MAX_QUEUED", 2)
    confirmed: list[Got] = []
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    collector = Collector(store, lambda *_, **__: True, confirmed.extend)
    for mid in (1, 2, 3):
        collector.received(Got("edgecl/1/lab/dev1/receipt", b"", False, mid, 1))
    assert collector.counts.overflowed == 1
    assert [got.mid for got in confirmed] == [3]
    store.close()


def test_a_broker_that_knows_only_3_1_1(tmp_path: Path, stopped_broker: Broker, working: Working) -> None:
    """Mosquitto takes MQTT 5; a gate before it hangs up on it, as old brokers do."""
    from tests.fleet.gate import Gate

    stopped_broker.start()
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    with Gate(stopped_broker.port) as gate, working(store, f"mqtt://127.0.0.1:{gate.port}") as worker:
        assert gate.n_refused >= 1
        radio = Radio(stopped_broker.port)
        radio.sends(Board().says("receipt"))
        wait_until(lambda: worker.collector.counts.stored == 1, "it is stored")
        radio.close()
    store.close()


def test_stored_first_then_confirmed_to_the_device_then_to_the_broker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def insert(words: Sequence[Word]) -> list[str]:
        done.append("tried")
        if len(done) < 3:
            raise StoreUnavailable("the disk is full")
        return plain(words)

    def publish(topic: str, payload: bytes, *, qos: int = 0, expires_s: int = 0) -> bool:
        done.append(topic)
        return True

    monkeypatch.setattr("edge_cl_fleet.collector.RETRY_S", (0.01, 0.01))
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    plain = store.insert
    monkeypatch.setattr(store, "insert", insert)
    collector = Collector(store, publish, lambda got: done.append(f"broker {len(got)}"))
    collector.received(Got("edgecl/1/lab/dev1/receipt", Board().says("receipt").payload, False, 7, 1))
    collector.start()
    wait_until(lambda: collector.counts.stored, "it is stored")
    collector.stop()
    assert done == ["tried", "tried", "tried", "edgecl/1/lab/dev1/cmd/ack", "broker 1"]
    store.close()


def test_a_message_that_nobody_foresaw_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def insert_all_but_one(words: Sequence[Word]) -> list[str]:
        if any(word.row.seq == 3 for word in words if word.row):
            raise ZeroDivisionError
        return plain(words)

    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    plain = store.insert
    monkeypatch.setattr(store, "insert", insert_all_but_one)
    confirmed: list[Got] = []
    collector = Collector(store, lambda *_, **__: True, confirmed.extend)
    board = Board()
    for mid in range(1, 6):
        collector.received(Got("edgecl/1/lab/dev1/receipt", board.says("receipt").payload, False, mid, 1))
    collector.start()
    collector.stop()
    assert collector.counts.stored == len(stored(store)) == 4
    assert sorted(got.mid for got in confirmed) == [1, 2, 3, 4, 5]
    store.close()


def test_no_more_is_taken_than_the_network_takes(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_cl_fleet.connection.MAX_WAITING_BYTES", 250_000)
    connection = Connection(Login(broker.url), "test", ["a/b"], lambda got: None)
    assert not connection.publish("x", b"")  # there is no connection
    connection.start()
    wait_until(lambda: connection.is_up, "it is connected")
    with stalled(connection):
        assert [connection.publish("x", bytes(100_000), qos=n % 2) for n in range(3)] == [True, True, False]
    for qos in (0, 1) * 10:
        wait_until(lambda qos=qos: connection.publish("x", bytes(100_000), qos=qos), "there is room again")
    wait_until(lambda: connection._waiting_bytes == 0, "all is taken")
    connection.stop()


@contextmanager
def stalled(connection: Connection) -> Iterator[None]:
    """The connection's thread does nothing meanwhile."""
    go_on = threading.Event()
    connection._outgoing.append(lambda client: go_on.wait(10))
    connection._wake()
    yield
    go_on.set()


def test_settings_that_cannot_work_are_refused(tmp_path: Path) -> None:
    store = FleetStore(f"sqlite:///{tmp_path}/fleet.db")
    for login, group in (
        (Login("http://x"), "fleet"),
        (Login("mqtt://x", ca_file="/nowhere"), "fleet"),
        (Login("mqtts://x", ca_file="/nowhere"), "fleet"),
        (Login("mqtt://x"), "a/b"),
    ):
        with pytest.raises(ConfigError):
            Worker(store, login, group=group)
    store.close()
