"""One optimisation step: onnxruntime beside torch. ``python -m bench.step_cost [--json FILE]``.

============================  ======================================================================
``step_us``, ``torch_us``     median microseconds of processor time of a step on 32 exemplars, 10 classes,
                              on one thread; what else the machine does hardly counts in it
``ratio``, ``quartiles``      torch / onnxruntime: median and quartiles over pairs of blocks that take turns
``step_speedup_over_torch``   the smaller ratio of the MLP 128-64-10 and the convolution on (8, 20)
``resident_ratio_to_torch``   see `bench.step_memory`
============================  ======================================================================

Ours is `Trainer.step`, with its checks, as a sleep calls it. Torch's is what a user would write: module in
training mode, cross entropy of class indices, `backward`, `clip_grad_norm_`, `torch.optim.SGD` (fused), with
gradients set to None; for either the batch is given as arrays.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench import pipeline, step_memory
from edge_cl.heads.program import StepProgram

N_CLASSES = 10
N_BATCHES = 8
SHAPES: dict[str, tuple[int, ...]] = {"mlp-128": (128,), "conv-8x20": (8, 20), "conv-16x7x7": (16, 7, 7)}
COUNTED = ("mlp-128", "conv-8x20")
TARGETS: dict[str, tuple[str, Callable[[float], bool]]] = {
    "step_speedup_over_torch": ("≥ 2", lambda x: x >= 2),
    "resident_ratio_to_torch": ("≥ 3", lambda x: x >= 3),
}

Batch = tuple[np.ndarray, np.ndarray]


def measure(*, n_blocks: int, n_steps: int = 40, seed: int = 0) -> dict[str, Any]:
    """Every shape's figures from `n_blocks` pairs of blocks of `n_steps` steps."""
    by_shape = {name: _compare(shape, n_blocks, n_steps, seed) for name, shape in SHAPES.items()}
    return {
        "seed": seed,
        "steps": by_shape,
        "step_speedup_over_torch": min(by_shape[name]["ratio"] for name in COUNTED),
    }


def _compare(shape: tuple[int, ...], n_blocks: int, n_steps: int, seed: int) -> dict[str, Any]:
    from edge_cl_export.optimisers import StepSettings
    from edge_cl_export.step_graph import compile_program

    from bench import torch_step

    settings = StepSettings()
    theirs = torch_step.BATCH, torch_step.LR, torch_step.MOMENTUM, torch_step.WEIGHT_DECAY, torch_step.CLIP
    if theirs != (
        settings.batch,
        settings.highest_lr,
        settings.momentum,
        settings.weight_decay,
        settings.clip,
    ):
        raise RuntimeError(f"bench.torch_step trains with {theirs}, the exporter with {settings}")
    program = compile_program(torch_step.factory_of(shape), shape, N_CLASSES, settings, seed=seed)
    rng = np.random.default_rng(seed)
    batches = [
        (
            rng.normal(size=(settings.batch, program.n_features)).astype(np.float32),
            rng.integers(N_CLASSES, size=settings.batch),
        )
        for _ in range(N_BATCHES)
    ]
    return compared(in_onnxruntime(program), torch_step.in_torch(shape), batches, n_blocks, n_steps)


def compared(
    ours: Callable[[Batch], object],
    other: Callable[[Batch], object],
    batches: list[Batch],
    n_blocks: int,
    n_steps: int,
) -> dict[str, Any]:
    """Median microseconds of two steps, and the ratio of the second to the first."""
    took_us: list[tuple[float, float]] = []
    for k in range(n_blocks + 1):
        pair = {step: _block_us(step, batches, n_steps) for step in ((ours, other), (other, ours))[k % 2]}
        if k:  # the first pair only warms up
            took_us.append((pair[ours], pair[other]))
    ratios = [theirs / mine for mine, theirs in took_us]
    low, _, high = statistics.quantiles(ratios, n=4)
    mine_us, theirs_us = (statistics.median(column) for column in zip(*took_us, strict=True))
    return {
        "step_us": round(mine_us, 1),
        "torch_us": round(theirs_us, 1),
        "ratio": round(statistics.median(ratios), 2),
        "quartiles": [round(low, 2), round(high, 2)],
    }


def _block_us(step: Callable[[Batch], object], batches: list[Batch], n_steps: int) -> float:
    began = time.process_time()
    for k in range(n_steps):
        step(batches[k % len(batches)])
    return (time.process_time() - began) / n_steps * 1e6


def in_onnxruntime(program: StepProgram) -> Callable[[Batch], object]:
    """A step as a sleep takes it."""
    trainer = program.trainer(program.start(N_CLASSES))
    lr = program.spec.lr
    return lambda batch: trainer.step(batch[0], batch[1], lr=lr)


def show(figures: dict[str, Any]) -> None:
    """The table."""
    for name, row in figures["steps"].items():
        low, high = row["quartiles"]
        print(
            f"{name:14s} {row['step_us']:8.0f} µs   torch {row['torch_us']:8.0f} µs   "
            f"ratio {row['ratio']:.2f} ({low:.2f} to {high:.2f})"
        )
    for name, row in figures.get("resident", {}).items():
        ours, theirs = row["ours_mb"]["VmHWM"], row["torch_mb"]["VmHWM"]
        print(f"{name:14s} {ours:8.1f} MB   torch {theirs:8.1f} MB   ratio {row['ratio']:.2f}")
    for name, (target, met) in TARGETS.items():
        if name in figures:
            print(
                f"{name:30s} {figures[name]:>10}   target {target}{'' if met(figures[name]) else '  MISSED'}"
            )


def main() -> None:
    """Measure, show, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer blocks")
    parser.add_argument("--steps-only", action="store_true", help="leave out the memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    figures = measure(n_blocks=20 if arguments.quick else 80, seed=arguments.seed)
    if not arguments.steps_only:
        figures |= step_memory.measure(seed=arguments.seed)
    figures["versions"] = pipeline.versions()
    show(figures)
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")


if __name__ == "__main__":
    main()
