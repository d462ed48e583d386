"""A device without its broker for seven days, then back: what its outbox takes, what it dropped,
what arrives.
"""

from __future__ import annotations

import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from edge_cl_fleet import tables
from edge_cl_fleet.connection import Login
from edge_cl_fleet.store import FleetStore
from edge_cl_fleet.worker import Worker
from sqlalchemy import select

from bench.herd import status
from edge_cl.records import Receipt, SleepReport, Summary
from edge_cl.sync import messages
from edge_cl.sync.link import MqttLink
from tests.mosquitto import Broker

DISK_BYTES = 6 * 1024 * 1024
"""Of the outbox: less than the week needs, so that something must go."""
RECEIPTS_A_DAY = 200
MINUTES = 24 * 60


def measure(n_days: int = 7) -> dict[str, Any]:
    """The largest size of the outbox's files, and what was in the store in the end."""
    import threading

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        broker = Broker(folder, "persistence false")
        (folder / "state").mkdir()
        link = MqttLink(
            broker.url, device="d", site="week", state_dir=folder / "state", disk_bytes=DISK_BYTES
        )
        link.start()
        largest = max(_live(link, day, folder / "state") for day in range(n_days))
        broker.start()
        store = FleetStore(f"sqlite:///{folder}/fleet.db")
        worker = Worker(store, Login(broker.url))
        thread = threading.Thread(target=worker.run)
        thread.start()
        deadline_s = time.monotonic() + 120
        while link.counts["queued"] and time.monotonic() < deadline_s:
            time.sleep(0.1)
        link.stop(2.0)
        worker.stop()
        thread.join()
        found = _stored(store)
        store.close()
        broker.stop()
    receipts = [body["seq"] for kind, body in found if kind == "receipt"]
    summaries = [body["from_s"] for kind, body in found if kind == "summary"]
    health = [body["n_readings"] for kind, body in found if kind == "health"]
    return {
        "week_outbox_budget_bytes": DISK_BYTES,
        "week_outbox_largest_bytes": largest,
        "week_receipts_made": RECEIPTS_A_DAY * n_days,
        "week_receipts_stored": len(set(receipts)),
        "week_summaries_made": MINUTES * n_days,
        "week_summaries_stored": len(summaries),
        "week_newest_summaries_kept": summaries == sorted(summaries)[-len(summaries) :]
        and len(summaries) > 0
        and max(summaries) == 60.0 * (MINUTES * n_days - 1)
        and summaries == [60.0 * (MINUTES * n_days - len(summaries) + k) for k in range(len(summaries))],
        "week_newest_health_kept": bool(health) and max(health) == n_days - 1,
    }


def _live(link: MqttLink, day: int, folder: Path) -> int:
    """What a day brings; the largest size of the outbox's files meanwhile."""
    pump, largest = link._pump, 0
    for minute in range(MINUTES):
        at_s = 60.0 * (MINUTES * day + minute)
        summary = Summary(
            from_s=at_s, to_s=at_s + 59.0, n=120, n_abstained=3, confidence=0.93,
            n_by_label={"walk": 60, "run": 40, "rest": 20},
        )  # fmt: skip
        pump.put(partial(pump.keep, "summary", messages.encode(summary)))
        if minute % 5 == 0:
            now = msgspec.structs.replace(status(), n_readings=day)
            pump.put(partial(pump.keep, "health", messages.encode(now)))
        if (
            minute % (MINUTES // RECEIPTS_A_DAY) == 0
            and minute // (MINUTES // RECEIPTS_A_DAY) < RECEIPTS_A_DAY
        ):
            n = day * RECEIPTS_A_DAY + minute // (MINUTES // RECEIPTS_A_DAY)
            link.sink(Receipt(reading_id=f"r{n}", label="walk", status="learned", seq=n + 1))
        if minute % 360 == 0:
            link.sink(_sleep(day * 4 + minute // 360 + 1))
        if minute % 30 == 0:
            while pump.n_tasks:
                time.sleep(0.001)
            largest = max(largest, sum(file.stat().st_size for file in folder.iterdir()))
    return largest


def _sleep(n: int) -> SleepReport:
    return SleepReport(
        n_sleep=n, cause="idle", n_exemplars=900, n_held_back=100, accuracy_before=0.9, accuracy_after=0.91,
        adopted=True, reason="", cpu_s=1.0,
    )  # fmt: skip


def _stored(store: FleetStore) -> list[tuple[str, dict[str, Any]]]:
    m = tables.messages.c
    with store.reading.connect() as connection:
        rows = connection.execute(select(m.kind, m.body).order_by(m.seq)).all()
    return [(kind, msgspec.json.decode(body)) for kind, body in rows]
