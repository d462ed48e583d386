"""``edge-cl status`` and ``edge-cl label`` against a device that really runs, or ran."""

import json

import pytest

from tests.devices import Device, edge_cl, windows
from tests.worlds import make_bundle


@pytest.fixture
def bundle(tmp_path):
    make_bundle(tmp_path / "b.ecl")
    return tmp_path / "b.ecl"


def test_a_running_device_is_asked_and_taught_then_a_stopped_one_asked(tmp_path, bundle):
    state = tmp_path / "s"
    with Device(bundle, state) as device:
        device.send(*windows(3))
        device.wait_for("decision", reading_id="r2")

        taught = edge_cl("label", "jump", "--reading", "r1", "--state", state)
        assert taught.returncode == 0
        assert taught.stdout.startswith("learned: “jump” for reading r1 (a new class), confidence 0.00 → ")
        receipt = device.wait_for("receipt", reading_id="r1")
        assert receipt["source"] == "local" and receipt["new_class"]

        newest = edge_cl("label", "walk", "--json", "--state", state)
        assert json.loads(newest.stdout)["reading_id"] == "r2"
        again = edge_cl("label", "walk", "--state", state)
        assert again.returncode == 0 and again.stdout.startswith("duplicate: ")
        unknown = edge_cl("label", "walk", "--reading", "r77", "--state", state)
        assert unknown.returncode == 1 and "label newer readings" in unknown.stdout
        empty = edge_cl("label", "  ", "--state", state)
        assert empty.returncode == 1 and "Traceback" not in empty.stderr

        running = json.loads(edge_cl("status", "--json", "--state", state).stdout)
        assert running["running"] and running["bundle_name"] == "test"
        text = edge_cl("status", "--state", state).stdout
        assert text.startswith("device     running") and "rest, walk, run" in text
        device.send(*windows(1, start=3))
        device.wait_for("decision", reading_id="r3")
        assert device.finish() == 0

    stopped = json.loads(edge_cl("status", "--json", "--state", state).stdout)
    assert not stopped["running"] and stopped["n_labels"] == 2 and stopped["n_readings"] == 4
    assert stopped["class_names"] == ["rest", "walk", "run", "jump"]
    text = edge_cl("status", "--state", state).stdout
    assert text.startswith("device     stopped") and "2 learned, journal at 2" in text and "jump" in text


def test_a_running_device_is_told_what_a_reading_was_not(tmp_path, bundle):
    state = tmp_path / "s"
    with Device(bundle, state) as device:
        device.send(*windows(1))
        given = device.wait_for("decision", reading_id="r0")["label"]
        told = edge_cl("label", given, "--not", "--state", state)
        assert told.returncode == 0
        assert told.stdout.startswith(f"learned: not “{given}” for reading r0, confidence ")
        assert told.stdout.splitlines()[0].endswith("→ 0.00") or "now 0.00" in told.stdout
        assert device.wait_for("receipt", reading_id="r0")["kind"] == "not"
        device.send({"t": 1.0, "id": "again", "window": windows(1)[0]["window"]})
        assert device.wait_for("decision", reading_id="again")["label"] not in (given, "")
        junk = edge_cl("label", "dance", "--not", "--json", "--state", state)
        assert junk.returncode == 1 and "no class 'dance'" in json.loads(junk.stdout)["message"]
        device.send({"label": given, "kind": "not", "reading_id": "again"})
        again = device.wait_for("receipt", reading_id="again", label=given)
        assert again["status"] == "duplicate", "the same feature"
        assert device.finish() == 0
    stopped = json.loads(edge_cl("status", "--json", "--state", state).stdout)
    assert stopped["n_labels"] == 0 and stopped["journal_seq"] == 1 and stopped["accuracy_now"] is None


def test_nobody_to_label_and_nothing_to_show(tmp_path):
    label = edge_cl("label", "walk", "--state", tmp_path)
    assert label.returncode == 1 and "start it with edge-cl run" in label.stderr
    for folder in (tmp_path, tmp_path / "no"):
        status = edge_cl("status", "--state", folder)
        assert status.returncode == 1 and "edge-cl run" in status.stderr and "Traceback" not in status.stderr


def test_a_device_killed_before_its_first_snapshot_says_that_its_labels_are_safe(tmp_path, bundle):
    with Device(bundle, tmp_path / "s") as device:
        device.send(*windows(5, labelled=True))
        device.wait_for("receipt", reading_id="r4")
        device.process.kill()
        device.process.wait(timeout=10)
    done = edge_cl("status", "--state", tmp_path / "s")
    assert (
        done.returncode == 1
        and "journal entries that are safe: 5" in done.stderr
        and "start edge-cl run" in done.stderr
    )
    edge_cl("run", bundle, "--state", tmp_path / "s")
    assert "5 learned" in edge_cl("status", "--state", tmp_path / "s").stdout
