"""The gradient of a convolution: ONNX has no operator for it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edge_cl.errors import BundleError

aten = torch.ops.aten

LEAST_CHANNELS = 8
MOST_TAPS = 25
"""With fewer input channels, or more places in the kernel, one convolution is faster than many products."""


def convolution_backward(  # noqa: PLR0913  the operator's own signature
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As ``aten::convolution_backward``, for one group: gradients of input, weight and bias.

    The input's is a transposed convolution of `grad`; the weight's see `_weight_gradient`.
    """
    if groups != 1 or transposed:
        kind = "a transposed convolution" if transposed else f"a convolution in {groups} groups"
        raise BundleError(
            f"the plastic head trains {kind} (aten.convolution_backward): its gradient has no ONNX form "
            "here; use ordinary convolutions, or leave it to the frozen part"
        )
    n = x.ndim - 2
    grad_x = grad_weight = grad_bias = None
    if output_mask[0]:
        rest = [
            x.shape[2 + k]
            - (
                (grad.shape[2 + k] - 1) * stride[k]
                - 2 * padding[k]
                + dilation[k] * (weight.shape[2 + k] - 1)
                + 1
            )
            for k in range(n)
        ]
        grad_x = aten.convolution(grad, weight, None, stride, padding, dilation, True, rest, 1)
    if output_mask[1]:
        grad_weight = _weight_gradient(grad, x, weight, stride, padding, dilation)
    if output_mask[2]:
        grad_bias = grad.sum([0, *range(2, grad.ndim)])
    return grad_x, grad_weight, grad_bias


def _weight_gradient(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> Tensor:
    """Per place in the kernel, a product of `grad` with what of x was under that place.

    As a convolution, of x with `grad` in which channels and batch change places, stride and dilation too, it
    would be a matrix with as few columns as the kernel has places: half as fast.
    """
    n = x.ndim - 2
    size, n_in = weight.shape[2:], weight.shape[1]
    if n_in < LEAST_CHANNELS or math.prod(size) > MOST_TAPS:
        whole = aten.convolution(
            x.transpose(0, 1), grad.transpose(0, 1), None, dilation, padding, stride, False, [0] * n, 1
        ).transpose(0, 1)
        for k in range(n):
            whole = whole.narrow(2 + k, 0, size[k])
        return whole
    padded = aten.constant_pad_nd(x.movedim(1, -1), [0, 0, *(p for p in reversed(padding) for _ in range(2))])
    rows = grad.transpose(0, 1).reshape(grad.shape[1], -1)
    products = []
    for place in itertools.product(*map(range, size)):
        under = padded
        for k in range(n):
            first = place[k] * dilation[k]
            last = first + (grad.shape[2 + k] - 1) * stride[k] + 1
            under = aten.slice(under, 1 + k, first, last, stride[k])
        products.append(rows @ under.reshape(-1, n_in))
    return torch.stack(products, 2).reshape(weight.shape)
