"""A `.tflite` file is made smaller without changing an answer; the built-in encoder is written leaner."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the export extra")
pytest.importorskip("litert_torch", reason="needs the export extra")
pytestmark = pytest.mark.torch

from ai_edge_litert import schema_py_generated as schema  # noqa: E402
from ai_edge_litert.interpreter import Interpreter  # noqa: E402
from ai_edge_litert.tools import flatbuffer_utils  # noqa: E402
from edge_cl_export import litert  # noqa: E402
from edge_cl_export.encoders import SensorEncoder  # noqa: E402
from edge_cl_export.lean import LeanEncoder, lean  # noqa: E402
from edge_cl_export.slim_tflite import slim  # noqa: E402
from torch import nn  # noqa: E402

from edge_cl.errors import BundleError  # noqa: E402
from tests import tflite  # noqa: E402

VECTORS = ((1, 2, 3), (4, 5, 6))
X = np.random.default_rng(0).normal(size=(24, 40, 7)).astype(np.float32)


def trained(vectors: Any = VECTORS) -> SensorEncoder:
    """As after some training: no norm is what it begins with."""
    torch.manual_seed(0)
    encoder = SensorEncoder(7, feature_size=16, width=16, vectors=vectors)
    encoder.fit_normalisation(torch.from_numpy(X))
    with torch.no_grad():
        for norm in (m for m in encoder.modules() if isinstance(m, nn.BatchNorm1d)):
            for values in (norm.running_mean, norm.running_var, *norm.parameters()):
                values.copy_(torch.rand_like(values) + 0.5)
    return encoder.eval()


@pytest.fixture(scope="module")
def fat() -> dict[str, bytes]:
    """Files as the converter and the quantiser write them, by how they were quantised."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(litert, "slim", lambda model, **_: model)
        patch.setattr(litert, "lean", lambda module: module)
        float32 = litert.to_tflite(trained(), X[0])
        by_scheme = {scheme.name: litert.quantise(float32, X, scheme) for scheme in litert.SCHEMES}
        return {"float32": float32, **by_scheme}


FORMS = ["float32", *(scheme.name for scheme in litert.SCHEMES)]


def answers(model: bytes) -> tuple[Any, list[str]]:
    """Features, and what the runtime does, step by step, with the delegate's."""
    interpreter = Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    (given,), (found,) = interpreter.get_input_details(), interpreter.get_output_details()
    features = []
    for window in X:
        interpreter.set_tensor(given["index"], window[None])
        interpreter.invoke()
        features.append(interpreter.get_tensor(found["index"]).copy())
    return np.concatenate(features), [step["op_name"] for step in interpreter._get_ops_details()]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("names", [False, True])
def test_a_slim_file_answers_bit_by_bit_as_before_and_is_delegated_as_before(
    fat: dict[str, bytes], form: str, names: bool
) -> None:
    small = slim(fat[form], names=names)
    (features, steps), (before, steps_before) = answers(small), answers(fat[form])
    assert (features == before).all() and np.abs(features).max() > 0
    assert steps == steps_before and "DELEGATE" in steps
    assert len(small) < (0.85 if form == "float32" else 0.75) * len(fat[form])


def test_in_tflite_runtime_as_well(fat: dict[str, bytes], tmp_path: Path) -> None:
    if missing := tflite.made():
        pytest.skip(missing)
    np.save(tmp_path / "X.npy", X)
    for form, model in fat.items():
        (tmp_path / f"{form} fat").write_bytes(model)
        (tmp_path / f"{form} slim").write_bytes(slim(model))
    program = """
import sys, pathlib, numpy as np
from tflite_runtime.interpreter import Interpreter
folder, *forms = sys.argv[1:]
def answers(path):
    one = Interpreter(model_content=path.read_bytes(), num_threads=1)
    one.allocate_tensors()
    found = []
    for window in np.load(pathlib.Path(folder) / "X.npy"):
        one.set_tensor(one.get_input_details()[0]["index"], window[None])
        one.invoke()
        found.append(one.get_tensor(one.get_output_details()[0]["index"]).tobytes())
    return found
for form in forms:
    fat, slim = (answers(pathlib.Path(folder) / f"{form} {kind}") for kind in ("fat", "slim"))
    assert fat == slim, form
print("same", len(forms))
"""
    command = [str(tflite.PYTHON), "-I", "-c", program, str(tmp_path), *fat]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout == f"same {len(FORMS)}\n", done.stderr


def test_names_stay_apart(fat: dict[str, bytes]) -> None:
    """Also long ones that begin alike, behind a vector of four bytes."""
    tree: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(fat["float32"]))
    (graph,) = tree.subgraphs
    names = {graph.inputs[0]: b"serving_default_1", graph.outputs[0]: b"serving_default_2"}
    for number, name in names.items():
        graph.tensors[number].name = name
        graph.tensors[number].shape = [5]
    model = slim(bytes(flatbuffer_utils.convert_object_to_bytearray(tree)), names=True)
    found = schema.Model.GetRootAs(model, 0).Subgraphs(0)
    for number in range(found.TensorsLength()):
        assert found.Tensors(number).Name() == names.get(number, b"%d" % number)


def test_it_cannot_be_slimmer_twice(fat: dict[str, bytes]) -> None:
    for model in fat.values():
        assert slim(slim(model)) == slim(model)


def changed(model: bytes, what: str) -> bytes:
    tree: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    (graph,) = tree.subgraphs
    if what == "two graphs":
        tree.subgraphs = [graph, graph]
    elif what == "free shape":
        graph.tensors[graph.inputs[0]].shapeSignature = [-1, *graph.tensors[graph.inputs[0]].shape[1:]]
    elif what == "variable":
        graph.tensors[-1].isVariable = True
    else:
        graph.operators[0].customOptions = [1, 2, 3]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(tree))


@pytest.mark.parametrize("what", ["two graphs", "free shape", "variable", "custom options"])
def test_a_file_that_it_does_not_understand_stays_as_it_is(fat: dict[str, bytes], what: str) -> None:
    model = changed(fat["float32"], what)
    assert slim(model) == model


def test_equal_parts_are_there_once_and_no_name_is_left(fat: dict[str, bytes]) -> None:
    tree = schema.Model.GetRootAs(slim(fat["static per-channel"]), 0)
    graph = tree.Subgraphs(0)
    tensors = [graph.Tensors(k) for k in range(graph.TensorsLength())]
    assert all(tensor.Name() is None for tensor in tensors) and tree.SignatureDefsLength() == 0
    scales = [tensor.Quantization() for tensor in tensors if tensor.Quantization() is not None]
    zeros = {q.ZeroPointAsNumpy().tobytes() for q in scales}
    assert len({q._tab.Vector(q._tab.Offset(10)) for q in scales}) == len(zeros) < len(scales)
    buffers = [tree.Buffers(k).DataAsNumpy() for k in range(1, tree.BuffersLength())]
    assert len({buffer.tobytes() for buffer in buffers}) == len(buffers)


@pytest.mark.parametrize("vectors", [(), VECTORS[:1], VECTORS, (VECTORS[0], (4, 6, 5))])
def test_the_lean_encoder_has_the_same_features(vectors: Any) -> None:
    encoder = trained(vectors)
    found = lean(encoder)
    assert isinstance(found, LeanEncoder) == (vectors != (VECTORS[0], (4, 6, 5)))
    with torch.no_grad():
        for window in torch.from_numpy(X):
            expected = encoder(window[None])
            assert (found(window[None]) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_lean_file_has_half_the_steps_and_the_same_features(fat: dict[str, bytes]) -> None:
    encoder = trained()
    features, steps = answers(slim(litert.to_tflite(encoder, X[0])))
    with torch.no_grad():
        expected = encoder(torch.from_numpy(X)).numpy()
    assert np.abs(features - expected).max() <= 1e-5 * np.abs(expected).max()
    assert len(steps) <= 0.5 * len(answers(fat["float32"])[1]) and "TRANSPOSE" not in steps


def test_the_second_half_of_the_layers_works_in_int8_with_padding_and_shortcut() -> None:
    model = litert.quantise(litert.to_tflite(trained(), X[0]), X, litert.SCHEMES[0])
    tree: Any = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    (graph,) = tree.subgraphs
    kinds = {value: name for name, value in vars(schema.BuiltinOperator).items()}
    in_int8: dict[str, list[bool]] = {"layer": [], "PAD": [], "ADD": []}
    for step in graph.operators:
        kind = kinds[tree.operatorCodes[step.opcodeIndex].builtinCode]
        kind = "layer" if kind in litert.LAYERS else kind
        in_int8.setdefault(kind, []).append(graph.tensors[step.outputs[0]].type == schema.TensorType.INT8)
    assert in_int8["layer"] == [False] * 4 + [True] * 5
    assert in_int8["PAD"] == [False, True] and in_int8["ADD"].count(True) == 1
    stored = [t for t in graph.tensors if tree.buffers[t.buffer].data is not None]
    weights = [t for t in stored if t.type == schema.TensorType.INT8]
    assert len(weights) == 9 and all(len(t.quantization.scale) == 1 for t in weights)


class Doubled(SensorEncoder):
    def forward(self, window: Any) -> Any:
        return 2 * super().forward(window)


@pytest.mark.parametrize(
    "module", [nn.Sequential(nn.Flatten(), nn.Linear(280, 4)), Doubled(7, feature_size=16, width=16)]
)
def test_somebody_elses_network_is_not_rewritten(module: nn.Module) -> None:
    assert lean(module) is module


def test_whatever_fails_on_the_way_is_a_bundle_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the bundle is written without the form."""

    def fail(*_: Any, **__: Any) -> bytes:
        raise ValueError("no such thing")

    for name in ("lean", "slim"):
        with monkeypatch.context() as patch:
            patch.setattr(litert, name, fail)
            with pytest.raises(BundleError, match="no such thing"):
                litert.to_tflite(nn.Sequential(nn.Flatten(), nn.Linear(280, 4)), X[0])
