"""The same two graphs as ``.tflite``, for runtimes other than onnxruntime; classes and batch are fixed."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edge_cl.errors import BundleError, ConfigError
from edge_cl_export.anatomy import PlasticModule
from edge_cl_export.optimisers import StepSettings
from edge_cl_export.step_graph import (
    Function,
    Inputs,
    predict_inputs,
    predict_of,
    step_inputs,
    step_of,
    traced,
)

TOLERANCE = 1e-4
"""Ten times onnxruntime's: its kernels round more, which AdamW's division by small gradients shows (2e-5)."""


def tflite_twins(module: PlasticModule, settings: StepSettings) -> dict[str, bytes]:
    """``predict.tflite`` and ``step.tflite``: inputs and outputs in the order of the ONNX graphs'.

    No device of this project reads them yet; a class more needs another export.

    Raises
    ------
    ConfigError
        When litert-torch is not installed.
    BundleError
        When it cannot convert a graph, or the converted one differs by more than 1e-4 of a tensor's scale.
    """
    return {
        "predict.tflite": _convert("predict", predict_of, predict_inputs(module, settings.batch), module),
        "step.tflite": _convert(
            "step", step_of(settings), step_inputs(module, settings, settings.batch), module
        ),
    }


def _convert(what: str, function: Function, inputs: Inputs, module: PlasticModule) -> bytes:
    try:
        import litert_torch
    except ImportError as error:
        raise ConfigError(
            "--tflite needs litert-torch; on the server run `pip install litert-torch`"
        ) from error
    tensors = tuple(inputs.values())
    graph, _ = traced(function, inputs, module, mode="real")
    try:
        model: Any = litert_torch.convert(graph.eval(), tensors)
        outputs = model(*tensors)
    except Exception as error:  # the converter raises whatever its parts do
        raise BundleError(
            f"litert-torch cannot convert {what}: {' '.join(str(error).split())[:400]}"
        ) from error
    for found, expected in zip(outputs, graph(*tensors), strict=True):
        wanted = expected.detach().numpy()
        apart = float(np.abs(np.asarray(found) - wanted).max() / max(np.abs(wanted).max(), 0.1))
        if not apart <= TOLERANCE:
            raise BundleError(f"{what}.tflite differs from torch by {apart:.2g} of a tensor's scale")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.tflite"
        model.export(str(path))
        return path.read_bytes()
