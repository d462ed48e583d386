"""Forms of some operators that onnxruntime runs faster than the exporter's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._decomp import core_aten_decompositions

from edge_cl_export.conv_backward import convolution_backward

aten = torch.ops.aten


def decompositions() -> dict[Any, Any]:
    """Those of torch's core set, and ours instead of some."""
    return core_aten_decompositions() | {
        aten.convolution_backward.default: convolution_backward,
        aten.native_group_norm.default: _group_norm,
        aten.native_group_norm_backward.default: _group_norm_backward,
        aten.threshold_backward.default: _threshold_backward,
    }


def expand_late(graph: torch.fx.GraphModule) -> None:
    """Write expand(x) / n, which every mean's gradient is, as (x / n) · ones.

    onnxruntime copies an expanded last axis value by value; a product that broadcasts takes a fifth.
    """
    for node in graph.graph.find_nodes(op="call_function", target=aten.expand.default):
        x = node.args[0]
        if x.meta["val"].shape[-1:] != (1,) or not x.meta["val"].is_floating_point():
            continue
        users = list(node.users)
        last = node
        if len(users) == 1 and users[0].target is aten.div.Tensor and _is_number(users[0].args[1]):
            last = users[0]
        with graph.graph.inserting_before(last):
            small = x if last is node else graph.graph.call_function(aten.div.Tensor, (x, last.args[1]))
            ones = graph.graph.call_function(aten.full.default, (node.args[1], 1.0))
            last.replace_all_uses_with(graph.graph.call_function(aten.mul.Tensor, (small, ones)))
        for gone in dict.fromkeys((last, node)):
            graph.graph.erase_node(gone)
    graph.recompile()


def _is_number(value: Any) -> bool:
    return not isinstance(value, torch.fx.Node) or value.meta["val"].ndim == 0


def _threshold_backward(grad: Tensor, x: Tensor, threshold: float) -> Tensor:
    """The gradient of ReLU: a product, not a choice."""
    return grad * (x > threshold).to(grad.dtype)


def _group_norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, n: int, c: int, size: int, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As ``aten::native_group_norm``; mean and 1 / std are computed once, for the gradient, too."""
    rows = x.reshape(-1, groups, c // groups * size)
    mean = rows.mean(2, keepdim=True)
    centred = rows - mean
    inv_std = 1 / torch.sqrt((centred * centred).mean(2, keepdim=True) + eps)
    by_channel = (-1, groups, c // groups, 1)
    scale = inv_std[..., None]
    if weight is not None:
        scale = scale * weight.reshape(1, *by_channel[1:])
    out = centred.reshape(*by_channel[:3], size) * scale
    if bias is not None:
        out = out + bias.reshape(1, *by_channel[1:])
    return out.reshape(x.shape), mean[..., 0], inv_std[..., 0]


def _group_norm_backward(  # noqa: PLR0913  the operator's own signature
    grad: Tensor, x: Tensor, mean: Tensor, inv_std: Tensor, weight: Tensor | None,
    n: int, c: int, size: int, groups: int, mask: list[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """As ``aten::native_group_norm_backward``.

    With r = 1 / std and m values in a group: dx = r·w·g - r/m·Σ w·g - r³/m·(x - mean)·Σ w·g·(x - mean).
    """
    m = c // groups * size
    centred = (x.reshape(-1, groups, m) - mean[..., None]).reshape(-1, groups, c // groups, size)
    g = grad.reshape(-1, groups, c // groups, size)
    r = inv_std[..., None, None]
    moment, total = (g * centred).sum(3, keepdim=True), g.sum(3, keepdim=True)
    grad_weight = (moment * r).sum(0).reshape(c) if mask[1] else None
    grad_bias = total.sum(0).reshape(c) if mask[2] else None
    if not mask[0]:
        return None, grad_weight, grad_bias
    scale = r
    if weight is not None:
        w = weight.reshape(1, groups, c // groups, 1)
        moment, total, scale = moment * w, total * w, r * w
    along = moment.sum(2, keepdim=True) * (r * r * r / m)
    level = total.sum(2, keepdim=True) * (r / m)
    return (g * scale - centred * along - level).reshape(x.shape), grad_weight, grad_bias
