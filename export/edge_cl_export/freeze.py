"""A torch model to the bytes of one ONNX graph, checked against torch before anyone gets them."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import nn

from edge_cl.errors import BundleError
from edge_cl.records import FloatArray

INPUT, OUTPUT = "window", "feature"
TOLERANCE = 1e-4

_ORT_ERRORS = (
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
)


def freeze(model: nn.Module | torch.export.ExportedProgram, examples: FloatArray) -> bytes:
    """Export with a dynamic batch axis and compare with torch on `examples`.

    Parameters
    ----------
    model
        Takes (n, window_samples, n_channels) float32, gives (n, feature_size).
    examples
        (k, window_samples, n_channels) real windows, k ≥ 2.

    Raises
    ------
    BundleError
        When torch cannot export it, the batch axis is fixed, or an output differs from torch's by
        more than 1e-4 of the features' scale.
    """
    window = torch.from_numpy(np.ascontiguousarray(examples, np.float32))
    if isinstance(model, nn.Module):
        model = model.eval()
    module = model if isinstance(model, nn.Module) else model.module()
    with torch.no_grad():
        expected = module(window)
    if not isinstance(expected, torch.Tensor) or expected.ndim != 2 or len(expected) != len(window):
        found = tuple(expected.shape) if isinstance(expected, torch.Tensor) else type(expected).__name__
        raise BundleError(
            f"the model gives {found} for {len(window)} windows; an encoder gives one tensor "
            "(windows, feature_size). Wrap it in a module that flattens or pools"
        )
    graph = _export(model, window)
    check_parity(graph, examples, expected.numpy())
    return graph


def run_graph(graph: bytes, X: FloatArray, *, batch: int = 1024) -> FloatArray:
    """Features (n, feature_size) of windows (n, w, c) by onnxruntime; the graph's only input and output."""
    try:
        session = _session(graph)
        name = session.get_inputs()[0].name
        parts = [
            session.run(None, {name: np.ascontiguousarray(X[k : k + batch], np.float32)})[0]
            for k in range(0, len(X), batch)
        ]
    except _ORT_ERRORS as error:
        raise BundleError(
            f"onnxruntime cannot run the graph on windows of shape {X[:batch].shape}: {error}; "
            "an encoder takes (n, window_samples, n_channels) float32 for any n"
        ) from error
    features: FloatArray = np.concatenate(parts)
    return features


def check_parity(graph: bytes, examples: FloatArray, expected: FloatArray) -> None:
    """Raise `BundleError` unless the graph agrees with `expected`, one by one and as a batch."""
    together = run_graph(graph, examples)
    alone = run_graph(graph, examples, batch=1)
    scale = max(1.0, float(np.abs(expected).max()))
    worst = max(float(np.abs(out - expected).max()) for out in (together, alone)) / scale
    if not worst <= TOLERANCE:
        raise BundleError(
            f"the frozen graph differs from the model by {worst:.2g} of its scale, allowed {TOLERANCE:g}; "
            "look for operations that depend on the batch or on training mode"
        )


def spread(X: FloatArray, k: int) -> FloatArray:
    """At most `k` rows of X, evenly over its length."""
    return X[np.unique(np.linspace(0, len(X) - 1, k).astype(np.int64))]


def _export(model: nn.Module | torch.export.ExportedProgram, window: torch.Tensor) -> bytes:
    dynamic: dict[str, Any] = {"dynamic_shapes": ({0: torch.export.Dim("n")},)}
    if isinstance(model, torch.export.ExportedProgram):
        dynamic = {}
    quiet = logging.getLogger("torch.onnx")
    level = quiet.level
    quiet.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            path = Path(folder) / "encoder.onnx"
            torch.onnx.export(
                model,
                (window,),
                path,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamo=True,
                external_data=False,
                verbose=False,
                **dynamic,
            )
            encoded: bytes = plain(onnx.load(path)).SerializeToString()
            return encoded
    except (torch.onnx.OnnxExporterError, RuntimeError, TypeError, ValueError) as error:
        raise BundleError(
            f"torch cannot export this model to ONNX with a free batch axis: {error}"
        ) from error
    finally:
        quiet.setLevel(level)


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model without paths and source lines of the machine that exported, which node metadata holds."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    return model


def _session(graph: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
