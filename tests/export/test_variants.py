"""An encoder in other forms is written only when it proved itself, and the float32 one stays as it was."""

from __future__ import annotations

import itertools
from importlib.resources import files
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

import edge_cl.encoders.onnx
from edge_cl import encoders
from edge_cl.bundle import Bundle
from edge_cl.encoders.forms import forms
from edge_cl.errors import BundleError

torch = pytest.importorskip("torch", reason="needs the export extra")
onnx = pytest.importorskip("onnx", reason="needs the export extra")
pytestmark = pytest.mark.torch

from edge_cl_export import int8_onnx, litert, variants  # noqa: E402
from edge_cl_export.freeze import freeze, run_graph, spread  # noqa: E402
from edge_cl_export.pack import fit, pack, split_people  # noqa: E402
from edge_cl_export.train import TrainSettings  # noqa: E402
from edge_cl_export.variants import Windows, add_variants  # noqa: E402
from torch import nn  # noqa: E402

from tests.export.test_training import VECTORS, labelled  # noqa: E402

SOURCE = labelled()
TRAIN, CHECK = split_people(SOURCE, [3])
WINDOWS = Windows(calibration=TRAIN.X[:40], X=CHECK.X, y=CHECK.y)


@pytest.fixture(scope="module")
def fitted() -> Any:
    settings = TrainSettings(feature_size=16, epochs=6, batch=32, lr=1e-2, vectors=VECTORS)
    return fit(SOURCE, [3], settings).encoder


@pytest.fixture(scope="module")
def packed_once(fitted: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("packed") / "b.ecl"
    pack(freeze(fitted, spread(SOURCE.X, 8)), SOURCE, path)
    return path.read_bytes()


@pytest.fixture
def packed(packed_once: bytes, tmp_path: Path) -> Path:
    (tmp_path / "b.ecl").write_bytes(packed_once)
    return tmp_path / "b.ecl"


def test_all_forms_are_added_with_what_they_cost_and_nothing_else_changes(packed: Path, fitted: Any) -> None:
    before = Bundle.load(packed)
    made = add_variants(packed, fitted, WINDOWS)
    assert {str(form) for form in forms(made)} == {
        "onnx float32",
        "onnx int8",
        "tflite float32",
        "tflite int8",
    }
    for name in before.manifest.members:
        assert name == "golden.npz" or made.member(name) == before.member(name)
    for found, kept in zip(made.golden() or (), before.golden() or (), strict=True):
        assert (found == kept).all()
    for variant in made.manifest.variants:
        report = variant.report
        assert (report.n_windows, report.latency_ratio > 0) == (len(CHECK.X), True)
        assert (report.vnni is None) == (variant.precision == "float32")
        if variant.precision == "float32":
            assert (report.agreement, report.max_error <= 1e-4) == (1.0, True)
        else:
            assert report.agreement >= 0.99 and report.max_error > 1e-4
    for form in forms(made):
        runtime = "onnx" if form.format == "onnx" else "litert"
        assert encoders.self_test(encoders.load(made, form, runtime), made) == ""
    again = add_variants(packed, None, WINDOWS)
    assert {v.member for v in again.manifest.variants} == {"encoder.int8.onnx"}, (
        "those of before are replaced"
    )
    assert "encoder.tflite" not in again.manifest.members
    assert any("no .tflite" in why for why in again.manifest.provenance["left_out"])


def worse(model: bytes, amount: float = 2.0) -> bytes:
    """An ONNX graph whose first weights are noise of that size."""
    graph = onnx.load_from_string(model)
    rng = np.random.default_rng(0)
    for tensor in graph.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.int8 and array.ndim > 1:
            noisy = np.clip(array + rng.normal(0, 64 * amount, array.shape), -128, 127).astype(np.int8)
            tensor.CopyFrom(onnx.numpy_helper.from_array(noisy, tensor.name))
    encoded: bytes = graph.SerializeToString()
    return encoded


def test_what_fails_the_gate_is_not_written_and_the_figure_is_said(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = int8_onnx.quantise
    monkeypatch.setattr(int8_onnx, "quantise", lambda *given: worse(good(*given)))
    made = add_variants(packed, None, WINDOWS)
    assert made.manifest.variants == () and "encoder.int8.onnx" not in made.manifest.members
    (why,) = (why for why in made.manifest.provenance["left_out"] if "encoder.int8.onnx" in why)
    assert "agrees with float32 on" in why and "needs 99%" in why


def test_the_next_way_is_tried_when_one_fails(
    packed: Path, fitted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, dynamic = litert.quantise, litert.SCHEMES[-1]

    def one_way(model: bytes, calibration: Any, scheme: litert.Scheme) -> bytes:
        if scheme != dynamic:
            raise BundleError("cannot")
        return good(model, calibration, scheme)

    monkeypatch.setattr(litert, "quantise", one_way)
    made = add_variants(packed, fitted, WINDOWS)
    (scheme,) = (v.scheme for v in made.manifest.variants if v.member == "encoder.int8.tflite")
    assert scheme == dynamic.name == "dynamic range"
    failed = ("static per-tensor", "static per-channel")
    assert made.manifest.provenance["left_out"] == [
        f"no encoder.int8.tflite ({way}): cannot" for way in failed
    ]


def test_what_cannot_be_converted_is_said(packed: Path) -> None:
    class Sorts(nn.Module):
        def forward(self, x: Any) -> Any:
            return torch.linalg.svdvals(x)

    made = add_variants(packed, Sorts(), WINDOWS)
    assert {v.member for v in made.manifest.variants} == {"encoder.int8.onnx"}
    assert any("litert-torch cannot convert" in why for why in made.manifest.provenance["left_out"])


def test_float32_must_be_nearly_the_same() -> None:
    form = forms(Bundle.load(files("edge_cl") / "assets" / "wrist.ecl"))[2]
    assert form.report is not None and variants.failure(form) == ""
    report = msgspec.structs.replace(form.report, max_error=2e-4)
    assert "2.0e-04" in variants.failure(form._replace(report=report))


class Rectified(nn.Module):
    """Four layers; the first rectifier's range begins at 0, so that a quantiser leaves it out."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_in in (6, 8, 8, 8):
            layers += [nn.Conv1d(n_in, 8, 3, padding=1), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Any) -> Any:
        return self.layers(x.transpose(1, 2)).mean(-1)


def test_a_slim_int8_graph_computes_the_same_in_a_third_of_the_bytes_it_saves() -> None:
    torch.manual_seed(0)
    graph = freeze(Rectified().eval(), SOURCE.X[:4])
    small = int8_onnx.quantise(graph, TRAIN.X)
    features, found = run_graph(graph, CHECK.X), run_graph(small, CHECK.X)
    assert np.abs(found - features).max() < 0.05 * np.abs(features).max()
    assert (found >= 0).all(), "a rectifier that was absorbed is back where its layer is float32"
    model = onnx.load_from_string(small)
    onnx.checker.check_model(model, full_check=True)
    assert not model.graph.value_info and not any(node.name for node in model.graph.node)
    quantised = [node for node in model.graph.node if node.op_type == "QuantizeLinear"]
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    weights = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.INT8}
    assert len(convolutions) == 4 and len(weights) >= 4 and quantised
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    assert [made_by.get(node.input[0]) for node in convolutions].count("DequantizeLinear") == 1


class Mean(nn.Module):
    def forward(self, x: Any) -> Any:
        return x.mean(1)


def test_a_graph_without_weights_to_quantise_is_refused() -> None:
    with pytest.raises(BundleError, match="to quantise"):
        int8_onnx.quantise(freeze(Mean(), SOURCE.X[:4]), TRAIN.X)
    model = litert.to_tflite(Mean(), SOURCE.X[0])
    with pytest.raises(BundleError, match="to quantise"):
        litert.quantise(model, TRAIN.X[:2], litert.SCHEMES[-1])


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
def test_an_encoder_that_ends_with_its_weights_can_be_quantised(depth: int) -> None:
    """Also when it ends before the third layer, where the activations are float32 again."""
    torch.manual_seed(0)
    sizes = [SOURCE.X[0].size, 24, 24, 24, 16][: depth + 1]
    layers = [nn.Linear(n, m) for n, m in itertools.pairwise(sizes)]
    graph = freeze(nn.Sequential(nn.Flatten(), *layers).eval(), SOURCE.X[:4])
    features, found = run_graph(graph, CHECK.X), run_graph(int8_onnx.quantise(graph, TRAIN.X), CHECK.X)
    assert 0 < np.abs(found - features).max() < 0.05 * np.abs(features).max()


def test_weights_that_nodes_give_are_quantised_as_well() -> None:
    """As other exporters write them; a norm's too, which is folded."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(SOURCE.X[0].size, 16), nn.BatchNorm1d(16)).eval()
    stored = onnx.load_from_string(freeze(model, SOURCE.X[:4]))
    graph = stored.graph
    if not any(node.op_type == "BatchNormalization" for node in graph.node):  # torch folded it itself
        ones = [onnx.numpy_helper.from_array(np.ones(16, np.float32), name) for name in "sbmv"]
        graph.initializer.extend(ones)
        graph.node[-1].output[0] = "before"
        norm = onnx.helper.make_node("BatchNormalization", ["before", *"sbmv"], [graph.output[0].name])
        graph.node.append(norm)
    given = [onnx.helper.make_node("Constant", [], [t.name], value=t) for t in graph.initializer]
    nodes = [*given, *graph.node]
    for table, rows in ((graph.node, nodes), (graph.initializer, [])):
        del table[:]
        table.extend(rows)
    made = int8_onnx.quantise(stored.SerializeToString(), TRAIN.X)
    features, found = run_graph(stored.SerializeToString(), CHECK.X), run_graph(made, CHECK.X)
    assert np.abs(found - features).max() < 0.05 * np.abs(features).max()
    assert len(made) < 0.5 * len(stored.SerializeToString())


def test_windows_are_judged_some_at_a_time(packed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wide network would take gigabytes for all of them at once."""
    sizes: list[int] = []

    class Watched(edge_cl.encoders.onnx.OnnxEncoder):
        def encode_many(self, windows: Any) -> Any:
            sizes.append(len(windows))
            return super().encode_many(windows)

    monkeypatch.setattr("edge_cl.encoders.onnx.OnnxEncoder", Watched)
    monkeypatch.setattr(variants, "BATCH", 16)
    add_variants(packed, None, WINDOWS)
    assert len(WINDOWS.X) > 16 and 16 in sizes and max(sizes) <= 16


def test_the_command_says_what_it_wrote_and_what_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.export.test_training import recordings_file, run

    (tmp_path / "mine.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(120, 6))\n"
    )
    monkeypatch.chdir(tmp_path)
    options = ["--data", str(recordings_file(tmp_path)), "--train-people", "0-2", "--val-people", "3"]
    result = run(*options, "--model", "mine:build", "-o", str(tmp_path / "out.ecl"))
    assert result.exit_code == 0, result.output
    bundle = Bundle.load(tmp_path / "out.ecl")
    assert "encoder.tflite" in {variant.member for variant in bundle.manifest.variants}
    for variant in bundle.manifest.variants:
        assert variant.member in result.output
    for why in bundle.manifest.provenance["left_out"]:
        assert why in result.output
