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
from functools import partial
from pathlib import Path
from unittest import mock

from bench import lives
from bench.lives import Life
from bench.loop_disk import LoopDisk, in_memory, make_image
from edge_cl import learner as learner_module
from edge_cl.records import Event
from edge_cl.state import Wear

LABELS_PER_S = 10.0
IMAGE_MIB = 128
UNPACED_FIRST, UNPACED_LABELS = 500, 5_000
UNPACED = {"state": {"daily_write_mb": 0}}
NO_SNAPSHOTS = {
    "state": {"snapshot_labels": 10**6, "daily_write_mb": 0},
    "sleep": {"after_labels": 0, "idle_s": 0},
    "budget": {"disk_mb": 1e5},
}


def measure(n_labels: int, n_first: int) -> dict[str, float]:
    """Bytes per label over `n_labels`, and gigabytes a day; the same where nothing is paced, and split.

    Counting begins after `n_first` labels: files were made and tables have grown. What may be written in a
    burst is taken as used up, as after some minutes of such a day. `by_the_device` is what its own count of
    bytes says for the same labels.
    """
    whole, counted = _bytes_per_label(lives.default(n_labels=n_first + n_labels, state={}), n_first)
    n_labels = min(n_labels, UNPACED_LABELS)
    unpaced, _ = _bytes_per_label(lives.default(n_labels=n_labels + UNPACED_FIRST, **UNPACED), UNPACED_FIRST)
    life = lives.default(n_labels=n_labels + UNPACED_FIRST, **NO_SNAPSHOTS)
    journal, _ = _bytes_per_label(life, UNPACED_FIRST)
    return {
        "bytes_per_label": whole,
        "gb_per_day": whole * LABELS_PER_S * 86400 / 1e9,
        "by_the_device_bytes_per_label": counted,
        "unpaced_bytes_per_label": unpaced,
        "unpaced_journal_bytes_per_label": journal,
        "unpaced_snapshot_bytes_per_label": unpaced - journal,
    }


def _bytes_per_label(life: Life, n_first: int) -> tuple[float, float]:
    """Of the block device, and of the learner's own count."""
    events = life.events()
    with tempfile.TemporaryDirectory(dir=in_memory()) as place:
        image = make_image(Path(place) / "image", IMAGE_MIB)
        with LoopDisk(image) as disk, _clock() as pace, life.open(disk.folder / "state") as learner:
            learner.run(pace(events[: 2 * n_first]))
            before, counted_before = disk.written()[1], learner.status().written_bytes
            learner.run(pace(events[2 * n_first :]))
            written = disk.written()[1] - before
            counted = learner.status().written_bytes - counted_before
            if learner.knowledge.n_labels != life.n_labels:
                raise RuntimeError(
                    f"only {learner.knowledge.n_labels} of {life.n_labels} labels were learned"
                )
    n_counted = life.n_labels - n_first
    return written / n_counted, counted / n_counted


@contextmanager
def _clock() -> Iterator[Callable[[list[Event]], Iterator[Event]]]:
    """A monotonic clock that moves with the events only: half a label's time with each reading and label."""
    now = [time.monotonic()]

    def paced(events: list[Event]) -> Iterator[Event]:
        for event in events:
            now[0] += 0.5 / LABELS_PER_S
            yield event

    with (
        mock.patch.object(time, "monotonic", lambda: now[0]),
        mock.patch.object(learner_module, "Wear", partial(_worn, clock=lambda: now[0])),
    ):
        yield paced


def _worn(daily_bytes: float, *, clock: Callable[[], float]) -> Wear:
    """Nothing is left of what may be written as it comes."""
    wear = Wear(daily_bytes, clock=clock)
    wear._left = 0.0
    return wear
