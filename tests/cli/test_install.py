"""``edge-cl install`` on a device that runs and on one that is stopped."""

import json
import re

import pytest
from click.testing import CliRunner

from edge_cl import Bundle
from edge_cl.cli.install import install
from edge_cl.errors import BundleError, SyncError
from tests.devices import Device, edge_cl, windows
from tests.upgrade.boards import Board, variant
from tests.worlds import World, make_bundle


@pytest.fixture
def bundles(tmp_path):
    old = make_bundle(tmp_path / "old.ecl")
    new = variant(old, tmp_path / "new.ecl", name="newer")
    return old, new


def status(state):
    return json.loads(edge_cl("status", "--state", state, "--json").stdout)


def test_on_a_running_device_it_takes_over_in_the_same_process(tmp_path, bundles):
    old, new = bundles
    state = tmp_path / "s"
    with Device(tmp_path / "old.ecl", state) as device:
        device.send(*windows(10, labelled=True))
        device.wait_for("receipt", reading_id="r9")
        done = edge_cl("install", tmp_path / "new.ecl", "--state", state)
        assert done.returncode == 0 and "being fetched" in done.stdout, done.stderr
        while "in the shadow" not in (said := status(state))["installed"]:
            assert "fetched" in said["installed"]
        assert said["bundle_id"] == old.bundle_id
        device.send(*windows(25, start=10, labelled=True))
        device.wait_for("receipt", reading_id="r34", status="learned")
        now = status(state)
        assert now["running"] and now["bundle_id"] == new.bundle_id and now["n_labels"] == 35
        again = edge_cl("install", tmp_path / "new.ecl", "--state", state)
        assert "in use already" in again.stdout
        forgotten = edge_cl("forget", "--reading", "r3", "--state", state)
        assert forgotten.returncode == 0, forgotten.stderr
        assert device.stop() == 0
    stopped = status(state)
    assert (
        not stopped["running"] and stopped["bundle_id"] == new.bundle_id and "newer" in stopped["installed"]
    )
    history = edge_cl("history", "--state", state)
    assert "forgot 1 labels" in history.stdout, history.stderr
    undone = edge_cl("install", "--undo", "--state", state)
    assert undone.returncode == 0 and "labels came along" in undone.stdout, undone.stderr
    back = edge_cl("run", tmp_path / "old.ecl", "--state", state, "--quiet")
    assert back.returncode == 0, back.stderr
    assert status(state)["bundle_id"] == old.bundle_id and status(state)["n_labels"] == 34
    twice = edge_cl("install", "--undo", "--state", state)
    assert twice.returncode == 1 and "no bundle was installed" in twice.stderr


def test_on_a_stopped_device(tmp_path, bundles):
    _, new = bundles
    state = tmp_path / "s"
    nowhere = edge_cl("install", tmp_path / "new.ecl", "--state", state)
    assert nowhere.returncode == 1 and "no such state folder" in nowhere.stderr
    with Device(tmp_path / "old.ecl", state) as device:
        device.send(*windows(10, labelled=True))
        assert device.finish() == 0
    other = variant(Bundle.load(tmp_path / "old.ecl"), tmp_path / "other.ecl", rate_hz=7.0)
    bad = edge_cl("install", tmp_path / "other.ecl", "--state", state)
    assert bad.returncode == 1 and "other sensors: rate (Hz) 1 here, 7 there" in bad.stderr
    assert status(state)["bundle_id"] not in (new.bundle_id, other.bundle_id)
    done = edge_cl("install", tmp_path / "new.ecl", "--state", state)
    assert done.returncode == 0 and "10 labels" in done.stdout, done.stderr
    assert status(state)["bundle_id"] == new.bundle_id
    with Device(tmp_path / "old.ecl", state) as device:
        device.send(*windows(2, start=10, labelled=True))
        assert device.finish() == 0
    assert status(state)["n_labels"] == 12


def test_what_a_stop_cut_off_can_be_ended_before_the_next_start(tmp_path, bundles):
    old, _ = bundles
    board = Board(tmp_path)
    (tmp_path / "old.ecl").rename(board.home)
    board.start()
    board.run(World(seed=3).events(3))
    board.install(tmp_path / "new.ecl")
    board.stop()
    assert "in the shadow" in status(tmp_path / "state")["installed"]
    done = edge_cl("install", "--undo", "--state", tmp_path / "state")
    assert done.returncode == 0 and "newer is not installed" in done.stdout
    board.start()
    board.run([None])
    assert board.phases[-1] == "failed" and board.reports[-1].id == "c1", "the fleet hears of it"
    assert board.bundle_id == old.bundle_id
    board.stop()


def test_what_makes_no_sense_is_refused(tmp_path):
    assert "give a BUNDLE" in edge_cl("install").stderr
    done = edge_cl("install", tmp_path / "none.ecl", "--undo")
    assert done.returncode == 2 and "give a BUNDLE" in done.stderr


def test_a_file_that_the_device_does_not_see(tmp_path, bundles, monkeypatch):
    """A service with ProtectHome finds nothing in a home folder; it then says a bundle's own error."""

    def answer(path, request, *, timeout_s):
        with pytest.raises(BundleError) as unseen:
            Bundle.load(tmp_path / "nothing" / "new.ecl")
        raise SyncError(str(unseen.value))

    monkeypatch.setattr("edge_cl.cli.install.ask", answer)
    mend = "sudo install -m 644 .*new.ecl /var/lib/edge-cl/bundles/"
    for name, said in (("new.ecl", mend), ("no.ecl", "")):
        done = CliRunner().invoke(install, [str(tmp_path / name), "--state", str(tmp_path)])
        assert isinstance(done.exception, SyncError)
        assert re.search(said, str(done.exception)) and ("sudo" in str(done.exception)) == bool(said)
