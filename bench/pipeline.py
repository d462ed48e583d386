"""The device end to end: speed, start, memory. ``python -m bench.pipeline [--quick] [--json FILE]``.

=============================  =====================================================================
``windows_per_s_unlabelled``   a recording (JSON lines, one block of samples a hop) → windows →
                               encoder → head → JSON of every answer to /dev/null, on one core
``windows_per_s_labelled``     the same, every window labelled, journalled with fsync, receipted;
                               sleep as by default
``start_to_first_prediction``  from starting `edge-cl run` to its first line, median of 5
``resident_*``, ``ledger_*``   `edge-cl run` on standard input, one window in five labelled
=============================  =====================================================================

How each is measured stands in the docstrings of `bench.throughput` and `bench.resident`. State folders are
made in --folder, which should be on the disk that a device would use, not in memory.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import tempfile
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from bench import resident, throughput

DEFAULT_BUNDLE = "edge_cl/assets/wrist.ecl"
TARGETS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "windows_per_s_unlabelled": ("≥ 1,500", lambda x: x >= 1500),
    "windows_per_s_labelled": ("≥ 500", lambda x: x >= 500),
    "start_to_first_prediction_s": ("≤ 1.5", lambda x: x <= 1.5),
    "resident_mb": ("≤ 90", lambda x: x <= 90),
    "resident_growth_last_half_mb": ("≤ 1", lambda x: x <= 1),
    "ledger_to_growth_ratio": ("0.9 to 1.1", lambda x: 0.9 <= x <= 1.1),
}


def measure(
    bundle: str, folder: Path, *, n_speed: int, n_resident: int, n_starts: int = 5, seed: int = 0
) -> dict[str, Any]:
    """All figures, speeds from `n_speed` windows (a third when every window is labelled)."""
    figures: dict[str, Any] = {"seed": seed, "windows": {"speed": n_speed, "resident": n_resident}}
    for name, labelled, n in (("unlabelled", False, n_speed), ("labelled", True, n_speed // 3)):
        whole, split = (_speed(bundle, folder, n, labelled, seed, split) for split in (False, True))
        figures[f"windows_per_s_{name}"] = whole["windows_per_s"]
        figures[f"us_per_window_{name}"] = split["us_per_window"]
        figures[f"sleeps_{name}"] = whole["sleeps"]
    figures["start_to_first_prediction_s"] = resident.start_to_first_prediction_s(bundle, folder, n=n_starts)
    figures |= resident.resident(bundle, folder / "resident", n_windows=n_resident, seed=seed)
    return figures | resident.ledger_to_growth(bundle, folder, n_windows=n_resident // 2, seed=seed)


def _speed(
    bundle: str, folder: Path, n_windows: int, labelled: bool, seed: int, split: bool
) -> dict[str, Any]:
    """Throughput in a new process on one core, its numeric libraries on one thread."""
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    cpu = max(os.sched_getaffinity(0))
    options = {"n_windows": n_windows, "labelled": labelled, "seed": seed, "split": split}
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(throughput.pinned, (cpu, bundle, str(folder)), options)


def versions() -> dict[str, str]:
    """What the figures were measured with."""
    packages = {name: metadata.version(name) for name in ("edge-cl", "numpy", "msgspec", "onnxruntime")}
    return packages | {"python": platform.python_version(), "machine": platform.machine()}


def show(figures: dict[str, Any]) -> None:
    """The table."""
    for name, (target, met) in TARGETS.items():
        value = figures[name]
        verdict = "" if value is not None and met(value) else "  MISSED"
        print(f"{name:30s} {value!s:>10}   target {target}{verdict}")
    for name in ("resident_peak_mb", "ledger_mb", "ledger_awake_mb", "labels", "sleeps"):
        print(f"{name:30s} {figures[name]!s:>10}")
    for name in ("unlabelled", "labelled"):
        stages = sorted(figures[f"us_per_window_{name}"].items(), key=lambda item: -item[1])
        print(f"µs per window, {name}: " + ", ".join(f"{stage} {us:g}" for stage, us in stages))


def main() -> None:
    """Measure, show, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smaller run, about a minute")
    parser.add_argument("--bundle", default=DEFAULT_BUNDLE)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    parser.add_argument("--folder", default=".", help="where state folders are made for the time being")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    n_speed, n_resident = (6_000, 4_000) if arguments.quick else (30_000, 20_000)
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="bench-") as folder:
        figures = measure(
            arguments.bundle, Path(folder), n_speed=n_speed, n_resident=n_resident, seed=arguments.seed
        )
    figures |= {"versions": versions(), "cpu_count": os.cpu_count(), "quick": arguments.quick}
    show(figures)
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")


if __name__ == "__main__":
    main()
