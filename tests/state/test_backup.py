"""A backup is whole or refused; restored it is the same device; merged it is both."""

import contextlib
import errno

import numpy as np
import pytest

from edge_cl.config import settings_from
from edge_cl.errors import StateCorrupt, StateError, StateUnwritable
from edge_cl.learner import Learner
from edge_cl.records import Label
from edge_cl.revisions import Forget, Rename, Rollback
from edge_cl.state import StateStore, backup
from edge_cl.state.backup import back_up, merge_backup, restore_backup
from tests.worlds import World, make_bundle, reading

SETTINGS = settings_from({"sleep": {"after_labels": 10**6, "idle_s": 0}, "state": {"snapshot_labels": 20}})


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("b") / "b.ecl", "dual")


def taught(folder, bundle, events):
    with Learner.from_bundle(bundle, state_dir=folder, settings=SETTINGS) as learner:
        learner.run(iter(events))
        return learner.knowledge.digest()


def digest_of(folder, bundle):
    with Learner.from_bundle(bundle, state_dir=folder, settings=SETTINGS) as learner:
        return learner.knowledge.digest()


def test_a_backup_of_a_running_device_restores_it(tmp_path, bundle):
    events = list(World(seed=2).events(80))
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=SETTINGS) as learner:
        learner.run(iter(events[:100]))
        back_up(tmp_path / "s", tmp_path / "b.zip", at_s=1.0)
        then = learner.knowledge.digest()
        learner.run(iter(events[100:]))
        later = learner.knowledge.digest()
    assert restore_backup(tmp_path / "new", tmp_path / "b.zip", at_s=1.0) is None
    assert digest_of(tmp_path / "new", bundle) == then
    kept = restore_backup(tmp_path / "s", tmp_path / "b.zip", at_s=1.0)
    assert digest_of(tmp_path / "s", bundle) == then
    assert kept is not None and digest_of(kept, bundle) == later, "what it knew before is kept"


def test_a_backup_that_is_not_whole_changes_nothing(tmp_path, bundle):
    before = taught(tmp_path / "s", bundle, World(seed=2).events(40))
    back_up(tmp_path / "s", tmp_path / "b.zip", at_s=1.0)
    raw = (tmp_path / "b.zip").read_bytes()
    rng = np.random.default_rng(0)
    damaged = [raw[: len(raw) // 2], raw[:-1], raw[:100], b"", b"no zip file"]
    for place in rng.integers(len(raw), size=40):
        damaged.append(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
    n_refused = 0
    for content in damaged:
        (tmp_path / "bad.zip").write_bytes(content)
        try:
            restore_backup(tmp_path / "new", tmp_path / "bad.zip", at_s=1.0)
        except (StateCorrupt, StateError) as error:
            n_refused += 1
            assert "bad.zip" in str(error)
        else:  # a byte that says nothing, a time stamp of the archive, say
            assert digest_of(tmp_path / "new", bundle) == before
        with contextlib.suppress(StateError):
            merge_backup(tmp_path / "s", tmp_path / "bad.zip", at_s=1.0)
    assert n_refused > 30
    assert digest_of(tmp_path / "s", bundle) == before


def test_a_backup_needs_somewhere_to_come_from_and_go_to(tmp_path, bundle):
    with pytest.raises(StateError, match="no state to back up"):
        back_up(tmp_path / "none", tmp_path / "b.zip", at_s=1.0)
    with pytest.raises(StateError, match="no such backup"):
        restore_backup(tmp_path / "s", tmp_path / "none.zip", at_s=1.0)
    taught(tmp_path / "s", bundle, World(seed=2).events(5))
    back_up(tmp_path / "s", tmp_path / "b.zip", at_s=1.0)
    with (
        StateStore(tmp_path / "s", bundle.bundle_id, 10**8),
        pytest.raises(StateError, match="in use by process"),
    ):
        restore_backup(tmp_path / "s", tmp_path / "b.zip", at_s=1.0)


def test_merged_devices_know_what_one_would_that_was_taught_all(tmp_path, bundle):
    ours, theirs = list(World(seed=2).events(50)), list(World(seed=3).events(50))
    whole = taught(tmp_path / "one", bundle, [*ours, *theirs])
    taught(tmp_path / "a", bundle, ours)
    taught(tmp_path / "b", bundle, theirs)
    back_up(tmp_path / "b", tmp_path / "b.zip", at_s=1.0)
    merged = merge_backup(tmp_path / "a", tmp_path / "b.zip", at_s=1.0)
    assert (merged.n_new, merged.n_known, merged.first_seq) == (50, 0, 1)
    assert digest_of(tmp_path / "a", bundle) == whole
    again = merge_backup(tmp_path / "a", tmp_path / "b.zip", at_s=1.0)
    assert (again.n_new, again.n_known) == (0, 50)
    assert digest_of(tmp_path / "a", bundle) == whole
    back_up(tmp_path / "a", tmp_path / "a.zip", at_s=1.0)
    home = merge_backup(tmp_path / "b", tmp_path / "a.zip", at_s=1.0)
    assert (home.n_new, home.n_known) == (50, 50), "its own labels do not come back to it"


def test_what_was_merged_can_be_forgotten_and_does_not_come_again(tmp_path, bundle):
    ours, theirs = list(World(seed=2).events(50)), list(World(seed=3).events(50))
    before = taught(tmp_path / "a", bundle, ours)
    taught(tmp_path / "b", bundle, theirs)
    back_up(tmp_path / "b", tmp_path / "b.zip", at_s=1.0)
    merged = merge_backup(tmp_path / "a", tmp_path / "b.zip", at_s=1.0)
    with Learner.from_bundle(bundle, state_dir=tmp_path / "a", settings=SETTINGS) as learner:
        assert learner.revise(Forget(source=f"merge/{merged.uid[:8]}")).n_labels == 50
        assert learner.knowledge.digest() == before
    assert merge_backup(tmp_path / "a", tmp_path / "b.zip", at_s=1.0).n_new == 0


def test_a_clone_merges_what_it_learned_since(tmp_path, bundle):
    taught(tmp_path / "a", bundle, World(seed=2).events(30))
    back_up(tmp_path / "a", tmp_path / "a.zip", at_s=1.0)
    restore_backup(tmp_path / "clone", tmp_path / "a.zip", at_s=1.0)
    taught(tmp_path / "clone", bundle, World(seed=3).events(20))
    taught(tmp_path / "a", bundle, World(seed=4).events(10))
    back_up(tmp_path / "clone", tmp_path / "clone.zip", at_s=1.0)
    back_up(tmp_path / "a", tmp_path / "a.zip", at_s=1.0)
    merged = merge_backup(tmp_path / "a", tmp_path / "clone.zip", at_s=1.0)
    assert (merged.n_new, merged.n_known) == (20, 30)
    merged = merge_backup(tmp_path / "clone", tmp_path / "a.zip", at_s=1.0)
    assert (merged.n_new, merged.n_known) == (10, 30)


def test_merging_joins_class_names(tmp_path, bundle):
    taught(tmp_path / "a", bundle, World(seed=2).events(30, n_classes=3))
    taught(tmp_path / "b", bundle, World(seed=3).events(50))
    with Learner.from_bundle(bundle, state_dir=tmp_path / "b", settings=SETTINGS) as learner:
        learner.revise(Rename(old="climb", new="up"))
    back_up(tmp_path / "b", tmp_path / "b.zip", at_s=1.0)
    merge_backup(tmp_path / "a", tmp_path / "b.zip", at_s=1.0)
    with Learner.from_bundle(bundle, state_dir=tmp_path / "a", settings=SETTINGS) as learner:
        assert learner.class_names == ["rest", "walk", "run", "up"]


def test_another_bundles_backup_is_not_merged(tmp_path, bundle):
    taught(tmp_path / "a", bundle, World(seed=2).events(10))
    other = make_bundle(tmp_path / "o.ecl", "prototype")
    taught(tmp_path / "o", other, World(seed=2).events(10))
    back_up(tmp_path / "o", tmp_path / "o.zip", at_s=1.0)
    with pytest.raises(StateError, match="features differ"):
        merge_backup(tmp_path / "a", tmp_path / "o.zip", at_s=1.0)


def test_merged_labels_come_under_the_names_that_their_classes_have_now(tmp_path, bundle):
    """Also where a rename was rolled back, a name was given back, or now means another class."""
    x, _ = World(seed=3).draw(4)
    with Learner.from_bundle(bundle, state_dir=tmp_path / "other", settings=SETTINGS) as other:

        def teach(k, name):
            other.observe(reading(x[k], f"r{k}"))
            other.teach(Label(label=name, reading_id=f"r{k}"))

        teach(0, "rest")
        at = other.status().journal_seq
        other.revise(Rename(old="rest", new="nap"))
        other.revise(Rollback(to=at))
        other.revise(Rename(old="walk", new="stroll"))
        teach(1, "stroll")
        other.revise(Rename(old="stroll", new="walk"))
        teach(2, "run")
        other.revise(Rename(old="run", new="dash"))
        other.revise(Rename(old="rest", new="run"))
        teach(3, "run")
    back_up(tmp_path / "other", tmp_path / "b.zip", at_s=1.0)
    taught(tmp_path / "s", bundle, [])
    assert merge_backup(tmp_path / "s", tmp_path / "b.zip", at_s=1.0).n_new == 4
    with StateStore(tmp_path / "s", "", 2**62) as store:
        assert [e.label for e in store.entries(0)] == ["run", "walk", "dash", "run"]


def test_merging_again_after_the_beginning_was_cut_off_adds_nothing(tmp_path, bundle):
    taught(tmp_path / "a", bundle, World(seed=2).events(30))
    taught(tmp_path / "b", bundle, World(seed=3).events(20))
    back_up(tmp_path / "b", tmp_path / "b.zip", at_s=1.0)
    assert merge_backup(tmp_path / "a", tmp_path / "b.zip", at_s=1.0).n_new == 20
    digest = digest_of(tmp_path / "a", bundle)
    with StateStore(tmp_path / "a", bundle.bundle_id, 10**8) as store:
        store.journal.prune(store.journal.last_seq)
    assert merge_backup(tmp_path / "a", tmp_path / "b.zip", at_s=1.0).n_new == 0
    assert digest_of(tmp_path / "a", bundle) == digest


def test_a_merge_wakes_a_device_that_was_stopped_asleep(tmp_path, bundle):
    slices = settings_from({"sleep": {"after_labels": 10**6, "idle_s": 0, "slice_ms": 0.001}})
    with Learner.from_bundle(bundle, state_dir=tmp_path / "a", settings=slices) as learner:
        learner.run(World(seed=2).events(60))
        next(learner.sleep())
        assert learner.knowledge.asleep
    taught(tmp_path / "b", bundle, World(seed=3).events(20))
    back_up(tmp_path / "b", tmp_path / "b.zip", at_s=1.0)
    merge_backup(tmp_path / "a", tmp_path / "b.zip", at_s=1.0)
    with Learner.from_bundle(bundle, state_dir=tmp_path / "a", settings=SETTINGS) as learner:
        assert not learner.knowledge.asleep and learner.knowledge.n_labels == 80
        assert "merged" in learner.knowledge.last_sleep.reason


def test_readings_of_the_other_device_are_not_taken_for_its_own(tmp_path, bundle):
    """Both may call a reading r3; a label for ours, which it does not remember, teaches nothing."""
    taught(tmp_path / "a", bundle, World(seed=1).events(3))
    taught(tmp_path / "b", bundle, World(seed=2).events(12))
    back_up(tmp_path / "b", tmp_path / "b.zip", at_s=1.0)
    merge_backup(tmp_path / "a", tmp_path / "b.zip", at_s=2.0)
    theirs = next(e for e in list(World(seed=2).events(12))[-1:] if isinstance(e, Label))
    with Learner.from_bundle(bundle, state_dir=tmp_path / "a", settings=SETTINGS) as learner:
        assert learner.teach(theirs).status == "unknown-reading"


def test_a_restore_says_what_is_in_its_way(tmp_path, bundle, monkeypatch):
    before = taught(tmp_path / "s", bundle, World(seed=2).events(20))
    back_up(tmp_path / "s", tmp_path / "b.zip", at_s=1.0)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(backup.shutil, "copyfileobj", full)
        with pytest.raises(StateUnwritable, match="free some disk"):
            restore_backup(tmp_path / "s", tmp_path / "b.zip", at_s=1.0)
        broken.setattr(backup.tempfile, "TemporaryDirectory", full)
        with pytest.raises(StateUnwritable, match="no room"):
            restore_backup(tmp_path / "s", tmp_path / "b.zip", at_s=1.0)
    with pytest.raises(StateError, match="cannot be read"):
        restore_backup(tmp_path / "s", tmp_path, at_s=1.0)
    assert digest_of(tmp_path / "s", bundle) == before


def test_restoring_twice_in_a_second_keeps_both_and_the_backup(tmp_path, bundle):
    """The backup may lie in the folder itself, under a name like one of ours."""
    then = taught(tmp_path / "s", bundle, World(seed=2).events(20))
    (tmp_path / "new").mkdir()
    file = tmp_path / "new" / "head-of-monday.zip"
    back_up(tmp_path / "s", file, at_s=1.0)
    kept = [restore_backup(tmp_path / "new", file, at_s=1.0) for _ in range(3)]
    assert kept[0] is None and kept[1] != kept[2] and file.exists()
    assert digest_of(tmp_path / "new", bundle) == then == digest_of(kept[1], bundle)


@pytest.mark.parametrize("n_moved", range(2))
def test_a_restore_that_was_cut_off_is_told_at_the_next_start(tmp_path, bundle, monkeypatch, n_moved):
    before = taught(tmp_path / "s", bundle, World(seed=2).events(20))
    back_up(tmp_path / "s", tmp_path / "b.zip", at_s=1.0)
    replace, left = backup.Path.replace, [n_moved]

    def cut(self, to):
        if self.parent.name.startswith("restoring-"):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return replace(self, to)

    with monkeypatch.context() as power:
        power.setattr(backup.Path, "replace", cut)
        with pytest.raises(KeyboardInterrupt):
            restore_backup(tmp_path / "s", tmp_path / "b.zip", at_s=1.0)
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=SETTINGS) as learner:
        assert "restore again" in learner.status().alarm
    restore_backup(tmp_path / "s", tmp_path / "b.zip", at_s=9.0)
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=SETTINGS) as learner:
        assert learner.knowledge.digest() == before and not learner.status().alarm
