"""Bytes that the card must write for a label: of the block device under an ext4 file system, fsyncs and all.

Ten labels a second, default settings and the default bundle, on a clock that this process sets:
`time.monotonic` moves by a tenth of a second for each label, so that everything paced by it (commits, status,
sleeps by idleness) is paced as in real time, and a sleep takes no time. What the kernel writes on a timer of
its own has no part: everything here is synced by the device itself. MQTT's outbox is not counted, nor what a
card multiplies inside.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest import mock

from bench import lives
from bench.lives import Life
from bench.loop_disk import LoopDisk, in_memory, make_image
from edge_cl.records import Event

LABELS_PER_S = 10.0
IMAGE_MIB = 128
NO_SNAPSHOTS = {
    "state": {"snapshot_labels": 10**6},
    "sleep": {"after_labels": 0, "idle_s": 0},
    "budget": {"disk_mb": 1e5},
}
N_FIRST = 500
"""Labels before counting begins: files are made, tables grow."""


def measure(n_labels: int) -> dict[str, float]:
    """Bytes per label over `n_labels`, gigabytes a day, and the part without snapshots and sleeps."""
    whole = _bytes_per_label(lives.default(n_labels=N_FIRST + n_labels, state={}))
    journal = _bytes_per_label(lives.default(n_labels=N_FIRST + n_labels, **NO_SNAPSHOTS))
    per_day = LABELS_PER_S * 86400 / 1e9
    return {
        "bytes_per_label": whole,
        "journal_bytes_per_label": journal,
        "snapshot_bytes_per_label": whole - journal,
        "gb_per_day": whole * per_day,
    }


def _bytes_per_label(life: Life) -> float:
    events = life.events()
    with tempfile.TemporaryDirectory(dir=in_memory()) as place:
        image = make_image(Path(place) / "image", IMAGE_MIB)
        with LoopDisk(image) as disk, _clock() as pace, life.open(disk.folder / "state") as learner:
            learner.run(pace(events[: 2 * N_FIRST]))
            before = disk.written()[1]
            learner.run(pace(events[2 * N_FIRST :]))
            written = disk.written()[1] - before
            if learner.knowledge.n_labels != life.n_labels:
                raise RuntimeError(
                    f"only {learner.knowledge.n_labels} of {life.n_labels} labels were learned"
                )
    return written / (life.n_labels - N_FIRST)


@contextmanager
def _clock() -> Iterator[Callable[[list[Event]], Iterator[Event]]]:
    """A monotonic clock that moves with the events only: half a label's time with each reading and label."""
    now = [time.monotonic()]

    def paced(events: list[Event]) -> Iterator[Event]:
        for event in events:
            now[0] += 0.5 / LABELS_PER_S
            yield event

    with mock.patch.object(time, "monotonic", lambda: now[0]):
        yield paced
