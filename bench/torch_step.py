"""What `bench.step_cost` and `bench.step_memory` compare with: training in torch, as a user writes it.

Imports nothing of edge-cl but the module that is trained, so that as a process it holds torch's memory only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edge_cl_export.plastic import ConvBlock, Mlp
from torch import nn

BATCH, LR, MOMENTUM, WEIGHT_DECAY, CLIP = 32, 0.05, 0.9, 1e-3, 5.0
"""The exporter's defaults; `bench.step_cost` checks that they are."""
N_STEPS = 300
N_CLASSES = 10


def factory_of(shape: tuple[int, ...]) -> Any:
    """The shipped network for features of this shape."""
    return Mlp if len(shape) == 1 else ConvBlock


def in_torch(shape: tuple[int, ...]) -> Callable[[tuple[np.ndarray, np.ndarray]], object]:
    """A step on a batch (32, D), (32,): forward, backward, clipped, fused SGD; on one thread."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    module: nn.Module = factory_of(shape)(shape, N_CLASSES).train()
    parameters = list(module.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": WEIGHT_DECAY},
        {"params": [p for p in parameters if p.ndim < 2]},
    ]
    optimiser = torch.optim.SGD(groups, lr=LR, momentum=MOMENTUM, fused=True)

    def step(batch: tuple[np.ndarray, np.ndarray]) -> float:
        X, y = (torch.from_numpy(array) for array in batch)
        loss = nn.functional.cross_entropy(module(X.view(-1, *shape)), y)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimiser.step()
        return loss.item()

    return step


def main() -> None:
    """``python -m bench.torch_step FOLDER SHAPE``: train, then print /proc/self/status."""
    data = np.load(Path(sys.argv[1]) / "exemplars.npz")
    X, y = data["X"], data["y"]
    step = in_torch(tuple(int(n) for n in sys.argv[2].split(",")))
    rng = np.random.default_rng(0)
    for _ in range(N_STEPS):
        rows = rng.integers(len(y), size=BATCH)
        step((X[rows], y[rows]))
    print(Path("/proc/self/status").read_text())


if __name__ == "__main__":
    main()
