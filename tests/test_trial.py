"""Accuracy on trusted labels fell: what is tried, what is taken back, and what is left alone."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_cl.budget import Ledger
from edge_cl.bundle import Bundle
from edge_cl.heads import Head
from edge_cl.knowledge import Knowledge
from edge_cl.naming import ClassNames
from edge_cl.state import Entry, Snapshot, StateStore
from edge_cl.trial import Arm, Trials
from edge_cl.trust import Origin
from tests.worlds import NAMES, World, make_bundle

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
    trials.go_on(life.knowledge, np.inf, bool)
    assert not trials.under_way
    return trials


def test_poison_is_found_with_who_and_by_how_much(life: Life) -> None:
    life.both(110)
    bad = life.both(60, lie=True)
    assert life.knowledge.guard.answers.fell()
    found = tried(life).found
    assert found is not None
    assert set(bad) <= set(found.seqs)
    since = life.knowledge.guard.answers.since_seq
    assert min(found.seqs) >= since and not any((seq - 1) % 4 == 0 for seq in found.seqs)  # nothing trusted
    assert found.why.startswith("labels of mqtt/kitchen: of 170 trusted labels ")
    assert "% were answered right, without them 9" in found.why


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
    life.both(110)
    for _ in range(60):
        life.tell("local", lie=True)
    life.store.journal.commit()
    assert life.knowledge.guard.answers.fell()
    assert tried(life).found is None


def test_it_holds_one_head_at_a_time_and_starts_where_the_newest_snapshot_allows(
    life: Life, monkeypatch: pytest.MonkeyPatch
) -> None:
    life.both(10)
    old = life.snapshot()
    life.both(160)
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
    while not begun or trials.under_way:
        trials.go_on(life.knowledge, np.inf, lambda: True)
        assert all(head.nbytes <= life.knowledge._sleep_bytes() for head in alive)
    assert trials.found is not None and life.knowledge.digest() == known
    assert begun == [old, old] and old < life.knowledge.guard.answers.since_seq
    gc.collect()
    assert not alive


def test_a_damaged_snapshot_is_passed_over(life: Life) -> None:
    life.both(10)
    life.snapshot()
    life.both(160)
    life.both(60, lie=True)
    want = tried(life).found
    (path,) = life.store.snapshots.paths().values()
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1  # not of the head
    path.write_bytes(bytes(raw))
    assert want is not None and tried(life).found == want and path.exists()


def test_a_slice_ends_when_something_waits_and_what_is_built_anew_is_tried_anew(
    life: Life, bundle: Bundle
) -> None:
    life.both(110)
    life.both(60, lie=True)
    whole = tried(life).found
    trials = Trials(life.store)
    n = 0
    while trials.found is None:
        trials.go_on(life.knowledge, np.inf, lambda: True)
        n += 1
        if n == 300:
            life.both(20)  # what comes meanwhile is not tried
    assert n > 1000 and trials.found == whole
    half = Trials(life.store)
    half.go_on(life.knowledge, np.inf, lambda: True)
    assert half.under_way
    half.go_on(Knowledge(bundle, Ledger(32 * MIB)), np.inf, bool)
    assert not half.under_way and half.found is None


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
    life.both(110)
    life.both(60, lie=True)
    monkeypatch.setattr(type(life.knowledge.head), "learns_by_steps", True)
    assert tried(life).found is None
