"""Taking back, going back, renaming: the head is bit for bit the one that never saw what was taken back."""

import contextlib
import sqlite3

import msgspec
import numpy as np
import pytest

from edge_cl.config import settings_from
from edge_cl.errors import StateError
from edge_cl.heads import HEADS
from edge_cl.learner import Learner
from edge_cl.records import Decision, Label, Reading, Receipt
from edge_cl.revisions import Forget, Rename, Review, Rollback
from edge_cl.state import StateStore, heads_of
from tests.worlds import World, make_bundle

NO_SLEEP = {"sleep": {"after_labels": 10**6, "idle_s": 0}}
SLEEPY = {"sleep": {"after_labels": 40, "idle_s": 0}, "state": {"snapshot_labels": 25}}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return make_bundle(tmp_path_factory.mktemp("b") / "b.ecl", "dual")


def run(learner, events):
    learner.run(iter(events))


def taught(folder, bundle, events, sources, **settings):
    """A device that was taught these events, each label by the source that `sources` gives for its place."""
    learner = Learner.from_bundle(bundle, state_dir=folder, settings=settings_from(settings or NO_SLEEP))
    said = []
    for k, event in enumerate(events):
        if isinstance(event, Label):
            event = msgspec.structs.replace(event, source=sources(k))
        said.append(event)
    run(learner, said)
    return learner


def by_turns(k):
    return "bad" if k % 10 < 2 else "good"


@pytest.mark.parametrize("head", list(HEADS))
def test_forgetting_a_source_is_as_if_it_had_never_spoken(tmp_path, head):
    bundle = make_bundle(tmp_path / "b.ecl", head)
    events = list(World(seed=4).events(120))
    both = taught(tmp_path / "both", bundle, events, by_turns)
    kept = [e for k, e in enumerate(events) if not isinstance(e, Label) or by_turns(k) == "good"]
    with taught(tmp_path / "good", bundle, kept, lambda k: "good") as good, both:
        wanted = good.knowledge.digest()
        assert both.knowledge.digest() != wanted
        outcome = both.revise(Forget(source="bad"))
        assert outcome.n_labels > 10
        assert both.knowledge.digest() == wanted
    with Learner.from_bundle(bundle, state_dir=tmp_path / "both", settings=settings_from(NO_SLEEP)) as again:
        assert again.knowledge.digest() == wanted, "also after a restart"


def test_forgetting_reaches_through_sleeps_and_snapshots(tmp_path, bundle):
    """With sleeps at the same places in the journal, whatever was learned between."""
    events = list(World(seed=4).events(150))
    with taught(tmp_path / "s", bundle, events, by_turns, **SLEEPY) as learner:
        n_sleeps = learner.knowledge.n_sleeps
        assert n_sleeps > 1 and len(learner.heads()) > 3
        learner.revise(Forget(source="bad"))
        digest = learner.knowledge.digest()
        assert learner.knowledge.n_sleeps == n_sleeps
        heads = learner.heads()
        assert [head.id for head in heads] == [learner.status().journal_seq], (
            "no head knows what was forgotten"
        )
        assert heads[0].cause.startswith("forgot")
    for path in (tmp_path / "s").glob("*.snapshot"):
        path.unlink()
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings_from(SLEEPY)) as again:
        assert again.knowledge.digest() == digest, "from the journal alone"


@pytest.mark.parametrize("what", ["reading", "class", "time", "all"])
def test_what_is_forgotten_is_chosen_by_anything(tmp_path, bundle, what):
    events = list(World(seed=4).events(60))
    labels = [e for e in events if isinstance(e, Label)]
    with taught(tmp_path / "s", bundle, events, by_turns) as learner:
        n = learner.status().n_labels
        asked, expected = {
            "reading": (Forget(reading=labels[5].reading_id), 1),
            "class": (Forget(class_name="walk"), sum(e.label == "walk" for e in labels)),
            "time": (Forget(since_s=0.0, until_s=4e9), n),
            "all": (Forget(source="bad", class_name="walk"), None),
        }[what]
        outcome = learner.revise(asked)
        assert outcome.n_labels == expected or (expected is None and 0 < outcome.n_labels < n)
        assert learner.status().n_labels == n - outcome.n_labels


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (Forget(source="nobody"), r"no label of source 'nobody'.*labels of good \(\d+\), bad"),
        (Forget(reading="r999"), "no label of reading 'r999'"),
        (Forget(), "forget what"),
        (Rollback(to=999), "no entry 999"),
        (Rollback(), "roll back to what"),
        (Rollback(before_s=4e9), "nothing was learned since"),
        (Rename(old="x", new="y"), "no class 'x'; known: rest, walk"),
        (Rename(old="rest", new="walk"), "merge-classes"),
        (Rename(old="rest", new="q", merge=True), "no class 'q'"),
        (Rename(old="rest", new="\n"), "printable"),
        (Review(seqs=[3], accept=True), "no label 3 waits"),
    ],
)
def test_what_cannot_be_done_is_said_and_changes_nothing(tmp_path, bundle, asked, says):
    with taught(tmp_path / "s", bundle, World(seed=4).events(30), by_turns) as learner:
        digest = learner.knowledge.digest()
        with pytest.raises(StateError, match=says):
            learner.revise(asked)
        assert learner.knowledge.digest() == digest


def test_a_label_can_be_given_again_after_it_was_forgotten(tmp_path, bundle):
    with taught(tmp_path / "s", bundle, World(seed=4).events(30), by_turns) as learner:
        label = Label(label="rest", reading_id=learner.pending.newest_id)
        assert learner.teach(label).status in ("learned", "duplicate")
        assert learner.teach(label).status == "duplicate"
        learner.revise(Forget(reading=label.reading_id))
        assert learner.teach(label).status == "learned"


def test_what_is_a_duplicate_follows_what_counts(tmp_path, bundle):
    """Also where a reading was labelled twice, and where its class has another name or number now."""
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings_from(NO_SLEEP)) as learner:
        learner.observe(next(World(seed=4).events(1)))

        def teach(name, source="", kind="is"):
            return learner.teach(Label(label=name, reading_id="r0", source=source, kind=kind)).status

        assert [teach("climb"), teach("walk", "bad")] == ["learned", "learned"]
        learner.revise(Forget(source="bad"))
        assert [teach("climb"), teach("walk")] == ["duplicate", "learned"]
        learner.revise(Rename(old="walk", new="stroll"))
        assert [teach("stroll"), teach("walk")] == ["duplicate", "duplicate"]
        learner.revise(Rename(old="rest", new="stroll", merge=True))
        assert teach("stroll") == "duplicate", "its number is another now"
        before = learner.status().journal_seq
        assert teach("stroll", kind="not") == "learned"
        learner.revise(Rollback(to=before))
        assert teach("stroll") == "duplicate", "what was said against it counts no more"


@pytest.mark.parametrize("settings", [NO_SLEEP, SLEEPY])
def test_going_back_and_forth(tmp_path, bundle, settings):
    events = list(World(seed=4).events(120))
    with taught(tmp_path / "s", bundle, events[:80], by_turns, **settings) as learner:
        learner._durable.snapshot("test")
        then, at = learner.knowledge.digest(), learner.status().journal_seq
        run(learner, events[80:])
        learner._durable.snapshot("test")
        later, last = learner.knowledge.digest(), learner.status().journal_seq
        learner.revise(Rollback(to=at))
        assert learner.knowledge.digest() == then
        learner.revise(Rollback(to=last))
        assert learner.knowledge.digest() == later, "a rollback can be undone"
        learner.revise(Rollback(to=at))
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings_from(settings)) as again:
        assert again.knowledge.digest() == then
        run(again, events[80:])
        assert again.knowledge.digest() == later or settings is SLEEPY


def test_what_was_forgotten_never_comes_back_by_a_rollback(tmp_path, bundle):
    events = list(World(seed=4).events(60))
    with taught(tmp_path / "s", bundle, events, by_turns) as learner:
        last = learner.status().journal_seq
        learner.revise(Forget(source="bad"))
        clean = learner.knowledge.digest()
        learner.revise(Rollback(to=last))
        assert learner.knowledge.digest() == clean


def test_a_renamed_class_keeps_what_it_knows(tmp_path, bundle):
    events = list(World(seed=4).events(60))
    with taught(tmp_path / "s", bundle, events, by_turns) as learner:
        reading = next(e for e in events if isinstance(e, Reading))
        before = learner.observe(reading)
        learner.revise(Rename(old=before.label, new="it"))
        after = learner.observe(reading)
        assert after.label == "it" and after.confidence == before.confidence
        old = learner.teach(Label(label=before.label, reading_id=reading.id))
        assert old.status == "learned" and not old.new_class, "the old name means the same class"
        assert before.label not in learner.class_names
        learner.revise(Forget(class_name="it"))
        digest = learner.knowledge.digest()
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings_from(NO_SLEEP)) as again:
        assert again.knowledge.digest() == digest and "it" in again.class_names


@pytest.mark.parametrize("head", list(HEADS))
def test_merged_classes_answer_as_one(tmp_path, head):
    bundle = make_bundle(tmp_path / "b.ecl", head)
    events = list(World(seed=4).events(80))
    with taught(tmp_path / "s", bundle, events, by_turns) as learner:
        windows = np.stack([e.window for e in events if isinstance(e, Reading)])
        names, before = list(learner.class_names), learner.predict(windows)
        learner.revise(Rename(old="rest", new="walk", merge=True))
        assert learner.class_names == [name for name in names if name != "rest"]
        after = learner.predict(windows)
        together = before[:, names.index("rest")] + before[:, names.index("walk")]
        np.testing.assert_allclose(after[:, learner.class_names.index("walk")], together, atol=1e-6)
        run(learner, World(seed=5).events(60))
        next(iter(learner.sleep()), None)
        for _ in learner.sleep():
            pass
        assert "rest" not in learner.class_names
        digest = learner.knowledge.digest()
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings_from(NO_SLEEP)) as again:
        assert again.knowledge.digest() == digest


SHORT = NO_SLEEP | {"state": {"snapshot_labels": 10, "history_mb": 0.02, "daily_write_mb": 0, "commit_ms": 0}}
"""A history that is cut off after some sixty labels."""


@pytest.mark.parametrize("asked", [Forget(reading="r61"), Rollback(to=65)])
def test_what_could_not_be_built_anew_is_refused_and_changes_nothing(tmp_path, bundle, asked):
    learner = taught(tmp_path / "s", bundle, World(seed=4).events(100), by_turns, **SHORT)
    digest, heads = learner.knowledge.digest(), learner.heads()
    assert 1 < heads[0].id < 62, "labels after the oldest head are known to all later ones"
    next(iter((tmp_path / "s").glob(f"head-*{heads[0].id}.snapshot"))).write_bytes(b"damaged")
    with pytest.raises(StateError, match="no sound head is left"):
        learner.revise(asked)
    learner.close()
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings_from(SHORT)) as again:
        assert again.knowledge.digest() == digest


def test_a_damaged_revision_is_noted_as_lost_once_and_for_all(tmp_path, bundle):
    with taught(tmp_path / "s", bundle, World(seed=4).events(20), by_turns) as learner:
        learner.revise(Rollback(to=5))
    with contextlib.closing(sqlite3.connect(tmp_path / "s" / "journal.db")) as db, db:
        db.execute("UPDATE journal SET detail = '{' WHERE kind = 'rollback'")
    with pytest.raises(StateError, match="damaged"):
        heads_of(tmp_path / "s")
    found = []
    for _ in range(2):
        with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings_from(NO_SLEEP)) as again:
            found.append((again.knowledge.digest(), "was damaged" in again.status().alarm))
    assert found == [(found[0][0], True), (found[0][0], False)]


def test_a_stop_amid_forgetting_leaves_no_head_that_knows(tmp_path, bundle, monkeypatch):
    with taught(tmp_path / "s", bundle, World(seed=4).events(20), by_turns) as learner:
        learner._durable.snapshot("test")
        with monkeypatch.context() as patch:
            patch.setattr(StateStore, "_drop_tainted", _stop)
            with pytest.raises(KeyboardInterrupt):
                learner.revise(Forget(source="bad"))
        learner._durable.close(save=False)
    assert len(heads_of(tmp_path / "s")) == 1
    StateStore(tmp_path / "s", "", 2**62).close()
    assert not heads_of(tmp_path / "s")


def _stop(store):
    raise KeyboardInterrupt


def test_no_file_of_a_device_that_runs_holds_what_was_forgotten(tmp_path, bundle):
    events = list(World(seed=4).events(20))
    with taught(tmp_path / "s", bundle, events, by_turns) as learner:
        row = next(e for e in events if isinstance(e, Reading) and e.id == "r7").window.tobytes()

        def holding():
            return [path.name for path in (tmp_path / "s").iterdir() if row in path.read_bytes()]

        assert holding()
        learner.revise(Forget(reading="r7"))
        assert not holding()


def test_the_device_answers_while_it_learns_anew_and_labels_wait(tmp_path, bundle):
    """In `run` a revision is learned anew in slices: readings are answered between, labels after."""
    events = list(World(seed=4).events(150))
    settings = {**SLEEPY, "sleep": SLEEPY["sleep"] | {"slice_ms": 0.001}}
    with taught(tmp_path / "s", bundle, events, by_turns, **settings) as learner:
        learner.revise(Forget(source="bad"), wait=False)
        more = list(World(seed=5).events(20))
        more = [r if isinstance(r, Label) else msgspec.structs.replace(r, id=f"m{r.id}") for r in more]
        more = [
            msgspec.structs.replace(r, reading_id=f"m{r.reading_id}") if isinstance(r, Label) else r
            for r in more
        ]
        answers, states = [], []

        def note(answer):
            answers.append(answer)
            states.append(learner.status().sleep_state)

        learner.run(iter(more), sinks=[note])
        receipts = [a for a in answers if isinstance(a, Receipt)]
        decisions = [(a, s) for a, s in zip(answers, states, strict=True) if isinstance(a, Decision)]
        assert len(decisions) == 20 and decisions[5][1].startswith("learning anew: ")
        assert [r.reading_id for r in receipts] == [e.reading_id for e in more if isinstance(e, Label)]
        assert all(r.status == "learned" for r in receipts)
        digest = learner.knowledge.digest()
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings_from(settings)) as again:
        assert again.knowledge.digest() == digest


def test_a_stop_while_it_learns_anew_loses_nothing(tmp_path, bundle):
    events = list(World(seed=4).events(150))
    with taught(tmp_path / "a", bundle, events, by_turns, **SLEEPY) as learner:
        learner.revise(Forget(source="bad"))
        wanted = learner.knowledge.digest()
    with taught(tmp_path / "b", bundle, events, by_turns, **SLEEPY) as learner:
        learner.revise(Forget(source="bad"), wait=False)
        assert not learner._teaching.rebuilt(slice_s=0.0)
    with Learner.from_bundle(bundle, state_dir=tmp_path / "b", settings=settings_from(SLEEPY)) as again:
        assert again.knowledge.digest() == wanted


def test_a_review_that_was_rolled_back_waits_again_and_damage_is_no_obstacle(tmp_path, bundle):
    with taught(tmp_path / "s", bundle, World(seed=4).events(5), by_turns) as learner:
        feature = learner.pending.get("r4").feature
        for name in ("rest", "walk"):
            label = Label(label=name, reading_id="r4")
            learner._durable.hold(label, "r4", feature, trust=0.1, why="odd")
        learner._teaching.commit()
        at, waiting = learner.status().journal_seq, [held.seq for held in learner.held_labels()]
        assert len(waiting) == 2
        learner.revise(Review(seqs=waiting, accept=True))
        assert not learner.held_labels()
        learner.revise(Rollback(to=at))
        assert [held.seq for held in learner.held_labels()] == waiting
    with contextlib.closing(sqlite3.connect(tmp_path / "s" / "journal.db")) as db, db:
        db.execute("UPDATE journal SET label = 'x' WHERE seq = ?", (waiting[0],))
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings_from(NO_SLEEP)) as again:
        assert [held.label for held in again.held_labels()] == ["walk"]


def test_a_class_is_forgotten_by_what_labels_meant_not_by_how_they_called_it(tmp_path, bundle):
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings_from(NO_SLEEP)) as learner:
        x, _ = World(seed=4).draw(3)

        def teach(k, name):
            learner.observe(Reading(id=f"r{k}", t_s=0.0, window=x[k][None]))
            learner.teach(Label(label=name, reading_id=f"r{k}"))

        teach(0, "run")
        teach(1, "rest")
        learner.revise(Rename(old="run", new="dash"))
        learner.revise(Rename(old="rest", new="run"))
        teach(2, "run")
        assert learner.revise(Forget(class_name="dash")).n_labels == 1
        assert learner.revise(Forget(class_name="run")).n_labels == 2


def test_a_label_that_is_accepted_twice_at_once_is_learned_once(tmp_path, bundle):
    settings = settings_from({**NO_SLEEP, "trust": {"sources": {"guest": 0.0}}})
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings) as learner:
        run(learner, World(seed=4).events(20))
        before = learner.status().n_labels
        learner.observe(next(e for e in World(seed=5).events(1) if isinstance(e, Reading)))
        assert learner.teach(Label(label="rest", source="guest")).status == "held"
        (held,) = learner.held_labels()
        assert learner.revise(Review(seqs=[held.seq, held.seq], accept=True)).n_labels == 1
        assert learner.status().n_labels == before + 1


@pytest.mark.parametrize(
    "asked",
    [
        Forget(since_s=1e20),
        Forget(reading="x", since_s=-1e20),
        Forget(until_s=1e300, since_s=0),
        Rollback(before_s=1e20),
    ],
)
def test_a_time_that_no_calendar_knows_does_not_stop_the_device(tmp_path, bundle, asked):
    """Raised in the run loop, anything but our own errors would end it."""
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s") as learner:
        run(learner, World(seed=4).events(5))
        with contextlib.suppress(StateError):
            learner.revise(asked)


def test_what_a_reading_is_not_may_be_said_by_the_old_name(tmp_path, bundle):
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s") as learner:
        run(learner, World(seed=4).events(5))
        learner.revise(Rename(old="walk", new="stroll"))
        assert learner.teach(Label(label="walk", kind="not")).status == "learned"
        assert learner.teach(Label(label="nothing", kind="not")).status == "refused"


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 201])
def test_a_class_cannot_be_called_what_no_label_could_say(tmp_path, bundle, name):
    with (
        Learner.from_bundle(bundle, state_dir=tmp_path / "s") as learner,
        pytest.raises(StateError, match="cannot be the name"),
    ):
        learner.revise(Rename(old="walk", new=name))
