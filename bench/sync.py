"""What sync holds. ``python -m bench.sync [--quick] [--data FOLDER] [--json FILE]``; starts its own servers.

=========  ==============================================================================================
chaos      events through killed brokers, devices and workers, a slow link that is cut, full outboxes
threads    network threads that die or hang: the longest time to a connection that works again
week       seven days without a broker: what the outbox takes, and what it drops
stores     events a second into SQLite and PostgreSQL, one worker and two
herd       a thousand devices that lose their broker at once
forgeries  forged, replayed, expired, foreign and malformed commands
merge      heads of people with different muscles made one (needs the recordings of myo_emg)
=========  ==============================================================================================

Each part's docstring in its module says what is done and what is not. Everything takes about half an hour,
``--quick`` three minutes; ``--only`` names parts. A part that cannot run here leaves its figures null.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import msgspec

from bench.faults import Targets, show
from bench.pipeline import versions

TARGETS: Targets = {
    "events": ("≥ 10,000", lambda x: x >= 10_000),
    "lost": ("0", lambda x: x == 0),
    "doubled": ("0", lambda x: x == 0),
    "p99_s_after_return": ("≤ 60", lambda x: x <= 60),
    "most_in_flight": ("≤ 16", lambda x: x <= 16),
    "restart_worst_s": ("≤ 15", lambda x: x <= 15),
    "sqlite_events_per_s": ("≥ 5,000", lambda x: x >= 5000),
    "postgres_events_per_s": ("≥ 3,000", lambda x: x >= 3000),
    "two_worker_ratio": ("≥ 1.7", lambda x: x >= 1.7),
    "herd_s": ("≤ 300", lambda x: x <= 300),
    "herd_peak_per_s": ("≤ 50", lambda x: x <= 50),
    "bad_commands": ("≥ 100,000", lambda x: x >= 100_000),
    "bad_commands_executed": ("0", lambda x: x == 0),
    "crashes": ("0", lambda x: x == 0),
    "growth_mb": ("≤ 5", lambda x: x <= 5),
    "merge_max_error": ("≤ 1e-4", lambda x: x <= 1e-4),
}


def wreak_chaos(quick: bool, data: Path | None) -> dict[str, Any]:
    """Into PostgreSQL with two workers; `quick` into SQLite with one."""
    from bench import chaos
    from tests.postgres import MISSING, PostgreSQL

    if quick or MISSING:
        with tempfile.TemporaryDirectory() as folder:
            plan = chaos.QUICK if quick else chaos.Plan(n_workers=1)
            return chaos.measure(plan, f"sqlite:///{folder}/fleet.db")
    postgres = PostgreSQL()
    postgres.start()
    try:
        return chaos.measure(chaos.Plan(), postgres.url())
    finally:
        postgres.remove()


def kill_threads(quick: bool, data: Path | None) -> dict[str, Any]:
    """A fifth of them hangs."""
    from bench import dead_threads

    return dead_threads.measure(10 if quick else 100)


def stay_away(quick: bool, data: Path | None) -> dict[str, Any]:
    """With an outbox that is too small for all of it."""
    from bench import week

    return week.measure(7)


def fill_stores(quick: bool, data: Path | None) -> dict[str, Any]:
    """Also through Mosquitto, with the publisher on the same two cores."""
    from bench import stores

    return dict(stores.measure_all(4_000 if quick else 40_000))


def stampede(quick: bool, data: Path | None) -> dict[str, Any]:
    """After a broker's restart."""
    from bench import herd

    return herd.measure(100 if quick else 1000)


def forge(quick: bool, data: Path | None) -> dict[str, Any]:
    """Given to what receives commands on a device, in a process of its own."""
    from bench import forgeries

    return dict(forgeries.measure(4_000 if quick else 100_000))


def merge(quick: bool, data: Path | None) -> dict[str, Any]:
    """Only with recordings."""
    from bench import merging

    return {} if data is None else dict(merging.measure(data, quick=quick))


PARTS: dict[str, Callable[[bool, Path | None], dict[str, Any]]] = {
    "chaos": wreak_chaos,
    "threads": kill_threads,
    "week": stay_away,
    "stores": fill_stores,
    "herd": stampede,
    "forgeries": forge,
    "merge": merge,
}


def measure(parts: Iterable[str], *, quick: bool, data: Path | None) -> dict[str, Any]:
    """The figures of `TARGETS`, null where no part gave one; and what each part found, under ``parts``."""
    found = {}
    for name in parts:
        found[name] = PARTS[name](quick, data)
        print(f"{name}: {found[name]}", flush=True)
    figures: dict[str, Any] = dict.fromkeys(TARGETS)
    for part in found.values():
        figures |= {name: part[name] for name in figures.keys() & part.keys()}
    return figures | {"parts": found}


def main() -> None:
    """Measure, show, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="minutes: only shows that it measures")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("EDGE_CL_DATA"), metavar="FOLDER", help="for merge"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    asked = parser.parse_args()
    figures = measure(asked.only.split(","), quick=asked.quick, data=asked.data) | {"versions": versions()}
    show(figures, TARGETS)
    if asked.json:
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")


if __name__ == "__main__":
    main()
