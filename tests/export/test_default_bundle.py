"""The bundle that comes with the package is the one that `make assets` makes."""

from importlib.resources import files

import numpy as np
import pytest

from edge_cl.bundle import Bundle
from edge_cl.encoders import create, golden_error

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SHIPPED = files("edge_cl") / "assets" / "wrist.ecl"


def test_the_shipped_bundle_is_small_and_computes_here_what_it_did_there():
    assert SHIPPED.stat().st_size <= 500_000
    bundle = Bundle.load(SHIPPED)
    assert golden_error(create(bundle), bundle) <= 1e-4
    assert bundle.manifest.provenance["metrics"]["validation_accuracy"] > 0.95


def test_the_shipped_bundle_has_every_form_of_its_encoder_and_a_third_of_the_bytes_in_int8():
    manifest = Bundle.load(SHIPPED).manifest
    schemes = {variant.member: variant.scheme for variant in manifest.variants}
    assert schemes == {
        "encoder.int8.onnx": "static per-channel",
        "encoder.tflite": "",
        "encoder.int8.tflite": "static per-tensor",
    }
    sizes = {name: member.size for name, member in manifest.members.items()}
    assert sizes["encoder.int8.onnx"] * 3 <= sizes["encoder.onnx"]
    assert sizes["encoder.int8.tflite"] <= 0.36 * sizes["encoder.tflite"] < 20_000
    assert manifest.provenance["left_out"] == []


@pytest.mark.slow
def test_making_it_again_gives_the_same_encoder(tmp_path):
    from click.testing import CliRunner
    from edge_cl_export.default_bundle import make

    made = CliRunner().invoke(make, [str(tmp_path / "wrist.ecl")], catch_exceptions=False)
    assert made.exit_code == 0, made.output
    again, shipped = Bundle.load(tmp_path / "wrist.ecl"), Bundle.load(SHIPPED)
    inputs, features = shipped.golden()
    found = create(again).encode_many(inputs)
    np.testing.assert_allclose(found, features, atol=1e-3 * np.abs(features).max())
    assert again.manifest.class_names == shipped.manifest.class_names
