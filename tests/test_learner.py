"""The loop as a user of the package sees it."""

import numpy as np
import pytest

from edge_cl import Budget, Decision, Label, Learner, Receipt, SleepReport, rest
from edge_cl.config import settings_from
from edge_cl.errors import BadReading, BudgetExceeded, ConfigError, StateError
from edge_cl.heads import HEADS
from edge_cl.records import Reading, SleepRequest, Status
from tests.worlds import NAMES, D, World, make_bundle, reading


@pytest.fixture
def bundle(tmp_path):
    return make_bundle(tmp_path / "b.ecl")


def run(learner, events):
    answers = []
    learner.run(events, sinks=[answers.append])
    return answers


def of(kind, answers):
    return [answer for answer in answers if isinstance(answer, kind)]


def test_a_warm_device_answers_at_once(bundle):
    X, y = World(seed=3).draw(100)
    learner = Learner.from_bundle(bundle)
    right = [learner.observe(reading(x, "r")).label == NAMES[c] for x, c in zip(X, y, strict=True)]
    assert np.mean(right) > 0.85


def test_a_cold_device_says_so_and_learns(tmp_path):
    learner = Learner.from_bundle(make_bundle(tmp_path / "cold.ecl", prior=False))
    decision = learner.observe(reading(np.zeros(D), "r0"))
    assert decision.label == "" and decision.confidence == 0 and decision.abstained
    assert learner.teach(Label(label="walk", reading_id="r0")).status == "learned"
    assert learner.observe(reading(np.zeros(D), "r1")).label == "walk"


@pytest.mark.parametrize("head", list(HEADS))
def test_it_learns_drift_and_a_new_class(tmp_path, head):
    bundle = make_bundle(tmp_path / "b.ecl", head)
    learner = Learner.from_bundle(bundle)
    answers = run(learner, World(seed=4, shift=2.0).events(400))
    assert [r.label for r in of(Receipt, answers) if r.new_class] == ["climb"]
    assert learner.class_names == list(NAMES)
    assert learner.status().accuracy_now > 0.9
    X, y = World(seed=5, shift=2.0).draw(200, 4)
    assert (learner.predict(X[:, None, :]).argmax(axis=1) == y).mean() > 0.9


def test_a_receipt_says_what_changed(bundle):
    learner = Learner.from_bundle(bundle)
    new = np.full(D, 9.0)
    for k in range(4):
        learner.observe(reading(new + 0.01 * k, f"r{k}"))
    receipt = learner.teach(Label(label="jump", reading_id="r1", source="anna"))
    assert receipt.status == "learned" and receipt.new_class and receipt.source == "anna" and receipt.seq == 1
    assert receipt.confidence_before == 0 < 0.5 < receipt.confidence_after
    assert set(receipt.changed) == {"r0", "r1", "r2", "r3"} and receipt.n_compared == 4
    assert receipt.changed["r0"].endswith("→ jump")
    assert "new class" in receipt.message


def test_labels_that_teach_nothing_are_answered(bundle, tmp_path):
    learner = Learner.from_bundle(bundle, state_dir=tmp_path / "s")
    assert "no reading" in learner.teach(Label(label="walk")).message
    learner.observe(reading(np.zeros(D), "r0"))
    assert learner.teach(Label(label="walk")).status == "learned", "no id means the newest reading"
    assert learner.teach(Label(label="walk", reading_id="r0")).status == "duplicate"
    assert learner.teach(Label(label="  ", reading_id="r0")).status == "refused"
    unknown = learner.teach(Label(label="walk", reading_id="r99"))
    assert unknown.status == "unknown-reading" and "r99" in unknown.message and "sooner" in unknown.message
    assert learner.knowledge.n_labels == 1
    assert learner.teach(Label(label="run", reading_id="r0")).status == "learned", "a correction is learned"
    learner.close()
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s") as again:
        repeated = again.teach(Label(label="run", reading_id="r0"))
        assert repeated.status == "duplicate", "known across a restart"


def test_an_expired_reading_is_said_to_be_so(bundle):
    learner = Learner.from_bundle(bundle, budget=Budget(ram_bytes=460_000))
    for k in range(learner.pending.capacity + 1):
        learner.observe(reading(np.zeros(D), f"r{k}"))
    assert learner.teach(Label(label="walk", reading_id="r0")).status == "unknown-reading"
    assert learner.teach(Label(label="walk", reading_id="r1")).status == "learned"


@pytest.mark.parametrize(
    ("window", "words"),
    [(np.zeros((1, D + 1)), "not the bundle's"), (np.full((1, D), np.nan), "not finite")],
)
def test_bad_windows_are_dropped_and_counted(bundle, window, words):
    learner = Learner.from_bundle(bundle)
    bad = reading(np.zeros(D), "bad")
    bad = type(bad)(id="bad", t_s=0.0, window=window)
    with pytest.raises(BadReading, match=words):
        learner.observe(bad)
    answers = run(learner, [bad, reading(np.zeros(D), "good")])
    assert [d.reading_id for d in of(Decision, answers)] == ["good"]
    assert learner.status().n_bad_readings == 1


def test_it_sleeps_under_pressure_and_reports(bundle):
    learner = Learner.from_bundle(bundle, settings=settings_from({"sleep": {"after_labels": 50}}))
    answers = run(learner, World(seed=4).events(220))
    reports = of(SleepReport, answers)
    assert [r.n_sleep for r in reports] == [1, 2, 3, 4]
    assert all(r.n_exemplars > 0 and r.n_held_back > 0 and r.reason for r in reports)
    assert learner.status().last_sleep == reports[-1]


def test_it_sleeps_when_idle(bundle):
    settings = settings_from({"sleep": {"after_labels": 0, "idle_s": 1e-6, "min_labels": 10}})
    learner = Learner.from_bundle(bundle, settings=settings)
    events = [*World(seed=4).events(20), *[None] * 50]
    reports = of(SleepReport, run(learner, events))
    assert reports and reports[0].cause.startswith("idle")


def test_labels_taught_while_asleep_are_kept_whichever_head_wakes(bundle):
    learner = Learner.from_bundle(bundle)
    run(learner, World(seed=4).events(100, n_classes=3))
    nap = learner.sleep()
    next(nap)
    for k in range(3):
        learner.observe(reading(np.full(D, 9.0 + 0.1 * k), f"n{k}"))
        learner.teach(Label(label="jump", reading_id=f"n{k}"))
    for _ in nap:
        pass
    assert learner.status().last_sleep is not None
    assert learner.observe(reading(np.full(D, 9.0), "n9")).label == "jump"


def test_the_gate_keeps_the_old_head_when_memory_is_poisoned(bundle):
    learner = Learner.from_bundle(bundle)
    run(learner, World(seed=4).events(300, n_classes=3))
    X, _ = World(seed=5).draw(200)
    before = learner.predict(X[:, None, :])
    rows = learner.knowledge.memory.rehearsed
    rows._about["label"][: rows.n] = (rows.labels + 1) % 3
    for c in range(3):
        rows._slots[c] = np.flatnonzero(rows.labels == c).tolist()
    for _ in learner.sleep():
        pass
    report = learner.status().last_sleep
    assert not report.adopted and "fall" in report.reason
    np.testing.assert_array_equal(learner.predict(X[:, None, :]), before)


@pytest.mark.parametrize("head", list(HEADS))
def test_stopping_and_starting_changes_nothing(tmp_path, head):
    bundle = make_bundle(tmp_path / "b.ecl", head)
    whole_sleeps = {"after_labels": 40, "idle_s": 0, "slice_ms": 60_000}  # on however slow a machine
    settings = settings_from({"sleep": whole_sleeps, "state": {"snapshot_labels": 30}})
    events = list(World(seed=4).events(150))
    with Learner.from_bundle(bundle, state_dir=tmp_path / "one", settings=settings) as learner:
        run(learner, events)
        whole = learner.knowledge.digest()
    for part in range(0, len(events), 46):
        with Learner.from_bundle(bundle, state_dir=tmp_path / "many", settings=settings) as learner:
            run(learner, events[part : part + 46])
    with Learner.from_bundle(bundle, state_dir=tmp_path / "many", settings=settings) as learner:
        assert learner.knowledge.digest() == whole
        assert "snapshot at entry" in learner.status().recovered


def test_an_exception_in_the_loop_saves_nothing_half_done(bundle, tmp_path):
    class Boom(Exception):
        pass

    def sink(answer):
        if isinstance(answer, Receipt) and answer.seq >= 20:
            raise Boom

    settings = settings_from({"state": {"commit_ms": 0}})
    with (
        pytest.raises(Boom),
        Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings) as learner,
    ):
        learner.run(World(seed=4).events(50), sinks=[sink])
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=settings) as learner:
        assert learner.knowledge.n_labels == 20


def test_the_budget_is_never_exceeded_as_classes_arrive(tmp_path):
    bundle = make_bundle(tmp_path / "b.ecl", "slda")
    budget = Budget(ram_bytes=256 * 1024 + 68_000)
    learner = Learner.from_bundle(bundle, budget=budget)
    statuses = []
    rng = np.random.default_rng(0)
    for k in range(400):
        learner.observe(reading(rng.normal(size=D) * 5, f"r{k}"))
        statuses.append(learner.teach(Label(label=f"class-{k}", reading_id=f"r{k}")).status)
        assert learner.ledger.held_bytes <= budget.ram_bytes
    assert statuses[0] == "learned" and statuses[-1] == "refused"
    assert len(learner.class_names) == 3 + statuses.count("learned")


def test_a_budget_too_small_says_what_would_fit(bundle):
    with pytest.raises(BudgetExceeded, match="raise the budget"):
        Learner.from_bundle(bundle, budget=Budget(ram_bytes=30_000))


def test_state_of_another_bundle_is_refused(bundle, tmp_path):
    Learner.from_bundle(bundle, state_dir=tmp_path / "s").close()
    other = make_bundle(tmp_path / "o.ecl", "slda")
    with pytest.raises(StateError, match="choose another --state folder"):
        Learner.from_bundle(other, state_dir=tmp_path / "s")


@pytest.mark.parametrize("head", list(HEADS))
def test_a_restart_at_any_moment_changes_nothing_in_a_tight_budget(tmp_path, head):
    """Memory evicts and gives bytes to new classes; snapshots fall anywhere."""
    options = {"knn": {"memory_bytes": 4_000}, "step": {"window": 32}}.get(head, {})  # knn evicts, too
    bundle = make_bundle(tmp_path / "b.ecl", head, **options)
    budget = Budget(ram_bytes=256 * 1024 + 200_000)
    settings = settings_from({"sleep": {"after_labels": 70, "idle_s": 0}, "state": {"snapshot_labels": 37}})

    def teach(learner, k):
        x = np.random.default_rng(k).normal(size=D) * 4
        learner.observe(reading(x, f"r{k}"))
        return learner.teach(Label(label=f"class-{k}" if k % 5 == 0 else NAMES[k % 4], reading_id=f"r{k}"))

    whole = Learner.from_bundle(bundle, budget=budget, settings=settings)
    for k in range(160):
        teach(whole, k)
    for stops in ([3, 41, 90], [75, 76, 140]):
        state = tmp_path / f"state-{stops[0]}"
        k = 0
        for stop in [*stops, 160]:
            with Learner.from_bundle(bundle, state_dir=state, budget=budget, settings=settings) as learner:
                while k < stop:
                    teach(learner, k)
                    assert learner.ledger.held_bytes <= budget.ram_bytes
                    k += 1
        assert learner.knowledge.digest() == whole.knowledge.digest()


def test_a_refused_class_changes_nothing(tmp_path):
    bundle = make_bundle(tmp_path / "b.ecl", "slda")
    learner = Learner.from_bundle(bundle, budget=Budget(ram_bytes=256 * 1024 + 64_000))
    k = 0
    while True:
        learner.observe(reading(np.full(D, float(k)), f"r{k}"))
        before = learner.knowledge.digest()
        if learner.teach(Label(label=f"class-{k}", reading_id=f"r{k}")).status == "refused":
            break
        k += 1
    assert learner.knowledge.digest() == before


def test_a_smaller_budget_at_restart_is_kept_to_or_refused(bundle, tmp_path):
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", budget=Budget(ram_bytes=2_000_000)) as learner:
        run(learner, World(seed=4).events(300))
    smaller = Budget(ram_bytes=600_000)
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", budget=smaller) as learner:
        assert learner.ledger.held_bytes <= smaller.ram_bytes
        assert learner.knowledge.n_labels == 300


@pytest.mark.parametrize("t_s", [5, np.float64(1.5), np.float32(2.5), float("nan")])
def test_labels_made_with_numpy_are_kept(bundle, tmp_path, t_s):
    names = np.array(NAMES)
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s") as learner:
        for k in range(5):
            learner.observe(reading(np.zeros(D), f"r{k}"))
            assert learner.teach(Label(label=names[k % 3], reading_id=f"r{k}", t_s=t_s)).status == "learned"
        learner._durable._snapshot_seq = learner._durable.seq  # no snapshot at close: the journal must tell
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s") as learner:
        assert learner.knowledge.n_labels == 5 and learner.status().alarm == ""


def test_text_that_is_none_is_refused(bundle, tmp_path):
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s") as learner:
        learner.observe(reading(np.zeros(D), "r0"))
        receipt = learner.teach(Label(label="walk\ud800", reading_id="r0"))
        assert receipt.status == "refused" and "UTF-8" in receipt.message


def test_another_head_on_old_state_is_refused(bundle, tmp_path):
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s") as learner:
        run(learner, World(seed=4).events(20))
    with pytest.raises(StateError, match="learned with head 'dual', asked for is 'slda'"):
        Learner.from_bundle(
            bundle, state_dir=tmp_path / "s", settings=settings_from({"head": {"name": "slda"}})
        )
    Learner.from_bundle(bundle, state_dir=tmp_path / "s").close()


@pytest.mark.parametrize("head", [{"name": "nope"}, {"name": "dual", "options": {"lift": 99_999}}])
def test_a_head_that_cannot_be_made_is_a_setting_to_mend(bundle, head):
    with pytest.raises(ConfigError, match=r"allowed|known"):
        Learner.from_bundle(bundle, settings=settings_from({"head": head}))


TINY_SLICES = settings_from({"sleep": {"slice_ms": 1e-6, "after_labels": 0, "idle_s": 0}})


def test_a_sleep_that_a_stop_cut_off_is_taken_up_again(bundle, tmp_path):
    def learn_and_begin_to_sleep(state_dir):
        learner = Learner.from_bundle(bundle, state_dir=state_dir, settings=TINY_SLICES)
        run(learner, World(seed=4).events(60))
        next(learner.sleep())
        for event in World(seed=5).events(10):
            (learner.observe if isinstance(event, Reading) else learner.teach)(event)
        return learner

    with learn_and_begin_to_sleep(tmp_path / "whole") as learner:
        assert learner.knowledge.asleep
        list(learner.sleep())
        assert learner.knowledge.last_sleep.n_sleep == 1 and learner.knowledge.n_labels == 70
        whole = learner.knowledge.digest()
    with learn_and_begin_to_sleep(tmp_path / "s") as learner:
        assert learner.knowledge.asleep
    with Learner.from_bundle(bundle, state_dir=tmp_path / "s", settings=TINY_SLICES) as learner:
        assert learner.knowledge.asleep and learner.knowledge.n_labels == 70
        answers = run(learner, [None])
        assert [report.cause for report in of(SleepReport, answers)] == ["asked"]
        assert learner.knowledge.digest() == whole


def test_an_urgent_reading_ends_a_sleep_and_the_old_head_stays(bundle):
    learner = Learner.from_bundle(bundle, settings=settings_from({"sleep": {"slice_ms": 1e-6}}))
    run(learner, World(seed=4).events(60))
    before = learner.knowledge.digest()
    urgent = Reading(id="u", t_s=0.0, window=np.zeros((1, D), dtype=np.float32), urgent=True)
    answers = run(learner, [SleepRequest(), urgent, None, None])
    [report] = of(SleepReport, answers)
    assert not report.adopted and "urgent" in report.reason
    assert learner.knowledge.labels_since_sleep == 60, "it is slept on later"
    learner.knowledge.n_sleeps = 0
    assert learner.knowledge.digest() == before


def test_a_sleep_waits_for_what_waits_but_not_for_ever(bundle, monkeypatch):
    learner = Learner.from_bundle(bundle)
    run(learner, World(seed=4).events(60))
    learner.run([SleepRequest(), *[None] * (rest.MOST_PUT_OFF - 2)], busy=lambda: True)
    assert not learner.knowledge.n_sleeps
    monkeypatch.setattr(rest, "MOST_PUT_OFF", 0)
    learner.run([None] * 200, busy=lambda: True)
    assert learner.knowledge.n_sleeps == 1 and not learner.knowledge.asleep, "one piece an event"


def test_a_sleep_goes_on_only_while_nobody_waits(bundle, monkeypatch):
    monkeypatch.setattr(rest, "MOST_PUT_OFF", 0)
    learner = Learner.from_bundle(bundle, settings=settings_from({"sleep": {"slice_ms": 1e9}}))
    run(learner, World(seed=4).events(60))
    slices = []
    learner.run([SleepRequest(), None], busy=lambda: slices.append(1) is None)
    assert learner.knowledge.asleep, "every piece was a slice of its own, and there were two events"
    run(learner, [None])
    assert not learner.knowledge.asleep and learner.status().last_sleep.cause == "asked"


def test_a_sleep_that_takes_too_long_is_dropped(bundle):
    learner = Learner.from_bundle(bundle, settings=settings_from({"sleep": {"cpu_s": 1e-9}}))
    run(learner, World(seed=4).events(60))
    list(learner.sleep())
    report = learner.status().last_sleep
    assert not report.adopted and "sleep.cpu_s" in report.reason


def test_a_failed_start_lets_the_folder_go(bundle, tmp_path):
    with pytest.raises(BudgetExceeded):
        Learner.from_bundle(bundle, state_dir=tmp_path / "s", budget=Budget(ram_bytes=300_000))
    with pytest.raises(BudgetExceeded, match="disk_mb"):
        Learner.from_bundle(bundle, state_dir=tmp_path / "s", budget=Budget(disk_bytes=100_000))
    Learner.from_bundle(bundle, state_dir=tmp_path / "s").close()


def test_teaching_inside_the_loop_takes_nobody_elses_receipt(bundle):
    learner = Learner.from_bundle(bundle, settings=settings_from({"state": {"commit_ms": 1e9}}))
    receipts = []

    def events():
        yield reading(np.zeros(D), "a")
        yield reading(np.ones(D), "b")
        yield Label(label="walk", reading_id="a")
        assert learner.teach(Label(label="run", reading_id="b")).reading_id == "b"

    learner.run(events(), sinks=[lambda a: receipts.append(a) if isinstance(a, Receipt) else None])
    assert [r.reading_id for r in receipts] == ["a"]


def test_status_is_given_at_start_and_end(bundle):
    answers = run(Learner.from_bundle(bundle), World(seed=4).events(5))
    statuses = of(Status, answers)
    assert statuses[0].n_readings == 0 and statuses[-1].n_readings == 5 and statuses[-1].n_labels == 5
    assert statuses[-1].held_bytes == sum(statuses[-1].held.values()) <= statuses[-1].budget_bytes
