"""An interpreter with tflite-runtime, which needs Python 3.11 and numpy 1: not that of the tests."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ["tflite-runtime==2.14.0", "numpy<2", "msgspec", "click", "paho-mqtt", "threadpoolctl"]


@pytest.fixture(scope="session")
def tflite_python() -> str:
    """The interpreter of ``.venv-tflite``, which is made the first time."""
    folder = ROOT / ".venv-tflite"
    python = folder / "bin" / "python"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:  # several processes may run the tests
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "ready").exists():
            _make(folder)
    return str(python)


def _make(folder: Path) -> None:
    base = sys.executable if sys.version_info[:2] == (3, 11) else shutil.which("python3.11")
    if base is None:
        pytest.skip("tflite-runtime needs Python 3.11, and there is no python3.11 here")
    steps = [
        [base, "-m", "venv", str(folder)],
        [str(folder / "bin" / "python"), "-m", "pip", "install", "-q", *PACKAGES],
    ]
    for step in steps:
        done = subprocess.run(step, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{folder.name} cannot be made: {done.stderr.strip().splitlines()[-1:]}")
    (folder / "ready").touch()
