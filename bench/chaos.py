"""Events through killed brokers, killed devices, killed workers, slow and cut links, full outboxes.

Devices learn labels; every one in a device's journal is an event whose receipt must be in the fleet's store,
once. Devices 0 and 1 reach the broker over a slow link that is cut now and then; devices 2 and 3 have an
outbox of 30 KB, which is full now and then. After the last fault the broker stays away for a while, with
devices going on: `p99_s_after_return` is from its return (or an event's making, if that was later) to the
store, over all events stored after it.
"""

from __future__ import annotations

import random
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
from edge_cl_fleet import tables
from edge_cl_fleet.store import FleetStore
from sqlalchemy import select

from bench.proxy import SlowLink
from tests.mosquitto import Broker
from tests.worlds import make_bundle

DEADLINE_S = 900.0
SMALL_OUTBOX_BYTES = 60 * 1024
OUTBOX_BYTES = 8 * 1024 * 1024


class Plan(NamedTuple):
    """How much of everything; the labels come over about `lasts_s`."""

    n_events: int = 10_000
    n_devices: int = 10
    n_broker_kills: int = 100
    n_device_kills: int = 100
    n_worker_kills: int = 20
    n_cuts: int = 20
    lasts_s: float = 240.0
    away_s: float = 30.0
    n_workers: int = 2


QUICK = Plan(600, 6, 6, 6, 2, 4, 25.0, 5.0, 1)


class Processes:
    """The devices and the workers; each can be killed and started again."""

    def __init__(self, plan: Plan, folder: Path, broker: Broker, slow: SlowLink, store_url: str) -> None:
        self._commands: list[list[str]] = []
        self._running: list[subprocess.Popen[bytes]] = []
        bundle = folder / "b.ecl"
        make_bundle(bundle, "slda")
        each = plan.n_events // plan.n_devices
        per_s = each / (plan.lasts_s + plan.away_s)
        for n in range(plan.n_devices):
            (folder / f"d{n}").mkdir()
            url = f"mqtt://127.0.0.1:{slow.port}" if n < 2 else broker.url
            disk_bytes = SMALL_OUTBOX_BYTES if n in (2, 3) else OUTBOX_BYTES
            options = [bundle, folder / f"d{n}", url, f"d{n}", each, per_s, disk_bytes]
            self._commands.append([sys.executable, "-m", "bench.chaos_device", *map(str, options)])
        self.n_devices = plan.n_devices
        worker = ["-m", "edge_cl", "fleet", "serve", "--mqtt", broker.url, "--store", store_url]
        self._commands += [[sys.executable, *worker]] * plan.n_workers
        self._log = (folder / "log").open("wb")
        for command in self._commands:
            self._running.append(self._start(command))

    def kill(self, n: int) -> None:
        """SIGKILL, and the same again at once."""
        self._running[n].kill()
        self._running[n].wait()
        self._running[n] = self._start(self._commands[n])

    def close(self) -> None:
        """End all."""
        for process in self._running:
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self._log.close()

    def _start(self, command: list[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=self._log, stderr=self._log)


def measure(plan: Plan, store_url: str, *, seed: int = 0) -> dict[str, Any]:
    """What came of it."""
    rng = random.Random(seed)
    store = FleetStore(store_url)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "broker").mkdir()
        broker = Broker(folder / "broker", "persistence false")
        broker.start()
        slow = SlowLink(broker.port, delay_s=0.15, bytes_per_s=16_000)
        processes = Processes(plan, folder, broker, slow, store_url)
        try:
            done = _faults(plan, rng, broker, slow, processes)
            broker.stop(kill=True)
            time.sleep(plan.away_s)
            broker.start()
            returned_s = time.time()
            _wait_until(lambda: _is_complete(folder, store, plan), DEADLINE_S)
            time.sleep(3.0)  # a second copy of something would come late
            counts = [_counts(folder / f"d{n}") for n in range(plan.n_devices)]
        finally:
            processes.close()
            slow.close()
            broker.stop()
        found = _compare(folder, store, plan, returned_s)
    store.close()
    return found | done | {"most_in_flight": max(count["most_in_flight"] for count in counts)}


def _faults(
    plan: Plan, rng: random.Random, broker: Broker, slow: SlowLink, processes: Processes
) -> dict[str, int]:
    """Each kind of fault in a thread of its own, at random moments of the time that there is."""
    last = processes.n_devices + plan.n_workers - 1

    def kill_broker() -> None:
        broker.stop(kill=True)
        time.sleep(rng.uniform(0, 0.3))
        broker.start()

    def cut() -> None:
        slow.cut()
        time.sleep(rng.uniform(0.5, 4))
        slow.mend()

    kinds: list[tuple[str, int, Callable[[], None]]] = [
        ("broker_kills", plan.n_broker_kills, kill_broker),
        ("device_kills", plan.n_device_kills, lambda: processes.kill(rng.randrange(processes.n_devices))),
        ("worker_kills", plan.n_worker_kills, lambda: processes.kill(rng.randint(processes.n_devices, last))),
        ("cuts", plan.n_cuts, cut),
    ]
    done = dict.fromkeys((name for name, _, _ in kinds), 0)

    def go(name: str, n: int, fault: Callable[[], None]) -> None:
        for _ in range(n):
            time.sleep(rng.uniform(0.5, 1.5) * plan.lasts_s / n * 0.8)
            fault()
            done[name] += 1

    threads = [threading.Thread(target=go, args=kind) for kind in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def _journal(state: Path) -> dict[int, tuple[str, float]]:
    """What a device learned: journal number, reading and time of each label."""
    with sqlite3.connect(f"file:{state}/journal.db?mode=ro", uri=True) as db:
        rows = db.execute("SELECT seq, reading_id, at_s FROM journal WHERE kind = 'label'").fetchall()
    db.close()
    return {seq: (reading_id, at_s) for seq, reading_id, at_s in rows}


def _stored(store: FleetStore) -> list[tuple[str, int, str, float]]:
    """Device, journal number, reading and time of each receipt in the store."""
    m = tables.messages.c
    with store.reading.connect() as connection:
        rows = connection.execute(select(m.device, m.body, m.received_s).where(m.kind == "receipt")).all()
    bodies = [(device, msgspec.json.decode(body), received_s) for device, body, received_s in rows]
    return [(device, body["seq"], body["reading_id"], at_s) for device, body, at_s in bodies]


def _counts(state: Path) -> dict[str, int]:
    found: dict[str, int] = msgspec.json.decode((state / "counts.json").read_bytes())
    return found


def _is_complete(folder: Path, store: FleetStore, plan: Plan) -> bool:
    each = plan.n_events // plan.n_devices
    try:
        done = all(len(_journal(folder / f"d{n}")) >= each for n in range(plan.n_devices))
    except sqlite3.Error:
        return False
    return done and len({(device, seq) for device, seq, _, _ in _stored(store)}) >= each * plan.n_devices


def _compare(folder: Path, store: FleetStore, plan: Plan, returned_s: float) -> dict[str, Any]:
    lost = strange = 0
    stored = _stored(store)
    waits_s: list[float] = []
    by_device: dict[str, list[tuple[int, str, float]]] = {}
    for device, seq, reading_id, at_s in stored:
        by_device.setdefault(device, []).append((seq, reading_id, at_s))
    for n in range(plan.n_devices):
        truth = _journal(folder / f"d{n}")
        mine = by_device.get(f"d{n}", [])
        lost += len(truth.keys() - {seq for seq, _, _ in mine})
        strange += sum(truth.get(seq, ("", 0))[0] != reading_id for seq, reading_id, _ in mine)
        waits_s += [
            at_s - max(returned_s, truth[seq][1])
            for seq, _, at_s in mine
            if at_s > returned_s and seq in truth
        ]
    distinct = {(device, seq) for device, seq, _, _ in stored}
    return {
        "events": len(distinct),
        "lost": lost,
        "doubled": len(stored) - len(distinct) + strange,
        "p99_s_after_return": round(float(np.percentile(waits_s, 99)), 2) if waits_s else None,
        "stored_after_return": len(waits_s),
    }


def _wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline_s:
        time.sleep(1.0)
