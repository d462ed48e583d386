"""Encoders that somebody else made: a torch module, an exported program, an ONNX file."""

from __future__ import annotations

import importlib
import sys
import zipfile
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import TensorProto, helper
from onnx.utils import Extractor
from torch import nn

from edge_cl.errors import BundleError, ConfigError
from edge_cl.records import FloatArray
from edge_cl_export.freeze import INPUT, OUTPUT, check_parity, run_graph

NEWEST_IR = 10  # what onnxruntime 1.18 and torch's exporter agree on


def from_factory(spec: str) -> nn.Module:
    """The module that ``package.module:factory`` returns when called without arguments.

    The current folder is searched first.
    """
    module = imported("--model", spec)()
    if not isinstance(module, nn.Module):
        raise ConfigError(f"--model {spec!r} returned {type(module).__name__}, not a torch.nn.Module")
    return module


def imported(option: str, spec: str) -> Any:
    """What ``package.module:name`` names, as `option` was given it. The current folder is searched first."""
    where, _, attribute = spec.partition(":")
    if not where or not attribute:
        raise ConfigError(f"{option} is {spec!r}; give it as module:factory, e.g. my_encoder:build")
    sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(importlib.import_module(where), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"{option} {spec!r} cannot be imported ({error})") from error
    finally:
        sys.path.pop(0)


def from_program(path: str | Path) -> torch.export.ExportedProgram:
    """A program saved with `torch.export.save`; export it with a dynamic first axis."""
    try:
        return torch.export.load(path)
    except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise BundleError(f"{path}: not a program saved by torch.export.save ({error})") from error


def from_onnx(path: str | Path, feature_output: str, examples: FloatArray) -> bytes:
    """Cut an ONNX graph at the tensor `feature_output` and give it a free batch axis.

    Parameters
    ----------
    feature_output
        Name of a tensor of shape (n, feature_size): an output or any inner tensor.
    examples
        (k, window_samples, n_channels) windows, k ≥ 2, to check that it runs on batches.

    Raises
    ------
    BundleError
        When the tensor is unknown, the graph has several inputs, does not take such windows, or
        computes a window's feature differently alone and in a batch.
    """
    model = _cut(Path(path), feature_output)
    _free_batch(model)
    model.ir_version = min(model.ir_version, NEWEST_IR)  # runtimes on boards lag behind
    _rename(model, {model.graph.input[0].name: INPUT, feature_output: OUTPUT})
    graph: bytes = model.SerializeToString()
    expected = run_graph(graph, examples, batch=1)
    if expected.ndim != 2 or len(expected) != len(examples):
        raise BundleError(
            f"{path}: {feature_output!r} has shape {expected.shape[1:]} for each window; name a tensor "
            "of shape (n, feature_size), one after pooling or flattening"
        )
    check_parity(graph, examples, expected)
    return graph


def _cut(path: Path, feature_output: str) -> onnx.ModelProto:
    try:
        model = onnx.shape_inference.infer_shapes(onnx.load(path))
    except (OSError, DecodeError, onnx.shape_inference.InferenceError) as error:
        raise BundleError(f"{path}: not a readable ONNX file ({error})") from error
    tensors = [name for node in model.graph.node for name in node.output if name]
    if feature_output not in tensors:
        last = ", ".join(tensors[-8:])
        raise BundleError(f"{path}: no tensor {feature_output!r}; the last ones are {last}")
    constants = {initializer.name for initializer in model.graph.initializer}
    inputs = [value.name for value in model.graph.input if value.name not in constants]
    if len(inputs) != 1:
        raise BundleError(f"{path}: has the inputs {inputs}; an encoder takes one tensor of windows")
    known = {value.name for value in (*model.graph.value_info, *model.graph.output)}
    if feature_output not in known:
        model.graph.value_info.append(helper.make_tensor_value_info(feature_output, TensorProto.FLOAT, None))
    return Extractor(model).extract_model(inputs, [feature_output])


def _free_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        if len(dims):
            dims[0].Clear()
            dims[0].dim_param = "n"
    # Inferred inner shapes may still say the old batch size.
    del model.graph.value_info[:]


def _rename(model: onnx.ModelProto, names: dict[str, str]) -> None:
    for node in model.graph.node:
        for tensors in (node.input, node.output):
            for k, name in enumerate(tensors):
                tensors[k] = names.get(name, name)
    for value in (*model.graph.input, *model.graph.output):
        value.name = names.get(value.name, value.name)
