"""Taking labels back: how near the head comes to one that never saw them, and how long it takes.

Default bundle, one label in ten from a source that is forgotten, spread over the whole history: the worst
case, since no snapshot is older than the first of them. Settings are the defaults, but nothing is paced.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench import lives
from bench.lives import Life
from bench.loop_disk import in_memory
from edge_cl.learner import Learner
from edge_cl.records import Event, Label, Reading
from edge_cl.revisions import Forget

CLOSED_FORM = ("slda", "prototype", "kalman")
HEADS = (*CLOSED_FORM, "knn", "logistic", "dual")
EVERY, BAD = 10, "forgotten"
NO_SLEEP = {"after_labels": 0, "idle_s": 0}
N_COMPARED = 500


def measure(n_labels: int, n_compared_labels: int) -> dict[str, Any]:
    """Largest difference of a probability, over all heads; seconds by head, and of the worst closed form."""
    errors, seconds, same = {}, {}, []
    for head in HEADS:
        error, equal = _error(head, n_compared_labels)
        errors[head], seconds[head] = error, _seconds(head, n_labels)
        same.append(equal)
    return {
        "forget_max_error": max(errors.values()),
        "forget_s": max(seconds[head] for head in CLOSED_FORM),
        "forget_same_bytes": all(same),
        **{f"forget_s_{head}": s for head, s in seconds.items()},
    }


def _life(head: str, n_labels: int, sleep: dict[str, Any]) -> Life:
    state = {"daily_write_mb": 0, "history_mb": 64}
    budget = {"disk_mb": 512}
    return lives.default(n_labels=n_labels, head={"name": head}, sleep=sleep, state=state, budget=budget)


def _events(life: Life) -> list[Event]:
    """Every tenth label is said by the one who is forgotten."""
    events = life.events()
    for k in range(1, len(events), 2 * EVERY):
        events[k] = msgspec.structs.replace(events[k], source=BAD)  # type: ignore[type-var]
    return events


def _error(head: str, n_labels: int) -> tuple[float, bool]:
    """Against a device that never heard them; without sleeps, which depend on how many labels there were."""
    life = _life(head, n_labels, NO_SLEEP)
    events = _events(life)
    kept = [event for event in events if not (isinstance(event, Label) and event.source == BAD)]
    windows = np.stack([event.window for event in events[: 2 * N_COMPARED] if isinstance(event, Reading)])
    with tempfile.TemporaryDirectory(dir=in_memory()) as place, life.open(Path(place)) as learner:
        learner.run(events)
        learner.revise(Forget(source=BAD))
        found, digest = learner.predict(windows), learner.knowledge.digest()
    with life.open(None) as learner:
        learner.run(kept)
        wanted = learner.predict(windows)
        return float(np.abs(found - wanted).max()), learner.knowledge.digest() == digest


def _seconds(head: str, n_labels: int) -> float:
    life = _life(head, n_labels, {"idle_s": 0})
    with tempfile.TemporaryDirectory(dir=in_memory()) as place, life.open(Path(place)) as learner:
        learner.run(_events(life))
        began = time.perf_counter()
        _forget(learner)
        return time.perf_counter() - began


def _forget(learner: Learner) -> None:
    outcome = learner.revise(Forget(source=BAD))
    if not outcome.n_labels:
        raise RuntimeError("nothing was forgotten")
