"""Journal, snapshots and recovery on real files."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.errors import StateCorrupt, StateError, StateUnwritable
from edge_cl.state import Entry, Journal, Snapshot, StateStore
from edge_cl.state.snapshots import Snapshots, read_snapshot


def entry(seq, label="a", x=1.0):
    return Entry(
        seq=seq, kind="label", label=label, reading_id=f"r{seq}", feature=np.full(3, x, dtype=np.float32)
    )


def snapshot(seq):
    return Snapshot(seq=seq, bundle_id="b1", meta={"n": seq}, arrays={"w": np.arange(seq, dtype=np.float32)})


def open_store(folder, bundle="b1"):
    return StateStore(folder, bundle, 10_000_000)


def test_committed_entries_come_back_in_order(tmp_path):
    journal = Journal(tmp_path / "j.db")
    for k in (1, 2):
        journal.append(entry(k, x=k))
    journal.commit()
    journal.append(entry(3))
    journal.close()
    again = Journal(tmp_path / "j.db")
    assert [e.seq for e in again.entries(0)] == [1, 2], "what was not committed is not there"
    assert [float(e.feature[0]) for e in again.entries(0)] == [1.0, 2.0]
    assert again.last_seq == 2
    assert again.label_of("r2") == "a" and again.label_of("r3") is None


def test_a_gap_or_repeat_is_a_bug(tmp_path):
    journal = Journal(tmp_path / "j.db")
    with pytest.raises(ValueError, match="does not follow"):
        journal.append(entry(2))


def test_an_altered_entry_is_noticed(tmp_path):
    journal = Journal(tmp_path / "j.db")
    for k in (1, 2, 3):
        journal.append(entry(k))
    journal.commit()
    journal.close()
    db = sqlite3.connect(tmp_path / "j.db")
    db.execute("UPDATE journal SET label = 'b' WHERE seq = 2")
    db.commit()
    db.close()
    found = []
    with pytest.raises(StateCorrupt, match="entry 2"):
        for e in Journal(tmp_path / "j.db").entries(0):
            found.append(e.seq)
    assert found == [1]


def test_snapshots_alternate_and_the_newest_counts(tmp_path):
    snapshots = Snapshots(tmp_path)
    assert snapshots.newest() == (None, [])
    assert [snapshots.write(snapshot(k)) for k in (1, 2, 3)] == [0, 1, 2]
    newest, problems = snapshots.newest()
    assert newest is not None and newest.seq == 3 and newest.meta == {"n": 3} and not problems
    np.testing.assert_array_equal(newest.arrays["w"], np.arange(3))
    assert len(list(tmp_path.glob("*.snapshot"))) == 2


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damaged_byte_is_noticed_and_the_older_one_used(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("s")
    snapshots = Snapshots(folder)
    snapshots.write(snapshot(20))
    snapshots.write(snapshot(30))
    path = max(folder.glob("*.snapshot"), key=lambda p: read_snapshot(p).seq)
    raw = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(bytes(raw[: data.draw(st.sampled_from([len(raw), place]))]))
    newest, problems = snapshots.newest()
    assert newest is not None and newest.seq == 20, "damage was not noticed"
    assert len(problems) == 1 and list(folder.glob("*.damaged")), "set aside, not deleted"


@pytest.mark.parametrize(("version", "advice"), [(9, "upgrade"), (1, "release that wrote it")])
def test_another_snapshot_format_says_what_to_do(tmp_path, monkeypatch, version, advice):
    with monkeypatch.context() as then:
        then.setattr("edge_cl.state.snapshots.FORMAT_VERSION", version)
        Snapshots(tmp_path).write(snapshot(1))
    with pytest.raises(StateError, match=advice):
        Snapshots(tmp_path).newest()


def test_a_damaged_format_number_is_damage_not_another_format(tmp_path):
    Snapshots(tmp_path).write(snapshot(1))
    path = next(tmp_path.glob("*.snapshot"))
    raw = path.read_bytes()
    for number in b"012456789":
        path.write_bytes(raw.replace(b'"format_version":3', b'"format_version":%c' % number, 1))
        with pytest.raises(StateCorrupt):
            read_snapshot(path)


def test_the_journal_keeps_what_the_older_snapshot_needs(tmp_path):
    store = open_store(tmp_path / "s")
    for k in range(1, 11):
        store.append(entry(k))
        store.journal.commit()
        if k in (4, 8):
            store.save(snapshot(k))
    assert store.journal.first_seq == 5
    store.close()
    store = open_store(tmp_path / "s")
    newest = store.recover()
    assert newest is not None and [e.seq for e in store.journal.entries(newest.seq)] == [9, 10]
    store.close()


def test_both_snapshots_damaged_and_a_pruned_journal_is_said_plainly(tmp_path):
    store = open_store(tmp_path / "s")
    for k in range(1, 11):
        store.append(entry(k))
        store.journal.commit()
        if k in (4, 8):
            store.save(snapshot(k))
    store.close()
    for path in (tmp_path / "s").glob("*.snapshot"):
        path.write_bytes(path.read_bytes()[:-1])
    store = open_store(tmp_path / "s")
    with pytest.raises(StateCorrupt, match=r"journal begins at entry 5.*backup"):
        store.recover()
    store.close()


def test_a_journal_that_is_no_database_is_set_aside(tmp_path):
    store = open_store(tmp_path / "s")
    store.append(entry(1))
    store.journal.commit()
    store.save(snapshot(1))
    store.close()
    (tmp_path / "s" / "journal.db").write_bytes(b"garbage" * 1000)
    store = open_store(tmp_path / "s")
    newest = store.recover()
    assert newest is not None and newest.seq == 1
    assert "set aside" in store.problems[0]
    store.append(entry(2))
    store.journal.commit()
    store.close()


def test_another_bundles_state_is_refused(tmp_path):
    store = open_store(tmp_path / "s", "b1")
    store.recover()
    store.append(entry(1))
    store.journal.commit()
    store.save(snapshot(1))
    store.close()
    with pytest.raises(StateError, match="learned with bundle b1"):
        open_store(tmp_path / "s", "b2")
    (tmp_path / "s" / "journal.db").write_bytes(b"garbage" * 1000)
    with (
        pytest.raises(StateError, match="learned with bundle b1"),
        closing(open_store(tmp_path / "s", "b2")) as other,
    ):
        other.recover()  # the journal cannot tell any more, the snapshot can
    store = open_store(tmp_path / "s", "b1")
    assert store.recover().seq == 1
    store.close()


def test_two_processes_never_share_a_folder(tmp_path):
    store = open_store(tmp_path / "s")
    code = f"from edge_cl.state import StateStore; StateStore({str(tmp_path / 's')!r}, 'b1', 10**7)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert other.returncode != 0 and f"in use by process {os.getpid()}" in other.stderr
    store.close()


def test_the_disk_budget_is_kept(tmp_path):
    budget = 200_000
    store = StateStore(tmp_path / "s", "b1", budget)
    with pytest.raises(StateUnwritable, match=r"of a disk budget of 200,000"):
        for k in range(1, 5000):
            store.append(entry(k))
            store.journal.commit()
            assert store.disk.held_bytes <= budget + 200_000
    with pytest.raises(StateUnwritable, match=r"of a disk budget of 200,000"):
        store.save(snapshot(100_000))
    assert not list((tmp_path / "s").glob("*.snapshot"))
    store.close()
