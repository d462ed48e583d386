"""The frozen encoder in onnxruntime, one thread, no arena that grows."""

from __future__ import annotations

import numpy as np

from edge_cl.bundle import Bundle
from edge_cl.errors import BundleError
from edge_cl.records import FloatArray


class OnnxEncoder:
    """Runs the bundle's graph, handed to the runtime as bytes that were verified before."""

    def __init__(self, bundle: Bundle) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise BundleError(
                "the bundle's encoder needs onnxruntime, which is not installed; "
                "run `pip install edge-cl[onnx]` (on a Jetson: onnxruntime-gpu for your JetPack)"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        spec, manifest = bundle.manifest.encoder, bundle.manifest
        try:
            self._session = onnxruntime.InferenceSession(
                bundle.member(spec.member), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the runtime raises its own untyped family
            raise BundleError(f"onnxruntime cannot load {spec.member}: {error}") from error
        self._input, self._outputs = spec.input, [spec.output]
        self.n_features = manifest.feature_size
        self._check_names(spec.input, spec.output)
        self._shape = (manifest.window_samples, manifest.n_channels)
        found = self.encode_many(np.zeros((1, *self._shape), dtype=np.float32)).shape
        if found != (1, self.n_features):
            raise BundleError(
                f"encoder gives features of shape {found[1:]}, the manifest says {self.n_features}"
            )

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
