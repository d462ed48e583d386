"""Power cuts at random moments: the disk's image is copied under a device that learns, and started from.

The writer is stopped, so what it has not synced is not on the copy: what a power cut loses. A disk that lies
about what it has synced is not simulated. Moments inside an fsync are not hit, those between any two system
calls are, in labels, snapshots, sleeps and, since every device goes on where the last cut left its disk, in
recoveries.
"""

from __future__ import annotations

import shutil
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from bench.lives import Forgetting, Life
from bench.loop_disk import LoopDisk, in_memory, make_image
from bench.subject import BAD, Subject, judge

CUTS_PER_DEVICE = 4
MOST_WAIT_S = 0.01
"""After the last of a random number of receipts."""
STATE = "state"


def measure(life: Life | Forgetting, n_cuts: int, *, seed: int = 0, image_mib: int = 16) -> Counter[str]:
    """Cut `n_cuts` times; what `judge` found, and how many cuts met a snapshot being written."""
    rng = np.random.default_rng(seed)
    found: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=in_memory()) as place:
        blank = make_image(Path(place) / "blank", image_mib)
        with LoopDisk(blank) as disk:
            life.begin(disk.folder / STATE)
        image = Path(place) / "image"
        n_receipted: int | None = None
        while found["power_cuts"] < n_cuts:
            if n_receipted is None:
                shutil.copyfile(blank, image)
            with (
                LoopDisk(image) as disk,
                Subject(life, disk.folder / STATE, n_receipted or 0) as device,
            ):
                n_left = min(n_cuts - found["power_cuts"], CUTS_PER_DEVICE)
                n_receipted = _cut(life, disk, device, n_left, rng, found)
            disk.image.with_suffix(".cut").replace(image)
    return found


def _cut(
    life: Life | Forgetting,
    disk: LoopDisk,
    device: Subject,
    n_cuts: int,
    rng: np.random.Generator,
    found: Counter[str],
) -> int | None:
    """Cut the power of one device some times; how many labels it had receipted at the last cut.

    None when nobody can go on from there: it has lived to its end, or something was lost.
    """
    cut, judged = disk.image.with_suffix(".cut"), disk.image.with_suffix(".judged")
    n_receipted = device.n_receipted
    for _ in range(n_cuts):
        device.wait(int(rng.integers(life.n_between)))
        time.sleep(rng.uniform(0, MOST_WAIT_S))
        device.drain()
        n_receipted = device.n_receipted
        device.signal(signal.SIGSTOP)
        disk.copy_as_it_is(cut)
        device.signal(signal.SIGCONT)
        shutil.copyfile(cut, judged)
        with LoopDisk(judged) as left:
            state = left.folder / STATE
            found["snapshots_met"] += any(state.glob("*.part"))
            verdict = judge(life, state, n_receipted)
        found += verdict
        found["power_cuts"] += 1
        if device.ended or any(verdict[name] for name in BAD):
            return None
    return n_receipted
