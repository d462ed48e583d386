"""``edge-cl history``, ``forget`` and their like, on a device that runs and on one that is stopped."""

import json

import pytest
from click.testing import CliRunner

from edge_cl.errors import DeviceNotRunning
from edge_cl.revisions import Outcome
from edge_cl.sync.control import Reply
from tests.devices import Device, edge_cl, windows
from tests.worlds import make_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("b") / "b.ecl"
    make_bundle(path)
    return path


def told(*arguments):
    asked = edge_cl(*arguments)
    assert asked.returncode == 0, asked.stderr
    return asked.stdout


def test_a_running_device_takes_back_and_goes_back(tmp_path, bundle):
    state = tmp_path / "s"
    with Device(bundle, state) as device:
        device.send(*windows(30, labelled=True))
        device.wait_for("receipt", reading_id="r29")
        n = json.loads(told("status", "--state", state, "--json"))["n_labels"]
        said = told("forget", "--reading", "r5", "--state", state)
        assert "forgot 1 labels of reading 'r5'" in said
        outcome = json.loads(told("rollback", "--to", "10", "--state", state, "--json"))
        assert outcome["n_labels"] == n - 1 - 9
        told("rename-class", "walk", "stroll", "--state", state)
        told("merge-classes", "run", "stroll", "--state", state)
        found = json.loads(told("status", "--state", state, "--json"))
        assert found["class_names"] == ["rest", "stroll", "climb"][: len(found["class_names"])]
        for wrong in (
            ("forget", "--source", "nobody"),
            ("rollback", "--to", "1000"),
            ("rename-class", "walk", "x"),
            ("review", "--accept", "3"),
        ):
            refused = edge_cl(*wrong, "--state", state)
            assert refused.returncode == 1 and refused.stderr.startswith("edge-cl: ")
        assert "no label waits" in told("review", "--state", state)
        assert device.finish() == 0
    heads = json.loads(told("history", "--state", state, "--json"))
    assert heads[-1]["id"] == outcome["seq"] + 2 and "part of" in heads[-1]["cause"]
    assert str(heads[-1]["id"]) in told("history", "--state", state)


def test_a_stopped_device_learns_anew_at_its_next_start(tmp_path, bundle):
    state = tmp_path / "s"
    with Device(bundle, state) as device:
        device.send(*windows(30, labelled=True))
        device.wait_for("receipt", reading_id="r29")
        assert device.finish() == 0
    assert "sound" in told("history", "--check", "--state", state)
    assert "learned anew at the next start" in told("forget", "--reading", "r3", "--state", state)
    assert "forgot 1 entries" in (audit := told("history", "--audit", "--state", state))
    assert "×" in audit and "taught, forgotten since" in audit
    told("rename-class", "walk", "stroll", "--state", state)
    again = edge_cl("rename-class", "walk", "x", "--state", state)
    assert again.returncode == 1 and "no class 'walk'; known: rest, stroll" in again.stderr
    told("backup", tmp_path / "b.zip", "--state", state)
    with Device(bundle, state) as device:
        device.send(*windows(1, labelled=False))
        device.wait_for("decision")
        found = json.loads(told("status", "--state", state, "--json"))
        assert found["n_labels"] == 29 and "replayed" in found["recovered"]
        assert "stroll" in found["class_names"]
        refused = edge_cl("restore", tmp_path / "b.zip", "--state", state)
        assert refused.returncode == 1 and "in use by process" in refused.stderr
        assert device.finish() == 0
    assert "what it knew before is in" in told("restore", tmp_path / "b.zip", "--state", state)
    assert "0 labels" in told("restore", tmp_path / "b.zip", "--merge", "--state", state)


def test_damage_is_found_by_a_check(tmp_path, bundle):
    state = tmp_path / "s"
    with Device(bundle, state) as device:
        device.send(*windows(10, labelled=True))
        device.wait_for("receipt", reading_id="r9")
        assert device.finish() == 0
    path = next(state.glob("head-*.snapshot"))
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    checked = edge_cl("history", "--check", "--state", state)
    assert checked.returncode == 1 and "failed its checksum" in checked.stdout


def test_without_a_state_folder_each_says_what_to_do(tmp_path):
    for what in (
        ("history",),
        ("history", "--audit"),
        ("rollback",),
        ("forget", "--reading", "r1"),
        ("rename-class", "a", "b"),
        ("review",),
        ("backup", tmp_path / "b.zip"),
    ):
        asked = edge_cl(*what, "--state", tmp_path / "no")
        assert asked.returncode == 1 and "edge-cl run" in asked.stderr and "Traceback" not in asked.stderr
    assert not (tmp_path / "no").exists()


def test_a_time_that_is_none_says_how_to_write_it(tmp_path):
    asked = edge_cl("rollback", "--before", "yesterday", "--state", tmp_path)
    assert asked.returncode != 0 and '"14:00" for today' in asked.stderr


def test_what_was_done_is_not_done_again_when_the_device_stops_meanwhile(tmp_path, monkeypatch):
    from edge_cl.cli import past

    def ask(path, request, **_):
        if request.op == "status":
            raise DeviceNotRunning("stopped")
        return Reply(outcome=Outcome(seq=1, n_labels=1, message="done"))

    monkeypatch.setattr(past, "ask", ask)
    monkeypatch.setattr(past, "_revise_stopped", lambda *_: pytest.fail("done twice"))
    done = CliRunner().invoke(past.rollback, ["--to", "3", "--state", str(tmp_path)])
    assert (done.exit_code, done.output) == (0, "done\n")
