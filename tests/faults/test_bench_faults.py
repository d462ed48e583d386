"""The fault bench: short versions, long ones for `make faults`, and that it sees what it looks for."""

import os
import subprocess
import sys

import numpy as np
import pytest

from bench import corruption, faults, injected, kills, lives, loop_disk, power_cuts
from bench.subject import BAD, judge

needs_loop = pytest.mark.skipif(bool(loop_disk.why_not()), reason=loop_disk.why_not() or "-")
needs_cc = pytest.mark.skipif(bool(injected.why_not()), reason=injected.why_not() or "-")


@pytest.fixture
def life(tmp_path):
    return lives.small(tmp_path)


def told(failed):
    return "\n".join(map(str, failed[:10]))


# ---------------------------------------------------------------- short


@needs_loop
def test_four_power_cuts_while_it_forgets(tmp_path):
    found = power_cuts.measure(lives.forgetting(tmp_path), 4)
    assert not any(found[name] for name in BAD), found


@needs_loop
def test_six_power_cuts(life):
    found = power_cuts.measure(life, 6)
    assert found["power_cuts"] == 6
    assert not any(found[name] for name in BAD), found


def test_twelve_kills(life):
    found = kills.measure(life, 12)
    assert found["kills"] == 12
    assert not any(found[name] for name in BAD), found


def corrupt(folder, n_trials):
    life = lives.small(folder, n_labels=corruption.N_LABELS, **corruption.SETTINGS)
    return corruption.measure(life, n_trials)


def test_a_hundred_and_fifty_corruptions(tmp_path):
    found, failed = corrupt(tmp_path, 150)
    assert found["undetected_corruptions"] == 0, told(failed)


@needs_cc
def test_a_disk_that_fails_at_some_calls():
    found, failed = injected.measure(every=19)
    assert found["faults"] == found["ok"] > 20, told(failed)


# ---------------------------------------------------------------- that it sees what it looks for


def test_a_label_that_was_receipted_and_is_gone_is_counted(life, tmp_path):
    with life.open(tmp_path / "s") as learner:
        learner.run(life.events()[:20])
    assert not any(judge(life, tmp_path / "s", 10)[name] for name in BAD)
    assert judge(life, tmp_path / "s", 12)["labels_lost"] == 2


def test_knowledge_of_other_labels_is_counted(life, tmp_path):
    with life.open(tmp_path / "s") as learner:
        learner.run(life.events()[:20:2] + life.events()[21:40:2])  # labels of readings that it has not seen
        learner.run(life.events()[2:22])
    assert judge(life, tmp_path / "s", 10)["hash_mismatches"] == 1


def test_a_folder_that_cannot_be_started_from_is_counted(life, tmp_path):
    (tmp_path / "s").write_bytes(b"")
    assert judge(life, tmp_path / "s", 10)["unreadable_heads"] == 1


@needs_loop
def test_a_cut_loses_what_was_not_synced_and_keeps_what_was(tmp_path):
    with loop_disk.LoopDisk(loop_disk.make_image(tmp_path / "image", 16)) as disk:
        for name in ("synced", "not-synced"):
            with (disk.folder / name).open("wb") as file:
                file.write(b"x" * 5000)
                file.flush()
                if name == "synced":
                    os.fsync(file.fileno())
        bytes_before = disk.written()[1]
        disk.copy_as_it_is(tmp_path / "cut")
        assert bytes_before >= 5000
    with loop_disk.LoopDisk(tmp_path / "cut") as left:
        assert (left.folder / "synced").read_bytes() == b"x" * 5000
        unsynced = left.folder / "not-synced"
        assert not unsynced.exists() or unsynced.read_bytes() != b"x" * 5000


@needs_loop
def test_nothing_is_left_attached_when_a_mount_fails(tmp_path):
    (tmp_path / "image").write_bytes(b"\0" * 8192)
    with pytest.raises(Exception, match="mount"), loop_disk.LoopDisk(tmp_path / "image"):
        pass
    assert not list(tmp_path.glob("mnt-*"))
    assert str(tmp_path) not in loop_disk._run("losetup", "-a")


WRITES = """
import ctypes, os, sys
disk = ctypes.CDLL(sys.argv[1])
path = sys.argv[2] + "/f"
file = os.open(path, os.O_RDWR | os.O_CREAT)
os.write(file, b"old old old ")
os.fsync(file)
disk.disk_fail(2, 1, 5)
os.pwrite(file, b"NEW", 0)
try:
    os.fsync(file)
    sys.exit("fsync should fail")
except OSError as error:
    assert error.errno == 5
os.pwrite(file, b"AGAIN", 6)
os.fsync(file)
assert os.pread(file, 12, 0) == b"NEW olAGAIN ", "until then the cache has it"
disk.disk_lose()
print(os.pread(file, 12, 0).decode(), end="")
"""


@needs_cc
def test_what_a_failed_fsync_was_to_keep_is_lost_even_if_a_later_one_succeeds(tmp_path):
    library = injected.build(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", WRITES, str(library), str(tmp_path)],
        env={**os.environ, "LD_PRELOAD": str(library), "FAILING_DISK": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "old olAGAIN ", "")


def test_every_promised_key_is_there_and_what_was_not_measured_is_null(monkeypatch, capsys):
    monkeypatch.setitem(faults.PARTS, "kills", lambda size, folder: {"kills": 3})
    monkeypatch.setitem(faults.PARTS, "power-cuts", lambda size, folder: {"power_cuts": 2, "labels_lost": 1})
    figures = faults.measure(["power-cuts", "kills"], faults.QUICK)
    assert figures.keys() == faults.TARGETS.keys() | {"parts"}
    assert (figures["kills"], figures["labels_lost"], figures["hash_mismatches"]) == (3, 1, 0)
    assert figures["bytes_per_label"] is None
    faults.show(figures)
    assert "labels_lost" in capsys.readouterr().out


def test_poison_is_measured_beside_the_same_without_defence(tmp_path):
    rng = np.random.default_rng(0)
    y = rng.integers(4, size=1500)
    X = 4 * np.eye(4, 6)[y] + rng.standard_normal((1500, 6))
    np.savez(tmp_path / "gauss.npz", X=X.astype(np.float32), y=y)
    size = faults.QUICK._replace(data=tmp_path, poisoned=("gauss",))
    found = faults.PARTS["poison"](size, tmp_path)
    assert found["poison_recall_loss_points"] == found["recall_loss"] <= 5 < found["recall_loss_undefended"]
    assert found["recall_loss_worst"] >= found["recall_loss"] and found["honest_lost"] <= 2
    assert found["streams"].keys() == {"gauss"}


def test_without_data_poison_says_that_it_is_skipped(tmp_path):
    figures = faults.measure(["poison"], faults.QUICK)
    assert "--data" in figures["parts"]["poison"]["skipped"]
    assert figures["poison_recall_loss_points"] is None
    empty = faults.PARTS["poison"](faults.QUICK._replace(data=tmp_path), tmp_path)
    assert ".npz" in empty["skipped"]


# ---------------------------------------------------------------- long: make faults


@needs_loop
@pytest.mark.slow
def test_more_than_three_hundred_power_cuts(life, tmp_path):
    found = power_cuts.measure(life, 240) + power_cuts.measure(lives.default(), 30, image_mib=48)
    found += power_cuts.measure(lives.forgetting(tmp_path), 60)
    assert found["power_cuts"] >= 300
    assert found["asleep"] and found["unreceipted"], "cuts should meet sleeps and commits"
    assert not any(found[name] for name in BAD), found


@pytest.mark.slow
def test_a_thousand_kills(life, tmp_path):
    found = kills.measure(life, 900) + kills.measure(lives.forgetting(tmp_path), 100)
    assert found["asleep"] and found["unreceipted"], "kills should meet sleeps and commits"
    assert not any(found[name] for name in BAD), found


@pytest.mark.slow
def test_ten_thousand_corruptions(tmp_path):
    found, failed = corrupt(tmp_path, 10_000)
    assert found["undetected_corruptions"] == 0, told(failed)


@needs_cc
@pytest.mark.slow
def test_a_disk_that_fails_at_each_call():
    found, failed = injected.measure()
    assert found["faults"] == found["ok"], told(failed)
