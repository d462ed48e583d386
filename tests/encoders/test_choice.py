"""What `edge-cl verify --bench` chose is used where it holds, and never stops a device."""

import json
import logging
import os
import subprocess
from importlib.resources import files
from pathlib import Path

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from edge_cl_fleet import merged

from edge_cl import encoders
from edge_cl.bundle import Bundle, npz_bytes, write_bundle
from edge_cl.cli.verify import verify
from edge_cl.config import settings_from
from edge_cl.encoders import choice as choices
from edge_cl.encoders import measuring
from edge_cl.encoders.choice import (
    Measured,
    is_current,
    misfit,
    read_choice,
    require_writable,
    write_choice,
)
from edge_cl.errors import BundleError, StateUnwritable
from edge_cl.release import encoder_hash
from tests.devices import COMMAND, edge_cl
from tests.worlds import make_bundle

WRIST = files("edge_cl") / "assets" / "wrist.ecl"


def measured(runtime, precision, p50_us, failed=""):
    return Measured(runtime=runtime, precision=precision, p50_us=p50_us, failed=failed, parity=0.0)


SOME = [
    measured("litert", "float32", 40.0),
    measured("litert", "int8", 30.0),
    measured("onnx", "float32", 90.0),
]


@pytest.fixture(scope="module")
def bundle():
    return Bundle.load(WRIST)


@pytest.fixture
def choice():
    return measuring.choose(WRIST, SOME)


def altered(bundle, to, *, members=None, **change):
    manifest = msgspec.structs.replace(bundle.manifest, **change)
    return write_bundle(
        to, manifest, {n: bundle.member(n) for n in bundle.manifest.members} | (members or {})
    )


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        (SOME, ("litert", "int8")),
        ([measured("litert", "float32", 40.0), measured("litert", "int8", 38.5)], ("litert", "float32")),
        ([measured("onnx", "float32", 90.0), measured("onnx", "int8", 50.0, "wrong")], ("onnx", "float32")),
        ([measured("onnx", "float32", 90.0, "crashed"), measured("onnx", "int8", 95.0)], ("onnx", "int8")),
        ([measured("onnx", "float32", 90.0), measured("litert", "float32", 89.0)], ("litert", "float32")),
    ],
)
def test_the_fastest_that_is_right_is_chosen_and_int8_only_where_it_clearly_wins(found, chosen):
    choice = measuring.choose(WRIST, found)
    assert (choice.runtime, choice.precision) == chosen


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        ({"runtime": "onnx"}, ("onnx", "int8", "cpu")),
        ({"precision": "float32"}, ("litert", "float32", "")),
        ({"precision": "int8", "runtime": "onnx"}, ("onnx", "int8", "cpu")),
        ({"provider": "cuda"}, ("onnx", "float32", "cuda")),
        ({"provider": "cpu"}, ("litert", "int8", "")),
    ],
)
def test_what_the_settings_leave_open_is_chosen_among_what_they_allow(asked, chosen):
    found = [
        *SOME[:2],
        *(
            Measured(runtime="onnx", precision=precision, provider=provider, p50_us=p50_us, parity=0.0)
            for precision, provider, p50_us in (
                ("float32", "cpu", 90.0), ("int8", "cpu", 50.0), ("float32", "cuda", 200.0)
            )
        ),
    ]  # fmt: skip
    choice = measuring.choose(WRIST, found, settings_from({"encoder": asked}).encoder)
    assert (choice.runtime, choice.precision, choice.provider) == chosen
    assert measuring.choose(WRIST, found, settings_from({"encoder": {"runtime": "tflite"}}).encoder) is None


def test_other_settings_are_measured_for(tmp_path, monkeypatch):
    config, state = tmp_path / "c.toml", tmp_path / "s"
    words = ["--bench", "--if-changed", "--state", str(state), "--json"]
    runs = []
    monkeypatch.setattr(measuring, "measure", lambda *_, **__: runs.append(1) or SOME)

    def chosen(*more):
        done = CliRunner().invoke(verify, [str(WRIST), *words, *more], catch_exceptions=False)
        return json.loads(done.stdout)["runtime"], len(runs)

    assert chosen() == ("litert", 1) and chosen() == ("litert", 1)
    config.write_text('[encoder]\nruntime = "onnx"\n')
    assert chosen("--config", str(config)) == ("onnx", 2)
    assert chosen("--config", str(config)) == ("onnx", 2)
    config.write_text('[encoder]\nruntime = "tflite"\n')
    with pytest.raises(BundleError, match=r"not what \[encoder\] in the settings names"):
        chosen("--config", str(config))
    assert read_choice(state).runtime == "onnx", "what was chosen before is kept"


def test_a_bundle_that_needs_no_runtime_is_answered_in_json_as_well(tmp_path):
    make_bundle(tmp_path / "b.ecl")
    words = ["--bench", "--state", str(tmp_path / "s"), "--json"]
    done = CliRunner().invoke(verify, [str(tmp_path / "b.ecl"), *words], catch_exceptions=False)
    assert json.loads(done.stdout) == {} and "nothing to choose" in done.stderr


def test_nothing_is_chosen_where_nothing_works():
    assert measuring.choose(WRIST, [measured("onnx", "float32", 0.0, "crashed")]) is None


def test_a_choice_is_used(bundle, choice, caplog):
    caplog.set_level(logging.INFO)
    encoder = encoders.create(bundle, choice=choice)
    assert (encoder.form.format, encoder.form.precision) == ("tflite", "int8")
    assert "as measured here" in caplog.text


def test_settings_go_before_a_choice(bundle, choice):
    settings = settings_from({"encoder": {"precision": "float32"}}).encoder
    assert encoders.create(bundle, settings, choice).form.precision == "float32"
    settings = settings_from({"encoder": {"runtime": "onnx"}}).encoder
    assert encoders.create(bundle, settings, choice).form.format == "onnx"
    settings = settings_from({"encoder": {"runtime": "litert"}}).encoder
    assert encoders.create(bundle, settings, choice).form.precision == "int8", (
        "what they leave open is chosen"
    )


def test_it_holds_for_another_bundle_with_the_same_encoder(bundle, choice, tmp_path):
    """A merge keeps every variant: the devices that take it go on with the same features."""
    made, _ = merged.write(tmp_path / "merged.ecl", bundle, [])
    assert made.bundle_id != bundle.bundle_id and made.manifest.variants == bundle.manifest.variants
    assert encoder_hash(made) == encoder_hash(bundle)
    assert misfit(choice, made, 1) == "" and not is_current(choice, made, 1)
    assert encoders.create(made, choice=choice).form.precision == "int8"


def test_it_does_not_hold_for_another_encoder_version_machine_or_number_of_threads(
    bundle, choice, tmp_path, monkeypatch
):
    other = altered(bundle, tmp_path / "b.ecl", members={"encoder.onnx": bundle.member("encoder.int8.onnx")})
    assert "another encoder" in misfit(choice, other, 1)
    without = altered(bundle, tmp_path / "c.ecl", variants=())
    assert "another encoder" in misfit(choice, without, 1)
    assert "threads" in misfit(choice, bundle, 2)
    assert is_current(choice, bundle, 1)
    versions = {**choice.versions, "litert": "1.0"}
    assert "litert 1.0" in misfit(msgspec.structs.replace(choice, versions=versions), bundle, 1)
    versions = {**choice.versions, "onnx": "1.0"}
    onnx_was_updated = msgspec.structs.replace(choice, versions=versions)
    assert misfit(onnx_was_updated, bundle, 1) == "" and not is_current(onnx_was_updated, bundle, 1)
    monkeypatch.setattr(choices, "machine", lambda: {"arch": "aarch64"})
    assert "aarch64" in misfit(choice, bundle, 1)


def test_one_that_fails_its_self_test_falls_back_to_float32_with_a_warning(bundle, choice, tmp_path, caplog):
    inputs, features = bundle.golden()
    _, of_int8 = bundle.golden("tflite_int8")
    golden = npz_bytes(inputs=inputs, features=features, onnx_int8=features, tflite_int8=of_int8 + 1)
    wrong = altered(bundle, tmp_path / "b.ecl", members={"golden.npz": golden})
    assert encoders.create(wrong, choice=choice).form.precision == "float32"
    assert "features differ from the exporter's" in caplog.text and "verify --bench" in caplog.text


def test_one_whose_golden_features_are_missing_falls_back(bundle, choice, tmp_path, caplog):
    inputs, features = bundle.golden()
    lean = altered(
        bundle, tmp_path / "b.ecl", members={"golden.npz": npz_bytes(inputs=inputs, features=features)}
    )
    assert encoders.create(lean, choice=choice).form.precision == "float32"
    assert "tflite_int8" in caplog.text


def test_one_whose_runtime_is_gone_falls_back(bundle, choice, monkeypatch, caplog):
    installed = choices.installed_versions()
    del installed["litert"]
    monkeypatch.setattr(choices, "installed_versions", lambda: installed)
    assert encoders.create(bundle, choice=choice).form.precision == "float32"
    assert "litert none" in caplog.text


def test_a_choice_survives_the_disk_and_a_damaged_one_is_none(choice, tmp_path, caplog):
    write_choice(tmp_path, choice)
    assert read_choice(tmp_path) == choice
    unknown = (tmp_path / choices.FILE).read_bytes().replace(b'"litert"', b'"other"')
    for damaged in (b"", b"{", b"[]", b'{"format": "other"}', unknown, b"\xff\xfe"):
        (tmp_path / choices.FILE).write_bytes(damaged)
        assert read_choice(tmp_path) is None
    assert "verify --bench" in caplog.text
    assert read_choice(tmp_path / "nowhere") is None


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user, too")


@needs_root
@pytest.mark.parametrize("state", ["s", "s/below"])
def test_a_folder_that_is_not_ours_is_told_before_anything_is_measured(tmp_path_factory, state):
    base = tmp_path_factory.mktemp("b")
    base.chmod(0o755)
    (base / "s").mkdir(mode=0o700)
    if (child := os.fork()) == 0:
        os.chroot(base)  # the folders above it are not for others either
        os.setresuid(65534, 65534, 65534)
        try:
            require_writable(Path("/", state))
        except StateUnwritable as error:
            os._exit(0 if "Permission denied" in str(error) and "--state" in str(error) else 2)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    require_writable(base / state)


def test_a_choice_that_cannot_be_written_is_told(choice, tmp_path):
    (tmp_path / "s").write_text("a file")
    with pytest.raises(StateUnwritable, match=r"encoder.json: cannot be written"):
        write_choice(tmp_path / "s", choice)


def test_the_command_measures_chooses_writes_and_does_not_do_it_twice(tmp_path):
    state = tmp_path / "s"
    done = edge_cl("verify", WRIST, "--bench", "--state", state, "--windows", 20, "--json")
    assert done.returncode == 0, done.stderr
    choice = json.loads(done.stdout)
    assert choice == json.loads((state / "encoder.json").read_text())
    kinds = {(one["runtime"], one["precision"]) for one in choice["measured"]}
    assert kinds >= {(r, p) for r in ("onnx", "litert") for p in ("float32", "int8")}
    for one in choice["measured"]:
        if not one.get("failed"):
            assert one["parity"] < encoders.GOLDEN_TOLERANCE and 0 < one["p50_us"] <= one["p99_us"]
            assert 20 < one["resident_mb"] < 200

    choice["measured"] = []
    (state / "encoder.json").write_text(json.dumps(choice))
    again = edge_cl("verify", WRIST, "--bench", "--state", state, "--if-changed", "--json")
    assert json.loads(again.stdout)["measured"] == [], "it was measured again"

    X = np.random.default_rng(0).normal(size=(3, 100, 6)).round(3).tolist()
    lines = "".join(json.dumps({"t": k, "id": f"r{k}", "window": x}) + "\n" for k, x in enumerate(X))
    run = edge_cl("run", WRIST, "--state", state, stdin=lines.encode())
    assert run.returncode == 0 and run.stdout.count('"decision"') == 3
    assert f"{choice['precision']} in {choice['runtime']}" in run.stderr and "as measured here" in run.stderr


def test_a_process_that_crashes_takes_nothing_along(bundle, monkeypatch):
    form = encoders.forms(bundle)[0]
    monkeypatch.setattr(measuring.sys, "executable", "/bin/false")
    found = measuring._in_a_process(WRIST, form, "onnx", "cpu", (1, 10), 60)
    assert found.failed.startswith("its process ended with 1")
    monkeypatch.setattr(measuring.sys, "executable", "/nowhere/python")
    found = measuring._in_a_process(WRIST, form, "onnx", "cpu", (1, 10), 60)
    assert "No such file" in found.failed


def test_a_runtime_that_dies_when_it_is_imported_leaves_the_others(tmp_path, monkeypatch):
    """As onnxruntime 1.21 on a Raspberry Pi 4."""
    (tmp_path / "onnxruntime.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGILL)\n")
    path = f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    environment = {**os.environ, "PYTHONPATH": path}
    command = [*COMMAND, "verify", WRIST, "--bench", "--state", tmp_path / "s", "--windows", "10", "--json"]
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done
    choice = json.loads(done.stdout)
    assert choice["runtime"] == "litert"
    onnx = [one["failed"] for one in choice["measured"] if one["runtime"] == "onnx"]
    assert len(onnx) == 2 and all("ended with -4" in why for why in onnx)


def test_a_runtime_that_hangs_does_not_keep_a_service_from_starting(monkeypatch, tmp_path):
    """It is waited for once; then there is an answer before systemd loses its patience."""
    hangs = tmp_path / "python"
    hangs.write_text(f"#!/bin/sh\necho once >> {tmp_path}/started\nexec sleep 100\n")
    hangs.chmod(0o755)
    monkeypatch.setattr(measuring.sys, "executable", str(hangs))
    found = measuring.measure(WRIST, patience=measuring.Patience(0.2))
    assert len(found) > 2 and all("no answer" in one.failed for one in found)
    assert len((tmp_path / "started").read_text().split()) <= len(found) + 1
    found = measuring.measure(WRIST, patience=measuring.Patience(0.2, 0.5))
    assert "no answer" in found[0].failed and "no time was left" in found[-1].failed


def test_all_patience_at_a_start_is_less_than_systemds():
    unit = (Path(__file__).parents[2] / "device/systemd/edge-cl.service").read_text()
    timeout_s = int(unit.partition("TimeoutStartSec=")[2].split()[0])
    assert "OOMPolicy=continue" in unit, "else one measured runtime that needs too much ends the service"
    assert "--bench --if-changed" in unit and measuring.AT_START.all_s < timeout_s - 60
