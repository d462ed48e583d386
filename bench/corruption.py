"""One byte of one file of a stopped device is changed; then it is started.

The start must give the very same knowledge (the byte did not matter, or its file was made good), or say that
there was a problem and give knowledge the device once had, no older than its last clean stop; or be a typed
refusal. Devices: one stopped, one killed awake with a live write-ahead log, one killed in a sleep.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bench import lives
from bench.lives import Life
from bench.loop_disk import in_memory
from edge_cl.errors import EdgeCLError
from edge_cl.learner import Learner

N_STOPPED = 30
"""Labels at the last clean stop."""
N_KILLED = 8
N_ASLEEP = 14
"""Labels taught after it; `lives.busy` sleeps at the fortieth."""
N_MORE = 3
"""Labels taught after a start that found nothing: it must be able to go on, and to start once more."""
N_LABELS = N_STOPPED + N_ASLEEP + N_MORE
SETTINGS = lives.busy(slice_ms=5) | {"memory": {"max_mb": 0.25}}
"""A small memory: it is made anew at each start."""
GO_ON = 0.25
"""Share of the trials in which that is tried."""


class Victim(NamedTuple):
    """A folder to damage, and how many labels it holds."""

    name: str
    state: Path
    n_labels: int


class Trial(NamedTuple):
    """What became of one change."""

    outcome: str
    victim: str
    file: str
    offset: int
    told: str


def measure(
    life: Life, n_trials: int, *, seed: int = 0, scrub: Callable[[Learner], bool] | None = None
) -> tuple[Counter[str], list[Trial]]:
    """Make `n_trials` changes: a byte of a file, each file as often as any other.

    `scrub` says of a started device whether all of its history is sound: asked where nothing else was found.

    Returns
    -------
    Counts by outcome, with their sum as ``corruptions`` and the failures' as ``undetected_corruptions``; and
    the trials that failed. Outcomes: ``same``; ``scrubbed`` (same, damage found in old history);
    ``reported``; ``refused``; failures: ``silent`` (other knowledge, nothing said), ``later`` (as silent, or
    untyped, when it goes on), ``older`` (said, but knowledge older than the last clean stop), ``never``
    (said, but knowledge that never was), ``untyped`` (an error that is no EdgeCLError).
    """
    rng = np.random.default_rng(seed)
    found: Counter[str] = Counter()
    failed = []
    logging.disable(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory(dir=in_memory()) as place:
            victims = _victims(life, Path(place))
            for k in range(n_trials):
                victim = victims[rng.integers(len(victims))]
                trial = _trial(life, victim, Path(place) / f"trial-{k}", rng, scrub)
                found[trial.outcome] += 1
                if trial.outcome not in ("same", "scrubbed", "reported", "refused"):
                    failed.append(trial)
    finally:
        logging.disable(logging.NOTSET)
    found["corruptions"], found["undetected_corruptions"] = n_trials, len(failed)
    return found, failed


def _victims(life: Life, place: Path) -> list[Victim]:
    """The folders of a device that stopped and of two killed: a live one's files are what a kill leaves."""
    victims = [Victim("stopped", place / "stopped", N_STOPPED)]
    with life.open(victims[0].state) as learner:
        learner.run(life.events()[: 2 * N_STOPPED])
    for name, n_more in (("killed", N_KILLED), ("killed asleep", N_ASLEEP)):
        live, left = place / "live", Victim(name, place / name, N_STOPPED + n_more)
        shutil.copytree(victims[0].state, live)
        with life.open(live) as learner:
            busy = chain([False], repeat(True)).__next__  # the sleep begins as it would, and then drags on
            learner.run(life.events(N_STOPPED)[: 2 * n_more], busy=busy)
            assert learner.knowledge.asleep == (name == "killed asleep")
            shutil.copytree(live, left.state)
        shutil.rmtree(live)
        victims.append(left)
    return victims


def _trial(
    life: Life, victim: Victim, state: Path, rng: np.random.Generator, scrub: Callable[[Learner], bool] | None
) -> Trial:
    shutil.copytree(victim.state, state)
    paths = sorted(path for path in state.iterdir() if path.stat().st_size)
    path = paths[rng.integers(len(paths))]
    offset = int(rng.integers(path.stat().st_size))
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0] ^ int(rng.integers(1, 256))
        file.seek(offset)
        file.write(bytes([byte]))
    try:
        outcome, told = _start(life, victim, state, rng, scrub)
    except EdgeCLError as error:
        outcome, told = "refused", str(error)
    except Exception as error:  # noqa: BLE001  whatever it is, it is what we look for
        outcome, told = "untyped", repr(error)
    shutil.rmtree(state)
    return Trial(outcome, victim.name, path.name, offset, told)


def _start(
    life: Life, victim: Victim, state: Path, rng: np.random.Generator, scrub: Callable[[Learner], bool] | None
) -> tuple[str, str]:
    """The outcome of a start, and what it said."""
    with life.open(state) as learner:
        alarm, recovered = learner.status().alarm, learner.status().recovered
        learner.run([None])
        n_labels, digest = learner.knowledge.n_labels, learner.knowledge.digest()
        same = digest == life.digests()[victim.n_labels]
        found = scrub is not None and not scrub(learner)
    if alarm and n_labels < N_STOPPED:
        return "older", f"{n_labels} labels; {alarm}"
    if alarm:
        return ("reported" if digest == life.digests()[n_labels] else "never"), alarm
    if not same:
        return "silent", f"{n_labels} of {victim.n_labels} labels; {recovered}"
    return (rng.random() < GO_ON and _go_on(life, victim, state)) or ("scrubbed" if found else "same", "")


def _go_on(life: Life, victim: Victim, state: Path) -> tuple[str, str] | None:
    """Teach some more and start once again; what was wrong with that, if anything was."""
    n_labels = victim.n_labels + N_MORE
    try:
        with life.open(state) as learner:
            learner.run(life.events(victim.n_labels)[: 2 * N_MORE])
        with life.open(state) as learner:
            learner.run([None])
            if learner.knowledge.digest() != life.digests()[n_labels] and not learner.status().alarm:
                return "later", f"{learner.knowledge.n_labels} of {n_labels} labels; nothing said"
    except Exception as error:  # noqa: BLE001
        return "later", repr(error)
    return None
