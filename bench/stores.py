"""How many events a fleet server stores a second: SQLite and PostgreSQL, one worker and two.

`measure` hands messages, as the bytes that come over MQTT, to the storing part of real worker processes, so
neither broker nor network limits it; `measure_through_broker` is the whole way, over a real Mosquitto.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import socket
import statistics
import tempfile
import threading
import time
import uuid
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

from edge_cl_fleet import tables
from edge_cl_fleet.collector import BATCH, Collector
from edge_cl_fleet.connection import Got, Login
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.worker import Worker
from sqlalchemy import func, select

from edge_cl.records import Receipt
from edge_cl.sync import messages

N_DEVICES = 100
DEADLINE_S = 300.0
WINDOW = 1_000


def make_messages(n: int, *, seed: int, n_devices: int = N_DEVICES) -> list[tuple[str, bytes]]:
    """Topics and payloads of receipts, of about 600 bytes each, from `n_devices` devices in turn."""
    rng = random.Random(seed)
    lives = [(f"{seed}-{k}", uuid.UUID(int=rng.getrandbits(128)).hex) for k in range(n_devices)]
    made = []
    for i in range(n):
        device, epoch = lives[i % n_devices]
        record = Receipt(
            reading_id=f"r{i:08d}",
            label="walking",
            status="learned",
            source="mqtt/anna",
            seq=i,
            confidence_before=rng.random(),
            confidence_after=rng.random(),
            changed={f"r{i - 1:08d}": "sitting → walking", f"r{i - 7:08d}": "running → walking"},
            n_compared=200,
            message="learned; of the last 200 readings, 2 are answered otherwise now",
        )
        body = messages.wrap(
            messages.encode(record),
            id=uuid.UUID(int=rng.getrandbits(128)).hex,
            epoch=epoch,
            seq=i // n_devices + 1,
            boot_id=epoch,
            session=1,
            up_s=1000.0 + i,
            at_s=time.time(),
            age_s=0.1,
        )
        made.append((f"edgecl/1/bench/d{device}/receipt", body))
    return made


def measure(store_url: str, n_workers: int, n_events: int) -> float:
    """Events a second that `n_workers` processes store together, handed to them as MQTT payloads."""
    context = multiprocessing.get_context("spawn")
    store = FleetStore(store_url)
    n_before = _count(store)
    line = context.Barrier(n_workers + 1)
    share = n_events // n_workers
    seeds = [random.getrandbits(32) for _ in range(n_workers)]
    workers = [context.Process(target=_store_share, args=(store_url, seed, share, line)) for seed in seeds]
    for worker in workers:
        worker.start()
    line.wait(DEADLINE_S)
    began_s = time.perf_counter()
    line.wait(DEADLINE_S)
    took_s = time.perf_counter() - began_s
    for worker in workers:
        worker.join(DEADLINE_S)
    n_stored = _count(store) - n_before
    store.close()
    if n_stored != share * n_workers:
        raise RuntimeError("the workers did not store what they were given")
    return share * n_workers / took_s


def measure_through_broker(store_url: str, broker_url: str, n_workers: int, n_events: int) -> float:
    """Events a second from the first publication to the last commit, over a broker at `broker_url`.

    The publishers run beside the workers, and the broker too: they share this machine's cores.
    """
    context = multiprocessing.get_context("spawn")
    store = FleetStore(store_url)
    n_before = _count(store)
    stop, ready = context.Event(), context.Barrier(n_workers + 1)
    workers = [
        context.Process(target=_serve, args=(store_url, broker_url, ready, stop)) for _ in range(n_workers)
    ]
    for worker in workers:
        worker.start()
    made = make_messages(n_events, seed=random.getrandbits(32))
    ready.wait(DEADLINE_S)
    began_s = time.perf_counter()
    _publish(broker_url, made)
    while _count(store) - n_before < n_events:
        if time.perf_counter() - began_s > DEADLINE_S:
            raise RuntimeError(f"after {DEADLINE_S:g} s not all {n_events:,} events were stored")
        time.sleep(0.05)
    took_s = time.perf_counter() - began_s
    store.close()
    stop.set()
    for worker in workers:
        worker.join(30)
    return n_events / took_s


def _count(store: FleetStore) -> int:
    with store.reading.connect() as connection:
        return connection.execute(select(func.count()).select_from(tables.messages)).scalar_one()


def _store_share(store_url: str, seed: int, n: int, line: Barrier) -> None:
    made = [Got(topic, body, False, 1, 1) for topic, body in make_messages(n, seed=seed)]
    store = FleetStore(store_url)
    acks: list[int] = []
    collector = Collector(
        store, lambda topic, payload, **_: bool(acks.append(len(payload)) or True), lambda got: None
    )
    line.wait(DEADLINE_S)
    for first in range(0, n, BATCH):
        collector.store([(got, time.time()) for got in made[first : first + BATCH]])
    line.wait(DEADLINE_S)
    store.close()


def _serve(store_url: str, broker_url: str, ready: Barrier, stop: Any) -> None:
    store = FleetStore(store_url)
    worker = Worker(store, Login(broker_url))
    thread = threading.Thread(target=worker.run)
    thread.start()
    while not worker.connection.is_up:
        time.sleep(0.01)
    ready.wait(DEADLINE_S)
    stop.wait()
    worker.stop()
    thread.join()
    store.close()


def _publish(broker_url: str, made: list[tuple[str, bytes]]) -> None:
    """Publish with QoS 1 as MQTT 3.1.1, at most `WINDOW` unconfirmed.

    By hand: a paho publisher takes more of the two cores than the worker that is measured.
    """
    host, port = broker_url.removeprefix("mqtt://").split(":")
    with socket.create_connection((host, int(port))) as broker:
        broker.sendall(b"\x10\x11\x00\x04MQTT\x04\x02\x00\x3c\x00\x05bench")
        broker.recv(4, socket.MSG_WAITALL)  # CONNACK
        waiting = 0
        for first in range(0, len(made), WINDOW // 2):
            some = made[first : first + WINDOW // 2]
            broker.sendall(
                b"".join(
                    _packet(topic, body, (first + n) % 60_000 + 1) for n, (topic, body) in enumerate(some)
                )
            )
            waiting += len(some)
            is_last = first + len(some) == len(made)
            while waiting > (0 if is_last else WINDOW // 2):
                broker.recv(4, socket.MSG_WAITALL)  # PUBACK
                waiting -= 1
        broker.sendall(b"\xe0\x00")


def _packet(topic: str, body: bytes, mid: int) -> bytes:
    head = len(topic).to_bytes(2, "big") + topic.encode() + mid.to_bytes(2, "big")
    left, length = len(head) + len(body), b""
    while left > 127:
        left, digit = left >> 7, left & 127
        length += bytes([digit | 128])
    return b"\x32" + length + bytes([left]) + head + body


def measure_all(n_events: int) -> dict[str, float | None]:
    """All figures, with servers that it starts."""
    from tests.mosquitto import Broker
    from tests.postgres import MISSING, PostgreSQL

    found: dict[str, float | None] = {}
    with tempfile.TemporaryDirectory() as folder:
        broker = Broker(Path(folder))
        broker.start()
        postgres = None if MISSING else PostgreSQL(durable=True)
        try:
            urls = {"sqlite": lambda: f"sqlite:///{folder}/{uuid.uuid4().hex}.db"}
            if postgres is not None:
                postgres.start()
                urls["postgres"] = postgres.url
            for name, url in urls.items():
                found[f"{name}_events_per_s"] = measure(url(), 1, n_events)
                found[f"{name}_mqtt_events_per_s"] = measure_through_broker(url(), broker.url, 1, n_events)
            if postgres is not None:
                measure(postgres.url(), 2, 4 * n_events)  # its log files are made, from now on used again
                postgres.checkpoint()
                # In turn, since this machine's speed drifts: the ratio is the median of pairs.
                pairs = [
                    (measure(postgres.url(), 1, n), measure(postgres.url(), 2, 2 * n)) for n in [n_events] * 3
                ]
                found["postgres_two_workers_events_per_s"] = statistics.median(two for _, two in pairs)
                found["two_worker_ratio"] = statistics.median(two / one for one, two in pairs)
        finally:
            broker.stop()
            if postgres is not None:
                postgres.remove()
    return {name: None if value is None else round(value, 2) for name, value in found.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=40_000)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found = measure_all(arguments.events)
    print(json.dumps(found, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
