"""What a window could also have looked like: another mounting, gain, pace or noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from edge_cl_export.encoders import Triplet

# Twice as much as a first guess; better for new people on muscle and on motion data.
STRETCH, GAIN, NOISE = 0.4, 0.2, 0.04


def augment(X: Tensor, *, vectors: Sequence[Triplet], generator: torch.Generator) -> Tensor:
    """A changed copy of windows (n, w, c).

    Half the windows are turned as a whole by a random rotation (all `vectors` by the same one);
    all play at up to ±40 % of their pace, with a gain of up to ±20 % per channel and noise of 4 % of
    the batch's standard deviation.
    """
    X = stretch(X, 1 + STRETCH * _signed(len(X), generator))
    if vectors:
        X = rotate(X, vectors, generator=generator)
    gain = 1 + GAIN * _signed((len(X), 1, X.shape[2]), generator)
    return X * gain + torch.randn(X.shape, generator=generator) * X.std((0, 1)) * NOISE


def stretch(X: Tensor, factor: Tensor) -> Tensor:
    """Windows (n, w, c) replayed about their centre at `factor` (n,) times the pace; edges repeat."""
    n, w, c = X.shape
    centre = (w - 1) / 2
    at = ((torch.arange(w) - centre) * factor[:, None] + centre).clamp(0, w - 1)
    low = at.floor().long().clamp(max=max(w - 2, 0))
    part = (at - low)[..., None]
    before = X.gather(1, low[..., None].expand(n, w, c))
    after = X.gather(1, (low + 1).clamp(max=w - 1)[..., None].expand(n, w, c))
    return before * (1 - part) + after * part


def rotate(
    X: Tensor, vectors: Sequence[Triplet], *, generator: torch.Generator, share: float = 0.5
) -> Tensor:
    """Turn a random `share` of the windows (n, w, c), each by its own uniform rotation."""
    turn = rotations(len(X), generator)
    keep = torch.rand(len(X), generator=generator) >= share
    turn[keep] = torch.eye(3)
    out = X.clone()
    for vector in vectors:
        out[:, :, list(vector)] = X[:, :, list(vector)] @ turn.transpose(1, 2)
    return out


def rotations(n: int, generator: torch.Generator) -> Tensor:
    """(n, 3, 3) rotations, uniform (unit quaternions; Shoemake, 1992)."""
    q = torch.nn.functional.normalize(torch.randn(n, 4, generator=generator), dim=1)
    w, x, y, z = q.T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], 1)


def _signed(shape: int | tuple[int, ...], generator: torch.Generator) -> Tensor:
    return 2 * torch.rand(shape, generator=generator) - 1
