"""An interpreter with tflite-runtime: Python 3.11, numpy 1. ``python -m tests.tflite`` makes it."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / ".venv-tflite"
PYTHON = FOLDER / "bin" / "python"
PACKAGES = ["tflite-runtime==2.14.0", "numpy<2", "msgspec", "click", "paho-mqtt", "threadpoolctl"]


def made() -> str:
    """Make it unless it is there; why it cannot be made, "" when it can be used."""
    FOLDER.mkdir(exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:  # several processes may run the tests
        fcntl.flock(lock, fcntl.LOCK_EX)
        return "" if (FOLDER / "ready").exists() else _make()


def _make() -> str:
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if base is None:
        return "tflite-runtime needs Python 3.11, and there is no python3.11 here"
    steps = [[base, "-m", "venv", str(FOLDER)], [str(PYTHON), "-m", "pip", "install", "-q", *PACKAGES]]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            return f"{FOLDER.name} cannot be made: {' '.join(done.stderr.strip().splitlines()[-1:])}"
    (FOLDER / "ready").touch()
    return ""


if __name__ == "__main__":
    if missing := made():
        sys.stderr.write(f"{missing}: its tests will skip\n")
