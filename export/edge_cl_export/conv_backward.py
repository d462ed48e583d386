"""The gradient of a convolution, from convolutions: ONNX has no operator for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edge_cl.errors import BundleError

aten = torch.ops.aten


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

    With kernel k, stride s, dilation d: the input's is a transposed convolution of `grad`; the weight's is a
    convolution of x with `grad` in which channels and batch change places, s and d too.
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
        flipped = aten.convolution(
            x.transpose(0, 1), grad.transpose(0, 1), None, dilation, padding, stride, False, [0] * n, 1
        ).transpose(0, 1)
        for k in range(n):
            flipped = flipped.narrow(2 + k, 0, weight.shape[2 + k])
        grad_weight = flipped
    if output_mask[2]:
        grad_bias = grad.sum([0, *range(2, grad.ndim)])
    return grad_x, grad_weight, grad_bias
