"""What LiteRT and tflite-runtime have in common: a graph of fixed shape, one window at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from edge_cl.encoders.forms import Form
from edge_cl.errors import BundleError
from edge_cl.records import FloatArray


class InterpreterEncoder(ABC):
    """Runs a ``.tflite`` graph that takes (1, n_samples, n_channels) and gives (1, D).

    The XNNPACK delegate, the runtimes' default, stays on: it more than halves the time for one window and
    costs little memory (docs/encoders.md).
    """

    form: Form | None = None
    running_on = "XNNPACK"

    def __init__(self, model: bytes, shape: tuple[int, int], n_features: int, *, threads: int = 1) -> None:
        self._shape, self.n_features = shape, n_features
        try:
            self._interpreter = self._load(model, threads)
            self._input = self._only("input", self._interpreter.get_input_details(), (1, *shape))
            self._output = self._only("output", self._interpreter.get_output_details(), (1, n_features))
            self._interpreter.allocate_tensors()
            self.encode(np.zeros(shape, np.float32))
        except (ValueError, RuntimeError) as error:
            raise BundleError(f"{type(self).__name__} cannot run the model: {error}") from error

    def encode(self, window: FloatArray) -> FloatArray:
        """(n_samples, n_channels) → (D,)."""
        if window.shape != self._shape:
            raise ValueError(f"window has shape {window.shape}, the bundle wants {self._shape}")
        self._interpreter.set_tensor(self._input, np.ascontiguousarray(window[None], dtype=np.float32))
        self._interpreter.invoke()
        feature: FloatArray = self._interpreter.get_tensor(self._output)[0]
        return feature

    def encode_many(self, windows: FloatArray) -> FloatArray:
        """(n, n_samples, n_channels) → (n, D), one after the other."""
        features = np.empty((len(windows), self.n_features), np.float32)
        for row, window in zip(features, windows, strict=True):
            row[:] = self.encode(window)
        return features

    @abstractmethod
    def _load(self, model: bytes, threads: int) -> Any:
        """The runtime's interpreter of this model; raises BundleError."""

    def _only(self, what: str, details: list[dict[str, Any]], shape: tuple[int, ...]) -> int:
        """The index of the only input or output, which must be float32 of this shape."""
        found = [(tuple(int(n) for n in one["shape"]), np.dtype(one["dtype"]).name) for one in details]
        if found != [(shape, "float32")]:
            raise BundleError(
                f"the .tflite encoder has the {what}s {found}, the manifest needs one {shape} of float32; "
                "export the bundle again"
            )
        return int(details[0]["index"])
