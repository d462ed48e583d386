"""“It was not this”: from the label to the answers, with every head, through sleeps and stops."""

import numpy as np
import pytest

from edge_cl import Budget, Label, Learner, shares
from edge_cl.config import settings_from
from edge_cl.errors import StateUnwritable
from edge_cl.heads import HEADS
from tests.worlds import NAMES, D, World, make_bundle, reading

SHORT_SLICES = settings_from({"sleep": {"slice_ms": 1}})


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "b.ecl", "slda")


def answer(learner, x, reading_id="again"):
    return learner.observe(reading(x, reading_id))


def wrong(learner, reading_id="one", x=None):
    """An answer that somebody says is wrong: (feature, label answered, receipt)."""
    x = np.zeros(D) if x is None else x
    given = answer(learner, x, reading_id).label
    return x, given, learner.teach(Label(label=given, kind="not", reading_id=reading_id, source="anna"))


@pytest.mark.parametrize("head", list(HEADS))
def test_it_is_answered_otherwise_from_then_on_and_the_head_learns_nothing(tmp_path, head):
    learner = Learner.from_bundle(make_bundle(tmp_path / "b.ecl", head))
    learner.run(World(seed=4).events(60, n_classes=3))
    state = learner.knowledge.head.state()
    before = (learner.knowledge.calibrate.log_temperature, learner.knowledge.memory.rehearsed.n_offered)
    n_labels, accuracy = learner.knowledge.n_labels, learner.status().accuracy_now
    x, given, receipt = wrong(learner)
    assert (receipt.status, receipt.kind, receipt.source, receipt.label) == ("learned", "not", "anna", given)
    assert receipt.confidence_before > 0.3 and receipt.confidence_after == 0 and not receipt.new_class
    assert receipt.changed["one"].startswith(f"{given} → ") and f"not {given!r}" in receipt.message
    again = answer(learner, x)
    assert again.label not in (given, "") and again.scores.get(given, 0) == 0
    np.testing.assert_array_equal(
        learner.predict(np.tile(x, (2, 1, 1)).astype(np.float32)).argmax(axis=1),
        [learner.class_names.index(again.label)] * 2,
    )
    after = learner.knowledge.head.state()
    for name, array in state.arrays.items():
        np.testing.assert_array_equal(after.arrays[name], array)
    assert (
        learner.knowledge.calibrate.log_temperature,
        learner.knowledge.memory.rehearsed.n_offered,
    ) == before
    assert learner.knowledge.n_labels == n_labels and learner.status().accuracy_now == accuracy
    assert learner.class_names == [*NAMES[:3]], "no junk class"


@pytest.mark.parametrize("head", list(HEADS))
def test_right_answers_elsewhere_stay_right(tmp_path, head):
    learner = Learner.from_bundle(make_bundle(tmp_path / "b.ecl", head))
    learner.run(World(seed=4).events(60, n_classes=3))
    X, y = World(seed=8).draw(200)
    was = learner.predict(X[:, None]).argmax(axis=1) == y
    for k in range(40):
        x = World(seed=4).draw(60)[0][k] + 4
        wrong(learner, f"n{k}", x)
    now = learner.predict(X[:, None]).argmax(axis=1) == y
    assert (was & ~now).sum() <= 0.02 * was.sum()


def test_a_label_that_comes_later_is_the_last_word(bundle):
    learner = Learner.from_bundle(bundle)
    x, given, _ = wrong(learner)
    receipt = learner.teach(Label(label=given, reading_id="one"))
    assert receipt.status == "learned" and receipt.confidence_before == 0 < receipt.confidence_after
    assert answer(learner, x).label == given and learner.knowledge.refusals.n == 0
    # and the other way round: the reading does not count as labelled any more
    assert learner.teach(Label(label=given, kind="not", reading_id="one")).status == "learned"
    assert answer(learner, x).label != given
    assert learner.teach(Label(label=given, reading_id="one")).status == "learned"
    assert answer(learner, x).label == given


def test_a_reading_can_be_none_of_all_classes_until_it_is_named(bundle):
    learner = Learner.from_bundle(bundle)
    x = np.zeros(D)
    answer(learner, x, "r0")
    for name in NAMES[:3]:
        receipt = learner.teach(Label(label=name, kind="not", reading_id="r0"))
        assert receipt.status == "learned"
    assert receipt.changed["r0"].endswith("→ (none)")
    decision = answer(learner, x, "r1")
    assert (decision.label, decision.confidence, decision.abstained) == ("", 0, True)
    assert learner.teach(Label(label="climb", reading_id="r1")).new_class
    assert answer(learner, x).label == "climb"


def test_what_cannot_be_refused_is_said_so(bundle, tmp_path):
    learner = Learner.from_bundle(bundle, state_dir=tmp_path / "s")
    assert learner.teach(Label(label="walk", kind="not")).status == "unknown-reading"
    answer(learner, np.zeros(D), "r0")
    junk = learner.teach(Label(label="dance", kind="not"))
    assert junk.status == "refused" and junk.kind == "not"
    assert "no class 'dance' is known" in junk.message and "rest, walk, run" in junk.message
    assert learner.class_names == [*NAMES[:3]] and junk.seq == 0
    assert learner.teach(Label(label=" ", kind="not")).status == "refused"
    assert learner.teach(Label(label="walk", kind="not")).status == "learned", (
        "no id means the newest reading"
    )
    again = learner.teach(Label(label="walk", kind="not", reading_id="r0"))
    assert again.status == "duplicate" and again.kind == "not" and "already known not to be" in again.message
    assert learner.teach(Label(label="rest", kind="not", reading_id="r0")).status == "learned", (
        "another class"
    )
    assert learner.knowledge.refusals.n == 2
    learner.close()
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s") as learner:
        redelivered = Label(label="walk", kind="not", reading_id="r0")
        assert learner.teach(redelivered).status == "duplicate", "known across a restart"
        other = Label(label="run", kind="not", reading_id="r0")
        assert learner.teach(other).status == "unknown-reading"


def test_it_is_held_through_a_sleep_and_may_be_said_in_one(tmp_path):
    learner = Learner.from_bundle(make_bundle(tmp_path / "b.ecl"), settings=SHORT_SLICES)
    learner.run(World(seed=4).events(100, n_classes=3))
    x, given, _ = wrong(learner)
    nap = learner.sleep()
    next(nap)
    assert learner.knowledge.asleep
    other, as_well, receipt = wrong(learner, "r1", np.full(D, 1.5))
    assert receipt.status == "learned" and answer(learner, other).label != as_well
    for _ in nap:
        pass
    assert answer(learner, x).label != given and answer(learner, other).label != as_well
    assert learner.knowledge.last_sleep.n_exemplars == learner.knowledge.memory.rehearsed.n


@pytest.mark.parametrize("head", ["dual", "slda", "knn"])
def test_a_restart_at_any_moment_changes_nothing(tmp_path, head):
    bundle = make_bundle(tmp_path / "b.ecl", head)
    settings = settings_from({"sleep": {"after_labels": 40, "idle_s": 0}, "state": {"snapshot_labels": 37}})
    X, y = World(seed=4, shift=1.0).draw(160, 4)

    def step(learner, k):
        decision = answer(learner, X[k], f"r{k}")
        if decision.label not in (NAMES[y[k]], ""):
            learner.teach(Label(label=decision.label, kind="not", reading_id=f"r{k}"))
        if k % 3 == 0:
            learner.run([Label(label=NAMES[y[k]], reading_id=f"r{k}")])

    whole = Learner.from_bundle(bundle, settings=settings)
    for k in range(160):
        step(whole, k)
    assert whole.knowledge.refusals.n > 10 and whole.knowledge.n_sleeps >= 1
    for stops in ([3, 41, 90, 160], [75, 76, 160]):
        k = 0
        for stop in stops:
            learner = Learner.from_bundle(bundle, state_dir=tmp_path / f"s{stops[0]}", settings=settings)
            while k < stop:
                step(learner, k)
                k += 1
            learner._durable.commit()
            learner._durable.close(save=False)  # as a power cut: the journal must tell
        assert learner.knowledge.digest() == whole.knowledge.digest()
        with Learner.from_bundle(bundle, state_dir=tmp_path / f"s{stops[0]}", settings=settings) as learner:
            assert learner.knowledge.digest() == whole.knowledge.digest()


def test_it_is_part_of_the_digest_and_a_snapshot_without_it_holds_none(bundle):
    learner, other = Learner.from_bundle(bundle), Learner.from_bundle(bundle)
    empty, digest = learner.knowledge.state(), learner.knowledge.digest()
    _, given, _ = wrong(learner)
    assert learner.knowledge.digest() != digest
    other.knowledge.restore(*learner.knowledge.state(whole=True))
    assert other.knowledge.digest() == learner.knowledge.digest()
    other.knowledge.restore(*empty)
    assert other.knowledge.digest() == digest and other.knowledge.refusals.n == 0
    assert answer(other, np.zeros(D)).label == given


def test_a_class_that_is_gone_when_the_journal_is_replayed_is_refused_by_nothing(bundle):
    knowledge = Learner.from_bundle(bundle).knowledge
    digest = knowledge.digest()
    assert knowledge.learn_not(np.zeros(D, dtype=np.float32), "climb").class_index == -1
    assert knowledge.digest() == digest


def test_its_bytes_are_in_the_budget_and_bounded(tmp_path):
    budget = Budget(ram_bytes=500_000)
    learner = Learner.from_bundle(make_bundle(tmp_path / "b.ecl", "slda"), budget=budget)
    held = learner.status().held
    assert 0 < held["refusals"] <= budget.ram_bytes // 90
    capacity = learner.knowledge.refusals.capacity
    for k in range(capacity + 5):
        wrong(learner, f"r{k}", np.random.default_rng(k).normal(size=D) * 5)
    assert learner.knowledge.refusals.n == capacity and learner.status().held == held
    shares.release(learner.ledger)
    assert "refusals" not in learner.ledger.held(), "the next knowledge takes its own"


def test_when_the_disk_takes_nothing_it_is_refused_and_not_remembered(bundle, tmp_path, monkeypatch):
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s") as learner:
        answer(learner, np.zeros(D))  # slda solves when it is first asked
        digest = learner.knowledge.digest()
        with monkeypatch.context() as full:
            full.setattr(learner._durable, "commit", lambda: (_ for _ in ()).throw(StateUnwritable("full")))
            x, given, receipt = wrong(learner)
        assert (receipt.status, receipt.kind, receipt.seq) == ("refused", "not", 0)
        assert "predicting only" in receipt.message and learner.knowledge.refusals.n == 0
        assert answer(learner, x).label == given and learner.knowledge.digest() == digest
        assert learner.ledger.held()["refusals"] == learner.knowledge.refusals.nbytes
        _, _, receipt = wrong(learner)
        assert receipt.status == "learned" and answer(learner, x).label != given
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s") as learner:
        assert answer(learner, x).label not in (given, "")


def test_said_in_a_sleep_that_a_power_cut_ends_it_is_known_again(tmp_path):
    bundle = make_bundle(tmp_path / "b.ecl")
    learner = Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=SHORT_SLICES)
    learner.run(World(seed=4).events(100, n_classes=3))
    nap = learner.sleep()
    next(nap)
    assert learner.knowledge.asleep
    x, given, receipt = wrong(learner)
    assert receipt.status == "learned" and learner.knowledge.asleep
    said = learner.knowledge.refusals.state()
    learner._durable.close(save=False)
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=SHORT_SLICES) as learner:
        assert learner.knowledge.asleep and answer(learner, x).label != given
        for name, array in learner.knowledge.refusals.state().items():
            np.testing.assert_array_equal(array, said[name])
        learner.run([])
        assert not learner.knowledge.asleep and answer(learner, x).label != given
