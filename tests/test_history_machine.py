"""Whatever happens to a device, what it knows is a fold over the labels that count.

A list in Python says what counts; a learner without a folder, taught exactly that, says what must be known.
"""

import contextlib
import copy
import hashlib
import itertools
import shutil
import sqlite3
import tempfile
from pathlib import Path
from unittest import mock

import msgspec
import numpy as np
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edge_cl.config import settings_from
from edge_cl.durable import Woken
from edge_cl.errors import StateError, StateUnwritable
from edge_cl.learner import Learner
from edge_cl.records import Label, SleepPlan
from edge_cl.revisions import Forget, Rename, Review, Rollback
from edge_cl.state import StateStore, class_names_now, describe, heads_of, revise
from edge_cl.state.backup import back_up, restore_backup
from edge_cl.state.journal import Journal
from edge_cl.state.snapshots import Snapshots
from tests.worlds import NAMES, World, make_bundle, reading

X, _ = World(seed=4).draw(1000, len(NAMES))
SOURCES = ("a", "b/1", "b/2")
BY = ("reading", "source", "class", "time", "all")
BASE = {
    "sleep": {"after_labels": 10**6, "idle_s": 0, "slice_ms": 1e-3, "cpu_s": 0, "steps": 8},
    "memory": {"max_mb": 0.002},
}
KINDS = {
    "plain": {"state": {"snapshot_labels": 7, "daily_write_mb": 0}},
    "short history": {"state": {"snapshot_labels": 4, "daily_write_mb": 0, "history_mb": 0.018}},
    "exemplars in a file": {
        "state": {"snapshot_labels": 4, "daily_write_mb": 0, "history_mb": 0.018},
        "memory": {"max_mb": 0.0085, "file": True},
    },
}
_bundles = {}


def bundle_of(head):
    if head not in _bundles:
        with tempfile.TemporaryDirectory() as folder:
            _bundles[head] = make_bundle(Path(folder) / "b.ecl", head)
    return _bundles[head]


class Model:
    """What counts, as a list."""

    def __init__(self):
        self.told = {}
        """By journal number: what learned state is made of, and labels that are held."""
        self.counting = []
        self.then = {0: []}
        """What counted right after each entry."""
        self.held = set()
        self.first = 1
        """The oldest entry that is still in the journal."""
        self.damaged = False

    @property
    def last(self):
        return max(self.then)

    @property
    def waiting(self):
        reviews = [self.told[s] for s in self.counting if self.told[s].kind == "review"]
        reviewed = {s for review in reviews for s in msgspec.json.decode(review.detail)["seqs"]}
        return {s for s in self.held - reviewed if s >= self.first}

    def add(self, entry):
        if entry.kind in ("label", "not", "sleep", "wake", "rename", "held", "review"):
            self.told[entry.seq] = entry
        if entry.kind == "held":
            self.held.add(entry.seq)
        elif entry.seq in self.told:
            self.counting.append(entry.seq)
        self.then[entry.seq] = list(self.counting)

    def lose_after(self, seq):
        """Entries that were never committed."""
        self.counting = list(self.then[seq])
        self.then = {s: line for s, line in self.then.items() if s <= seq}
        self.told = {s: entry for s, entry in self.told.items() if s <= seq}
        self.held = {s for s in self.held if s <= seq}

    def take_out(self, seqs):
        self.held -= seqs
        for line in [self.counting, *self.then.values()]:
            line[:] = [s for s in line if s not in seqs]

    def lose(self, seqs):
        """Taken out, and not even known any more."""
        self.take_out(seqs)
        for seq in seqs:
            self.told.pop(seq, None)

    def labels(self, first=1):
        return [e for s, e in self.told.items() if s >= first and e.kind in ("label", "not", "held")]


def known(head, kind, entries):
    """The knowledge of a device that was taught just these."""
    s = settings_from(BASE | KINDS[kind])
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory())) if s.memory.file else None
        learner = Learner.from_bundle(bundle_of(head), state_dir=folder, settings=s)
        stack.callback(learner._durable.close, save=False)
        return Known(teach(learner.knowledge, entries))


class Known:
    """What is compared of a device's knowledge."""

    def __init__(self, knowledge):
        knowledge.predict_one(X[0])  # heads put work off until somebody asks
        self.digest, self.naming = digest(knowledge), knowledge.naming.state()
        self.class_names = list(knowledge.class_names)
        self.n_labels, self.asleep = knowledge.n_labels, knowledge.asleep


def digest(knowledge):
    """Of all that is known but whom to trust: that also knows of labels which are held."""
    meta, arrays = knowledge.state(whole=True)
    for name in ("reports", "stability", "guard", "guard_by_entry"):
        del meta[name]
    found = hashlib.sha256(msgspec.json.encode(meta, order="deterministic"))
    for name in sorted(name for name in arrays if not name.startswith("guard.")):
        found.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return found.hexdigest()


def teach(knowledge, entries):
    for entry in entries:
        if entry.kind == "label":
            knowledge.learn(entry.feature, entry.label)
        elif entry.kind == "not":
            knowledge.learn_not(entry.feature, entry.label)
        elif entry.kind == "rename":
            knowledge.rename(entry.label, entry.detail)
        elif entry.kind == "sleep":
            if knowledge.asleep:
                knowledge.wake(drop="lost")
            knowledge.begin_sleep(msgspec.json.decode(entry.detail, type=SleepPlan))
        elif entry.kind == "wake" and knowledge.asleep:
            woken = msgspec.json.decode(entry.detail, type=Woken)
            for _ in () if woken.drop else knowledge.sleep_pieces(woken.n_steps):
                pass
            knowledge.wake(drop=woken.drop, tried=woken.tried)
    return knowledge


class History(RuleBasedStateMachine):
    """A device, and everything that may happen to it."""

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="history-"))
        self.n_folders = self.n_readings = 0
        self.nap = None
        self.backups = []
        self.doubtful = None
        self.learner = None
        ticks = itertools.count(1_800_000_000)
        self.clock = mock.patch("time.time", lambda: float(next(ticks)))  # so that it happens the same twice
        self.clock.start()

    @initialize(head=st.sampled_from(["slda", "dual", "prototype"]), kind=st.sampled_from(list(KINDS)))
    def begin(self, head, kind):
        self.head, self.kind = head, kind
        self.model, self.committed = Model(), 0
        self.folder = self.root / "0"
        self.start()

    def teardown(self):
        self.clock.stop()
        if self.learner is not None:
            self.learner._durable.close(save=False)
        shutil.rmtree(self.root)

    # ------------------------------------------------------------------ what the machine does for its rules

    @property
    def store(self):
        return self.learner._durable._store

    def start(self):
        s = settings_from(BASE | KINDS[self.kind])
        self.learner = Learner.from_bundle(bundle_of(self.head), state_dir=self.folder, settings=s)
        self.nap = None
        self.follow()

    def follow(self, action=None):
        """Take what is new in the journal into the model, and compare what is known."""
        journal, model = self.store.journal, self.model
        model.lose_after(self.committed)
        for entry in journal.read(self.committed + 1, journal.last_seq):
            if entry.kind in ("forget", "rollback", "hold"):
                action(entry)
            model.add(entry)
        self.committed, model.first = journal.committed_seq, journal.first_seq
        self.compare()

    def compare(self):
        found, wanted = Known(self.learner.knowledge), self.wanted()
        waiting = {held.seq for held in self.learner.held_labels()}
        if self.doubtful and (found.digest != wanted.digest or waiting != self.model.waiting):
            self.model.lose({self.doubtful})
            self.doubtful = None
            wanted = self.wanted()
        assert vars(found) == vars(wanted), self.counted()
        assert waiting == self.model.waiting

    def counted(self):
        """For whoever looks into a failure."""
        lines = [
            [self.model.told[seq] for seq in self.model.counting],
            self.store.entries(self.model.first - 1),
        ]
        ours, theirs = ([f"{e.seq} {e.kind} {e.label}" for e in line] for line in lines)
        return f"model: {ours}; journal from {self.model.first}: {theirs}; {self.learner.status()}"

    def wanted(self):
        return known(self.head, self.kind, [self.model.told[seq] for seq in self.model.counting])

    def stop(self, *, kill):
        """The folder is what a kill leaves, or a clean stop."""
        if kill:
            self.n_folders += 1
            to = self.root / str(self.n_folders)
            shutil.copytree(self.folder, to, ignore=shutil.ignore_patterns("*.db-shm"))
            self.learner._durable.close(save=False)
            self.folder = to
        else:
            self.learner.close()
            self.committed = self.model.last
            with StateStore(self.folder, "", 2**62) as store:
                assert store.journal.last_seq == self.committed
        self.learner = None

    def label(self, data, kind="is", name=None):
        """A label for a new reading, or for an older one."""
        ids = [f"r{k}" for k in range(max(0, self.n_readings - 3), self.n_readings)]
        reading_id = data.draw(st.sampled_from([*ids, "new", "new"]))
        if reading_id == "new" or self.learner.pending.get(reading_id) is None:
            reading_id = f"r{self.n_readings}"
            self.learner.observe(reading(X[self.n_readings % len(X)], reading_id))
            self.n_readings += 1
        names = self.learner.class_names if kind == "not" else [*self.learner.class_names, *NAMES, "new"]
        name = name or data.draw(st.sampled_from(names))
        return Label(label=name, reading_id=reading_id, source=data.draw(st.sampled_from(SOURCES)), kind=kind)

    def ask(self, asked, action=None, *, offline=False):
        """A revision of the running device, or of its folder; whether it was done."""
        self.learner._teaching.commit()
        self.follow()  # else a snapshot may drop entries before the model has seen them
        first, said, done = self.store.journal.first_seq, None, True
        try:
            if offline:
                self.stop(kill=False)
                with StateStore(self.folder, "", 2**62) as store:
                    first = store.journal.first_seq
                    names = class_names_now(store)
                    assert names == self.wanted().class_names
                    revise(store, asked, source="local", at_s=1.0, class_names=names)
                with contextlib.suppress(StateError):  # no head is kept
                    said = describe(self.folder)
            else:
                self.learner.revise(asked)
        except StateUnwritable:
            raise
        except StateError:
            done = False
            assert first > 1, "nothing stands in its way"
        if offline:
            self.start_with(action)
            assert said is None or said.n_labels == self.learner.knowledge.n_labels or self.model.damaged
        else:
            self.nap = None
            self.follow(action)
        return done

    def start_with(self, action):
        s = settings_from(BASE | KINDS[self.kind])
        self.learner = Learner.from_bundle(bundle_of(self.head), state_dir=self.folder, settings=s)
        self.nap = None
        self.follow(action)

    # ------------------------------------------------------------------ labels

    @rule(data=st.data())
    def teach(self, data):
        label = self.label(data)
        receipt = self.learner.teach(label)
        self.follow()
        if receipt.status == "learned":
            assert receipt.seq <= self.committed
            said = self.model.told[receipt.seq]
            assert (said.label, said.reading_id, said.kind) == (label.label, label.reading_id, "label")
        else:
            last = [
                self.model.told[s]
                for s in self.model.counting
                if getattr(self.model.told[s], "reading_id", "") == label.reading_id
            ]
            assert receipt.status == "duplicate" and last, receipt.message
        self.learner._teaching._owed.clear()

    @rule(data=st.data(), n=st.integers(1, 4))
    def teach_many(self, data, n):
        for _ in range(n):
            self.learner.teach(self.label(data))
        self.follow()

    @rule(data=st.data())
    def teach_without_commit(self, data):
        self.learner._teaching.hear(self.label(data))
        self.follow()

    @rule(data=st.data())
    def say_not(self, data):
        self.learner.teach(self.label(data, kind="not"))
        self.follow()

    @rule(data=st.data(), kind=st.sampled_from(["is", "not"]))
    def hold(self, data, kind):
        label = self.label(data, kind)
        feature = self.learner.pending.get(label.reading_id).feature
        self.learner._durable.hold(label, label.reading_id, feature, trust=0.1, why="odd")
        self.learner._teaching.commit()
        self.follow()

    @precondition(lambda self: self.model.waiting)
    @rule(data=st.data(), accept=st.booleans(), offline=st.booleans())
    def review(self, data, accept, offline):
        seqs = sorted(data.draw(st.sets(st.sampled_from(sorted(self.model.waiting)), min_size=1)))
        before = {seq: self.model.told[seq] for seq in seqs}
        last = self.store.journal.last_seq
        done = self.ask(Review(seqs=seqs, accept=accept), offline=offline)
        learned = [e for s, e in self.model.told.items() if s > last and e.kind in ("label", "not")]
        assert [(e.label, e.source) for e in learned] == [
            (before[s].label, before[s].source) for s in (seqs if accept and done else ())
        ]

    # ------------------------------------------------------------------ sleep

    @rule()
    def fall_asleep(self):
        if self.nap is None:
            self.nap = self.learner.sleep()
        if next(self.nap, None) is None:
            self.nap = None
        self.follow()

    @rule()
    def sleep_through(self):
        for _ in self.nap or self.learner.sleep():
            pass
        self.nap = None
        self.follow()

    @precondition(lambda self: self.learner.knowledge.asleep)
    @rule(drop=st.sampled_from(["", "an urgent reading came"]))
    def wake(self, drop):
        self.learner._durable.end_sleep(drop=drop)
        self.nap = None
        self.follow()

    @precondition(lambda self: not self.learner.knowledge.asleep)
    @rule()
    def snapshot(self):
        self.learner._durable.snapshot("asked")
        self.follow()

    # ------------------------------------------------------------------ revisions

    @rule(data=st.data(), by=st.sampled_from(BY), off=st.booleans())
    def forget(self, data, by, off):
        labels = self.model.labels(self.store.journal.first_seq)
        labels = [e for e in labels if e.seq != self.doubtful]
        if not labels:
            return
        one = data.draw(st.sampled_from(labels))
        asked = {
            "reading": Forget(reading=one.reading_id),
            "source": Forget(source=one.source.split("/")[0]),
            "class": Forget(class_name=one.label, source=one.source),
            "time": Forget(since_s=one.at_s),
            "all": Forget(since_s=0.0),
        }[by]

        def action(entry):
            ranges = msgspec.json.decode(entry.detail)["ranges"]
            seqs = {seq for a, b in ranges for seq in range(a, b + 1)}
            matching = {e.seq for e in labels if self.matches(e, by, one)}
            there = {s for s in seqs | matching if s >= self.store.journal.first_seq} - {self.doubtful}
            found, wanted = seqs & there, matching & there
            assert found == wanted or (by == "class" and found > wanted), "by class also what was called so"
            self.model.lose(seqs)

        self.ask(asked, action, offline=off)

    def matches(self, e, by, one):
        if by == "time":
            return e.at_s >= one.at_s
        source = one.source.split("/")[0] if by == "source" else one.source
        same_source = e.source == source or e.source.startswith(f"{source}/")
        return {
            "reading": e.reading_id == one.reading_id,
            "source": same_source,
            "class": same_source and e.label == one.label,
            "all": True,
        }[by]

    @rule(data=st.data(), off=st.booleans())
    def go_back(self, data, off):
        last = self.store.journal.last_seq
        to = data.draw(st.integers(0, last))
        heads = [h.id for h in heads_of(self.folder) if h.id <= last]
        if heads and data.draw(st.booleans()):
            to = data.draw(st.sampled_from(heads))

        self.ask(Rollback(to=to), self.whatever_came, offline=off)

    @rule(data=st.data(), off=st.booleans(), merge=st.booleans())
    def rename(self, data, off, merge):
        names = self.learner.class_names
        old = data.draw(st.sampled_from(names))
        new = data.draw(st.sampled_from([*names, *NAMES, "p", "q"]))
        if old == new or merge != (new in names) or (merge and len(names) < 3):
            return
        self.ask(Rename(old=old, new=new, merge=merge), offline=off)

    @rule(data=st.data())
    def hold_back(self, data):
        """As a defence will do that finds out later that some labels were poison."""
        labels = [e for e in self.model.labels(self.store.journal.first_seq) if e.seq in self.model.counting]
        labels = [e for e in labels if e.seq != self.doubtful]
        if not labels:
            return
        one = data.draw(st.sampled_from(labels))
        self.stop(kill=False)

        def action(entry):
            self.model.take_out({one.seq})
            self.model.held.add(one.seq)

        with StateStore(self.folder, "", 2**62) as store, contextlib.suppress(StateError):
            store.take_out("hold", [(one.seq, one.seq)], what="odd", source="device", at_s=1.0)
        self.start_with(action)

    # ------------------------------------------------------------------ stops and damage

    @rule(kill=st.booleans())
    def restart(self, kill):
        self.stop(kill=kill)
        self.start()

    @rule(data=st.data(), how=st.sampled_from(["deleted", "damaged"]))
    def lose_a_head(self, data, how):
        heads = heads_of(self.folder)
        if self.store.journal.first_seq > 1 or not heads:
            return
        self.stop(kill=True)
        path = self.folder / f"head-{data.draw(st.sampled_from(heads)).id:012d}.snapshot"
        if path.exists():
            path.unlink() if how == "deleted" else path.write_bytes(path.read_bytes()[:-1] + b"?")
        self.start()

    @precondition(lambda self: self.doubtful is None)
    @rule(data=st.data())
    def damage_a_label(self, data):
        labels = [e.seq for e in self.model.labels(self.store.journal.first_seq) if e.kind == "label"]
        self.learner._teaching.commit()
        self.follow()
        if not labels:
            return
        seq = data.draw(st.sampled_from(labels))
        self.stop(kill=True)
        with contextlib.closing(sqlite3.connect(self.folder / "journal.db")) as db, db:
            db.execute("UPDATE journal SET t_s = t_s + 1 WHERE seq = ?", (seq,))
        self.doubtful, self.model.damaged = seq, True
        self.start()

    @rule(
        data=st.data(),
        where=st.sampled_from(
            [
                (Journal, "append"),
                (Journal, "commit"),
                (Journal, "erase"),
                (Journal, "prune"),
                (Journal, "shrink_log"),
                (Snapshots, "write"),
            ]
        ),
        at=st.integers(1, 3),
        what=st.sampled_from(["teach", "sleep", "forget", "go back"]),
    )
    def disk_fails(self, data, where, at, what):
        """From the at-th write on nothing is written, until what is done is over; then the disk is well."""
        calls = []
        owner, name = where
        real = getattr(owner, name)

        def failing(self, *args):
            calls.append(name)
            if len(calls) < at:
                return real(self, *args)
            if owner is Journal:
                self.rollback()
            raise StateUnwritable(f"{name}: no room")

        label = self.label(data)
        self.learner._teaching.commit()
        self.learner._teaching._owed.clear()
        self.follow()
        with mock.patch.object(owner, name, failing), contextlib.suppress(StateUnwritable, StateError):
            self.write(data, what, label)
        self.nap = None
        self.follow(self.whatever_came)
        for given in self.learner._teaching._owed:
            if given.status == "learned":
                assert given.seq <= self.committed and given.seq in self.model.told
        self.learner._teaching._owed.clear()
        again = self.learner.teach(label)
        assert again.status in ("learned", "duplicate"), "the disk is well again"
        self.follow()

    def write(self, data, what, label):
        if what == "teach":
            self.learner._teaching.hear(self.label(data))
            self.learner._teaching._owed.append(self.learner.teach(label))
        elif what == "sleep":
            for _ in self.nap or self.learner.sleep():
                pass
        elif what == "forget":
            self.learner.revise(Forget(source="a"))
        else:
            self.learner.revise(Rollback(to=self.committed // 2))

    def whatever_came(self, entry):
        detail = msgspec.json.decode(entry.detail)
        if entry.kind == "rollback":
            self.model.counting = list(self.model.then[detail["to"]])
        else:
            self.model.lose({seq for a, b in detail["ranges"] for seq in range(a, b + 1)})

    # ------------------------------------------------------------------ backups

    @precondition(lambda self: "memory" not in KINDS[self.kind] and len(self.backups) < 3)
    @rule()
    def back_up(self):
        self.learner._teaching.commit()
        self.follow()
        file = self.root / f"{len(self.backups)}.backup"
        back_up(self.folder, file, at_s=1.0)
        self.backups.append((file, copy.deepcopy(self.model), self.doubtful))

    @precondition(lambda self: self.backups)
    @rule(data=st.data())
    def restore(self, data):
        file, model, doubtful = data.draw(st.sampled_from(self.backups))
        self.stop(kill=False)
        shutil.rmtree(self.folder)
        restore_backup(self.folder, file, at_s=1.0)
        self.model, self.doubtful = copy.deepcopy(model), doubtful
        self.committed = self.model.last
        self.start()


def check(n_examples, n_steps):
    run_state_machine_as_test(
        History,
        settings=settings(
            max_examples=n_examples,
            stateful_step_count=n_steps,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_what_is_known_is_what_counts():
    check(20, 25)
