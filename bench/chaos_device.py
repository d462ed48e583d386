"""A device for `bench.chaos` to kill: learns a label now and then, and syncs. Ends when its input ends.

``python -m bench.chaos_device BUNDLE STATE URL NAME N_LABELS LABELS_PER_S DISK_BYTES``; writes its counts to
``STATE/counts.json`` now and then.
"""

from __future__ import annotations

import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from edge_cl.bundle import Bundle
from edge_cl.config import settings_from
from edge_cl.learner import Learner
from edge_cl.records import Event, Label
from edge_cl.sync.link import MqttLink, Pace
from tests.worlds import NAMES, D, reading

TICK_S = 0.02
COUNTS_S = 0.5


def events(
    name: str, first: int, n_labels: int, per_s: float, state: Path, link: MqttLink
) -> Iterator[Event]:
    """Readings with their labels at about this rate, then nothing, until standard input ends."""
    rng = np.random.default_rng()
    k, next_s, told_s = first, time.monotonic(), 0.0
    while not select.select([sys.stdin], [], [], TICK_S)[0]:
        now_s = time.monotonic()
        if now_s - told_s > COUNTS_S:
            told_s = now_s
            (state / "counts.json").write_bytes(msgspec.json.encode(link.counts))
        if k < n_labels and now_s >= next_s:
            next_s = max(next_s + 1 / per_s, now_s - 1)
            yield reading(rng.normal(size=D).astype(np.float32), f"{name}-{k}")
            yield Label(label=NAMES[k % 3], reading_id=f"{name}-{k}", source="bench")
            k += 1
        yield None


def main() -> None:
    """Run until standard input ends, or for ever."""
    bundle, folder, url, name, n_labels, per_s, disk_bytes = sys.argv[1:]
    state = Path(folder)
    settings = settings_from(
        {
            "sleep": {"after_labels": 0, "idle_s": 0},
            "state": {"snapshot_labels": 200},
            "mqtt": {"status_s": 1},
        }
    )
    with Learner.from_bundle(Bundle.load(bundle), state_dir=state, settings=settings) as learner:
        link = MqttLink(
            url,
            device=name,
            site="bench",
            state_dir=state,
            disk_bytes=int(disk_bytes),
            pace=Pace(summary_s=2.0, health_s=5.0),
        )
        link.follow(learner)
        link.start()
        first = learner.committed_seq
        stream = events(name, first, int(n_labels), float(per_s), state, link)
        learner.run(stream, sources(link), [link.sink])
        link.stop()


def sources(link: MqttLink) -> list[MqttLink]:
    """The link is one."""
    return [link]


if __name__ == "__main__":
    main()
