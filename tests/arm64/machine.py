"""The built wheel in an emulated root, and the same answers computed here and there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.bundle import Bundle
from edge_cl.simulate.wrist import source_windows
from tests.arm64.root import ArmRoot, build, install
from tests.devices import ENVIRONMENT

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / ".venv-arm64"
BUNDLE = REPOSITORY / "edge_cl/assets/wrist.ecl"
RUNTIMES = ["onnx", "litert", "tflite"]
N_WINDOWS = 100
SLOW_S = 240.0
"""An emulator on a busy machine."""

Answers = dict[str, NDArray[np.float64]]
"""What `answers.py` prints: features, probabilities before and after some labels."""


def prepare(folder: Path, dist: Path) -> ArmRoot:
    """A root with the wheel, built in the empty folder `dist`, and every runtime. Raises `Unavailable`."""
    root = build(folder)
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(dist)]
    subprocess.run([*command, str(REPOSITORY)], check=True, capture_output=True, timeout=120)
    wheel = next(dist.glob("*.whl"))
    for runtime in RUNTIMES:
        install(root, runtime, [f"{wheel}[{runtime}]"])
    shutil.rmtree(root.folder / "opt" / "edge-cl", ignore_errors=True)
    install(root, "edge-cl", ["--no-deps", str(wheel)])  # the others may be of an earlier run
    shutil.copy(BUNDLE, root.folder / "root" / "wrist.ecl")
    shutil.copy(Path(__file__).with_name("answers.py"), root.folder / "root")
    np.save(root.folder / "root" / "windows.npy", windows())
    return root


def windows() -> NDArray[np.float32]:
    """Windows that the simulator draws, of people the bundle never saw."""
    X, *_ = source_windows(seed=77)
    return X[:: len(X) // N_WINDOWS][:N_WINDOWS]


def here(runtime: str, precision: str, folder: Path) -> Answers:
    """`answers.py` on this machine; both runtimes of .tflite files compute the same."""
    np.save(folder / "windows.npy", windows())
    script = str(Path(__file__).with_name("answers.py"))
    runtime = "litert" if runtime == "tflite" else runtime
    command = [sys.executable, script, str(BUNDLE), str(folder / "windows.npy"), runtime, precision]
    done = subprocess.run(command, capture_output=True, env=ENVIRONMENT, timeout=SLOW_S, check=True)
    return _arrays(done.stdout)


def there(root: ArmRoot, runtime: str, precision: str) -> Answers:
    """`answers.py` on the emulated Arm."""
    words = ["python3", "-X", "faulthandler", "/root/answers.py", "/root/wrist.ecl", "/root/windows.npy"]
    done = root.run([*words, runtime, precision], env=python_path(runtime), timeout_s=SLOW_S)
    return _arrays(done.stdout)


def apart(runtime: str, root: ArmRoot, folder: Path) -> dict[str, float]:
    """Largest differences of float32 answers between there and here."""
    arm, x86 = there(root, runtime, "float32"), here(runtime, "float32", folder)
    return {name: float(np.abs(arm[name] - x86[name]).max()) for name in arm}


def int8_agreement(runtime: str, root: ArmRoot, folder: Path) -> float:
    """Share of windows with the same best class there and here, both in int8."""
    arm, x86 = there(root, runtime, "int8"), here(runtime, "int8", folder)
    return float(np.mean(arm["before"].argmax(1) == x86["before"].argmax(1)))


def edge_cl(root: ArmRoot, runtime: str, *arguments: str, check: bool = True) -> Any:
    """A command of the installed wheel that prints JSON; what it printed."""
    words = ["python3", "-m", "edge_cl", *arguments]
    done = root.run(words, env=python_path(runtime), timeout_s=SLOW_S, check=check)
    return json.loads(done.stdout)


def python_path(runtime: str) -> dict[str, str]:
    """Where the root has the wheel and a runtime."""
    return {"PYTHONPATH": f"/opt/edge-cl:/opt/{runtime}"}


def vnni() -> bool:
    """Whether this processor multiplies int8 without saturating."""
    return "vnni" in Path("/proc/cpuinfo").read_text()


def has(runtime: str, precision: str) -> bool:
    """Whether the bundle has a form of its encoder for this runtime."""
    form = "onnx" if runtime == "onnx" else "tflite"
    variants = Bundle.load(BUNDLE).manifest.variants
    return (form, precision) == ("onnx", "float32") or any(
        (variant.format, variant.precision) == (form, precision) for variant in variants
    )


def _arrays(printed: bytes) -> Answers:
    return {name: np.array(rows) for name, rows in json.loads(printed).items()}
