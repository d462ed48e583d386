"""What a board would show, as far as a server can: ``python -m bench.board``.

===========  =============================================================================================
``int8``     ``int8_agreement``, ``int8_accuracy_loss_points``: the worst of both runtimes, of the default
             bundle and (with ``--data``) of one exported from myo_emg, on people the export never saw;
             ``onnx_int8_size_ratio``, ``tflite_int8_size_ratio``
``memory``   ``onnx_resident_mb``, ``litert_resident_mb``: `edge-cl run` in a clean environment with only
             its runtime, 20,000 windows, 4,000 labels; ``litert_1_3_resident_mb``, LiteRT's smallest
``limit``    ``limit_mb``, ``limit_windows``: `edge-cl run` under a memory limit of the kernel, killed when
             it needs more; ``limit_…_peak_mb`` includes the page cache
``day``      ``growth_mb_per_day`` and the other figures of `bench.day`
``doctor``   ``doctor_planted`` misconfigurations, ``doctor_found`` of them; ``doctor_false``: what is
             found on a healthy board
``arm64``    ``arm64_max_abs_diff`` of float32 features and answers to x86, the worst of three runtimes on
             an emulated Cortex-A72; ``arm64_int8_agreement``; ``vnni``: how exact the x86 side is
===========  =============================================================================================

Memory is that of x86-64; nothing here is a board's speed. All of it takes about 20 minutes, half of them the
export of two bundles that ``bench-encoders`` keeps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from bench import encoders, limits, recording, resident
from edge_cl.bundle import Bundle
from tests.arm64 import machine
from tests.arm64.root import Unavailable
from tests.board import planted

DEFAULT_BUNDLE = "edge_cl/assets/wrist.ecl"
BUNDLES = Path("bench-encoders")
"""Where `bench.encoders` keeps what it exported."""
LIMIT_MB = 96
TARGETS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "arm64_max_abs_diff": ("≤ 1e-4", lambda x: x <= 1e-4),
    "int8_agreement": ("≥ 0.99", lambda x: x >= 0.99),
    "int8_accuracy_loss_points": ("≤ 0.5", lambda x: x <= 0.5),
    "onnx_int8_size_ratio": ("≤ 1/3", lambda x: x <= 1 / 3),
    "tflite_int8_size_ratio": ("≤ 1/3", lambda x: x <= 1 / 3),
    "onnx_resident_mb": ("≤ 90", lambda x: x <= 90),
    "litert_resident_mb": ("≤ 64", lambda x: x <= 64),
    "growth_mb_per_day": ("≤ 2", lambda x: x <= 2),
    "wrong_times": ("0", lambda x: x == 0),
    "doctor_found": ("all planted", lambda x: x >= len(planted.PLANTED)),
}


class Run:
    """What all parts share: where, which bundle, how much."""

    def __init__(self, folder: Path, bundle: str, data: Path | None, *, quick: bool) -> None:
        self.folder, self.bundle, self.data, self.quick = folder, bundle, data, quick
        self._pythons: dict[str, Path] = {}

    def python(self, runtime: str, also: str = "") -> Path:
        """The Python of an environment that has edge-cl and this runtime, and nothing else.

        `also`: what else to install, a runtime of another version.
        """
        name = runtime + also
        if name not in self._pythons:
            dist = self.folder / "dist"
            if not dist.exists():
                build = [
                    sys.executable,
                    "-m",
                    "build",
                    "--wheel",
                    "--no-isolation",
                    "--outdir",
                    str(dist),
                    ".",
                ]
                subprocess.run(build, check=True, capture_output=True)
            place = self.folder / f"venv-{len(self._pythons)}"
            venv.create(place, with_pip=True)
            wheel = next(dist.glob("*.whl"))
            wanted = [f"{wheel}[{runtime}]", *filter(None, [also])]
            subprocess.run([place / "bin/pip", "install", "-q", *wanted], check=True)
            self._pythons[name] = place / "bin/python"
        return self._pythons[name]


def int8(run: Run) -> dict[str, Any]:
    """Agreement, loss and size of the int8 variants."""
    return encoders.measure(run.data, BUNDLES)


def memory(run: Run) -> dict[str, Any]:
    """Resident memory with either runtime."""
    n = 3_000 if run.quick else 20_000
    found = {}
    environments = {"onnx": run.python("onnx"), "litert": run.python("litert")}
    if sys.version_info < (3, 13):  # the smallest release; it has no wheels for later ones
        environments["litert_1_3"] = run.python("litert", "ai-edge-litert<1.4")
    for name, python in environments.items():
        state = run.folder / f"state-{name}"
        figures = resident.resident(run.bundle, state, n_windows=n, seed=0, python=python)
        found[f"{name}_resident_mb"] = figures["resident_mb"]
        found[f"{name}_peak_mb"] = figures["resident_peak_mb"]
        found[f"{name}_ledger_awake_mb"] = figures["ledger_awake_mb"]
    return found


def limit(run: Run) -> dict[str, Any]:
    """100,000 windows, one in ten labelled, in no more memory than this, with either runtime."""
    n = 5_000 if run.quick else 100_000
    found: dict[str, Any] = {"limit_mb": LIMIT_MB, "limit_windows": n}
    for runtime in ("onnx", "litert"):
        try:
            with limits.memory_limit(LIMIT_MB * 2**20) as kept:
                found[f"limit_{runtime}_answered"] = _answered(run, runtime, n, kept)
                found[f"limit_{runtime}_peak_mb"] = kept.peak_mb()
        except limits.NoLimits as reason:
            found[f"limit_{runtime}_answered"] = f"not measured: {reason}"
    return found


def _answered(run: Run, runtime: str, n: int, kept: limits.Limit) -> int:
    words = [
        "-m",
        "edge_cl",
        "run",
        str(Path(run.bundle).resolve()),
        "--state",
        str(run.folder / f"limited-{runtime}"),
    ]
    command = kept.wrap([str(run.python(runtime)), *words, "--label-every", "10"])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=_clean(), cwd=run.folder
    ) as device:
        assert device.stdin and device.stdout
        feed = recording.lines(Bundle.load(run.bundle).manifest, n, seed=1)
        threading.Thread(target=resident.feed, args=(device, feed, True), daemon=True).start()
        answered = sum(line.startswith(b'{"type":"decision"') for line in device.stdout)
        return answered if device.wait() == 0 else -answered


def day(run: Run) -> dict[str, Any]:
    """A day of a sensor with its interruptions."""
    hours = "4" if run.quick else "26"
    command = [sys.executable, "-m", "bench.day", run.bundle, str(run.folder / "day"), hours]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    figures: dict[str, Any] = json.loads(done.stdout)
    return {"growth_mb_per_day": figures.pop("growth_mb"), **figures}


def doctor(run: Run) -> dict[str, Any]:
    """Planted misconfigurations that doctor finds."""
    each = {
        fault.name: planted.found(fault, run.folder / f"board-{k}") for k, fault in enumerate(planted.PLANTED)
    }
    healthy = planted.Plot(run.folder / "board-healthy").examine()
    return {
        "doctor_planted": len(each),
        "doctor_found": sum(map(bool, each.values())),
        "doctor_missed": [name for name, found in each.items() if not found],
        "doctor_false": [finding.id for finding in healthy if finding.level in ("warning", "problem")],
    }


def arm64(run: Run) -> dict[str, Any]:
    """Differences between an emulated Arm and this machine."""
    try:
        root = machine.prepare(machine.FOLDER, run.folder / "arm-dist")
    except Unavailable as reason:
        return {"arm64_max_abs_diff": None, "arm64_reason": str(reason)}
    apart = {name: machine.apart(name, root, run.folder) for name in machine.RUNTIMES}
    worst = max(max(each["features"], each["before"]) for each in apart.values())
    agreed = {name: machine.int8_agreement(name, root, run.folder) for name in machine.RUNTIMES}
    return {
        "arm64_max_abs_diff": worst,
        "arm64_by_runtime": apart,
        "arm64_int8_agreement": agreed,
        "vnni": machine.vnni(),
    }


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "int8": int8, "memory": memory, "limit": limit, "day": day, "doctor": doctor, "arm64": arm64,
}  # fmt: skip


def _clean() -> dict[str, str]:
    return {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}


def main() -> None:
    """Measure, show, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="smaller runs, some minutes")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("EDGE_CL_DATA"), help="folder of data sets"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    parser.add_argument("--folder", default=".", help="where states are made for the time being")
    arguments = parser.parse_args()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="bench-") as folder:
        data = Path(arguments.data) if arguments.data else None
        run = Run(Path(folder).resolve(), arguments.bundle, data, quick=arguments.quick)
        for part in arguments.only:
            figures |= PARTS[part](run)
    for name, value in figures.items():
        if isinstance(value, dict):  # in the file only
            continue
        target, met = TARGETS.get(name, ("", lambda _: True))
        missed = target and (value is None or not met(value))
        print(f"{name:28s} {value!s:>12}   {target and 'target ' + target}{'  MISSED' if missed else ''}")
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")


if __name__ == "__main__":
    main()
