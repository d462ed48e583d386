"""kill -9 at random moments: nothing receipted is lost, and nothing else changes."""

import contextlib
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edge_cl import Learner
from edge_cl.state import Journal
from tests.faults.device import SETTINGS
from tests.worlds import World, make_bundle

N = 600
ROOT = Path(__file__).parents[2]


def run_until_killed(bundle: Path, state: Path, rng: random.Random) -> tuple[list[str], bool]:
    """Run the device and kill it after a random number of receipts; what it had said, and if it ended."""
    command = [sys.executable, "-m", "tests.faults.device", str(bundle), str(state), str(N)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True) as process:
        said = []
        stop_after = rng.randrange(1, 60)
        for line in process.stdout:
            said.append(line.strip())
            if len(said) == stop_after:
                for _ in range(rng.randrange(3000)):  # somewhere between this receipt and the next ones
                    pass
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        said = [line for line in said if line]
    if process.returncode not in (0, -signal.SIGKILL):
        pytest.fail(f"the device ended with {process.returncode}")
    return [s for s in said if s != "done"], "done" in said


def check(tmp_path: Path, n_kills: int) -> None:
    bundle = make_bundle(tmp_path / "b.ecl")
    with Learner.from_bundle(bundle, state_dir=tmp_path / "whole", settings=SETTINGS) as learner:
        learner.run(World(seed=4, shift=1.0).events(N))
        whole = learner.knowledge.digest()
        X = World(seed=8).draw(300)[0][:, None, :]
        expected = learner.predict(X)
    rng = random.Random(0)
    kills = rounds = 0
    while kills < n_kills:
        rounds += 1
        state = tmp_path / f"state-{rounds}"
        receipted: list[str] = []
        ended = False
        while not ended:
            said, ended = run_until_killed(tmp_path / "b.ecl", state, rng)
            receipted += said
            kills += not ended
            if not ended:
                journal = Journal(state / "journal.db")
                held = journal.last_seq
                journal.close()
                assert held >= len(set(receipted)), "a receipted label is gone"
        with Learner.from_bundle(bundle, state_dir=state, settings=SETTINGS) as learner:
            assert learner.knowledge.n_labels == N
            assert learner.knowledge.digest() == whole, "learned state differs from the uninterrupted run"
            np.testing.assert_array_equal(learner.predict(X), expected)
        assert len(receipted) == len(set(receipted)) <= N, "a label was receipted twice"


def test_twelve_kills(tmp_path):
    check(tmp_path, 12)


@pytest.mark.slow
def test_a_hundred_kills(tmp_path):
    check(tmp_path, 100)
