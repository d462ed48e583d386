"""From opening a device with a long history to its first prediction, at worst: just before a snapshot."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import lives
from bench.lives import Life
from bench.loop_disk import in_memory
from edge_cl.learner import Learner

N_STARTS = 5
N_SEARCHED = 4000
"""Labels within which two snapshots are seen, so that the third can be foreseen."""


class Cut(Exception):
    """The power went: nothing is saved at the end."""


def measure(n_labels: int) -> dict[str, Any]:
    """Median seconds of a start by head, after at least `n_labels` labels; ``recovery_s_100k`` is the worst.

    Default bundle and settings, but for the pacing of writes: the history grows in minutes here and not in
    months. The bundle is loaded, and files are in the kernel's cache; a start from a cold card takes longer,
    and so does one after a day of ten labels a second, when snapshots are rarer.
    """
    found: dict[str, Any] = {}
    for head in ("dual", "slda"):
        life = lives.default(n_labels=n_labels + N_SEARCHED, head={"name": head}, state={"daily_write_mb": 0})
        found |= {f"{key}_{head}": value for key, value in _recover(life, n_labels).items()}
    found["recovery_s_100k"] = max(found["recovery_s_dual"], found["recovery_s_slda"])
    return found


def _recover(life: Life, n_labels: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(dir=in_memory()) as place:
        state = Path(place) / "state"
        n_learned = 0
        with contextlib.suppress(Cut), life.open(state) as learner:
            learner.run(life.events()[: 2 * n_labels])
            _to_a_long_tail(learner, life, state, n_labels)
            n_learned = learner.knowledge.n_labels
            raise Cut
        starts = sorted(_start(life, state, n_learned) for _ in range(N_STARTS))
    taken_s, told = starts[N_STARTS // 2]
    return {"recovery_s": taken_s, "recovered": told}


def _to_a_long_tail(learner: Learner, life: Life, state: Path, n_labels: int) -> None:
    """Teach until one more label would bring a snapshot: as many after the last as between the last two."""
    seen = [0]
    files = _snapshots(state)
    for k in range(n_labels, n_labels + N_SEARCHED):
        learner.run(life.one_more(k), busy=lambda: True)
        if _snapshots(state) != files:
            files = _snapshots(state)
            seen.append(k)
        if len(seen) > 2 and k - seen[-1] == seen[-1] - seen[-2] - 2:
            return
    raise RuntimeError(f"{len(seen) - 1} snapshots in {N_SEARCHED} labels: their pace is not known")


def _snapshots(state: Path) -> set[tuple[str, int]]:
    return {(path.name, path.stat().st_mtime_ns) for path in state.glob("*.snapshot")}


def _start(life: Life, state: Path, n_labels: int) -> tuple[float, str]:
    """Seconds, and what the device says it recovered from."""
    took, told = 0.0, ""
    with contextlib.suppress(Cut):
        began = time.perf_counter()
        with life.open(state) as learner:
            learner.observe(life.events()[0])  # type: ignore[arg-type]
            took, told = time.perf_counter() - began, learner.status().recovered
            if learner.knowledge.n_labels != n_labels:
                raise RuntimeError(f"{learner.knowledge.n_labels} labels recovered, not {n_labels}")
            raise Cut
    return took, told
