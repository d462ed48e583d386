"""An ONNX encoder in int8: convolutions with calibrated ranges, everything else stays float32."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)

from edge_cl.errors import BundleError
from edge_cl.records import FloatArray
from edge_cl_export.freeze import INPUT, plain

SCHEME = "static per-channel"
QUANTISED = ("Conv", "Gemm", "MatMul")
"""What multiplies by weights. Norms, roots and pooling stay float: they lose most and cost little."""
ABSORBED = ("Relu", "Clip")
"""Where they follow one of these, the range of what they give makes them needless."""
BATCH = 64
_REDUCE: dict[str, object] = {"noop_with_empty_axes": 0, "keepdims": 1}
DEFAULTS: dict[str, dict[str, object]] = {
    "Conv": {"auto_pad": b"NOTSET", "dilations": {1}, "strides": {1}, "group": 1, "kernel_shape": None},
    "ReduceMean": _REDUCE,
    "ReduceSum": _REDUCE,
    "ReduceMax": _REDUCE,
    "GatherND": {"batch_dims": 0},
}
"""Attributes by operation and what they are when left out, a set for each of a list; None: whatever it is."""


def quantise(graph: bytes, calibration: FloatArray) -> bytes:
    """`graph` with int8 weights, one scale for each output channel, and activations in 8 bits.

    Parameters
    ----------
    graph
        A float32 encoder of one input.
    calibration
        (k, window_samples, n_channels) windows, whose smallest and largest activations set the ranges.

    Raises
    ------
    BundleError
        When nothing in it can be quantised.
    """
    model = onnx.load_from_string(graph)
    if not any(node.op_type in QUANTISED for node in model.graph.node):
        raise BundleError(f"has no {', '.join(QUANTISED)} to quantise")
    level = logging.root.level
    logging.root.setLevel(logging.ERROR)  # its advice to prepare the model is for ones not optimised yet
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "int8.onnx"
            quantize_static(
                model,
                path,
                _Windows(calibration),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=[*QUANTISED, *ABSORBED],
                per_channel=True,
                activation_type=QuantType.QUInt8,  # zero after a rectifier is 0: no zero point to store
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"QuantizeBias": False},  # onnxruntime does it when it loads
            )
            found = onnx.load(path)
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise BundleError(f"onnxruntime cannot quantise it: {error}") from error
    finally:
        logging.root.setLevel(level)
    _free_readings(found.graph)
    encoded: bytes = slim(found).SerializeToString()
    return encoded


class _Windows(CalibrationDataReader):  # type: ignore[misc]  # the library is not typed
    def __init__(self, windows: FloatArray) -> None:
        rows = range(0, len(windows), BATCH)
        self._batches: Iterator[FloatArray] = (np.asarray(windows[k : k + BATCH], np.float32) for k in rows)

    def get_next(self) -> dict[str, FloatArray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _free_readings(graph: onnx.GraphProto) -> None:
    """Let the first convolutions read float32: readings have long tails, which 256 steps do not hold.

    Their weights stay int8 in the file. A fifth less error for a tenth of the time that int8 wins.
    """
    made_by = {name: node for node in graph.node for name in node.output}
    for node in [node for node in graph.node if node.op_type in QUANTISED and _is_first(node, made_by)]:
        dequantise = made_by.get(node.input[0])
        quantise = made_by.get(dequantise.input[0]) if dequantise is not None else None
        if dequantise is None or quantise is None or quantise.op_type != "QuantizeLinear":
            continue
        node.input[0] = quantise.input[0]
        _drop_unread(graph, dequantise, quantise)


def _drop_unread(graph: onnx.GraphProto, *nodes: onnx.NodeProto) -> None:
    for node in nodes:
        if not any(name in other.input for other in graph.node for name in node.output):
            graph.node.remove(node)


def _is_first(node: onnx.NodeProto, made_by: dict[str, onnx.NodeProto]) -> bool:
    """Whether nothing quantised lies between the readings and this node."""
    before = [made_by[name] for name in node.input if name in made_by]
    return all(other.op_type not in QUANTISED and _is_first(other, made_by) for other in before)


def slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same computation in fewer bytes: half of a small graph is names that nobody reads."""
    graph = plain(model).graph
    del graph.value_info[:]
    model.producer_name = model.producer_version = ""
    for node in graph.node:
        node.name = ""
        _drop_defaults(node)
    _fold_norm(model)
    _drop_zero_points(graph)
    _merge_constants(graph)
    _rename(graph)
    return model


def _drop_defaults(node: onnx.NodeProto) -> None:
    """Attributes that say what is meant without them; a convolution's kernel is as large as its weights."""
    unsaid = DEFAULTS.get(node.op_type, {})
    kept = [a for a in node.attribute if a.name not in unsaid or unsaid[a.name] not in (None, _value(a))]
    del node.attribute[:]
    node.attribute.extend(kept)


def _value(attribute: onnx.AttributeProto) -> object:
    value = onnx.helper.get_attribute_value(attribute)
    return set(value) if isinstance(value, list) else value


def _constants(graph: onnx.GraphProto) -> dict[str, FloatArray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}


def _fold_norm(model: onnx.ModelProto) -> None:
    """A batch norm of four constants as a product and a sum of one each; only on (n, D) features."""
    graph, constants = model.graph, _constants(model.graph)
    for at, node in enumerate(graph.node):
        last = node.op_type == "BatchNormalization" and list(node.output)[:1] == [graph.output[0].name]
        if not last or len(graph.output[0].type.tensor_type.shape.dim) != 2:
            continue
        scale, bias, mean, var = (np.float64(constants[name]) for name in node.input[1:])
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = scale / np.sqrt(var + epsilon)
        arrays = {"norm.factor": factor, "norm.term": bias - mean * factor}
        graph.initializer.extend(
            numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()
        )
        scaled = onnx.helper.make_node("Mul", [node.input[0], "norm.factor"], ["norm.scaled"])
        moved = onnx.helper.make_node("Add", ["norm.scaled", "norm.term"], [node.output[0]])
        nodes = [*graph.node[:at], scaled, moved, *graph.node[at + 1 :]]
        del graph.node[:]
        graph.node.extend(nodes)
        return


def _drop_zero_points(graph: onnx.GraphProto) -> None:
    """Leave out zero points that are 0, where 0 of that type is what is meant without one."""
    constants = _constants(graph)
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.input) < 3:
            continue
        zero = constants.get(node.input[2])
        default = node.op_type == "DequantizeLinear" or (zero is not None and zero.dtype == np.uint8)
        if zero is not None and default and not zero.any():
            del node.input[2:]


def _merge_constants(graph: onnx.GraphProto) -> None:
    """One tensor for equal constants, none for those that nobody reads."""
    used = {name for node in graph.node for name in node.input}
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    same: dict[str, str] = {}
    kept = []
    for tensor in graph.initializer:
        array = numpy_helper.to_array(tensor)
        key = (tensor.data_type, array.shape, array.tobytes())
        same[tensor.name] = first.setdefault(key, tensor.name)
        if tensor.name in used and same[tensor.name] == tensor.name:
            kept.append(numpy_helper.from_array(array, tensor.name))
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = same.get(name, name)


def _rename(graph: onnx.GraphProto) -> None:
    """Short names for all tensors but the input and the output."""
    fixed = {value.name for value in (*graph.input, *graph.output)} | {""}
    short: dict[str, str] = {}
    for node in graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                if name not in fixed:
                    names[k] = short.setdefault(name, _digits(len(short)))
    for tensor in graph.initializer:
        tensor.name = short[tensor.name]


def _digits(number: int) -> str:
    return np.base_repr(number, 36).lower()
