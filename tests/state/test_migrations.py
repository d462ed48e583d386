"""State that earlier releases wrote is brought up to date, whole; that of later ones is refused."""

import shutil
import sqlite3
import zlib
from contextlib import closing

import msgspec
import numpy as np
import pytest

from edge_cl.config import settings_from
from edge_cl.errors import StateError
from edge_cl.learner import Learner
from edge_cl.records import Label
from edge_cl.state import Journal, StateStore
from edge_cl.state import snapshots as snapshot_files
from tests.worlds import World, make_bundle

SETTINGS = settings_from({"sleep": {"after_labels": 40, "idle_s": 0}, "state": {"snapshot_labels": 50}})

SCHEMA_1 = """
CREATE TABLE journal (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, reading_id TEXT NOT NULL,
    label TEXT NOT NULL, source TEXT NOT NULL, t_s REAL NOT NULL, feature BLOB NOT NULL,
    crc INTEGER NOT NULL);
CREATE INDEX journal_reading ON journal (reading_id) WHERE kind = 'label';
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


def as_version_1(folder):
    """Rewrite a folder as it was then: journal schema 1, snapshots of format 3 in two slots."""
    with closing(Journal(folder / "journal.db")) as journal:
        entries = list(journal.read(1, journal.last_seq))
        bundle_id = journal.get_meta("bundle_id")
    for path in folder.glob("journal.*"):
        path.unlink()
    db = sqlite3.connect(folder / "journal.db")
    db.execute("PRAGMA journal_mode=WAL")
    db.executescript(SCHEMA_1)
    for e in entries:
        source = e.detail if e.kind in ("sleep", "wake") else e.source
        row = (e.seq, e.kind, e.reading_id, e.label, source, e.t_s, e.feature.tobytes())
        crc = zlib.crc32(row[6], zlib.crc32(repr(row[:6]).encode()))
        db.execute("INSERT INTO journal VALUES (?,?,?,?,?,?,?,?)", (*row, crc))
    db.execute("INSERT INTO meta VALUES ('bundle_id', ?)", (bundle_id,))
    db.commit()
    db.close()
    slots = iter(("slot-a.snapshot", "slot-b.snapshot"))
    for path in sorted(folder.glob("head-*.snapshot"))[-2:]:
        old = snapshot_files.read_snapshot(path)
        new_in_4 = ("cause", "at_s", "head_names", "outer_of", "now_called")
        meta = {key: value for key, value in old.meta.items() if key not in new_in_4}
        with pytest.MonkeyPatch.context() as then:
            then.setattr(snapshot_files, "FORMAT_VERSION", 3)
            snapshot_files.Snapshots(folder).write(msgspec.structs.replace(old, meta=meta))
        path.rename(folder / next(slots))
    for path in folder.glob("head-*.snapshot"):
        path.unlink()
    return len(entries)


def test_version_1_becomes_the_present_one(tmp_path):
    bundle = make_bundle(tmp_path / "b.ecl")
    folder = tmp_path / "s"
    events = list(World(seed=2).events(130))
    with Learner.from_bundle(bundle, state_dir=folder, settings=SETTINGS) as learner:
        learner.run(iter(events))
        whole = learner.knowledge.digest()
    n = as_version_1(folder)
    shutil.copytree(folder, tmp_path / "no-slots")
    for path in (tmp_path / "no-slots").glob("*.snapshot"):
        path.unlink()
    for place in (folder, tmp_path / "no-slots"):
        with Learner.from_bundle(bundle, state_dir=place, settings=SETTINGS) as learner:
            assert learner.knowledge.digest() == whole
            assert not learner.status().alarm and learner.status().journal_seq == n
            last = [e for e in events if isinstance(e, Label)][-1]
            assert learner.teach(last).status == "duplicate"
        with StateStore(place, bundle.bundle_id, 10**8) as store:
            store.check_all()
            assert not store.problems and store.journal.last_seq == n
    assert list(folder.glob("head-*.snapshot")) or list(folder.glob("slot-*")), (
        "the old slots can be built upon"
    )


def test_a_damaged_entry_of_version_1_is_lost_alone(tmp_path):
    bundle = make_bundle(tmp_path / "b.ecl")
    folder = tmp_path / "s"
    with Learner.from_bundle(bundle, state_dir=folder, settings=SETTINGS) as learner:
        learner.run(World(seed=2).events(20))
    as_version_1(folder)
    db = sqlite3.connect(folder / "journal.db")
    db.execute("UPDATE journal SET label = 'x' WHERE seq = 3")
    db.commit()
    db.close()
    with closing(Journal(folder / "journal.db")) as journal:
        kinds = [entry.kind for entry in journal.read(1, 20)]
        assert kinds == ["label"] * 2 + ["damaged"] + ["label"] * 17


def test_a_migration_that_is_cut_off_changes_nothing(tmp_path, monkeypatch):
    bundle = make_bundle(tmp_path / "b.ecl")
    folder = tmp_path / "s"
    with Learner.from_bundle(bundle, state_dir=folder, settings=SETTINGS) as learner:
        learner.run(World(seed=2).events(20))
    as_version_1(folder)
    with monkeypatch.context() as then:
        then.setattr("edge_cl.state.migrations.SCHEMA_VERSION", "no number")
        with pytest.raises(Exception):  # noqa: B017  whatever stops it
            Journal(folder / "journal.db")
    with closing(Journal(folder / "journal.db")) as journal:
        assert len(list(journal.read(1, 20))) == 20


def test_a_newer_journal_is_refused(tmp_path):
    bundle = make_bundle(tmp_path / "b.ecl")
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=SETTINGS) as learner:
        learner.run(World(seed=2).events(3))
    db = sqlite3.connect(tmp_path / "s" / "journal.db")
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StateError, match=r"newer edge-cl \(journal schema 99.*upgrade"):
        Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=SETTINGS)


def test_version_1_in_numbers():
    """An entry's checksum as it was then, so that the rewriting above cannot drift with the code."""
    row = (1, "label", "r1", "walk", "test", 0.5, np.array([1.0, 2.0], dtype=np.float32).tobytes())
    assert zlib.crc32(row[6], zlib.crc32(repr(row[:6]).encode())) == 3827330138
