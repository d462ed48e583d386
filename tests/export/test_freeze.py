from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_cl.errors import BundleError, ConfigError

torch = pytest.importorskip("torch", reason="needs the export extra")
onnx = pytest.importorskip("onnx", reason="needs the export extra")
pytestmark = pytest.mark.torch

from edge_cl_export.encoders import SensorEncoder  # noqa: E402
from edge_cl_export.freeze import check_parity, freeze, run_graph  # noqa: E402
from edge_cl_export.sources import from_factory, from_onnx, from_program  # noqa: E402
from torch import nn  # noqa: E402

WINDOWS = np.random.default_rng(0).normal(size=(5, 24, 6)).astype(np.float32)
VECTORS = ((0, 1, 2), (3, 4, 5))


class Tiny(nn.Module):
    """Features, then a classifier on top of them."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(24 * 6, 5)
        self.outer = nn.Linear(5, 3)

    def features(self, x: Any) -> Any:
        return torch.relu(self.inner(x.flatten(1)))

    def forward(self, x: Any) -> Any:
        return self.outer(self.features(x))


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return Tiny().eval()


def test_the_frozen_encoder_takes_raw_units_and_any_batch() -> None:
    torch.manual_seed(0)
    encoder = SensorEncoder(6, feature_size=16, width=8, vectors=VECTORS)
    encoder.fit_normalisation(torch.from_numpy(WINDOWS * 50 + 7))
    raw = WINDOWS * 50 + 7
    graph = freeze(encoder, raw)
    with torch.no_grad():
        expected = encoder.eval()(torch.from_numpy(raw)).numpy()
    for n in (1, 2, 5):
        np.testing.assert_allclose(run_graph(graph, raw[:n]), expected[:n], atol=1e-4)
    model = onnx.load_from_string(graph)
    assert [value.name for value in model.graph.input] == ["window"]
    assert [value.name for value in model.graph.output] == ["feature"]
    assert not any(tensor.external_data for tensor in model.graph.initializer)


def test_a_frozen_graph_names_no_file_of_the_exporting_machine() -> None:
    graph = freeze(tiny(), WINDOWS)
    assert b".py" not in graph
    assert str(Path(__file__).parent).encode() not in graph


def test_a_model_that_does_not_give_one_row_per_window_is_refused() -> None:
    with pytest.raises(BundleError, match=r"\(5, 24, 6\)"):
        freeze(nn.Identity(), WINDOWS)


def test_a_model_that_cannot_be_exported_is_refused() -> None:
    class Branching(nn.Module):
        def forward(self, x: Any) -> Any:
            return x.mean(1) if x.sum().item() > 0 else x.amax(1)

    with pytest.raises(BundleError, match="torch cannot export"):
        freeze(Branching(), WINDOWS)


def test_parity_catches_a_graph_of_other_weights() -> None:
    model = tiny()
    graph = freeze(model, WINDOWS)
    with torch.no_grad():
        expected = model(torch.from_numpy(WINDOWS)).numpy()
    check_parity(graph, WINDOWS, expected)
    with pytest.raises(BundleError, match="differs from the model"):
        check_parity(graph, WINDOWS, expected + 1e-3)


def test_a_factory_is_found_and_a_wrong_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_encoder.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Flatten()\ndef wrong():\n    return 3\n"
    )
    monkeypatch.chdir(tmp_path)
    assert isinstance(from_factory("my_encoder:build"), nn.Flatten)
    for spec, says in (
        ("my_encoder", "module:factory"),
        ("my_encoder:none", "cannot be imported"),
        ("no_such_module:build", "cannot be imported"),
        ("my_encoder:wrong", "returned int"),
    ):
        with pytest.raises(ConfigError, match=says):
            from_factory(spec)


def test_an_exported_program_freezes_like_its_module(tmp_path: Path) -> None:
    model, window = tiny(), torch.from_numpy(WINDOWS)
    path = tmp_path / "program.pt2"
    program = torch.export.export(model, (window,), dynamic_shapes=({0: torch.export.Dim("n")},))
    torch.export.save(program, path)
    graph = freeze(from_program(path), WINDOWS)
    with torch.no_grad():
        np.testing.assert_allclose(run_graph(graph, WINDOWS), model(window).numpy(), atol=1e-5)


def test_a_program_with_a_fixed_batch_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fixed.pt2"
    torch.export.save(torch.export.export(tiny(), (torch.from_numpy(WINDOWS),)), path)
    with pytest.raises(BundleError):
        freeze(from_program(path), WINDOWS)


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt2").write_bytes(b"nothing")
    with pytest.raises(BundleError, match="not a program"):
        from_program(tmp_path / "x.pt2")


def onnx_file(folder: Path, *, dynamic: bool = True) -> tuple[Path, str, Any]:
    """A classifier as ONNX, the name of its inner feature, and that feature's values."""
    model, window = tiny(), torch.from_numpy(WINDOWS if dynamic else WINDOWS[:1])
    path = folder / "model.onnx"
    shapes = {"dynamic_shapes": ({0: torch.export.Dim("n")},)} if dynamic else {}
    torch.onnx.export(model, (window,), path, dynamo=True, external_data=False, verbose=False, **shapes)
    relu = next(node for node in onnx.load(path).graph.node if node.op_type == "Relu")
    with torch.no_grad():
        return path, relu.output[0], model.features(torch.from_numpy(WINDOWS)).numpy()


def test_an_onnx_file_is_cut_at_the_named_tensor(tmp_path: Path) -> None:
    path, name, expected = onnx_file(tmp_path)
    graph = from_onnx(path, name, WINDOWS)
    np.testing.assert_allclose(run_graph(graph, WINDOWS), expected, atol=1e-5)
    assert [value.name for value in onnx.load_from_string(graph).graph.output] == ["feature"]


def test_a_declared_batch_of_one_is_freed_and_a_built_in_one_refused(tmp_path: Path) -> None:
    window = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 24, 6])
    mean = onnx.helper.make_tensor_value_info("mean", onnx.TensorProto.FLOAT, [1, 6])
    node = onnx.helper.make_node("GlobalAveragePool", ["swapped"], ["pooled"])
    nodes = [
        onnx.helper.make_node("Transpose", ["x"], ["swapped"], perm=[0, 2, 1]),
        node,
        onnx.helper.make_node("Flatten", ["pooled"], ["mean"]),
    ]
    graph = onnx.helper.make_graph(nodes, "pool", [window], [mean])
    path = tmp_path / "pool.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), path)
    np.testing.assert_allclose(
        run_graph(from_onnx(path, "mean", WINDOWS), WINDOWS), WINDOWS.mean(1), atol=1e-5
    )
    with pytest.raises(BundleError, match="after pooling or flattening"):
        from_onnx(path, "swapped", WINDOWS)
    fixed, name, _ = onnx_file(tmp_path, dynamic=False)
    with pytest.raises(BundleError, match="for any n"):
        from_onnx(fixed, name, WINDOWS)


def test_a_wrong_tensor_or_shape_or_file_is_named(tmp_path: Path) -> None:
    path, name, _ = onnx_file(tmp_path)
    with pytest.raises(BundleError, match=f"no tensor 'nowhere'.*{name}"):
        from_onnx(path, "nowhere", WINDOWS)
    with pytest.raises(BundleError, match="windows of shape"):
        from_onnx(path, name, WINDOWS[:, :, :4])
    (tmp_path / "bad.onnx").write_bytes(b"\x00\x01nonsense")
    with pytest.raises(BundleError, match="not a readable ONNX"):
        from_onnx(tmp_path / "bad.onnx", name, WINDOWS)
