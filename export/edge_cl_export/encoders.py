"""The built-in encoder: a small depthwise-separable 1-D CNN for sensor windows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from edge_cl.manifest import Channel

Triplet = tuple[int, int, int]


def triplets(channels: Sequence[Channel]) -> tuple[Triplet, ...]:
    """Index triples of channels named ``…_x, …_y, …_z``: vectors that turn with their sensor."""
    index = {channel.name: k for k, channel in enumerate(channels)}
    stems = [name[:-2] for name in index if name.endswith("_x")]
    whole = [stem for stem in stems if {f"{stem}_y", f"{stem}_z"} <= set(index)]
    return tuple((index[f"{s}_x"], index[f"{s}_y"], index[f"{s}_z"]) for s in whole)


class Invariants(nn.Module):
    """Adds, to raw channels, what does not change when the sensor is mounted another way round.

    For every vector: its length, and its parts along and across the window's mean of the first
    vector (an accelerometer's gravity). Without vectors it passes the input on.
    """

    def __init__(self, vectors: Sequence[Triplet]) -> None:
        super().__init__()
        self.vectors = tuple(vectors)

    def n_out(self, n_channels: int) -> int:
        """Channels after the added ones."""
        return n_channels + 3 * len(self.vectors)

    def forward(self, window: Tensor) -> Tensor:
        """(n, w, c) to (n, w, c + 3 · vectors), physical units."""
        if not self.vectors:
            return window
        down = window[:, :, list(self.vectors[0])].mean(1, keepdim=True)
        down = down / (_length(down) + 1e-3)
        parts = [window]
        for vector in self.vectors:
            v = window[:, :, list(vector)]
            along = (v * down).sum(-1, keepdim=True)
            parts += [_length(v), along, _length(v - along * down)]
        return torch.cat(parts, -1)


class SensorEncoder(nn.Module):
    """(n, window_samples, n_channels) float32 in physical units to (n, feature_size).

    Per-channel mean and std are part of the module, so the device passes raw samples. Half of the
    feature comes from the first layer: late layers keep only what told the source's classes apart,
    and a head that must learn another sensor, person or class needs what they threw away.
    """

    def __init__(
        self, n_channels: int, *, feature_size: int = 128, width: int = 64, vectors: Sequence[Triplet] = ()
    ) -> None:
        super().__init__()
        if feature_size < 4 or feature_size % 4:
            raise ValueError(f"feature_size is {feature_size}; use a multiple of 4")
        n_tap = feature_size // 4
        self.invariants = Invariants(vectors)
        n_in = self.invariants.n_out(n_channels)
        self.register_buffer("mean", torch.zeros(n_in))
        self.register_buffer("std", torch.ones(n_in))
        self.stem = nn.Sequential(
            nn.Conv1d(n_in, n_tap, 5, padding=2, bias=False), nn.BatchNorm1d(n_tap), nn.ReLU()
        )
        self.blocks = nn.Sequential(
            SeparableBlock(n_tap, width, stride=1),
            SeparableBlock(width, width, stride=2),
            SeparableBlock(width, width, stride=1),
            SeparableBlock(width, n_tap, stride=2),
        )
        self.norm = nn.BatchNorm1d(feature_size, affine=False)
        self.dropout = nn.Dropout(0.5)

    def fit_normalisation(self, X: Tensor) -> None:
        """Take mean and std from training windows (n, w, c).

        A vector's three axes share one scale and keep their zero: axis by axis, a sensor that was
        always mounted alike would have gravity divided by next to nothing once it is turned.
        """
        with torch.no_grad():
            flat = self.invariants(X).flatten(0, 1)
            self.mean, std = flat.mean(0), flat.std(0)
            for vector in map(list, self.invariants.vectors):
                self.mean[vector] = 0.0
                std[vector] = flat[:, vector].square().mean().sqrt()
            self.std = std.clamp_min(1e-6)

    def forward(self, window: Tensor) -> Tensor:
        """Features (n, feature_size)."""
        x = (self.invariants(window) - self.mean) / self.std
        early = self.stem(x.transpose(1, 2))
        late = self.blocks(early)
        pooled = torch.cat([early.mean(-1), early.amax(-1), late.mean(-1), late.amax(-1)], -1)
        return cast(Tensor, self.dropout(self.norm(pooled)))


class SeparableBlock(nn.Module):
    """Depthwise then pointwise convolution, with a shortcut where shapes allow."""

    def __init__(self, n_in: int, n_out: int, *, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv1d(n_in, n_in, 5, stride=stride, padding=2, groups=n_in, bias=False),
            nn.Conv1d(n_in, n_out, 1, bias=False),
            nn.BatchNorm1d(n_out),
        )
        self.shortcut = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, w) to (n, n_out, w / stride)."""
        path = self.path(x)
        return torch.relu(x + path if self.shortcut else path)


def _length(v: Tensor) -> Tensor:
    # The root of exactly 0 has an infinite slope.
    return torch.sqrt((v * v).sum(-1, keepdim=True) + 1e-8)
