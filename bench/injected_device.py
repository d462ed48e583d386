"""The process whose disk fails on order; started by `bench.injected` with failing_disk.so loaded before.

Prints one line of JSON for each trial.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench import lives
from bench.lives import Life
from edge_cl.errors import EdgeCLError
from edge_cl.learner import Learner
from edge_cl.records import Answer, Decision, Event, Receipt, SleepRequest

SETTINGS: dict[str, Any] = {
    "sleep": {"after_labels": 0, "idle_s": 0, "slice_ms": 1000},
    "state": {"snapshot_labels": 6, "commit_ms": 0, "daily_write_mb": 0},
}
N_BEFORE = 7
"""Labels learned, and a clean stop, before the disk fails."""
N_UNDER = 10
"""Labels given while it fails or is about to; the middle one is followed by a sleep."""
N_HEALED = 72
"""Labels after it is well again, enough for another try at a snapshot; the last must be learned."""
N_LABELS = N_BEFORE + N_UNDER + N_HEALED
FOR_EVER = 1 << 40
SHORT = -1
KINDS = {
    "EIO once": (errno.EIO, 1),
    "ENOSPC once": (errno.ENOSPC, 1),
    "EIO until healed": (errno.EIO, FOR_EVER),
    "ENOSPC until healed": (errno.ENOSPC, FOR_EVER),
    "short write": (SHORT, 1),
}


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one failure. `outcome` is "ok" or what was wrong; `call` is the first that failed."""

    kind: str
    phase: str
    n: int
    call: str
    outcome: str
    told: str = ""


class Broken(Exception):
    """A promise was not kept."""


def main(library: str, folder: str, every: int) -> None:
    """All trials: of each kind, each `every`-th call that changes a file, in a run and in a start."""
    logging.disable(logging.CRITICAL)
    disk = ctypes.CDLL(library)
    disk.disk_failed.restype = ctypes.c_char_p
    place = Path(folder)
    life = lives.small(place.parent, n_labels=N_LABELS, **SETTINGS)
    disk.disk_fail(0, 0, 0)
    _prepare(life, place)
    for kind in KINDS:
        for phase in ("run", "start"):
            first = 1
            while (trial := _trial(disk, life, place, kind, phase, first)).call:
                sys.stdout.write(msgspec.json.encode(trial).decode() + "\n")
                sys.stdout.flush()
                first += every


def _prepare(life: Life, place: Path) -> None:
    """A device that stopped after some labels, and one that was killed some labels later."""
    with life.open(place / "stopped") as learner:
        learner.run(life.events()[: 2 * N_BEFORE])
    shutil.copytree(place / "stopped", place / "live")
    with life.open(place / "live") as learner:
        learner.run(life.events(N_BEFORE)[:6])
        shutil.copytree(place / "live", place / "killed")


def _trial(disk: ctypes.CDLL, life: Life, place: Path, kind: str, phase: str, first: int) -> Trial:
    # a folder of its own: a connection that a failure left open would, closed late, remove a namesake's log
    trial = place / "state" / f"{kind} {phase} {first}"
    shutil.copytree(place / ("stopped" if phase == "run" else "killed"), trial / "live")
    error, n_failing = KINDS[kind]
    outcome, told = "ok", ""
    try:
        (_run if phase == "run" else _start)(
            disk, life, trial, lambda: disk.disk_fail(ctypes.c_long(first), ctypes.c_long(n_failing), error)
        )
    except Broken as broken:
        outcome, _, told = str(broken).partition(": ")
    except Exception as crash:  # noqa: BLE001  whatever it is, it is what we look for
        where = traceback.extract_tb(crash.__traceback__)[-1]
        outcome, told = "crash", f"{crash!r} in {Path(where.filename).name}: {where.line}"
    call = disk.disk_failed().decode()
    disk.disk_fail(0, 0, 0)
    disk.disk_lose()
    shutil.rmtree(trial)
    return Trial(kind=kind, phase=phase, n=first, call=call, outcome=outcome, told=told[:300])


def _run(disk: ctypes.CDLL, life: Life, place: Path, fail: Callable[[], None]) -> None:
    """The disk fails under a device that learns, is well again, and then the power fails."""
    answers: list[Answer] = []
    events: list[Event] = life.events(N_BEFORE)[: 2 * N_UNDER]
    events.insert(N_UNDER, SleepRequest())
    with contextlib.suppress(EdgeCLError), life.open(place / "live") as learner:
        fail()
        try:
            learner.run(events, sinks=[answers.append])
            disk.disk_heal()
            learner.run(life.events(N_BEFORE + N_UNDER), sinks=[answers.append])
        except EdgeCLError as error:
            raise Broken(f"the loop ended: {error!r}") from error
        n_learned = _check_answers(answers)
        _check_knowledge(learner, N_BEFORE + n_learned, "awake")
        digest, alarm = learner.knowledge.digest(), learner.status().alarm
        disk.disk_lose()
        shutil.copytree(place / "live", place / "left")
        if alarm:
            raise Broken(f"the alarm stays: {alarm}")
    _check_restart(life, place / "left", N_BEFORE + n_learned, digest)


def _start(disk: ctypes.CDLL, life: Life, place: Path, fail: Callable[[], None]) -> None:
    """The disk fails under a device that starts from what a kill left; then it is well, and starts again."""
    n_labels = N_BEFORE + 3
    fail()
    with contextlib.suppress(EdgeCLError), life.open(place / "live") as learner:
        _check_knowledge(learner, n_labels, "started")
    disk.disk_heal()
    disk.disk_lose()
    _check_restart(life, place / "live", n_labels, life.digests()[n_labels])


def _check_answers(answers: list[Answer]) -> int:
    """Every reading was answered, every label receipted, the last ones learned; how many were."""
    n_decisions = sum(isinstance(answer, Decision) for answer in answers)
    if n_decisions != N_UNDER + N_HEALED:
        raise Broken(f"predictions stopped: {n_decisions} of {N_UNDER + N_HEALED}")
    receipts = [answer for answer in answers if isinstance(answer, Receipt)]
    if len(receipts) != N_UNDER + N_HEALED:
        raise Broken(f"receipts are missing: {len(receipts)} of {N_UNDER + N_HEALED}")
    if receipts[-1].status != "learned":
        raise Broken(f"it does not heal: {receipts[-1].message}")
    return sum(receipt.status == "learned" for receipt in receipts)


def _check_knowledge(learner: Learner, n_labels: int, when: str) -> None:
    if learner.knowledge.n_labels < n_labels:
        raise Broken(f"labels lost: {when} it knows {learner.knowledge.n_labels} of {n_labels}")
    if learner.knowledge.n_labels > n_labels:
        raise Broken(f"refused yet known: {when} it knows {learner.knowledge.n_labels}, receipted {n_labels}")


def _check_restart(life: Life, state: Path, n_labels: int, digest: str) -> None:
    try:
        with life.open(state) as learner:
            learner.run([None])
            _check_knowledge(learner, n_labels, "restarted")
            if learner.knowledge.digest() != digest:
                raise Broken(f"other knowledge: {learner.status().recovered}")
    except EdgeCLError as error:
        raise Broken(f"no restart: {error}") from error


if __name__ == "__main__":
    os.environ.pop("LD_PRELOAD", None)
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
