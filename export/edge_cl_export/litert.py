"""A torch encoder as ``.tflite`` for LiteRT and tflite-runtime: float32, and int8 of that."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from edge_cl.errors import BundleError
from edge_cl.records import FloatArray
from edge_cl_export.lean import lean

LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
"""What has weights. Norms, roots and pooling stay float32: they lose most and cost little."""


class Scheme(NamedTuple):
    """A way to make weights int8.

    Attributes
    ----------
    name
        What the manifest calls it.
    per_channel
        One scale for each output channel, which takes 12 bytes; else one for each layer's weights.
    dynamic
        No activations are stored in int8: each window's become so on the way into a layer. Else those of
        the first half of the layers stay float32: what is lost there is lost in all
        (docs/decisions/0028), and the others' are in calibrated ranges.
    """

    name: str
    per_channel: bool
    dynamic: bool = False


SCHEMES = (
    Scheme("static per-tensor", per_channel=False),
    Scheme("static per-channel", per_channel=True),
    Scheme("dynamic range", per_channel=True, dynamic=True),
)
"""In the order they are tried; the first is the smallest."""


def to_tflite(model: nn.Module | torch.export.ExportedProgram, example: FloatArray) -> bytes:
    """The encoder for one window (1, n_samples, n_channels); BundleError when it cannot be converted.

    It has the names that :func:`quantise` needs.
    """
    try:
        import litert_torch
    except ImportError as error:
        raise BundleError(
            f"litert-torch cannot be imported ({error}); run `pip install litert-torch`"
        ) from error
    window = torch.from_numpy(np.ascontiguousarray(example[None], np.float32))
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "encoder.tflite"
        try:
            module: Any = lean(model.eval()) if isinstance(model, nn.Module) else model.module()
            litert_torch.convert(module, (window,)).export(str(path))
            return slim(path.read_bytes(), names=True)
        except Exception as error:  # the converter raises whatever its parts do
            raise BundleError(
                f"litert-torch cannot convert it: {' '.join(str(error).split())[:300]}"
            ) from error


def slim(model: bytes, *, names: bool = False) -> bytes:
    """As :func:`edge_cl_export.slim_tflite.slim`, whose libraries come with litert-torch."""
    from edge_cl_export import slim_tflite

    return slim_tflite.slim(model, names=names)


def quantise(model: bytes, calibration: FloatArray, scheme: Scheme) -> bytes:
    """`model` with int8 weights; what is not between two layers of weights stays float32.

    Parameters
    ----------
    model
        A float32 encoder, as :func:`to_tflite` gives.
    calibration
        (k, window_samples, n_channels) windows, whose smallest and largest activations set the ranges.
    scheme
        One of `SCHEMES`.
    """
    from ai_edge_quantizer import quantizer

    concerned = list(_concerned(model))
    if not any(kind in LAYERS for kind, _ in concerned):
        raise BundleError(f"has no {', '.join(LAYERS)} to quantise")
    try:
        with _quiet():
            made = quantizer.Quantizer(bytearray(model))
            _configure(made, concerned, scheme)
            ranges = _ranges(made, model, calibration) if made.need_calibration else None
            return slim(bytes(made.quantize(ranges).quantized_model))
    except Exception as error:  # the quantiser raises whatever its parts do
        raise BundleError(
            f"ai-edge-quantizer cannot do {scheme.name}: {' '.join(str(error).split())[:300]}"
        ) from error


def _configure(made: Any, concerned: list[tuple[str, str]], scheme: Scheme) -> None:
    """Tell the quantiser what to do with each operator, of this kind and with this output."""
    from ai_edge_quantizer import qtyping

    granularity = qtyping.QuantGranularity["CHANNELWISE" if scheme.per_channel else "TENSORWISE"]
    n_float = sum(kind in LAYERS for kind, _ in concerned) // 2
    n_layers = 0
    for kind, output in concerned:
        operation, only = qtyping.TFLOperationName[kind], f"^{re.escape(output)};?$"
        n_layers += kind in LAYERS
        if kind not in LAYERS:
            if not scheme.dynamic and n_layers > n_float:
                made.add_static_config(only, operation, 8, 8)
        elif scheme.dynamic:
            made.add_dynamic_config(only, operation, 8, granularity)
        elif n_layers <= n_float:
            made.add_weight_only_config(only, operation, 8, granularity)
        else:
            made.add_static_config(only, operation, 8, 8, granularity)


def _concerned(model: bytes) -> Iterator[tuple[str, str]]:
    """Kind and output of layers, and of what lies between them and can do with int8: padding, shortcuts."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    tree: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    graph = tree.subgraphs[0]  # others are branches
    for operator in graph.operators:
        kind = kinds[tree.operatorCodes[operator.opcodeIndex].builtinCode]
        constant = any(tree.buffers[graph.tensors[k].buffer].data is not None for k in operator.inputs)
        if kind in (*LAYERS, "PAD") or (kind == "ADD" and not constant):
            yield kind, graph.tensors[operator.outputs[0]].name.decode()


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
