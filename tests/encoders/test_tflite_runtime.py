"""tflite-runtime, in an interpreter of its own: the encoder, the choice and a run with a label."""

from __future__ import annotations

import json
import os
import subprocess
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from edge_cl.bundle import Bundle
from edge_cl.encoders import GOLDEN_TOLERANCE

WRIST = files("edge_cl") / "assets" / "wrist.ecl"
ROOT = Path(__file__).parents[2]


def edge_cl(python: str, *words: object, stdin: str = "") -> Any:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "edge_cl", *map(str, words)]
    return subprocess.run(
        command, input=stdin, env=environment, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_self_test_passes_and_the_runtime_is_said(tflite_python):
    done = edge_cl(tflite_python, "verify", WRIST)
    assert done.returncode == 0, done.stderr
    assert "features equal the exporter's" in done.stdout


def test_it_is_measured_and_chosen(tflite_python, tmp_path):
    done = edge_cl(tflite_python, "verify", WRIST, "--bench", "--state", tmp_path, "--windows", 20, "--json")
    assert done.returncode == 0, done.stderr
    choice = json.loads(done.stdout)
    assert {one["runtime"] for one in choice["measured"]} == {"tflite"}
    by_precision = {one["precision"]: one for one in choice["measured"]}
    assert by_precision["float32"]["parity"] < GOLDEN_TOLERANCE and not by_precision["float32"]["failed"]
    assert choice["versions"]["numpy"].startswith("1.")


def test_a_device_runs_on_it_and_answers_as_in_another_runtime(tflite_python, tmp_path):
    windows, _ = Bundle.load(WRIST).golden()
    lines = [{"t": float(k), "id": f"r{k}", "window": x.round(4).tolist()} for k, x in enumerate(windows)]
    lines.append({"label": "typing", "reading_id": "r1"})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    here = edge_cl(os.sys.executable, "run", WRIST, "--state", tmp_path / "a", stdin=text)
    there = edge_cl(tflite_python, "run", WRIST, "--state", tmp_path / "b", stdin=text)
    assert there.returncode == 0 and "in tflite" in there.stderr, there.stderr
    found = [[json.loads(line) for line in done.stdout.splitlines()] for done in (here, there)]
    assert len(found[0]) == len(windows) + 1
    for one, other in zip(*found, strict=True):
        assert one["type"] == other["type"] and one.get("label") == other.get("label")
        if one["type"] == "decision":
            np.testing.assert_allclose(one["confidence"], other["confidence"], atol=1e-3)
