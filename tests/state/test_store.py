"""Journal, snapshots and recovery on real files."""

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.errors import StateCorrupt, StateError, StateUnwritable
from edge_cl.state import DamagedEntry, Entry, Journal, Snapshot, StateStore, audit
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
    assert [(e.seq, float(e.feature[0])) for e in again.read(1, 2)] == [(1, 1.0), (2, 2.0)]
    assert again.last_seq == 2, "what was not committed is not there"
    assert again.said_of("r2") == [(2, "label", "a")] and again.said_of("r3") == []


def test_a_gap_or_repeat_is_a_bug(tmp_path):
    journal = Journal(tmp_path / "j.db")
    with pytest.raises(ValueError, match="does not follow"):
        journal.append(entry(2))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ("UPDATE journal SET label = 'b' WHERE seq = 2", 2),
        ("UPDATE journal SET source = 'somebody else' WHERE seq = 3", 3),
        ("UPDATE journal SET feature = x'00' WHERE seq = 1", 1),
        ("UPDATE journal SET kind = 'forgotten' WHERE seq = 2", 2),
        ("DELETE FROM journal WHERE seq = 2", 2),
        ("DELETE FROM journal WHERE seq = 4", 4),
    ],
)
def test_an_altered_entry_is_noticed(tmp_path, change, where):
    journal = Journal(tmp_path / "j.db")
    for k in (1, 2, 3, 4):
        journal.append(entry(k))
    journal.commit()
    journal.close()
    db = sqlite3.connect(tmp_path / "j.db")
    db.execute(change)
    db.commit()
    db.close()
    found = []
    with pytest.raises(DamagedEntry, match=f"entry {where}"):
        for e in Journal(tmp_path / "j.db").read(1, 4):
            found.append(e.seq)
    assert found == list(range(1, where))


def test_a_lost_end_of_the_log_is_noticed(tmp_path):
    journal = Journal(tmp_path / "j.db")
    for k in (1, 2, 3):
        journal.append(entry(k))
        journal.commit()
    shutil.copytree(tmp_path, tmp_path / "cut")  # as a power cut leaves it: the log is not yet taken in
    log = tmp_path / "cut" / "j.db-wal"
    log.write_bytes(log.read_bytes()[:-2000])
    with closing(Journal(tmp_path / "cut" / "j.db")) as cut:
        assert cut.last_seq == 2 and "entry 3 had been committed" in cut.problems[0]
    with closing(Journal(tmp_path / "cut" / "j.db")) as again:
        assert not again.problems, "said once"
    journal.close()


def test_a_damaged_mark_is_noticed_and_written_anew(tmp_path):
    with closing(Journal(tmp_path / "j.db")) as journal:
        journal.append(entry(1))
        journal.commit()
    raw = bytearray((tmp_path / "j.mark").read_bytes())
    raw[3] ^= 1
    (tmp_path / "j.mark").write_bytes(raw)
    with closing(Journal(tmp_path / "j.db")) as journal:
        assert "failed its checksum" in journal.problems[0] and journal.last_seq == 1
    with closing(Journal(tmp_path / "j.db")) as journal:
        assert not journal.problems


def test_a_damaged_entry_is_lost_alone(tmp_path):
    store = open_store(tmp_path / "s")
    store.begin(None)
    for k in (1, 2, 3, 4):
        store.append(entry(k))
    store.journal.commit()
    store.close()
    db = sqlite3.connect(tmp_path / "s" / "journal.db")
    db.execute("UPDATE journal SET label = 'b' WHERE seq = 2")
    db.commit()
    db.close()
    store = open_store(tmp_path / "s")
    with pytest.raises(DamagedEntry) as found:
        list(store.entries(0))
    store.repair(found.value.seq)
    assert [e.seq for e in store.entries(0)] == [1, 3, 4]
    assert "entry 2 was damaged" in store.problems[0] and (tmp_path / "s" / "journal.db.damaged").exists()
    store.append(entry(5))
    store.journal.commit()
    store.close()
    with closing(open_store(tmp_path / "s")) as store:
        assert [e.seq for e in store.entries(0)] == [1, 3, 4, 5]


def test_what_is_erased_cannot_be_read_and_the_chain_holds(tmp_path):
    secret = np.frombuffer(b"a secret feature" * 3, dtype=np.float32)
    journal = Journal(tmp_path / "j.db")
    for k in (1, 2, 3):
        journal.append(Entry(seq=k, kind="label", label="secret class", reading_id="r", feature=secret))
    journal.commit()
    chain = journal.chain
    journal.erase([1, 3])
    journal.commit()
    assert [e.kind for e in journal.read(1, 3)] == ["forgotten", "label", "forgotten"]
    assert journal.chain == chain
    journal.erase([2])
    journal.commit()
    journal.close()
    assert not any(b"secret" in path.read_bytes() for path in tmp_path.iterdir())


def test_a_snapshot_comes_back(tmp_path):
    store = open_store(tmp_path / "s")
    assert list(store.usable()) == []
    for k in (1, 2, 3):
        store.append(entry(k))
        store.journal.commit()
        store.save(snapshot(k))
    newest = next(store.usable())
    assert newest.seq == 3 and newest.meta == {"n": 3} and not store.problems
    np.testing.assert_array_equal(newest.arrays["w"], np.arange(3))
    store.close()


@settings(max_examples=150)
@given(data=st.data())
def test_any_damaged_byte_is_noticed_and_the_older_one_used(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("s")
    with closing(open_store(folder)) as store:
        for k in (1, 2):
            store.append(entry(k))
            store.journal.commit()
            store.save(snapshot(k))
        path = store.snapshots.paths()[2]
        raw = bytearray(path.read_bytes())
        place = data.draw(st.integers(0, len(raw) - 1))
        raw[place] ^= data.draw(st.integers(1, 255))
        path.write_bytes(bytes(raw[: data.draw(st.sampled_from([len(raw), place]))]))
        newest = next(store.usable())
        assert newest.seq == 1, "damage was not noticed"
        assert len(store.problems) == 1 and list(folder.glob("*.damaged")), "set aside, not deleted"


@pytest.mark.parametrize(("version", "advice"), [(9, "upgrade"), (1, "release that wrote it")])
def test_another_snapshot_format_says_what_to_do(tmp_path, monkeypatch, version, advice):
    with monkeypatch.context() as then:
        then.setattr("edge_cl.state.snapshots.FORMAT_VERSION", version)
        Snapshots(tmp_path).write(snapshot(1))
    with pytest.raises(StateError, match=advice):
        read_snapshot(next(tmp_path.glob("*.snapshot")))


def test_a_damaged_format_number_is_damage_not_another_format(tmp_path):
    Snapshots(tmp_path).write(snapshot(1))
    path = next(tmp_path.glob("*.snapshot"))
    raw = path.read_bytes()
    for number in b"012356789":
        path.write_bytes(raw.replace(b'"format_version":4', b'"format_version":%c' % number, 1))
        with pytest.raises(StateCorrupt):
            read_snapshot(path)


def filled(folder, n=30, every=4, **limits):
    """A folder with n entries and a snapshot at every 4th."""
    store = StateStore(folder, "b1", limits.pop("capacity_bytes", 10_000_000), **limits)
    store.begin(None)
    for k in range(1, n + 1):
        store.append(entry(k))
        if k % every == 0 or k == n:
            store.journal.commit()
        if k % every == 0:
            store.save(snapshot(k))
    return store


def test_some_older_snapshots_are_kept_and_the_whole_journal(tmp_path):
    with closing(filled(tmp_path / "s", n=400)) as store:
        kept = list(store.snapshots.paths())
        assert kept[-2:] == [396, 400] and len(kept) == 5
        ages = [400 - seq for seq in kept]
        assert ages[0] > 60 and all(a >= 2 * b for a, b in pairwise(ages)), "spread over the ages"
        assert store.journal.first_seq == 1
        assert [e.seq for e in store.entries(0)] == list(range(1, 401))


def test_a_long_journal_is_cut_off_where_a_snapshot_stands_for_it(tmp_path):
    with closing(filled(tmp_path / "s", n=1000, history_bytes=60_000)) as store:
        first = store.journal.first_seq
        assert first > 1 and store.journal.nbytes < 120_000
        assert first - 1 in store.snapshots.paths(), "a snapshot stands for what is gone"
        assert min(store.snapshots.paths()) == first - 1
        newest = next(store.usable())
        assert [e.seq for e in store.entries(newest.seq)] == []
        assert [e.seq for e in store.journal.read(first, 1000)] == list(range(first, 1001))


def test_a_full_disk_budget_takes_the_history_before_it_refuses(tmp_path):
    with closing(filled(tmp_path / "s", n=1000, every=50, capacity_bytes=110_000)) as store:
        assert store.journal.first_seq > 1 and store.disk.held_bytes < 180_000
        assert len(list(store.usable())) >= 2


def test_all_snapshots_damaged_costs_a_longer_replay_only(tmp_path):
    filled(tmp_path / "s").close()
    for path in (tmp_path / "s").glob("*.snapshot"):
        path.write_bytes(path.read_bytes()[:-1])
    with closing(open_store(tmp_path / "s")) as store:
        assert list(store.usable()) == [] and len(store.problems) == 5
        assert [e.seq for e in store.entries(0)] == list(range(1, 31))


def test_all_snapshots_damaged_and_a_pruned_journal_is_said_plainly(tmp_path):
    store = filled(tmp_path / "s", n=1000, history_bytes=60_000)
    first = store.journal.first_seq
    store.close()
    for path in (tmp_path / "s").glob("*.snapshot"):
        path.write_bytes(path.read_bytes()[:-1])
    with (
        closing(open_store(tmp_path / "s")) as store,
        pytest.raises(StateCorrupt, match=rf"journal begins at entry {first}.*backup"),
    ):
        list(store.usable())


def test_a_journal_that_is_no_database_is_set_aside(tmp_path):
    filled(tmp_path / "s", n=4).close()
    (tmp_path / "s" / "journal.db").write_bytes(b"garbage" * 1000)
    store = open_store(tmp_path / "s")
    newest = next(store.usable())
    assert newest.seq == 4
    assert "set aside" in store.problems[0]
    store.begin(newest)
    store.append(entry(5))
    store.journal.commit()
    store.close()


def test_another_bundles_state_is_refused(tmp_path):
    filled(tmp_path / "s", n=4).close()
    with pytest.raises(StateError, match="learned with bundle b1"):
        open_store(tmp_path / "s", "b2")
    (tmp_path / "s" / "journal.db").write_bytes(b"garbage" * 1000)
    with (
        pytest.raises(StateError, match="learned with bundle b1"),
        closing(open_store(tmp_path / "s", "b2")) as other,
    ):
        next(other.usable())  # the journal cannot tell any more, the snapshot can
    with closing(open_store(tmp_path / "s", "b1")) as store:
        assert next(store.usable()).seq == 4


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


def test_a_file_that_goes_while_the_folder_is_counted_is_no_error(tmp_path, monkeypatch):
    """A backup is written beside the state, the outbox has files that come and go."""

    class Going:
        name = "b.zip.part"

        def is_file(self):
            return True

        def stat(self):
            raise FileNotFoundError

    with open_store(tmp_path) as store:
        there = store.disk.held()
        scandir = os.scandir
        monkeypatch.setattr(os, "scandir", lambda folder: [*scandir(folder), Going()])
        assert store.disk.held() == there


def test_an_audit_says_which_entry_is_damaged(tmp_path):
    with open_store(tmp_path) as store:
        store.append(entry(1))
        store.take_out("forget", [(1, 1)], what="labels", source="local", at_s=1.0)
    with closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
        db.execute("UPDATE journal SET detail = '{x' WHERE kind = 'forget'")
    assert [line.what for line in audit(tmp_path)] == [
        "taught, forgotten since",
        "forget: what it says is damaged",
    ]


def test_a_long_gap_is_one_repair_and_one_short_sentence(tmp_path):
    """As after a lost part of the database file: the alarm is part of every status."""
    with open_store(tmp_path) as store:
        for seq in range(1, 3001):
            store.journal.append(entry(seq))
        store.journal.commit()
    with closing(sqlite3.connect(tmp_path / "journal.db")) as db, db:
        db.execute("DELETE FROM journal WHERE seq BETWEEN 100 AND 2899")
        db.execute("UPDATE journal SET label = 'x' WHERE seq = 2950")
    with open_store(tmp_path) as store:
        assert sum(one.kind == "label" for one in store.sound(1, 3000)) == 3000 - 2800 - 2
        (said,) = store.problems
        assert "entries (2,802) 100 to 2,900, 2,950 were damaged" in said and len(said) < 200
    with open_store(tmp_path) as again:
        assert len(list(again.journal.read(1, 3000))) == 3000 and not again.problems


@pytest.mark.parametrize("query", ["PRAGMA freelist", "SELECT chain"])
def test_a_disk_that_fails_while_it_is_read_is_an_error_of_ours(tmp_path, query):
    """Anything else would end the run loop."""

    class Failing:
        def __init__(self, db):
            self._db = db

        def __getattr__(self, name):
            return getattr(self._db, name)

        def execute(self, asked, *values):
            if asked.startswith(query):
                raise sqlite3.OperationalError("disk I/O error")
            return self._db.execute(asked, *values)

    with open_store(tmp_path) as store:
        for seq in (1, 2):
            store.append(entry(seq))
        store.journal.commit()
        store.journal._db = Failing(store.journal._db)
        asked = (
            [store.disk.held]
            if "PRAGMA" in query
            else [lambda: list(store.journal.read(2, 2)), lambda: store.journal.prune(1)]
        )
        for ask in asked:
            with pytest.raises(StateError):
                ask()
