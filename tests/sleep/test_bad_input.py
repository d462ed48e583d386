"""What goes wrong around a sleep is said, with what to do, and the device goes on with what it knew."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np
import pytest

from edge_cl import rest
from edge_cl.budget import Budget
from edge_cl.bundle import Bundle, npz_bytes, write_bundle
from edge_cl.config import settings_from
from edge_cl.errors import BudgetExceeded, BundleError, ConfigError
from edge_cl.heads.step import StepHead
from edge_cl.learner import Learner
from edge_cl.memory import fit_codebook
from edge_cl.records import SleepRequest
from tests.worlds import NAMES, D, World, make_bundle, reading

AWAKE = settings_from({"sleep": {"after_labels": 0, "idle_s": 0}})


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "b.ecl")


def test_a_loss_that_is_no_number_drops_the_candidate_and_the_report_says_so(tmp_path: Path) -> None:
    wild = make_bundle(tmp_path / "step.ecl", "step")
    learner = Learner.from_bundle(wild, settings=AWAKE)
    learner.run(World(seed=4).events(60))
    head = learner.knowledge.head
    assert isinstance(head, StepHead)
    head.program.spec = msgspec.structs.replace(head.program.spec, lr=1e30)
    before = {name: value.copy() for name, value in head.parameters.items()}
    with np.errstate(all="ignore"):
        list(learner.sleep())
    report = learner.status().last_sleep
    assert report is not None and not report.adopted
    assert (
        report.reason.startswith("dropped: optimisation step") and "left the finite numbers" in report.reason
    )
    assert learner.knowledge.head is head
    for name, value in before.items():
        np.testing.assert_array_equal(head.parameters[name], value)
    assert learner.observe(reading(World(seed=6).draw(1)[0][0], "after")).label in NAMES


@pytest.mark.parametrize("file", [False, True])
def test_a_memory_smaller_than_its_classes_need_names_the_setting(
    bundle: Bundle, tmp_path: Path, file: bool
) -> None:
    wanted = settings_from({"memory": {"max_mb": 1e-4, "file": file}})
    with pytest.raises(
        BudgetExceeded, match=r"room for \d+ exemplars, 3 classes need 16; raise memory\.max_mb"
    ):
        Learner.from_bundle(bundle, settings=wanted, state_dir=tmp_path / "s")


def test_a_budget_lowered_while_full_keeps_the_labels_or_says_what_it_needs(tmp_path: Path) -> None:
    small = make_bundle(tmp_path / "slda.ecl", "slda")

    def device(ram_bytes: int) -> Learner:
        return Learner.from_bundle(
            small, settings=AWAKE, state_dir=tmp_path / "s", budget=Budget(ram_bytes=ram_bytes)
        )

    with device(334_000) as learner:
        learner.run(World(seed=4).events(500))
        n = learner.knowledge.memory.n
        assert n < 500, "full"
    with device(328_000) as learner:
        assert learner.ledger.held_bytes <= 328_000
        assert learner.knowledge.n_labels == 500 and 0 < learner.knowledge.memory.n < n
        list(learner.sleep())
    with pytest.raises(BudgetExceeded, match=r"raise the budget \(budget\.ram_mb\)"):
        device(304_000)


def test_a_codebook_of_another_feature_size_is_refused_before_anything_is_learned(
    bundle: Bundle, tmp_path: Path
) -> None:
    book = fit_codebook(np.random.default_rng(0).normal(size=(50, D + 2)), 4, np.random.default_rng(0))
    members = {name: bundle.member(name) for name in bundle.manifest.members}
    members["codebook.npz"] = npz_bytes(**{name: getattr(book, name) for name in book.__struct_fields__})
    other = write_bundle(tmp_path / "other.ecl", bundle.manifest, members)
    with pytest.raises(BundleError, match="features of size 8, the manifest's feature_size is 6; export"):
        Learner.from_bundle(other, settings=settings_from({"memory": {"codec": "pq"}}))
    with pytest.raises(ConfigError, match="has no codebook; export it again, or choose float16 or int8"):
        Learner.from_bundle(bundle, settings=settings_from({"memory": {"codec": "pq"}}))


class Clock(datetime):
    """A wall clock that somebody sets."""

    shows = datetime(2026, 5, 1, 23, 0)

    @classmethod
    def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
        return cls.shows


def test_a_clock_that_jumps_across_the_night_window_neither_stops_a_sleep_nor_begins_a_second(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rest, "datetime", Clock)
    sleepy = {"night": "22:00-06:00", "after_labels": 50, "idle_s": 0, "slice_ms": 1e-6}
    learner = Learner.from_bundle(bundle, settings=settings_from({"sleep": sleepy}))
    Clock.shows = datetime(1970, 1, 1)
    learner.run(World(seed=4).events(60))
    assert learner.knowledge.n_sleeps == 0
    assert "the clock shows 1970 and was never set" in learner.status().sleep_state
    Clock.shows = datetime(2026, 5, 1, 12, 0)
    learner.run([None])
    assert learner.status().sleep_state.endswith("waiting for the night window 22:00-06:00")
    Clock.shows += timedelta(hours=11)
    learner.run([None] * 5, busy=lambda: True)
    assert learner.knowledge.asleep
    Clock.shows -= timedelta(days=30, hours=10)  # noon, a month ago
    learner.run([None])
    assert not learner.knowledge.asleep and learner.knowledge.n_sleeps == 1
    for hour in (23, 13, 2):  # set to and fro: nothing new was learned, so nothing is slept on
        Clock.shows = datetime(2026, 5, 2, hour)
        learner.run([None, None])
    assert learner.knowledge.n_sleeps == 1
    Clock.shows = datetime(2026, 5, 2, 12)
    learner.run([SleepRequest(), None])
    assert learner.knowledge.n_sleeps == 2, "who asks need not wait for the night"


def test_no_limit_of_processor_time_is_no_limit(bundle: Bundle) -> None:
    learner = Learner.from_bundle(bundle, settings=settings_from({"sleep": {"cpu_s": 0, "after_labels": 0}}))
    learner.run(World(seed=4).events(60))
    list(learner.sleep())
    report = learner.status().last_sleep
    assert report is not None and "sleep.cpu_s" not in report.reason
