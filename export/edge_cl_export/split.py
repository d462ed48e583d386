"""A model cut in two: the frozen encoder up to one layer, and the shape of what comes out there."""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edge_cl.errors import BundleError
from edge_cl.records import FloatArray

N_NAMED = 5


class UpTo(nn.Module):
    """A model up to the output of one of its layers, flattened to (n, D)."""

    def __init__(self, model: nn.Module, layer: str) -> None:
        super().__init__()
        self.model = model
        self._seen: list[Any] = []
        seen = self._seen
        model.get_submodule(layer).register_forward_hook(lambda *given: seen.append(given[2]))

    def output(self, window: Tensor) -> list[Any]:
        """What the layer gave, once for each time it was called."""
        self._seen.clear()
        self.model(window)
        return list(self._seen)

    def forward(self, window: Tensor) -> Tensor:
        """(n, window_samples, n_channels) → (n, D)."""
        flat: Tensor = self.output(window)[-1].flatten(1)
        return flat


def split(model: nn.Module, layer: str, examples: FloatArray) -> tuple[UpTo, tuple[int, ...]]:
    """Cut `model` after the submodule `layer`, a name of ``named_modules()``.

    Returns
    -------
    The encoder, and the shape of one feature before it is flattened.

    Raises
    ------
    BundleError
        When there is no such layer (names the nearest), or it is not called exactly once for a batch, or
        does not give one tensor with the batch first.
    """
    names = [name for name, _ in model.named_modules() if name]
    if layer not in names:
        near = difflib.get_close_matches(layer, names, N_NAMED, cutoff=0.0)
        raise BundleError(
            f"--split-at {layer!r}: the model has no such layer; the nearest are {', '.join(near)}"
        )
    encoder = UpTo(model.eval(), layer)
    window = torch.from_numpy(np.ascontiguousarray(examples, np.float32))
    with torch.no_grad():
        outputs = encoder.output(window)
    if len(outputs) != 1:
        raise BundleError(
            f"--split-at {layer!r}: the model calls it {len(outputs)} times for a batch; name one that it "
            "calls once"
        )
    if not isinstance(outputs[0], Tensor) or outputs[0].ndim < 2 or len(outputs[0]) != len(window):
        found = tuple(outputs[0].shape) if isinstance(outputs[0], Tensor) else type(outputs[0]).__name__
        raise BundleError(
            f"--split-at {layer!r}: it gives {found} for {len(window)} windows; name a layer that gives one "
            "tensor with the batch first"
        )
    return encoder, tuple(outputs[0].shape[1:])
