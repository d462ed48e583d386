"""The frozen encoder in onnxruntime: one thread, and no memory kept for speed."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_cl.encoders.forms import Form
from edge_cl.errors import BundleError
from edge_cl.manifest import EncoderSpec
from edge_cl.records import FloatArray

PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""In the order in which they are asked for a node."""


class OnnxEncoder:
    """Runs a graph, handed to the runtime as bytes that were verified before.

    Parameters
    ----------
    model
        An ONNX graph that takes (n, n_samples, n_channels) and gives (n, D).
    shape, n_features
        (n_samples, n_channels), and D.
    spec
        Names its input and output.
    provider
        ``cpu``, ``cuda`` or ``tensorrt``; BundleError when it is not here or does not start.
    """

    form: Form | None = None

    def __init__(
        self,
        model: bytes,
        shape: tuple[int, int],
        n_features: int,
        *,
        spec: EncoderSpec | None = None,
        provider: str = "cpu",
        threads: int = 1,
    ) -> None:
        spec = spec or EncoderSpec()
        self._shape, self.n_features = shape, n_features
        self._input, self._outputs = spec.input, [spec.output]
        self._session = _session(model, provider, threads)
        self.running_on = ", ".join(
            name.removesuffix("ExecutionProvider") for name in self._session.get_providers()
        )
        """The providers that are active, which may be fewer than are installed."""
        self._check_names(spec.input, spec.output)
        try:
            found = self.encode_many(np.zeros((1, *shape), dtype=np.float32)).shape
        except Exception as error:  # the runtime raises its own untyped family
            raise BundleError(f"onnxruntime cannot run the encoder on windows of {shape}: {error}") from error
        if found != (1, n_features):
            raise BundleError(f"encoder gives features of shape {found[1:]}, the manifest says {n_features}")

    def encode(self, window: FloatArray) -> FloatArray:
        """(n_samples, n_channels) → (D,)."""
        feature: FloatArray = self.encode_many(window[None])[0]
        return feature

    def encode_many(self, windows: FloatArray) -> FloatArray:
        """(n, n_samples, n_channels) → (n, D)."""
        batch = np.ascontiguousarray(windows, dtype=np.float32)
        if batch.shape[1:] != self._shape:
            raise ValueError(f"window has shape {batch.shape[1:]}, the bundle wants {self._shape}")
        features: FloatArray = self._session.run(self._outputs, {self._input: batch})[0]
        return features

    def _check_names(self, input_name: str, output_name: str) -> None:
        inputs = [value.name for value in self._session.get_inputs()]
        outputs = [value.name for value in self._session.get_outputs()]
        if input_name not in inputs or output_name not in outputs:
            raise BundleError(
                f"encoder has inputs {inputs} and outputs {outputs}; "
                f"the manifest names {input_name!r} and {output_name!r}"
            )


def available_providers() -> list[str]:
    """Names of the providers that this build of onnxruntime has, as the settings call them."""
    import onnxruntime

    present = set(onnxruntime.get_available_providers())
    return [name for name, (first, *_) in PROVIDERS.items() if first in present]


def _session(model: bytes, provider: str, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise BundleError(
            "the bundle's encoder needs onnxruntime, which is not installed; "
            "run `pip install 'edge-cl[onnx]'` (on a Jetson: onnxruntime-gpu for your JetPack)"
        ) from error
    if provider not in available_providers():
        raise BundleError(
            f"encoder.provider is {provider!r}, but this onnxruntime only has {available_providers()}; "
            "install onnxruntime-gpu for your CUDA or JetPack, or set it to auto"
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.enable_cpu_mem_arena = options.enable_mem_pattern = False
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # a waiting thread sleeps
    options.log_severity_level = 3
    wanted = PROVIDERS[provider]
    try:
        session = onnxruntime.InferenceSession(model, options, providers=list(wanted))
    except Exception as error:  # the runtime raises its own untyped family
        raise BundleError(f"onnxruntime cannot load the encoder: {error}") from error
    if wanted[0] not in session.get_providers():
        raise BundleError(
            f"onnxruntime has {wanted[0]} but cannot start it; active is {session.get_providers()}: "
            "check that its CUDA, cuDNN and TensorRT versions are those of this board"
        )
    return session
