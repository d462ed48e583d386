"""Sleeps that are asked for, wait, are dropped, or meet a disk that takes nothing."""

import contextlib
import itertools
import re
import tracemalloc

import numpy as np
import pytest

from edge_cl import Budget, Label, Learner, SleepReport, heads, shares
from edge_cl.config import settings_from
from edge_cl.errors import BudgetExceeded, StateUnwritable
from edge_cl.memory import ReplayMemory
from edge_cl.records import Reading, SleepPlan, SleepRequest
from edge_cl.sleep import Rehearsal, Surroundings
from tests.worlds import NAMES, D, World, make_bundle, reading

TINY = {"slice_ms": 1e-6, "after_labels": 0, "idle_s": 0}
URGENT = Reading(id="u", t_s=0.0, window=np.zeros((1, D), dtype=np.float32), urgent=True)


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "b.ecl", "slda")


def run(learner, events, **options):
    answers = []
    learner.run(events, sinks=[answers.append], **options)
    return answers


def reports(answers):
    return [answer for answer in answers if isinstance(answer, SleepReport)]


@pytest.fixture
def on_battery(monkeypatch):
    """A board on battery, until the test says otherwise."""
    board = {"on_mains": False}
    monkeypatch.setattr(Surroundings, "look", lambda self, now: setattr(self, "on_mains", board["on_mains"]))
    return board


def test_a_recording_ends_although_a_sleep_still_waits(bundle, on_battery):
    learner = Learner.from_bundle(bundle, settings=settings_from({"sleep": TINY | {"on_mains": True}}))
    on_battery["on_mains"] = True
    run(learner, World(seed=4).events(60))
    events = iter([None])
    next(learner.sleep())
    on_battery["on_mains"] = None
    run(learner, events, busy=lambda: True)  # taken up again
    on_battery["on_mains"] = False
    n_asked = itertools.count()

    def busy():
        if next(n_asked) > 1000:
            pytest.fail("it waits for ever")
        return False

    run(learner, [], busy=busy)
    assert learner.knowledge.asleep, "the rest of it is left to the next start"


def test_an_urgent_reading_before_a_sleep_began_does_not_lose_the_request(bundle):
    learner = Learner.from_bundle(bundle, settings=settings_from({"sleep": TINY}))
    run(learner, World(seed=4).events(60))
    answers = run(learner, [SleepRequest(), URGENT], busy=lambda: True)
    assert not reports(answers), "it had not begun"
    [report] = reports(run(learner, [None]))
    assert report.cause == "asked"


def test_a_request_while_asleep_asks_for_this_sleep_not_for_another(bundle, on_battery):
    learner = Learner.from_bundle(
        bundle, settings=settings_from({"sleep": TINY | {"on_mains": True, "after_labels": 60}})
    )
    on_battery["on_mains"] = True
    run(learner, World(seed=4).events(60), busy=lambda: True)
    run(learner, [None] * 4, busy=lambda: True)
    assert learner.knowledge.asleep
    on_battery["on_mains"] = False
    answers = run(learner, [*[None] * 5, SleepRequest(), *[None] * 300])
    assert len(reports(answers)) == 1, "on battery, since somebody asked"
    assert learner.knowledge.n_sleeps == 1


def test_a_sleep_that_takes_too_long_is_not_begun_again_on_the_same_labels(bundle):
    learner = Learner.from_bundle(
        bundle, settings=settings_from({"sleep": {"cpu_s": 1e-9, "after_labels": 60}})
    )
    answers = run(learner, [*World(seed=4).events(60), *[None] * 20])
    assert len(reports(answers)) == 1


def test_a_sleep_dropped_late_is_repeated_exactly(tmp_path, bundle):
    settings = settings_from({"sleep": TINY | {"sampler": "spaced"}})
    digests = []
    for n_pieces in range(10, 40):
        state = tmp_path / f"s{n_pieces}"
        learner = Learner.from_bundle(bundle, state_dir=state, settings=settings)
        run(learner, World(seed=4, shift=1.0).events(300))
        learner._durable.snapshot("test")
        pieces = list(itertools.islice(learner.sleep(), n_pieces))
        if pieces[-1].phase == "snapshot":
            break
        learner._durable.end_sleep(drop="an urgent reading came")
        learner._durable.commit()
        digests.append(learner.knowledge.digest())
        learner._durable._store.close()  # as if killed
        with Learner.from_bundle(bundle, state_dir=state, settings=settings) as again:
            assert again.knowledge.digest() == digests[-1], f"after {n_pieces} pieces"
    assert len(digests) > 5


class FailingStore:
    """A store whose disk is full for entries of one kind."""

    def __init__(self, store, kind):
        self._store, self._kind, self.full = store, kind, True

    def append(self, entry):
        if self.full and entry.kind == self._kind:
            raise StateUnwritable("the disk is full")
        self._store.append(entry)

    def __getattr__(self, name):
        return getattr(self._store, name)


def test_an_urgent_reading_on_a_full_disk_stops_nothing_but_learning(bundle, tmp_path):
    settings = settings_from({"sleep": TINY})
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings) as learner:
        run(learner, World(seed=4).events(60))
        store = learner._durable._store = FailingStore(learner._durable._store, "wake")
        run(learner, [SleepRequest(), URGENT, *World(seed=5).events(3)])
        assert "predicting only" in learner.status().alarm or learner.knowledge.n_labels == 63
        store.full = False


def test_labels_that_are_durable_are_never_refused(bundle, tmp_path):
    settings = settings_from({"sleep": TINY, "state": {"snapshot_labels": 40}})
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings) as learner:
        run(learner, World(seed=4).events(60))
        next(learner.sleep())
        store = learner._durable._store = FailingStore(learner._durable._store, "wake")
        before = learner.knowledge.n_labels
        X, y = World(seed=6).draw(100)
        statuses = []
        for k in range(100):
            learner.observe(reading(X[k], f"n{k}"))
            statuses.append(learner.teach(Label(label=NAMES[y[k]], reading_id=f"n{k}")).status)
        assert learner.knowledge.n_labels == before + statuses.count("learned")
        store.full = False


def test_a_rollback_needs_no_more_than_the_budget(tmp_path):
    bundle = make_bundle(tmp_path / "b.ecl", "dual", lift=512, window=256, anchors=256)
    for ram in range(200, 20_000, 100):
        with contextlib.suppress(BudgetExceeded):
            Learner.from_bundle(bundle, budget=Budget(ram_bytes=ram * 1024, disk_bytes=2**30))
            break
    budget = Budget(ram_bytes=ram * 1024, disk_bytes=2**30)
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", budget=budget) as learner:
        run(learner, World(seed=4).events(20))
        digest = learner.knowledge.digest()
        learner._durable.learn(Label(label="run"), "x", np.zeros(D, dtype=np.float32))
        learner._durable.rollback()
        assert learner.knowledge.digest() == digest


def test_exemplars_in_a_file_count_towards_the_disk_budget(bundle, tmp_path):
    def needed(**memory):
        settings = settings_from({"memory": {"max_mb": 0.5, **memory}})
        with pytest.raises(BudgetExceeded, match=r"need ([\d,]+) bytes of disk") as refusal:
            Learner.from_bundle(
                bundle,
                state_dir=tmp_path / "s",
                settings=settings,
                budget=Budget(ram_bytes=2**26, disk_bytes=1),
            )
        n = int(re.search(r"need ([\d,]+) bytes", str(refusal.value))[1].replace(",", ""))
        return n - 3 * nbytes(memory)

    def nbytes(memory):
        settings = settings_from({"memory": {"max_mb": 0.5, **memory}})
        folder = tmp_path / f"other{len(memory)}"
        with Learner.from_bundle(bundle, state_dir=folder, settings=settings) as learner:
            return learner.knowledge.memory.nbytes

    assert needed(file=True) - needed() == pytest.approx(2**19, rel=0.02)


def test_a_snapshot_does_not_call_a_stopped_device_asleep(bundle, tmp_path):
    from edge_cl.state import describe

    settings = settings_from({"sleep": TINY})
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings) as learner:
        run(learner, [*World(seed=4).events(60), SleepRequest(), *[None] * 300])
        assert "awake" in describe(tmp_path / "s").sleep_state


def test_a_lowered_max_mb_counts_at_the_next_start(bundle, tmp_path):
    def device(max_mb):
        return Learner.from_bundle(
            bundle, state_dir=tmp_path / "s", settings=settings_from({"memory": {"max_mb": max_mb}})
        )

    with device(1.0) as learner:
        run(learner, World(seed=4).events(60))
    with device(0.01) as learner:
        assert learner.knowledge.memory.nbytes <= 0.01 * 2**20
        run(learner, World(seed=5).events(20))


def test_a_class_that_no_exemplar_would_be_kept_of_is_refused(bundle, tmp_path):
    settings = settings_from({"memory": {"max_mb": 0.0006}})
    learner = Learner.from_bundle(bundle, settings=settings)
    receipts = []
    for k in range(40):
        learner.observe(reading(np.full(D, k, dtype=np.float32), f"n{k}"))
        receipts.append(learner.teach(Label(label=f"class {k}", reading_id=f"n{k}")))
    refused = [receipt for receipt in receipts if receipt.status == "refused"]
    assert refused and "max_mb" in refused[0].message
    counts = learner.knowledge.memory.rehearsed.class_counts
    assert min(counts) >= 1


@pytest.mark.parametrize("sampler", ["balanced", "recent", "hard-first", "spaced"])
def test_what_chooses_exemplars_is_counted(sampler):
    memory = ReplayMemory(capacity_bytes=2**20, n_features=8)
    X = np.random.default_rng(0).normal(size=(memory.n_exemplars(2**20), 8)).astype(np.float32)
    for k, x in enumerate(X):
        memory.add(x, k % 8)
    head = heads.create("slda", n_features=8, n_classes=8, max_bytes=2**24)
    plan = SleepPlan(cause="", sampler=sampler, steps=100, class_margin=0.2, began_s=0.0)
    tracemalloc.start()
    try:
        rehearsal = Rehearsal(head, memory, plan, seed=1)
        for _ in rehearsal.pieces():
            pass
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most <= 1.1 * shares.sleep_bytes(head, memory)


def test_drift_is_how_far_accuracy_fell_since_the_last_sleep(bundle):
    learner = Learner.from_bundle(bundle, settings=settings_from({"sleep": TINY}))
    for _ in range(200):
        assert learner.status().drift_points is None
        learner.accuracy.update(True)
        learner._rest.note_label()
    assert learner.status().drift_points == 0.0
    for _ in range(50):
        learner.accuracy.update(False)
        learner._rest.note_label()
    assert learner.status().drift_points == pytest.approx(25.0)
    list(learner.sleep())
    assert learner.status().drift_points is None  # the best before it is no measure any more
    learner._rest.note_label()
    assert learner.status().drift_points == 0.0
