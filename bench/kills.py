"""``kill -9`` at random moments, awake, asleep, starting: what is left is what was receipted, bit for bit.

A copy of the folder is judged; the next device goes on with the folder as the kill left it.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from bench.lives import Forgetting, Life
from bench.loop_disk import in_memory
from bench.subject import BAD, Subject, judge

MOST_WAIT_S = 0.01
"""After the last of a random number of receipts."""
STARTING = 0.1
"""Share of kills that do not wait for a receipt."""
MOST_START_S = 0.03


def measure(life: Life | Forgetting, n_kills: int, *, seed: int = 0) -> Counter[str]:
    """Kill `n_kills` devices; what `judge` found."""
    rng = np.random.default_rng(seed)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=in_memory()) as place:
        state, judged = Path(place) / "state", Path(place) / "judged"
        life.begin(state)
        n_receipted = 0
        while found["kills"] < n_kills:
            with Subject(life, state, n_receipted) as device:
                if rng.random() < STARTING:
                    time.sleep(rng.uniform(0, MOST_START_S))
                else:
                    device.wait(int(rng.integers(1, life.n_between + 1)))
                    time.sleep(rng.uniform(0, MOST_WAIT_S))
                found["kills"] += device.kill()
            n_receipted = device.n_receipted
            if state.exists():
                shutil.copytree(state, judged)
            verdict = judge(life, judged, n_receipted)
            found += verdict
            shutil.rmtree(judged)
            if device.ended_well or any(verdict[name] for name in BAD):
                shutil.rmtree(state)
                life.begin(state)
                n_receipted = 0
    return found
