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
ABSORBED = ("Relu",)
"""Where it follows one of these, the range of what it gives makes it needless."""
FLOAT_LAYERS = 2
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
    _store_constants(model.graph)
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
    except Exception as error:  # its tools and its runtime raise whatever they like, of any model
        raise BundleError(f"onnxruntime cannot quantise it: {' '.join(str(error).split())[:300]}") from error
    finally:
        logging.root.setLevel(level)
    _free_first(found.graph)
    encoded: bytes = slim(found).SerializeToString()
    return encoded


def _store_constants(graph: onnx.GraphProto) -> None:
    """Tensors that nodes give become ones that are stored, as the quantiser and `slim` look for them."""
    for node in [node for node in graph.node if node.op_type == "Constant"]:
        if node.attribute[0].name == "value":
            tensor = node.attribute[0].t
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
            graph.node.remove(node)


class _Windows(CalibrationDataReader):  # type: ignore[misc]  # the library is not typed
    def __init__(self, windows: FloatArray) -> None:
        rows = range(0, len(windows), BATCH)
        self._batches: Iterator[FloatArray] = (np.asarray(windows[k : k + BATCH], np.float32) for k in rows)

    def get_next(self) -> dict[str, FloatArray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def _free_first(graph: onnx.GraphProto) -> None:
    """Let what comes before the third layer be float32; the weights of the first ones stay int8 in the file.

    Readings have long tails, and what is lost in the first layers is lost in all. For a tenth of the time a
    third of the error goes (docs/decisions/0025).
    """
    depth, zeros = _depths(graph), {name for name, array in _constants(graph).items() if not array.any()}
    made_by = {name: node.op_type for node in graph.node for name in node.output}
    outputs = {value.name for value in graph.output}
    for quantise in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        source = quantise.input[0]
        if depth[source] > FLOAT_LAYERS:
            continue
        if quantise.input[2] in zeros and made_by.get(source) in QUANTISED:  # a rectifier was absorbed
            relu = onnx.helper.make_node("Relu", [source], [f"{source}.rectified"])
            graph.node.insert(list(graph.node).index(quantise), relu)
            source = relu.output[0]
        for dequantise in [node for node in graph.node if quantise.output[0] in node.input]:
            for node in graph.node:
                for k, name in enumerate(node.input):
                    node.input[k] = source if name == dequantise.output[0] else name
            at = list(graph.node).index(dequantise)
            graph.node.remove(dequantise)
            if dequantise.output[0] in outputs:
                graph.node.insert(at, onnx.helper.make_node("Identity", [source], dequantise.output))
        graph.node.remove(quantise)


def _depths(graph: onnx.GraphProto) -> dict[str, int]:
    """How many quantised layers lie behind each tensor, on the longest way."""
    found = dict.fromkeys(("", *_constants(graph), *(value.name for value in graph.input)), 0)
    waiting = list(graph.node)
    while waiting:
        later = []
        for node in waiting:
            if all(name in found for name in node.input):
                before = max((found[name] for name in node.input), default=0)
                found.update(dict.fromkeys(node.output, before + (node.op_type in QUANTISED)))
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise BundleError("has a tensor that nothing makes")
        waiting = later
    return found


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
        last = last and all(name in constants for name in node.input[1:])
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
