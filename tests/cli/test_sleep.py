"""``edge-cl sleep`` against a device that really runs, or ran."""

import json

import pytest

from tests.devices import Device, edge_cl, windows
from tests.worlds import make_bundle


@pytest.fixture
def bundle(tmp_path):
    make_bundle(tmp_path / "b.ecl")
    return tmp_path / "b.ecl"


def test_a_running_device_sleeps_when_asked_then_a_stopped_one(tmp_path, bundle):
    state = tmp_path / "s"
    (tmp_path / "c.toml").write_text("[sleep]\nidle_s = 3600  # only when it is asked\n")
    with Device(bundle, state, "--config", tmp_path / "c.toml") as device:
        device.send(*windows(60, labelled=True))
        device.wait_for("receipt", reading_id="r59")
        before = edge_cl("sleep", "status", "--state", state)
        assert "60 labels" in before.stdout and "not slept yet" in before.stdout
        assert "not slept yet" in edge_cl("sleep", "history", "--state", state).stdout

        asleep = edge_cl("sleep", "now", "--state", state, "--json")
        assert asleep.returncode == 0, asleep.stderr
        report = json.loads(asleep.stdout)
        assert report["n_sleep"] == 1 and report["cause"] == "asked" and report["n_steps"] > 0
        assert set(report["by_class"]) == {"rest", "walk", "run", "climb"}
        assert report["began_s"] > 1.7e9 and report["held_bytes"] > 0 and report["cpu_s"] > 0
        assert device.wait_for("sleep")["n_sleep"] == 1
        assert device.finish() == 0

    status = edge_cl("sleep", "status", "--state", state).stdout
    assert "stopped" in status and "held-back exemplars" in status and "climb: " in status
    refused = edge_cl("sleep", "now", "--state", state)
    assert refused.returncode == 1 and "--bundle" in refused.stderr
    again = edge_cl("sleep", "now", "--state", state, "--bundle", bundle)
    assert again.returncode == 0 and again.stdout.startswith("sleep      2, because: asked")
    lines = edge_cl("sleep", "history", "--state", state).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["1", "2"] and all("asked" in line for line in lines)
    [last] = json.loads(edge_cl("sleep", "history", "-n", "1", "--json", "--state", state).stdout)
    assert last["n_sleep"] == 2


def test_nobody_to_put_to_sleep(tmp_path):
    for what in ("now", "status", "history"):
        asked = edge_cl("sleep", what, "--state", tmp_path / "no")
        assert asked.returncode == 1 and "edge-cl run" in asked.stderr and "Traceback" not in asked.stderr
