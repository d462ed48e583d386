"""ENOSPC, EIO and short writes at each call that changes a file: labels, snapshots, a sleep, a start.

The failures come from a library of ours that is loaded before libc (failing_disk.c, compiled here), so that
every call is met exactly once, hundreds of trials run in one process, and what a failed fsync was to keep is
lost in the power cut that ends each trial, as on Linux. Each trial: predictions and receipts go on, the
device heals by itself when the disk does, and after the power cut it knows what was receipted, no more, no
less.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import msgspec

from bench.injected_device import Trial
from bench.loop_disk import in_memory

SOURCE = Path(__file__).with_name("failing_disk.c")


def why_not() -> str:
    """Why there is no failing disk here, "" when there can be one."""
    return "" if shutil.which("cc") and sys.platform == "linux" else "no C compiler (cc) on Linux"


def build(folder: Path) -> Path:
    """Compile the library."""
    library = folder / "failing_disk.so"
    command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, capture_output=True)
    return library


def measure(*, every: int = 1, patience_s: float = 600.0) -> tuple[Counter[str], list[Trial]]:
    """Fail each `every`-th call in each way; counts by outcome and ``faults``, and the trials that failed."""
    with tempfile.TemporaryDirectory(dir=in_memory()) as place:
        library = build(Path(place))
        folder = Path(place) / "disk"
        folder.mkdir()
        ended = subprocess.run(
            [sys.executable, "-m", "bench.injected_device", str(library), str(folder), str(every)],
            env={**os.environ, "LD_PRELOAD": str(library), "FAILING_DISK": f"{folder}/state"},
            stdout=subprocess.PIPE,
            timeout=patience_s,
            check=True,
        )
    trials = [msgspec.json.decode(line, type=Trial) for line in ended.stdout.splitlines()]
    found = Counter(trial.outcome for trial in trials)
    found["faults"] = len(trials)
    return found, [trial for trial in trials if trial.outcome != "ok"]
