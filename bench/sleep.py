"""What sleep is worth, and what it costs. ``python -m bench.sleep --data DATA``

DATA is a folder with fashion_mnist.npz, myo_emg.npz and the development streams. Everything takes about half
an hour; ``--only`` names parts. Needs the export extra (torch); without --myo-bundle the encoder of the
muscles is trained first and kept in the cache folder.

=========== ===========================================================================================
classes     classes that arrive in turn: sleep with a sixteenth of the bytes against joint training
codecs      product quantisation against float32 memories, equal exemplars and equal bytes
step        one optimisation step in onnxruntime against torch, processor time (bench.step_cost)
resident    a process that sleeps against a torch process that trains the same (bench.step_memory)
gate        sleeps in trouble: how often an adopted head is more than a point worse (bench.gate)
stability   accuracy lost from before an adoption to the worst of the next 50 labels (bench.gate_streams)
=========== ===========================================================================================
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench import gate, gate_streams, incremental, step_cost, step_memory
from bench.pipeline import versions
from edge_cl.datasets.streams import find_streams
from edge_cl.simulate.bundles import bundle_file_for

TARGETS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "joint_ratio": ("≥ 0.985", lambda x: x >= 0.985),
    "pq_loss_points": ("≤ 1", lambda x: x <= 1),
    "pq_gain_at_equal_bytes_points": ("≥ 3", lambda x: x >= 3),
    "step_speedup_over_torch": ("≥ 2", lambda x: x >= 2),
    "resident_ratio_to_torch": ("≥ 3", lambda x: x >= 3),
    "gate_harm_rate": ("≤ 0.01", lambda x: x <= 0.01),
    "stability_gap_points": ("≤ 1", lambda x: x <= 1),
}
PARTS = ("classes", "codecs", "step", "resident", "gate", "stability")


def worlds(data: Path, myo_bundle: Path | None) -> list[incremental.World]:
    """The two worlds of `bench.incremental`."""
    encoder = myo_bundle or bundle_file_for(data / "myo_emg.npz", "new-person")
    return [incremental.fashion(data), incremental.myo(data, encoder)]


def classes(world: incremental.World, n_seeds: int) -> dict[str, Any]:
    """Medians over seeds of what `incremental.compare` gives, and of the ratio of sleep to joint training."""
    rows = [incremental.compare(world, seed) for seed in range(n_seeds)]
    for seed, row in enumerate(rows):
        row["ratio"] = row["sleep"] / row["joint"]
        print(
            f"{world.name:14} seed {seed}: joint {row['joint']:.4f} sleep {row['sleep']:.4f} "
            f"({row['ratio']:.4f}), no sleep {row['no_sleep']:.4f}, fine-tuning {row['fine_tuning']:.4f}, "
            f"{row['n_exemplars']:,} exemplars in 1/{row['raw_bytes'] / row['memory_bytes']:.1f} of "
            f"{row['raw_bytes']:,} bytes, {row['n_adopted']} of {len(row['after_each_task'])} adopted",
            flush=True,
        )
    names = ("joint", "sleep", "ratio", "no_sleep", "fine_tuning", "memory_bytes", "n_exemplars", "raw_bytes")
    return {name: float(np.median([row[name] for row in rows])) for name in names} | {"seeds": rows}


def codecs(world: incremental.World, n_seeds: int) -> dict[str, Any]:
    """Medians over seeds of points lost at equal exemplars and gained at equal bytes."""
    rows = [incremental.codecs(world, seed) for seed in range(n_seeds)]
    for seed, row in enumerate(rows):
        print(f"{world.name:14} seed {seed}: {row}", flush=True)
    lost = [100 * (row["equal_exemplars"]["float32"] - row["equal_exemplars"]["pq"]) for row in rows]
    gained = [100 * (row["equal_bytes"]["pq"] - row["equal_bytes"]["float32"]) for row in rows]
    rebuilt = [
        100 * (row[kind]["pq_answering_rebuilt"] - row[kind]["pq"])
        for row in rows
        for kind in ("equal_exemplars", "equal_bytes")
    ]
    return {
        "lost_points": float(np.median(lost)),
        "gained_points": float(np.median(gained)),
        "answering_rebuilt_points": float(np.median(rebuilt)),
        "seeds": rows,
    }


def measure(
    data: Path, myo_bundle: Path | None, *, n_seeds: int, n_sleeps: int, parts: tuple[str, ...]
) -> dict[str, Any]:
    """The parts asked for, and the figures that they give."""
    found: dict[str, Any] = {"n_seeds": n_seeds}
    if {"classes", "codecs"} & set(parts):
        both = worlds(data, myo_bundle)
    if "classes" in parts:
        found["classes"] = {world.name: classes(world, n_seeds) for world in both}
        found["joint_ratio"] = min(row["ratio"] for row in found["classes"].values())
    if "codecs" in parts:
        found["codecs"] = {world.name: codecs(world, n_seeds) for world in both}
        found["pq_loss_points"] = max(row["lost_points"] for row in found["codecs"].values())
        found["pq_gain_at_equal_bytes_points"] = min(row["gained_points"] for row in found["codecs"].values())
    if "step" in parts:
        found |= step_cost.measure(n_blocks=40)
    if "resident" in parts:
        found |= step_memory.measure()
    if "gate" in parts:
        runs = {name: gate.simulate(n_sleeps, seed=1, modes=name == "modes") for name in ("gauss", "modes")}
        found["gate"] = runs
        found["gate_harm_rate"] = max(run["gate_harm_rate"] for run in runs.values())
    if "stability" in parts:
        streams = find_streams(data, only=list(gate_streams.DEVELOPMENT))
        found["stability"] = gate_streams.measure(streams)
        found["stability_gap_points"] = found["stability"]["stability_gap_points"]
    return found


def show(figures: dict[str, Any]) -> None:
    """The table."""
    for name, (target, met) in TARGETS.items():
        if name in figures:
            verdict = "" if met(figures[name]) else "  MISSED"
            print(f"{name:32s} {figures[name]:>10.4g}   target {target}{verdict}")


def main() -> None:
    """Measure, show, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--myo-bundle", type=Path, help="from edge-cl export --scenario new-person")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sleeps", type=int, default=1200, help="of the gate, per kind of world")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {','.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    parts = tuple(asked.only.split(","))
    figures = measure(
        asked.data, asked.myo_bundle, n_seeds=asked.seeds, n_sleeps=asked.sleeps, parts=parts
    ) | {"versions": versions()}
    show(figures)
    if asked.json:
        asked.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")


if __name__ == "__main__":
    main()
