"""Root's commands beside a device of another user."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edge_cl.cli.owner import give_back
from tests.devices import edge_cl, jsonl, windows
from tests.worlds import make_bundle

SERVICE = 54_321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="files can be given to another user by root only")


def owners(folder: Path) -> set[int]:
    return {path.lstat().st_uid for path in (folder, *folder.rglob("*"))}


@needs_root
def test_what_root_makes_in_a_device_s_state_is_the_device_s(tmp_path: Path) -> None:
    """Also in a folder that root makes for it, and when the command fails."""
    place = tmp_path / "service"
    place.mkdir()
    os.chown(place, SERVICE, SERVICE)
    make_bundle(tmp_path / "b.ecl")
    (tmp_path / "a.jsonl").write_bytes(jsonl(windows(20, labelled=True)))
    state = place / "state"
    ran = edge_cl("run", tmp_path / "b.ecl", "-i", tmp_path / "a.jsonl", "--state", state)
    assert ran.returncode == 0, ran.stderr
    assert owners(state) == {SERVICE} and (state / "journal.db").exists()
    slept = edge_cl("sleep", "now", "--state", state, "--bundle", tmp_path / "b.ecl")
    assert slept.returncode == 0, slept.stderr
    assert owners(state) == {SERVICE}
    (state / "control.lock").unlink()
    assert edge_cl("install", "--undo", "--state", state).returncode == 1
    assert owners(state) == {SERVICE}


@needs_root
def test_root_s_own_state_stays_root_s(tmp_path: Path) -> None:
    make_bundle(tmp_path / "b.ecl")
    assert edge_cl("run", tmp_path / "b.ecl", "-i", os.devnull, "--state", tmp_path / "s").returncode == 0
    assert owners(tmp_path / "s") == {0}


@needs_root
def test_files_of_others_are_not_given_away(tmp_path: Path) -> None:
    """A device's user could link to any file of the system."""
    state, outside = tmp_path / "state", tmp_path / "outside"
    state.mkdir()
    outside.mkdir()
    for name in ("shadow", "passwd"):
        (outside / name).write_text("")
    (state / "soft").symlink_to(outside / "shadow")
    (state / "folder").symlink_to(outside)
    (state / "hard").hardlink_to(outside / "passwd")
    (state / "own").write_text("")
    give_back(state, SERVICE, SERVICE)
    assert (state / "own").stat().st_uid == SERVICE
    assert owners(outside) == {0}
