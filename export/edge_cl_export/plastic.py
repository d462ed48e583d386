"""Plastic heads: what a device goes on training. Any factory like these will do.

A factory is called ``Factory(feature_shape, n_classes)`` and returns a module that takes features
(n, *feature_shape) and gives logits (n, n_classes). Its last layer is a linear one with a row per class.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

WIDTH, CHANNELS = 64, 32
TINY = 1e-12


class CosineLinear(nn.Module):
    """Logits scale · cos(x, w_c): the class layer of the losses ``cosine`` and ``pcr``.

    Takes (n, n_in), gives (n, n_classes) in [-scale, scale]. Source: Hou et al., Learning a unified
    classifier incrementally via rebalancing (2019).
    """

    def __init__(self, n_in: int, n_classes: int, *, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.weight = nn.Parameter(torch.empty(n_classes, n_in).uniform_(-1, 1) * n_in**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """(n, n_in) → (n, n_classes)."""
        return self.scale * (unit(x) @ unit(self.weight).T)


def unit(x: Tensor) -> Tensor:
    """Rows of x at length 1; 0 stays 0, with a finite slope."""
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + TINY)


class Mlp(nn.Module):
    """Linear, LayerNorm, GELU, linear: D–64–C."""

    def __init__(self, feature_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        self.hidden = nn.Linear(math.prod(feature_shape), WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.out = nn.Linear(WIDTH, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, *feature_shape) → (n, n_classes)."""
        return cast(Tensor, self.out(nn.functional.gelu(self.norm(self.hidden(x.flatten(1))))))


class ConvBlock(nn.Module):
    """Convolution of width 3, GroupNorm, ReLU, mean over places, linear; for (channels, length) or
    (channels, height, width) features."""

    def __init__(self, feature_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        if len(feature_shape) not in (2, 3):
            raise ValueError(
                f"ConvBlock needs features of shape (channels, length) or (channels, height, width), found "
                f"{feature_shape}; name a convolution with --split-at, or take another plastic head"
            )
        conv = nn.Conv1d if len(feature_shape) == 2 else nn.Conv2d
        self.conv = conv(feature_shape[0], CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(4, CHANNELS)
        self.out = nn.Linear(CHANNELS, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, …) → (n, n_classes)."""
        return cast(Tensor, self.out(torch.relu(self.norm(self.conv(x))).flatten(2).mean(2)))


class Adapter(nn.Module):
    """A residual bottleneck on the flat feature, then linear: x + up(GELU(down(x))); starts as x."""

    def __init__(self, feature_shape: tuple[int, ...], n_classes: int) -> None:
        super().__init__()
        n_features = math.prod(feature_shape)
        bottleneck = max(n_features // 8, 4)
        self.down = nn.Linear(n_features, bottleneck)
        self.up = nn.Linear(bottleneck, n_features)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.out = nn.Linear(n_features, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """(n, *feature_shape) → (n, n_classes)."""
        x = x.flatten(1)
        return cast(Tensor, self.out(x + self.up(nn.functional.gelu(self.down(x)))))
