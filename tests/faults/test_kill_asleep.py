"""kill -9 at random moments of a sleep: the next start has exactly the old or exactly the new head."""

import contextlib
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_cl import Learner
from edge_cl.bundle import Bundle
from tests.faults.sleeper import SETTINGS
from tests.worlds import World, make_bundle

ROOT = Path(__file__).parents[2]
N_LABELS = 300


def head_hash(learner: Learner) -> str:
    state = learner.knowledge.head.state()
    digest = hashlib.sha256(repr((state.options, state.meta)).encode())
    for name in sorted(state.arrays):
        digest.update(name.encode() + np.ascontiguousarray(state.arrays[name]).tobytes())
    return digest.hexdigest()


def open_device(bundle: Bundle, state: Path) -> Learner:
    return Learner.from_bundle(bundle, state_dir=state, settings=SETTINGS)


def sleep_until_killed(bundle: Path, state: Path, after_pieces: int, spin: int) -> bool:
    """Let a device sleep and kill it in or after that many pieces; whether it was killed."""
    command = [sys.executable, "-m", "tests.faults.sleeper", str(bundle), str(state)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment) as process:
        for k, _ in enumerate(process.stdout, start=1):
            if k == after_pieces:
                for _ in range(spin):
                    pass
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
    if process.returncode not in (0, -signal.SIGKILL):
        pytest.fail(f"the device ended with {process.returncode}")
    return process.returncode != 0


def check(tmp_path: Path, n_kills: int) -> None:
    bundle = make_bundle(tmp_path / "b.ecl", "step")
    with open_device(bundle, tmp_path / "before") as learner:
        learner.run(World(seed=4, shift=1.0).events(N_LABELS))
        old = head_hash(learner)
    shutil.copytree(tmp_path / "before", tmp_path / "whole")
    with open_device(bundle, tmp_path / "whole") as learner:
        n_pieces = len(list(learner.sleep()))
        assert learner.knowledge.last_sleep.adopted
        new, whole = head_hash(learner), learner.knowledge.digest()
    assert old != new
    rng = random.Random(0)
    kills = 0
    found = []
    while kills < n_kills:
        state = tmp_path / "state"
        shutil.rmtree(state, ignore_errors=True)
        shutil.copytree(tmp_path / "before", state)
        near_the_end = rng.random() < 0.5
        after = n_pieces if near_the_end else rng.randrange(1, n_pieces)
        spin = rng.randrange(1_000_000 if near_the_end else 20_000)
        kills += sleep_until_killed(tmp_path / "b.ecl", state, after, spin)
        with open_device(bundle, state) as learner:
            found.append(head_hash(learner))
            assert found[-1] in (old, new)
            assert learner.knowledge.n_labels == N_LABELS
            assert learner.knowledge.n_sleeps == 1, "the sleep was on disk before its first piece"
            learner.run([None])  # what was cut off is taken up
            assert learner.knowledge.digest() == whole
    assert {old, new} == set(found), "the kills should hit both sides of the swap"


def test_twelve_kills(tmp_path):
    check(tmp_path, 12)


@pytest.mark.slow
def test_two_hundred_kills(tmp_path):
    check(tmp_path, 200)
