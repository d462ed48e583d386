"""Accuracy on trusted labels fell: what is tried, what is taken back, and what is left alone."""

from __future__ import annotations

import gc
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from edge_cl.budget import Ledger
from edge_cl.bundle import Bundle
from edge_cl.config import settings_from
from edge_cl.heads import Head
from edge_cl.knowledge import Knowledge
from edge_cl.learner import Learner
from edge_cl.naming import ClassNames
from edge_cl.records import Event, Label, SleepRequest
from edge_cl.revisions import Review
from edge_cl.state import Entry, Snapshot, StateStore, audit
from edge_cl.trial import Arm, Trials, groups_of
from edge_cl.trust import Origin, Teachers, TrustedAnswers, Verdict
from edge_cl.trust.accounts import Account
from tests.worlds import NAMES, World, make_bundle, reading

MIB = 2**20


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("b") / "b.ecl", "dual")


class Life:
    """A store and a knowledge that learn whatever anybody says."""

    def __init__(self, bundle: Bundle, folder: Path, seed: int = 0) -> None:
        self.store = StateStore(folder, bundle.bundle_id, 64 * MIB)
        self.knowledge = Knowledge(bundle, Ledger(32 * MIB))
        self.world = World(seed=seed)

    def tell(self, source: str, *, lie: bool = False) -> int:
        X, y = self.world.draw(1)
        trust = 1.0 if source == "local" else 0.5
        entry = Entry(
            seq=self.store.journal.last_seq + 1,
            kind="label",
            label=NAMES[(y[0] + lie) % 3],
            source=source,
            trust=trust,
            feature=X[0],
        )
        self.store.append(entry)
        self.knowledge.learn(X[0], entry.label, origin=Origin(entry.seq, source, trust, 0.0))
        return entry.seq

    def alone(self, n: int) -> None:
        """Someone at the device."""
        for _ in range(n):
            self.tell("local")
        self.store.journal.commit()

    def both(self, n: int, *, lie: bool = False) -> list[int]:
        """Someone at the device, and three over MQTT after each label of his; journal numbers of these."""
        told = []
        for _ in range(n):
            self.tell("local")
            told += [self.tell("mqtt/kitchen", lie=lie) for _ in range(3)]
        self.store.journal.commit()
        return told

    def snapshot(self) -> int:
        meta, arrays = self.knowledge.state()
        seq = self.store.journal.last_seq
        self.store.save(Snapshot(seq=seq, bundle_id=self.store.bundle_id, meta=meta, arrays=arrays))
        return seq


@pytest.fixture
def life(bundle: Bundle, tmp_path: Path) -> Iterator[Life]:
    life = Life(bundle, tmp_path / "s")
    yield life
    life.store.close()


def tried(life: Life, trials: Trials | None = None) -> Trials:
    trials = trials or Trials(life.store)
    assert trials.go_on(life.knowledge, np.inf, bool) == (trials.found is not None)
    return trials


def test_poison_is_found_with_who_and_by_how_much(life: Life) -> None:
    life.alone(110)
    bad = life.both(60, lie=True)
    assert life.knowledge.guard.answers.fell()
    found = tried(life).found
    assert found is not None
    assert found.seqs == bad
    assert found.why.startswith("labels of mqtt/kitchen: of 170 trusted labels ")
    assert "% were answered right, without them 9" in found.why


def test_a_bad_source_is_found_among_good_ones(life: Life) -> None:
    """The good one is worth its labels, so leaving both out says little."""
    life.alone(110)
    bad, life.world.means[:3] = list[int](), life.world.means[[1, 2, 0]]
    for _ in range(60):
        for _ in range(4):
            life.tell("mqtt/good")
        bad += [life.tell("mqtt/bad", lie=True) for _ in range(5)]
        life.tell("local")
    life.store.journal.commit()
    found = tried(life).found
    assert found is not None and found.seqs == bad
    assert found.why.startswith("labels of mqtt/bad: of ")


def test_what_is_not_certain_yet_is_tried_again_without_another_fall(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.alone(110)
    bad = life.both(60, lie=True)
    monkeypatch.setattr("edge_cl.trust.relapse.TAKE_BACK_P", 0.0)
    trials = tried(life)
    assert trials.found is None
    monkeypatch.undo()
    monkeypatch.setattr(TrustedAnswers, "fell", lambda self, **_: False)
    for _ in range(47):
        life.tell("local")
    life.store.journal.commit()
    assert tried(life, trials).found is None
    life.alone(1)
    found = tried(life, trials).found
    assert found is not None and found.seqs == bad


def test_labels_are_left_out_of_all_together_and_of_each_of_the_commonest() -> None:
    assert groups_of({3: "a", 5: "a"}) == [[3, 5]]
    sources = dict(enumerate("aabbccddefa"))
    assert groups_of(sources) == [[*range(11)], [0, 1, 10], [2, 3], [4, 5], [6, 7]]


def test_drift_is_left_alone_and_not_tried_again_before_there_are_new_labels(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.both(110)
    life.world.means[:3] = life.world.means[[1, 2, 0]]
    life.both(20)
    life.world.means[:3] = life.world.means[[1, 2, 0]]
    life.both(29)
    assert life.knowledge.guard.answers.fell()
    made: list[object] = []
    pieces = Trials._pieces
    monkeypatch.setattr(Trials, "_pieces", lambda self, known: made.append(1) or pieces(self, known))
    trials = tried(life)
    assert trials.found is None and len(made) == 1
    for _ in range(47):
        life.tell("local", lie=True)  # may it fall as deep as it likes
        assert tried(life, trials).found is None
    assert len(made) == 1
    life.tell("local", lie=True)
    assert life.knowledge.guard.answers.fell()
    tried(life, trials)
    assert len(made) == 2


def test_bad_trusted_labels_are_nobody_elses_fault(life: Life) -> None:
    life.alone(110)
    for _ in range(60):
        life.tell("local", lie=True)
    life.store.journal.commit()
    assert life.knowledge.guard.answers.fell()
    assert tried(life).found is None


def test_it_holds_one_head_at_a_time_and_starts_where_the_newest_snapshot_allows(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.alone(10)
    old = life.snapshot()
    life.alone(160)
    life.snapshot()  # knows some of what is in question
    life.both(60, lie=True)
    alive: weakref.WeakSet[Head] = weakref.WeakSet()
    begun: list[int] = []

    def head_of(self: Knowledge, meta: dict[str, Any], arrays: dict[str, Any]) -> Head:
        gc.collect()
        assert not alive and all(name.startswith("head.") for name in arrays)
        begun.append(meta["n_labels"])
        head = original(self, meta, arrays)
        alive.add(head)
        return head

    original = Knowledge.head_of
    monkeypatch.setattr(Knowledge, "head_of", head_of)
    known = life.knowledge.digest()
    trials = Trials(life.store)
    while trials.found is None:
        assert trials.go_on(life.knowledge, np.inf, lambda: True)
        assert all(head.nbytes <= life.knowledge._sleep_bytes() for head in alive)
    assert life.knowledge.digest() == known
    assert begun == [old, old] and old < life.knowledge.guard.answers.since_seq
    gc.collect()
    assert not alive


def test_a_damaged_snapshot_is_passed_over(life: Life) -> None:
    life.alone(10)
    life.snapshot()
    life.alone(160)
    life.both(60, lie=True)
    want = tried(life).found
    (path,) = life.store.snapshots.paths().values()
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1  # not of the head
    path.write_bytes(bytes(raw))
    assert want is not None and tried(life).found == want and path.exists()


def test_heads_that_cannot_start_alike_are_not_compared(life: Life) -> None:
    life.alone(10)
    life.snapshot()
    life.alone(200)
    life.both(60, lie=True)
    trials = Trials(life.store)
    while trials._base_seq < 0:
        assert trials.go_on(life.knowledge, np.inf, lambda: True)
    for path in life.store.snapshots.paths().values():
        path.unlink()
    assert tried(life, trials).found is None


def test_a_slice_ends_when_something_waits_and_what_is_built_anew_is_tried_anew(
    life: Life, bundle: Bundle
) -> None:
    life.alone(110)
    life.both(60, lie=True)
    whole = tried(life).found
    trials = Trials(life.store)
    n = 0
    while trials.found is None:
        trials.go_on(life.knowledge, np.inf, lambda: True)
        n += 1
        if n == 300:
            life.both(20)  # what comes meanwhile is not tried
    assert n > 400 and trials.found == whole
    half = Trials(life.store)
    assert half.go_on(life.knowledge, np.inf, lambda: True)
    assert not half.go_on(Knowledge(bundle, Ledger(32 * MIB)), np.inf, bool)
    assert half.found is None


def test_an_arm_answers_before_it_learns_and_follows_names(bundle: Bundle) -> None:
    """As a device does: the same answers, right or wrong, new, renamed and merged classes included."""
    knowledge = Knowledge(bundle, Ledger(32 * MIB))
    arm = Arm(knowledge.first_head(), ClassNames(knowledge.bundle_classes))
    world, want = World(seed=3), []
    X, y = world.draw(80, n_classes=4)
    for k, (x, c) in enumerate(zip(X, y, strict=True)):
        if k in (30, 60):
            old, new = (NAMES[1], "stroll") if k == 30 else (NAMES[2], "stroll")
            knowledge.rename(old, new)
            arm.take(Entry(seq=k, kind="rename", label=old, detail=new), exam=False)
        name = knowledge.naming.resolve(NAMES[c])
        named = knowledge.class_names[int(knowledge.answers(x[None])[0])]
        want.append(named == name)
        knowledge.learn(x, NAMES[c])
        arm.take(Entry(seq=k, kind="label", label=NAMES[c], feature=x), exam=True)
    assert arm._naming.state() == knowledge.naming.state()
    arrays, mine = knowledge.head.state().arrays, arm._head.state().arrays
    assert all(np.array_equal(array, mine[name]) for name, array in arrays.items())
    assert sum(a != b for a, b in zip(want, arm.right, strict=True)) <= 1  # merged ones add up


def test_a_head_that_learns_by_steps_is_not_tried(life: Life, monkeypatch: pytest.MonkeyPatch) -> None:
    life.alone(110)
    life.both(60, lie=True)
    monkeypatch.setattr(type(life.knowledge.head), "learns_by_steps", True)
    assert tried(life).found is None


# ---------------------------------------------------------------------- on a device

TOLD = {
    "sleep": {"after_labels": 10**6, "idle_s": 0, "slice_ms": 5},
    "state": {"commit_ms": 1, "snapshot_labels": 150},
    "trust": {"per_day": 1e6, "per_minute": 1e6},
}


@pytest.fixture
def fooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Poison that no check of labels finds."""
    monkeypatch.setattr(Teachers, "judge", lambda self, said, names: Verdict("learn"))
    monkeypatch.setattr(Account, "judge", lambda self, *args, **kwargs: [])


def device(bundle: Bundle, folder: Path, **sleep: float) -> Learner:
    settings = {**TOLD, "sleep": {**TOLD["sleep"], **sleep}}
    return Learner.from_bundle(bundle, state_dir=folder, settings=settings_from(settings))


def day(n: int, *, lie: bool = False, name: str = "a", seed: int = 0) -> list[Event]:
    """n readings that someone at the device labels, each with two that the kitchen does."""
    world, events = World(seed=seed), list[Event]()
    X, y = world.draw(3 * n)
    for k in range(3 * n):
        source = "local" if k % 3 == 0 else "mqtt/kitchen"
        said = NAMES[(y[k] + (lie and k % 3 > 0)) % 3]
        events += [reading(X[k], f"{name}{k}"), Label(label=said, reading_id=f"{name}{k}", source=source)]
    return events


IDLE: list[Event] = [None] * 1500
POISONED = [*day(60), *day(100, lie=True, name="b", seed=1)]


def digest_without(learner: Learner, bundle: Bundle, folder: Path) -> str:
    """Of a device that held the labels at once that wait for a review here, and never learned them."""
    held = {held.reading_id for held in learner.held_labels()}
    with device(bundle, folder) as never:
        never._durable.judge = lambda label, *_, **__: Verdict(  # type: ignore[method-assign]
            "hold" if label.reading_id in held else "learn", "known to be bad"
        )
        never.run(POISONED)
        assert len(never.held_labels()) == len(held)
        return digest(never)


def digest(learner: Learner) -> str:
    learner.knowledge.look()
    return learner.knowledge.digest()


def test_poison_is_taken_back_exactly_told_and_learned_again_when_accepted(
    bundle: Bundle, tmp_path: Path, fooled: None
) -> None:
    answers: list[Any] = []
    with device(bundle, tmp_path / "s") as learner:
        learner.run([*POISONED, *IDLE], sinks=[answers.append])
        held = learner.held_labels()
        assert len(held) > 90 and {one.source for one in held} == {"mqtt/kitchen"}
        after = digest(learner)
        reasons = Counter(one.reason for one in held)
        assert all(reason.startswith("labels of mqtt/kitchen: of ") for reason in reasons)
        assert f"took back {reasons[held[-1].reason]} {held[-1].reason}" in learner.status().alarm
        what = [line.what for line in audit(tmp_path / "s")]
        assert {f"held back {n} entries: {reason}" for reason, n in reasons.items()} <= set(what)
        assert after == digest_without(learner, bundle, tmp_path / "never")
    with device(bundle, tmp_path / "s") as again:
        again.run(IDLE)
        assert digest(again) == after and len(again.held_labels()) == len(held)  # nothing more is taken
        assert "took back" in again.status().alarm
        again.revise(Review(seqs=[one.seq for one in held], accept=False))
        assert "took back" not in again.status().alarm


def test_drift_takes_nothing_back(bundle: Bundle, tmp_path: Path) -> None:
    moved = day(50, name="b", seed=1)
    for k, event in enumerate(moved):
        if isinstance(event, Label):  # the classes change places, and everybody says so
            moved[k] = msgspec.structs.replace(event, label=NAMES[(NAMES.index(event.label) + 1) % 3])
    with device(bundle, tmp_path / "s") as learner:
        learner.run([*day(60), *moved, *IDLE])
        assert not [one for one in learner.held_labels() if "answered right" in one.reason]
        assert "took back" not in learner.status().alarm


@pytest.mark.parametrize("where", [pytest.param("trial", marks=pytest.mark.slow), "rebuilding"])
def test_a_stop_in_the_middle_changes_nothing(
    bundle: Bundle, tmp_path: Path, fooled: None, where: str
) -> None:
    learner = device(bundle, tmp_path / "s")
    trials = learner._durable._trials
    assert trials is not None

    def until() -> Iterator[Event]:
        yield from POISONED
        for _ in range(10**5):
            yield None
            if trials._work is not None if where == "trial" else learner._durable.rebuilding:
                return

    learner.run(until(), busy=lambda: True)
    assert bool(learner._durable.rebuilding) == (where == "rebuilding")
    learner.__exit__(RuntimeError, None, None)
    with device(bundle, tmp_path / "s") as again:
        again.run(IDLE)
        assert len(again.held_labels()) > 90
        assert digest(again) == digest_without(again, bundle, tmp_path / "never")


def test_a_sleep_that_is_due_waits_for_the_trial_and_one_that_is_asked_for_goes_first(
    bundle: Bundle, tmp_path: Path, fooled: None
) -> None:
    with device(bundle, tmp_path / "s") as learner:
        trials = learner._durable._trials
        assert trials is not None
        learner.run(POISONED, busy=lambda: True)
        for _ in range(100):
            learner.run([None], busy=lambda: True)
        assert trials._work is not None
        learner.run([SleepRequest(), None, None], busy=lambda: True)
        assert not learner.knowledge.asleep and trials._work is not None
        nap = learner.sleep()
        next(nap)
        assert learner.knowledge.asleep and trials._work is None
        learner.run([None], busy=lambda: True)
        assert trials._work is None
        for _ in nap:
            pass
        learner.run(IDLE)
        assert learner.knowledge.n_sleeps == 2 and len(learner.held_labels()) > 90


def test_without_a_state_folder_nothing_is_tried(bundle: Bundle, fooled: None) -> None:
    learner = Learner.from_bundle(bundle, settings=settings_from(TOLD))
    learner.run([*POISONED, *IDLE])
    assert learner.knowledge.n_labels == len(POISONED) // 2
