"""The built-in encoder, written for ``.tflite``: the same features from fewer operators.

The converter turns each 1-D convolution into a 2-D one between two transpositions and two reshapes, and
keeps a norm that follows one. Written in 2-D from the start, with norms folded into the weights before
them, both are gone; all vectors of a sensor are treated at once.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from edge_cl_export.encoders import SensorEncoder


def lean(module: nn.Module) -> nn.Module:
    """What to convert in the place of `module`: a `LeanEncoder`, or `module` where there is none for it."""
    if type(module) is SensorEncoder and _adjacent(module):  # a subclass may compute something else
        return LeanEncoder(module).eval()
    return module


class LeanEncoder(nn.Module):
    """What a trained `SensorEncoder`, whose vectors lie side by side, says of one window."""

    def __init__(self, encoder: SensorEncoder) -> None:
        super().__init__()
        vectors = encoder.invariants.vectors
        self.n_vectors, self.first = len(vectors), vectors[0][0] if vectors else 0
        order = _order(encoder)
        self.register_buffer("mean", encoder.mean[order].reshape(1, 1, 1, -1))
        self.register_buffer("std", encoder.std[order])
        conv, norm, _ = encoder.stem
        self.stem = _flat(_folded(conv, norm), order)
        self.depthwise, self.pointwise = nn.ModuleList(), nn.ModuleList()
        self.shortcuts = []
        for block in encoder.blocks:
            depthwise, pointwise, norm = block.path  # type: ignore[union-attr, misc]
            self.depthwise.append(_flat(depthwise))
            self.pointwise.append(_flat(_folded(pointwise, norm)))
            self.shortcuts.append(cast(bool, block.shortcut))
        norm = encoder.norm
        factor = 1 / torch.sqrt(cast(Tensor, norm.running_var) + norm.eps)
        self.register_buffer("factor", factor)
        self.register_buffer("term", -cast(Tensor, norm.running_mean) * factor)

    def forward(self, window: Tensor) -> Tensor:
        """(1, window_samples, n_channels) to (1, feature_size)."""
        x = self._with_invariants(window) if self.n_vectors else window
        x = ((x - self.mean) / self.std).permute(0, 3, 1, 2)  # the mean makes it (1, 1, w, c)
        early = x = torch.relu(self.stem(x))
        for depthwise, pointwise, shortcut in zip(
            self.depthwise, self.pointwise, self.shortcuts, strict=True
        ):
            path = pointwise(depthwise(x))
            x = torch.relu(x + path if shortcut else path)
        return torch.cat(_pooled(early) + _pooled(x), -1) * self.factor + self.term

    def _with_invariants(self, window: Tensor) -> Tensor:
        """As `Invariants`, but kind by kind: lengths of all vectors, then parts across, then along."""
        first, n = self.first, self.n_vectors
        down = window[:, :, first : first + 3].mean(1)
        down = down / (_length(down, keepdim=True) + 1e-3)
        v = window[:, :, first : first + 3 * n].reshape(1, -1, n, 3)
        along = (v * down).sum(-1)
        lengths = _length(torch.cat([v, v - along[..., None] * down], 2))
        return torch.cat([window, lengths, along], -1)


def _adjacent(encoder: SensorEncoder) -> bool:
    axes = [axis for vector in encoder.invariants.vectors for axis in vector]
    return axes == [axes[0] + k for k in range(len(axes))] if axes else True


def _order(encoder: SensorEncoder) -> list[int]:
    """Where the channels of `LeanEncoder` are among those of `encoder`."""
    n = len(encoder.invariants.vectors)
    added = encoder.mean.numel() - 3 * n
    kinds = [added + 3 * k + kind for kind in (0, 2, 1) for k in range(n)]
    return [*range(added), *kinds]


def _folded(conv: nn.Module, norm: nn.Module) -> nn.Conv1d:
    return cast(nn.Conv1d, fuse_conv_bn_eval(conv, norm))  # type: ignore[type-var]


def _flat(conv: nn.Conv1d, order: list[int] | None = None) -> nn.Conv2d:
    """A convolution along the last of two axes, of input channels in another order."""
    weight = conv.weight if order is None else conv.weight[:, order]
    flat = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        (1, conv.kernel_size[0]),
        (1, conv.stride[0]),
        (0, int(conv.padding[0])),
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    flat.weight = nn.Parameter(weight[:, :, None].detach())
    if conv.bias is not None:
        flat.bias = nn.Parameter(conv.bias.detach())
    return flat


def _pooled(x: Tensor) -> list[Tensor]:
    x = x.permute(0, 2, 3, 1)  # as the runtimes have it: nothing is moved
    return [x.mean((1, 2)), x.amax((1, 2))]


def _length(v: Tensor, *, keepdim: bool = False) -> Tensor:
    return torch.sqrt((v * v).sum(-1, keepdim=keepdim) + 1e-8)
