"""A bundle is installed on a device that goes on answering: it takes over, or nothing has changed."""

import re

import msgspec
import numpy as np
import pytest

from edge_cl import Bundle, Learner
from edge_cl.bundle import npz_bytes
from edge_cl.config import settings_from
from edge_cl.errors import BudgetExceeded, BundleError, StateError, StateUnwritable
from edge_cl.manifest import Channel, HeadSpec, Merged
from edge_cl.records import Label
from edge_cl.release import release_of
from edge_cl.revisions import Forget, Rename
from edge_cl.state import SHARED, Journal, Shared
from edge_cl.upgrade.comparison import Least
from tests.upgrade.boards import CHUNK_BYTES, OTHER_ENCODER, SETTINGS, Board, variant
from tests.worlds import NAMES, World, reading


@pytest.fixture
def board(tmp_path):
    made = Board(tmp_path).start()
    yield made
    made.device.__exit__(None, None, None)
    made.slots.close()


def bundle_of(board):
    return Bundle.load(board.home)


def test_a_bundle_takes_over_after_twenty_trusted_labels(board, tmp_path):
    board.run(World(seed=3).events(30))
    new = variant(bundle_of(board), tmp_path / "new.ecl", name="newer")
    board.install(tmp_path / "new.ecl")
    assert board.phases == ["fetched", "shadow"] and board.bundle_id != new.bundle_id
    board.run(World(seed=5).events(19))
    assert "shadow" in board.device.status().installed and "19 trusted" in board.device.status().installed
    assert board.bundle_id != new.bundle_id
    board.run(later(World(seed=6).events(10)))
    assert board.bundle_id == new.bundle_id and board.phases == ["fetched", "shadow", "committed"]
    last = board.reports[-1]
    assert last.n_trusted == 20 and last.accuracy_new == last.accuracy_old and last.id == "c1"
    assert len(board.decisions()) == 59, "no reading was answered twice, or not at all"
    assert board.device.learner.knowledge.n_labels == len(board.learned()) == 59
    assert "newer" in board.device.status().installed


def test_what_took_over_knows_what_the_old_one_did(board, tmp_path):
    """Same encoder: the new head is that of a device which had been taught all of it with the new bundle."""
    board.run(World(seed=3).events(80))
    new = variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run(later(World(seed=5).events(60)))
    assert board.bundle_id == new.bundle_id
    with Learner.from_bundle(new, settings=SETTINGS) as whole:
        whole.run([*World(seed=3).events(80), *later(World(seed=5).events(60))])
        X = World(seed=8).draw(200)[0][:, None, :]
        np.testing.assert_allclose(board.device.learner.predict(X), whole.predict(X), atol=1e-6)


def test_it_goes_on_with_the_new_bundle_after_a_restart(board, tmp_path):
    new = variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run(World(seed=5).events(40))
    digest = board.device.learner.knowledge.digest()
    board.stop()
    board.start()
    assert board.bundle_id == new.bundle_id and board.device.learner.knowledge.digest() == digest


def test_a_stop_in_the_shadow_costs_nothing_that_was_seen(board, tmp_path):
    new = variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run(World(seed=5).events(12))
    board.stop()
    board.start()
    board.run([None, *later(World(seed=6).events(7))])
    assert board.bundle_id != new.bundle_id and "19 trusted" in board.device.status().installed
    board.run(World(seed=7).events(2))
    assert board.bundle_id == new.bundle_id and board.reports[-1].n_trusted == 20
    assert board.device.learner.knowledge.n_labels == len(board.learned())


def test_a_label_that_comes_again_after_the_change_is_a_duplicate(board, tmp_path):
    new = variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    events = list(World(seed=5).events(25))
    board.run(events)
    assert board.bundle_id == new.bundle_id
    board.run([events[21]])
    assert board.answers[-2].status == "duplicate"
    late = [reading(World(seed=6).draw(1)[0][0], "late"), Label(label="walk", reading_id="late", source="x")]
    board.run(late)
    assert board.learned()[-1].reading_id == "late"


def test_labels_in_the_very_moment_of_the_change_are_kept(tmp_path):
    settings = settings_from({"sleep": {"after_labels": 0, "idle_s": 0}, "state": {"commit_ms": 1e6}})
    board = Board(tmp_path, settings=settings, least=Least(trusted=20, readings=40, probation=50)).start()
    new = variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run(World(seed=5).events(60))
    assert board.bundle_id == new.bundle_id
    assert board.device.learner.knowledge.n_labels == len(board.learned()) == 60
    board.stop()


def test_names_and_accuracy_go_along(board, tmp_path):
    board.run(World(seed=3).events(20, n_classes=3))
    board.device.revise(Rename(old="rest", new="still"), source="test", wait=True)
    variant(bundle_of(board), tmp_path / "new.ecl", encoder=OTHER_ENCODER)
    board.install(tmp_path / "new.ecl")
    board.run(later(World(seed=5).events(30, n_classes=3)))
    assert board.phases[-1] == "committed"
    names = board.device.learner.class_names
    assert "still" in names and "rest" not in names
    board.run([reading(World().means[0], "at-rest")])
    assert board.decisions()[-1].label == "still"
    assert board.device.status().accuracy_now > 0.5


def test_the_accuracy_shown_is_that_of_the_bundle_that_took_over(board, tmp_path):
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run(World(seed=5).events(20))
    board.run([None])
    assert board.phases[-1] == "committed"
    assert board.device.status().accuracy_now == board.reports[-1].accuracy_new


def test_chunks_of_other_files_are_none_of_its_business(board, tmp_path):
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.device.upgrade.install(release_of(tmp_path / "new.ecl", chunk_bytes=CHUNK_BYTES))
    board.run([None])
    for _ in range(5):
        board.device.upgrade.chunk("0123456789abcdef", 0, b"of another file")
        board.run([None])
    assert board.wanted[0][0] == 0 and board.phases == []
    assert "being fetched, 0 of" in board.device.status().installed


def test_both_sleep_and_nothing_is_lost(tmp_path):
    settings = settings_from({"sleep": {"after_labels": 12, "idle_s": 0, "min_labels": 4, "slice_ms": 1}})
    board = Board(tmp_path, settings=settings).start()
    board.run(World(seed=3).events(40))
    new = variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run(later(World(seed=5).events(100)))
    assert board.bundle_id == new.bundle_id
    known = board.device.learner.knowledge
    assert known.n_labels == len(board.learned()) == 140 and known.n_sleeps > 2
    board.device.undo_install()
    board.run([None])
    assert board.device.learner.knowledge.n_labels == 140
    board.stop()


def test_one_that_does_not_fit_leaves_the_one_that_is_coming_alone(tmp_path):
    settings = settings_from({"budget": {"disk_mb": 24.0}, "state": {"snapshot_labels": 50}})
    board = Board(tmp_path, settings=settings).start()
    variant(bundle_of(board), tmp_path / "one.ecl", name="one")
    filler = npz_bytes(filler=np.zeros(20_000_000, dtype=np.uint8))
    variant(bundle_of(board), tmp_path / "big.ecl", members={"filler.npz": filler})
    board.install(tmp_path / "one.ecl")
    with pytest.raises(BudgetExceeded):
        board.device.install(str(tmp_path / "big.ecl"))
    assert board.phases == ["fetched", "shadow"] and "one" in board.device.status().installed
    board.stop()


def test_when_the_bundle_before_cannot_be_opened_the_new_one_stays(board, tmp_path, monkeypatch):
    new = variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run(World(seed=5).events(30))
    board.home.rename(tmp_path / "away.ecl")
    board.device.undo_install()
    board.run(World(seed=6).events(1))
    assert board.bundle_id == new.bundle_id and board.phases[-1] == "failed"
    assert "cannot be opened" in board.reports[-1].reason
    (tmp_path / "away.ecl").rename(board.home)

    def full(*_args, **_kwargs):
        raise StateUnwritable("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr("edge_cl.upgrade.slots.write_pointer", full)
        board.device.undo_install()
        board.run(World(seed=7).events(1))
    assert board.bundle_id == new.bundle_id and "disk is full" in board.reports[-1].reason
    board.device.undo_install()
    board.run([None])
    assert board.bundle_id != new.bundle_id and board.phases[-1] == "rolled-back"


@pytest.mark.parametrize("when", ["fetching", "shadow", "active"])
def test_a_disk_that_takes_no_note_never_keeps_the_device_from_answering(board, tmp_path, monkeypatch, when):
    variant(bundle_of(board), tmp_path / "new.ecl")
    release = release_of(tmp_path / "new.ecl", chunk_bytes=4096)
    board.device.upgrade.install(release, file=tmp_path / "new.ecl")
    if when != "fetching":
        board.run([None] * 40)
    if when == "active":
        board.run(World(seed=3).events(25))
    board.stop()

    def full(*_args, **_kwargs):
        raise StateUnwritable("the disk is full")

    monkeypatch.setattr("edge_cl.upgrade.slots.write_pointer", full)
    board.start()
    board.run([*[None] * 40, *later(World(seed=5).events(60))])
    assert len([d for d in board.decisions() if d.reading_id.startswith("later")]) == 60
    board.stop()
    monkeypatch.undo()
    board.start()
    board.run(World(seed=6).events(3))
    assert board.answers[-1].alarm == ""


def test_one_that_stops_the_device_three_times_is_dropped(board, tmp_path):
    old = board.bundle_id
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    for _ in range(3):
        board.cut()
        board.start()
        board.run([None])
    assert board.phases[-1] == "failed" and "3 times in a row" in board.reports[-1].reason
    board.run(World(seed=5).events(40))
    assert board.bundle_id == old and not board.device.status().installed


def test_another_bundle_ends_the_one_that_was_coming(board, tmp_path):
    variant(bundle_of(board), tmp_path / "one.ecl", name="one")
    variant(bundle_of(board), tmp_path / "two.ecl", name="two")
    board.install(tmp_path / "one.ecl")
    board.install(tmp_path / "two.ecl")
    assert board.phases == ["fetched", "shadow", "failed", "fetched", "shadow"]
    assert "two is to be installed instead" in board.reports[2].reason
    assert len(list((tmp_path / "state" / "slots").iterdir())) == 1
    board.device.undo_install()
    assert board.phases[-1] == "failed" and not board.device.status().installed


def test_without_labels_it_takes_over_when_both_agree(board, tmp_path):
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run([reading(x, f"u{k}") for k, x in enumerate(World(seed=5).draw(199)[0])])
    assert "committed" not in board.phases
    board.run([reading(x, f"v{k}") for k, x in enumerate(World(seed=6).draw(10)[0])])
    assert board.phases[-1] == "committed" and "agree on" in board.reports[-1].reason


def test_without_labels_one_that_disagrees_never_takes_over(board, tmp_path):
    old = board.bundle_id
    confused(bundle_of(board), tmp_path / "bad.ecl")
    board.install(tmp_path / "bad.ecl")
    board.run([reading(x, f"u{k}") for k, x in enumerate(World(seed=5).draw(820)[0])])
    assert board.phases[-1] == "rolled-back" and board.bundle_id == old
    assert "label some" in board.reports[-1].reason


def test_a_worse_bundle_is_rolled_back_and_the_old_one_never_noticed(board, tmp_path):
    old = board.bundle_id
    confused(bundle_of(board), tmp_path / "bad.ecl")
    board.install(tmp_path / "bad.ecl")
    board.run(World(seed=5).events(60, n_classes=3))
    assert board.phases[-1] == "rolled-back" and board.bundle_id == old
    report = board.reports[-1]
    assert report.accuracy_new < report.accuracy_old - 0.1
    with Learner.from_bundle(bundle_of(board), settings=SETTINGS) as alone:
        alone.run(World(seed=5).events(60, n_classes=3))
        assert board.device.learner.knowledge.digest() == alone.knowledge.digest()
    assert not list((tmp_path / "state" / "slots").iterdir()), "nothing of it is left"


def test_labels_that_are_not_trusted_decide_nothing(board, tmp_path):
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    X, y = World(seed=5).draw(60)
    for k in range(60):
        board.run([reading(X[k], f"r{k}"), Label(label=NAMES[y[k]], reading_id=f"r{k}", source="mqtt/x")])
    assert board.device.learner.knowledge.n_labels > 20 and "committed" not in board.phases


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rate_hz": 50.0}, r"other sensors: rate \(Hz\) 1 here, 50 there"),
        ({"channels": tuple(Channel(name=f"c{i}", unit="g") for i in range(6))}, "channels c0 1, .* c0 g"),
        ({"head": HeadSpec(name="nope")}, "nope"),
    ],
)
def test_a_bundle_that_cannot_be_used_fails_with_the_reason(board, tmp_path, change, said):
    old = board.bundle_id
    variant(bundle_of(board), tmp_path / "bad.ecl", **change)
    board.install(tmp_path / "bad.ecl")
    assert board.phases[-1] == "failed" and board.bundle_id == old
    assert re.search(said, board.reports[-1].reason)
    board.run(World(seed=5).events(5))
    assert len(board.learned()) == 5


def test_one_whose_encoder_computes_something_else_here_fails_its_self_test(board, tmp_path):
    X = World(seed=1).draw(8)[0]
    golden = npz_bytes(inputs=X[:, None, :], features=X * 1.1)
    variant(bundle_of(board), tmp_path / "bad.ecl", members={"golden.npz": golden})
    board.install(tmp_path / "bad.ecl")
    assert board.phases == ["fetched", "failed"] and "self-test" in board.reports[-1].reason


def test_whatever_it_raises_in_the_shadow_ends_it_and_nothing_else(board, tmp_path, monkeypatch):
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    shadow = board.device.upgrade._shadow

    def raises(*_args, **_kwargs):
        raise ZeroDivisionError("the runtime broke down")

    monkeypatch.setattr(shadow.new, "turn", raises)
    board.run(World(seed=5).events(30))
    assert board.phases[-1] == "rolled-back" and "runtime broke down" in board.reports[-1].reason
    assert len(board.learned()) == 30


def test_another_encoder_begins_with_its_own_prior_and_learns_what_comes(board, tmp_path):
    board.run(World(seed=3).events(40))
    new = variant(bundle_of(board), tmp_path / "new.ecl", encoder=OTHER_ENCODER)
    board.least = board.device.upgrade._least = Least(trusted=40, readings=400, probation=50)
    board.install(tmp_path / "new.ecl")
    board.run(later(World(seed=5).events(45)))
    assert board.bundle_id == new.bundle_id
    assert board.device.learner.knowledge.n_labels == 45, "none of the forty before"


def test_labels_that_are_in_the_prior_already_are_not_carried_over(board, tmp_path):
    board.run(World(seed=3).events(40))
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl", includes={"home/edge-cl": 30, "home/other": 99})
    board.run(later(World(seed=5).events(25)))
    assert board.phases[-1] == "committed" and board.device.learner.knowledge.n_labels == 35


def test_labels_that_were_left_out_of_a_merged_prior_are_carried_over(board, tmp_path):
    """Classes with few labels, and what is no label of its own: `includes` alone would lose them."""
    X, y = World(seed=3).draw(40, 4)
    for k in range(40):
        board.run([reading(X[k], f"w{k}"), Label(label=NAMES[y[k]], reading_id=f"w{k}", source=source_of(k))])
    board.run([reading(X[0], "odd"), Label(label="run", reading_id="odd", kind="not", source="test")])
    at = board.device.learner.committed_seq
    left_out = {"home/edge-cl": ["rest", "*"]}
    merged = Merged(base="b", includes={"home/edge-cl": at}, left_out=left_out)
    variant(bundle_of(board), tmp_path / "new.ecl", merged=merged)
    board.install(tmp_path / "new.ecl")
    board.run(later(World(seed=5).events(25)))
    learner = board.device.learner
    kept = [k for k in range(40) if NAMES[y[k]] in ("rest", "climb") or k >= 35]
    assert board.phases[-1] == "committed" and 0 < len(kept) < 40
    assert learner.knowledge.n_labels == len(kept) + 25
    assert [e.kind for e in learner.journal.read(1, learner.journal.last_seq)].count("not") == 1


def source_of(k):
    return "merge/0123abcd/anna" if k >= 35 else "test"


def test_reports_of_labels_are_counted_over_all_bundles(board, tmp_path):
    def n_reports():
        return Shared.read(board.device.learner.journal.get_meta(SHARED)).n_reports

    def note(n):
        text = msgspec.json.encode(Shared(n_reports=n, information=1.0)).decode()
        board.device.learner.journal.set_meta(SHARED, text)

    board.run(World(seed=3).events(20))
    note(3)
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    note(4)
    board.run(later(World(seed=5).events(25)))
    assert board.phases[-1] == "committed" and n_reports() == 4, "one was made while the new one was tried"
    note(6)
    board.device.undo_install()
    board.run([None])
    assert board.phases[-1] == "rolled-back" and n_reports() == 6


# ------------------------------------------------------------------ going back


def test_undo_goes_back_and_takes_the_labels_along(board, tmp_path):
    old = board.bundle_id
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run(World(seed=5).events(40))
    assert board.bundle_id != old
    board.device.undo_install()
    board.run([None])
    assert board.bundle_id == old and board.phases[-1] == "rolled-back"
    assert board.device.learner.knowledge.n_labels == 40
    with Learner.from_bundle(bundle_of(board), settings=SETTINGS) as alone:
        alone.run(World(seed=5).events(40))
        X = World(seed=8).draw(100)[0][:, None, :]
        np.testing.assert_allclose(board.device.learner.predict(X), alone.predict(X), atol=1e-6)
    with pytest.raises(StateError, match="no bundle was installed"):
        board.device.undo_install()


def test_labels_that_came_along_are_not_answered_again(board, tmp_path):
    """A link that makes lost receipts again from the journal asks for those after the last it knows."""
    board.run(World(seed=3).events(10))
    told, history = board.device.learner.committed_seq, board.device.learner.history_id
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run(later(World(seed=5).events(40)))
    board.device.undo_install()
    board.run([None])
    learner = board.device.learner
    assert board.phases[-1] == "rolled-back" and learner.history_id == history
    assert learner.committed_seq > told + 10, "labels of the other bundle came along"
    n_shadowed = sum(
        e.kind == "label" and not e.detail for e in learner.journal.read(told + 1, learner.committed_seq)
    )
    assert len(learner.receipts_after(told, 1000)) == n_shadowed == 20


def test_a_fall_on_probation_goes_back_by_itself(board, tmp_path):
    old = board.bundle_id
    board.run(World(seed=3).events(60, n_classes=3))
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run(later(World(seed=5).events(21, n_classes=3)))
    assert board.phases[-1] == "committed"
    X, y = World(seed=6).draw(40)
    wrong = [NAMES[(c + 1) % 3] for c in y]  # somebody trusted says that it is hardly ever right
    for k in range(40):
        board.run([reading(X[k], f"w{k}"), Label(label=wrong[k], reading_id=f"w{k}", source="test")])
    assert board.phases[-1] == "rolled-back" and board.bundle_id == old
    assert "the bundle before had" in board.reports[-1].reason
    assert "went back" in board.device.status().alarm


def test_what_is_forgotten_does_not_come_back_with_the_old_bundle(board, tmp_path):
    board.run(World(seed=3).events(30))
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run(later(World(seed=5).events(30)))
    assert board.phases[-1] == "committed"
    board.device.revise(Forget(class_name="walk"), source="test", wait=True)
    board.device.revise(Rename(old="rest", new="still"), source="test", wait=True)
    board.device.undo_install()
    board.run([None])
    board.stop()
    journal = Journal(tmp_path / "state" / "journal.db")
    assert not [entry for entry in journal.read(1, journal.last_seq) if entry.label == "walk"]
    journal.close()
    board.start()
    assert "still" in board.device.learner.class_names and "rest" not in board.device.learner.class_names


def test_what_cannot_be_forgotten_everywhere_is_said(board, tmp_path, monkeypatch):
    board.run(World(seed=3).events(30))
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run(later(World(seed=5).events(30)))

    def full(*_args, **_kwargs):
        raise StateUnwritable("the disk is full")

    monkeypatch.setattr("edge_cl.upgrade.slots.revise", full)
    with pytest.raises(StateError, match="one may go back to: the disk is full"):
        board.device.revise(Forget(class_name="walk"), source="test", wait=True)
    monkeypatch.undo()
    board.device.revise(Forget(class_name="run"), source="test", wait=True)


def test_what_is_forgotten_in_the_shadow_was_never_learned(board, tmp_path):
    board.run(World(seed=3).events(30))
    variant(bundle_of(board), tmp_path / "new.ecl")
    board.install(tmp_path / "new.ecl")
    board.run(later(World(seed=5).events(10)))
    board.device.revise(Forget(class_name="walk"), source="test", wait=True)
    board.run([None] * 20)
    assert "walk" not in taught(board.device.upgrade._shadow.new)
    board.run(World(seed=7).events(30, n_classes=1))
    assert board.phases[-1] == "committed"
    assert "walk" not in taught(board.device.learner)


# ------------------------------------------------------------------ bounds


def test_a_bundle_that_does_not_fit_the_disk_is_refused_at_once(tmp_path):
    settings = settings_from({"budget": {"disk_mb": 12.0}, "state": {"snapshot_labels": 50}})
    board = Board(tmp_path, settings=settings).start()
    X = np.zeros((2_000_000,), dtype=np.uint8)
    variant(bundle_of(board), tmp_path / "big.ecl", members={"filler.npz": npz_bytes(filler=X)})
    with pytest.raises(BudgetExceeded, match=r"needs .* bytes of disk .* are free; raise budget\.disk_mb"):
        board.device.install(str(tmp_path / "big.ecl"))
    board.run(World(seed=5).events(5))
    assert len(board.learned()) == 5 and not board.slots.pointer.coming
    board.stop()


def test_a_release_with_a_foul_name_is_refused(board, tmp_path):
    release = release_of(board.home, chunk_bytes=4096)
    foul = msgspec.structs.replace(release, bundle_id="../x")
    with pytest.raises(BundleError, match="no SHA-256"):
        board.device.upgrade.install(foul)


def taught(learner):
    """The classes of the labels in a learner's journal."""
    return {entry.label for entry in learner.journal.read(1, learner.journal.last_seq)}


def later(events):
    """The events, of readings with names of their own."""
    for event in events:
        name = event.reading_id if isinstance(event, Label) else event.id
        field = "reading_id" if isinstance(event, Label) else "id"
        yield msgspec.structs.replace(event, **{field: f"later-{name}"})


def confused(bundle, path):
    """A bundle with another encoder whose prior has the classes' names mixed up."""
    names = tuple(np.roll(bundle.manifest.class_names, 1).tolist())
    return variant(bundle, path, class_names=names, encoder=OTHER_ENCODER)
