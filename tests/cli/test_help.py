"""What the command line says about itself, and that it loads no more than it needs."""

import json
import subprocess
import sys

import pytest

from edge_cl.bundle import Bundle
from edge_cl.cli import cli
from tests.devices import COMMAND, ENVIRONMENT, answers, edge_cl, jsonl

WRIST = "edge_cl/assets/wrist.ecl"
HEAVY = {"torch", "matplotlib", "rich", "amqtt", "onnx", "edge_cl_export"}


def test_help_lists_every_command():
    done = edge_cl("--help")
    assert done.returncode == 0
    for name in ("bench", "data", "heads", "install", "label", "run", "simulate", "status", "verify"):
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize(
    "name", ["bench", "data", "heads", "install", "label", "run", "simulate", "status", "verify"]
)
def test_every_command_has_help(name):
    command = cli.get_command(None, name)
    with command.make_context(name, [], resilient_parsing=True) as context:
        text = command.get_help(context)
    assert "Usage: " in text and len(command.get_short_help_str(200)) > 20


def test_an_unknown_command_or_option_is_named():
    command = edge_cl("rum")
    assert command.returncode == 2 and "No such command 'rum'" in command.stderr
    option = edge_cl("run", WRIST, "--stat", "x")
    assert option.returncode == 2 and "--state" in option.stderr


def test_the_version():
    assert edge_cl("--version").stdout.strip().endswith("0.1.0")


def test_run_on_the_default_bundle_loads_nothing_heavy(tmp_path):
    manifest = Bundle.load(WRIST).manifest
    n = manifest.window_samples
    block = {"t": [k / manifest.rate_hz for k in range(n)], "x": [[0.0, 0, 9.8, 0, 0, 0]] * n}
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], "run", WRIST, "--state", str(tmp_path / "s")]
    done = subprocess.run(
        command, input=jsonl([block]), capture_output=True, env=ENVIRONMENT, timeout=60, check=True
    )
    decision = answers(done.stdout.decode(), "decision")[0]
    assert decision["label"] in manifest.class_names
    assert sum(decision["scores"].values()) == pytest.approx(1, abs=0.05)
    imported = {line.split("|")[-1].strip() for line in done.stderr.decode().splitlines() if "|" in line}
    packages = {name.partition(".")[0] for name in imported}
    assert packages & {"onnxruntime", "ai_edge_litert", "tflite_runtime"} == {"ai_edge_litert"}
    assert not packages & HEAVY
    assert not packages & {"paho", "ssl"}, "no MQTT was asked for"


def test_learning_loads_no_masked_arrays(tmp_path):
    """`numpy.ma` is 1 MB, and one call of `np.unique` brings it."""
    manifest = Bundle.load(WRIST).manifest
    n = manifest.window_samples
    blocks = [
        {
            "t": [(k * n + j) / manifest.rate_hz for j in range(n)],
            "x": [[0.1 * k, j % 7, 9.8, 0, 0, 0] for j in range(n)],
            "label": manifest.class_names[k % 2],
        }
        for k in range(12)
    ]
    command = [sys.executable, "-X", "importtime", *COMMAND[1:], "run", WRIST, "--state", str(tmp_path / "s")]
    done = subprocess.run(
        command, input=jsonl(blocks), capture_output=True, env=ENVIRONMENT, timeout=60, check=True
    )
    assert len(answers(done.stdout.decode(), "receipt")) >= 12
    imported = {line.split("|")[-1].strip() for line in done.stderr.decode().splitlines() if "|" in line}
    assert "numpy.lib" in imported and "numpy.ma" not in imported


@pytest.mark.parametrize("command", [["run", "--help"], ["status", "--help"], ["simulate", "--help"]])
def test_help_is_quick(command):
    code = (
        "import sys, json; from edge_cl.cli import cli\n"
        f"try: cli.main({command!r})\nexcept SystemExit: pass\n"
        "sys.stderr.write(json.dumps(sorted(m for m in sys.modules if '.' not in m)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=ENVIRONMENT, check=True)
    assert not set(json.loads(done.stderr)) & (HEAVY | {"onnxruntime"})
