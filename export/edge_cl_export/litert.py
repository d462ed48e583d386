"""A torch encoder as ``.tflite`` for LiteRT and tflite-runtime: float32, and int8 of that."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from edge_cl.errors import BundleError
from edge_cl.records import FloatArray

STATIC, DYNAMIC = "static per-channel", "dynamic range"
SCHEMES = (STATIC, DYNAMIC)
"""How weights may become int8; with the second, activations do so anew for each window."""
QUANTISED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")


def to_tflite(model: nn.Module | torch.export.ExportedProgram, example: FloatArray) -> bytes:
    """The encoder for one window (1, n_samples, n_channels); BundleError when it cannot be converted."""
    try:
        import litert_torch
    except ImportError as error:
        raise BundleError(
            f"litert-torch cannot be imported ({error}); run `pip install litert-torch`"
        ) from error
    module: Any = model.eval() if isinstance(model, nn.Module) else model.module()
    window = torch.from_numpy(np.ascontiguousarray(example[None], np.float32))
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.tflite"
        try:
            litert_torch.convert(module, (window,)).export(str(path))
        except Exception as error:  # the converter raises whatever its parts do
            raise BundleError(
                f"litert-torch cannot convert it: {' '.join(str(error).split())[:300]}"
            ) from error
        return slim(path.read_bytes(), names=True)


def quantise(model: bytes, calibration: FloatArray, scheme: str) -> bytes:
    """`model` with int8 weights, one scale for each output channel; what is no convolution stays float32.

    Parameters
    ----------
    model
        A float32 encoder, as :func:`to_tflite` gives.
    calibration
        (k, window_samples, n_channels) windows, whose smallest and largest activations set the ranges.
    scheme
        One of `SCHEMES`.
    """
    from ai_edge_quantizer import qtyping, quantizer

    try:
        with _quiet():
            made = quantizer.Quantizer(bytearray(model))
            for name in QUANTISED:
                operation = qtyping.TFLOperationName[name]
                if scheme == STATIC:
                    made.add_static_config(".*", operation, activation_num_bits=8, weight_num_bits=8)
                else:
                    made.add_dynamic_config(".*", operation, num_bits=8)
            ranges = _ranges(made, model, calibration) if made.need_calibration else None
            found = slim(bytes(made.quantize(ranges).quantized_model))
    except Exception as error:  # the quantiser raises whatever its parts do
        raise BundleError(
            f"ai-edge-quantizer cannot do {scheme}: {' '.join(str(error).split())[:300]}"
        ) from error
    if not _has_int8(found):
        raise BundleError(f"has no {', '.join(QUANTISED)} to quantise")
    return found


def _ranges(made: Any, model: bytes, calibration: FloatArray) -> dict[str, Any]:
    """The smallest and the largest value of each tensor over all windows.

    Given several windows at once, the library forgets the first ones: it averages as it goes, and cuts off
    what was rare.
    """
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer.utils.qsv_utils import min_max_update

    ((signature, tensors),) = Interpreter(model_content=model).get_signature_list().items()
    found: dict[str, Any] = {}
    for window in calibration:
        row = {tensors["inputs"][0]: np.asarray(window[None], np.float32)}
        for name, ranges in made.calibrate({signature: [row]}, num_threads=1).items():
            found[name] = min_max_update(found[name], ranges) if found.get(name) else ranges
    return found


def _has_int8(model: bytes) -> bool:
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    tree: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    return any(tensor.type == schema.TensorType.INT8 for graph in tree.subgraphs for tensor in graph.tensors)


def slim(model: bytes, *, names: bool = False) -> bytes:
    """The same computation in fewer bytes: without the converter's notes and long names.

    `names`: inner tensors are called by short ones, which the quantiser needs; else by none.
    """
    from ai_edge_litert.tools import flatbuffer_utils

    tree: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    for graph in tree.subgraphs:
        seen = {*graph.inputs, *graph.outputs}
        for number, tensor in enumerate(graph.tensors):
            if number not in seen:
                tensor.name = b"%d" % number if names else None
            tensor.shapeSignature = None  # of axes that are free: none is
            if tensor.quantization is not None:
                tensor.quantization.min = tensor.quantization.max = None  # of the calibration
    tree.metadata = tree.metadataBuffer = tree.description = None
    return bytes(flatbuffer_utils.convert_object_to_bytearray(tree))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress and advice that the converters print."""
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            with contextlib.redirect_stderr(io.StringIO()):
                yield
    finally:
        logging.root.setLevel(level)
