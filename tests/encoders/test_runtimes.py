"""An encoder gives the same features in every runtime, and what is not to be had is named."""

import subprocess
import sys
from importlib.resources import files

import msgspec
import numpy as np
import pytest

from edge_cl import encoders
from edge_cl.bundle import Bundle, npz_bytes, write_bundle
from edge_cl.config import settings_from
from edge_cl.encoders.forms import RUNTIMES, Form, forms
from edge_cl.errors import BundleError

WRIST = files("edge_cl") / "assets" / "wrist.ecl"
HERE = ("onnx", "litert")
"""The third needs an interpreter of its own: test_tflite_runtime.py."""


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load(WRIST)


def asked(**options):
    return settings_from({"encoder": options}).encoder


def of_format(bundle, runtime):
    return [form for form in forms(bundle) if form.format == RUNTIMES[runtime].format]


def test_the_default_bundle_has_every_form(bundle):
    assert [str(form) for form in forms(bundle)] == [
        "onnx float32",
        "onnx int8",
        "tflite float32",
        "tflite int8",
    ]
    assert not any(form.shortfall for form in forms(bundle))


@pytest.mark.parametrize("runtime", HERE)
def test_each_form_gives_what_the_exporter_had(bundle, runtime):
    inputs, features = bundle.golden()
    for form in of_format(bundle, runtime):
        encoder = encoders.load(bundle, form, runtime)
        assert encoders.self_test(encoder, bundle) == ""
        many = encoder.encode_many(inputs)
        assert many.shape == features.shape and many.dtype == np.float32
        if form.precision == "float32":
            assert np.abs(many - features).max() <= 1e-4 * np.abs(features).max()
            np.testing.assert_allclose(encoder.encode(inputs[3]), many[3], atol=1e-5)
        else:
            assert np.abs(many - features).max() > 1e-3, "int8 that is float32 would pass as well"


@pytest.mark.parametrize("runtime", HERE)
def test_a_window_of_another_shape_is_the_callers_mistake(bundle, runtime):
    encoder = encoders.create(bundle, asked(runtime=runtime))
    with pytest.raises(ValueError, match="the bundle wants"):
        encoder.encode(np.zeros((99, 6), np.float32))


@pytest.mark.parametrize("runtime", HERE)
def test_a_feature_is_not_overwritten_by_the_next(bundle, runtime):
    encoder = encoders.create(bundle, asked(runtime=runtime))
    inputs, _ = bundle.golden()
    first = encoder.encode(inputs[0])
    kept = first.copy()
    encoder.encode(inputs[1])
    assert (first == kept).all()


@pytest.mark.parametrize("runtime", HERE)
@pytest.mark.parametrize("model", [b"", b"no model", b"\x1c\0\0\0TFL3" + bytes(40)])
def test_what_is_no_model_is_refused(bundle, runtime, model):
    with pytest.raises(BundleError):
        encoders.load_model(model, of_format(bundle, runtime)[0], runtime, bundle.manifest)


@pytest.mark.parametrize(
    ("runtime", "change"),
    [  # an ONNX graph that pools over time takes windows of any length
        ("litert", {"window_samples": 50}),
        ("litert", {"feature_size": 32}),
        ("onnx", {"feature_size": 32}),
    ],
)
def test_a_model_of_another_shape_than_the_manifest_is_refused(bundle, runtime, change):
    manifest = msgspec.structs.replace(bundle.manifest, **change)
    form = of_format(bundle, runtime)[0]
    with pytest.raises(BundleError, match=r"32|50"):
        encoders.load_model(bundle.member(form.member), form, runtime, manifest)


def test_damaged_bytes_of_a_variant_never_reach_a_runtime(bundle, tmp_path):
    data = bytearray(WRIST.read_bytes())
    data[data.index(b"TFL3") + 400] ^= 1
    (tmp_path / "damaged.ecl").write_bytes(data)
    with pytest.raises(BundleError, match="copy it again"):
        Bundle.load(tmp_path / "damaged.ecl")


def test_a_variant_without_its_member_is_refused(bundle, tmp_path):
    members = {name: bundle.member(name) for name in bundle.manifest.members if "tflite" not in name}
    with pytest.raises(BundleError, match=r"variant 'encoder.tflite'"):
        write_bundle(tmp_path / "b.ecl", bundle.manifest, members)


def test_what_is_named_is_what_runs(bundle):
    for runtime in HERE:
        for precision in ("float32", "int8"):
            encoder = encoders.create(bundle, asked(runtime=runtime, precision=precision))
            assert encoder.form == next(f for f in of_format(bundle, runtime) if f.precision == precision)
            assert type(encoder).__name__.lower().startswith(runtime)
    assert encoders.create(bundle, asked(precision="int8")).form.precision == "int8"
    assert encoders.create(bundle).form.precision == "float32"


def test_a_form_that_the_bundle_lacks_is_answered_with_those_it_has(bundle, tmp_path):
    manifest = msgspec.structs.replace(bundle.manifest, variants=())
    lean = write_bundle(tmp_path / "b.ecl", manifest, {n: bundle.member(n) for n in bundle.manifest.members})
    with pytest.raises(BundleError, match="it has onnx float32: set"):
        encoders.create(lean, asked(runtime="litert"))
    with pytest.raises(BundleError, match="no int8 encoder"):
        encoders.create(lean, asked(precision="int8"))


@pytest.mark.parametrize(
    ("runtime", "module", "cure"),
    [
        ("onnx", "onnxruntime", r"edge-cl\[onnx\].*onnxruntime-gpu"),
        ("litert", "ai_edge_litert.interpreter", r"edge-cl\[litert\]"),
    ],
)
def test_a_missing_runtime_names_its_extra(bundle, monkeypatch, runtime, module, cure):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(BundleError, match=cure):
        encoders.create(bundle, asked(runtime=runtime))


def test_tflite_runtime_with_numpy_2_names_the_cure(bundle):
    assert np.__version__ >= "2"
    with pytest.raises(BundleError, match="numpy<2"):
        encoders.create(bundle, asked(runtime="tflite"))


def test_without_any_runtime_all_are_named(bundle, monkeypatch):
    monkeypatch.setattr(encoders, "is_installed", lambda runtime: False)
    with pytest.raises(BundleError, match=r"edge-cl\[litert\].*edge-cl\[tflite\].*edge-cl\[onnx\].*Jetson"):
        encoders.create(bundle)


def test_a_runtime_that_is_broken_is_passed_over_with_a_warning(bundle, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    encoder = encoders.create(bundle)
    assert encoder.form.format == "onnx" and encoder.running_on == "CPU"
    assert "ai-edge-litert" in caplog.text


def with_golden(bundle, to, **golden):
    members = {name: bundle.member(name) for name in bundle.manifest.members}
    inputs, features = bundle.golden()
    members["golden.npz"] = npz_bytes(**{"inputs": inputs, "features": features, **golden})
    return write_bundle(to, bundle.manifest, members)


def test_a_runtime_that_is_wrong_here_is_passed_over_with_a_warning(bundle, monkeypatch, caplog):
    from edge_cl.encoders.litert import LiteRTEncoder

    right = LiteRTEncoder.encode
    monkeypatch.setattr(LiteRTEncoder, "encode", lambda self, window: 1.01 * right(self, window))
    encoder = encoders.create(bundle)
    assert encoder.form.format == "onnx"
    assert "tflite float32 in litert: features differ from the exporter's by 1.0e-02" in caplog.text


def test_where_none_is_right_a_device_goes_on_and_says_so(bundle, tmp_path, caplog):
    _, features = bundle.golden()
    wrong = with_golden(bundle, tmp_path / "b.ecl", features=features + 1)
    assert encoders.create(wrong).form.precision == "float32"
    assert "no encoder of bundle 'wrist' is right here; tflite float32 is used" in caplog.text
    assert caplog.text.count("features differ") == 2
    caplog.clear()
    lacks = with_golden(bundle, tmp_path / "c.ecl")
    assert encoders.create(lacks, asked(precision="int8")).form.precision == "int8"
    assert "golden.npz lacks inputs or tflite_int8" in caplog.text
    caplog.clear()
    encoders.create(bundle, asked(precision="int8"))
    assert not caplog.text


def test_a_provider_that_is_not_here_is_told_with_those_that_are(bundle):
    with pytest.raises(BundleError, match=r"'cuda'.*only has \['cpu'\]"):
        encoders.create(bundle, asked(provider="cuda"))


def test_only_the_runtime_that_is_used_is_imported():
    code = (
        "import sys; from edge_cl import encoders; from edge_cl.bundle import Bundle; "
        f"encoders.create(Bundle.load({str(WRIST)!r})); "
        "print(*(name for name in ('onnxruntime', 'ai_edge_litert') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["ai_edge_litert"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"agreement": 0.98}, "98.00%"),
        ({"accuracy_loss_points": 0.6}, "0.60 points"),
        (None, "nobody measured"),
    ],
)
def test_int8_without_a_good_report_falls_short(bundle, change, says):
    form = forms(bundle)[1]
    report = None if change is None else msgspec.structs.replace(form.report, **change)
    assert says in form._replace(report=report).shortfall
    assert Form("onnx", "float32", "m", "g").shortfall == ""
