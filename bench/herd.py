"""A thousand devices lose their broker at once: how long until all are back, and how many connect in one
second.

Real links in four processes; a real server tells them how many they are, by which they spread. Counted is in
the broker's own log.
"""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

from edge_cl.records import Status
from edge_cl.sync.link import MqttLink
from tests.mosquitto import Broker

N_PROCESSES = 4
START_PER_S = 40
DEADLINE_S = 400.0
COUNTED_S = 12.0
"""Until the server has counted its devices anew."""


def status() -> Status:
    """Of a device that has nothing to say."""
    fields: dict[str, Any] = dict.fromkeys(
        ("n_readings", "n_labels", "journal_seq", "n_pending", "n_bad_readings", "held_bytes", "n_sleeps"), 0
    )
    return Status(
        bundle_name="herd", bundle_id="b", head="slda", class_names=[], accuracy_now=None, held={},
        budget_bytes=1, last_sleep=None, recovered="", alarm="", **fields,
    )  # fmt: skip


def measure(n_devices: int = 1000) -> dict[str, Any]:
    """Seconds until all are back, and the most connections that the broker took in a second of its clock."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        log = folder / "log"
        broker = Broker(folder, "persistence false", f"log_dest file {log}", "log_type notice")
        _drop(folder / "mosquitto.conf", "log_dest none")
        broker.start()
        serve = ["fleet", "serve", "--mqtt", broker.url, "--store", f"sqlite:///{folder}/fleet.db"]
        with subprocess.Popen([sys.executable, "-m", "edge_cl", *serve], stderr=subprocess.DEVNULL) as server:
            try:
                return _stampede(broker, log, n_devices)
            finally:
                broker.stop()
                server.kill()


def _stampede(broker: Broker, log: Path, n_devices: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    again, stop = context.Event(), context.Event()
    shares = [range(n, n_devices, N_PROCESSES) for n in range(N_PROCESSES)]
    herd = [context.Process(target=_links, args=(broker.url, share, again, stop)) for share in shares]
    for process in herd:
        process.start()
    try:
        _wait_for(log, 0, n_devices)
        time.sleep(COUNTED_S)
        again.set()  # everybody says something, and hears how many there are
        time.sleep(COUNTED_S)
        broker.stop(kill=True)
        size = log.stat().st_size
        began_s = time.time()
        broker.start()
        connects = _wait_for(log, size, n_devices)
        return {
            "herd_devices": len(connects),
            "herd_s": round(time.time() - began_s, 1),
            "herd_peak_per_s": max(Counter(connects.values()).values()),
        }
    finally:
        stop.set()
        for process in herd:
            process.join(60)


def _links(url: str, share: range, again: Event, stop: Event) -> None:
    links = []
    for n in share:
        link = MqttLink(url, device=f"d{n}", site="herd", state_dir=None)
        link.start()
        link.sink(status())
        links.append(link)
        time.sleep(N_PROCESSES / START_PER_S)
    again.wait()
    for link in links:
        link._health_at_s = 0.0
        link.sink(status())
    stop.wait()


def _wait_for(log: Path, offset: int, n_devices: int) -> dict[str, int]:
    """The second in which each device connected, once all have, from the broker's log after `offset`."""
    deadline_s = time.monotonic() + DEADLINE_S
    while True:
        found: dict[str, int] = {}
        with log.open() as lines:
            lines.seek(offset)
            for line in lines:
                when, _, what = line.partition(": ")
                if "New client connected" in what and " as edgecl-herd-" in what:
                    found.setdefault(what.split(" as ")[1].split()[0], int(when))
        if len(found) >= n_devices or time.monotonic() > deadline_s:
            return found
        time.sleep(0.5)


def _drop(path: Path, line: str) -> None:
    path.write_text(path.read_text().replace(f"{line}\n", ""))
