"""The gate: what it refuses, what it lets through, and that few judges need more evidence."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bench import gate as bench_gate
from edge_cl.memory import Exemplars, ReplayMemory
from edge_cl.records import FloatArray, SleepPlan
from edge_cl.sleep import Rehearsal, Verdict, answers, judge
from edge_cl.sleep.gate import loss_on_pinned

SURE = 0.98


def surely(right: NDArray[np.bool_]) -> FloatArray:
    """Answers (n, 2) of a head that is sure, right or wrong."""
    true = np.where(right, SURE, 1 - SURE)
    return np.stack([true, 1 - true], axis=1)


def verdict(n_per_class: int, gained: int, lost: int, *, n_classes: int = 4, **given: float) -> Verdict:
    """All classes alike: of n exemplars half right before, so many gained and lost."""
    before = np.arange(n_per_class) < n_per_class // 2
    after = before.copy()
    after[:lost] = False
    after[n_per_class - gained :] = True
    y = np.repeat(np.arange(n_classes), n_per_class)
    return judge(surely(np.tile(before, n_classes)), surely(np.tile(after, n_classes)), y, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("n_per_class", [4, 20, 100])
def test_a_head_that_is_clearly_better_is_adopted(n_per_class: int) -> None:
    assert verdict(n_per_class, n_per_class // 2, 0).adopted


@pytest.mark.parametrize("n_per_class", [2, 4, 20, 100])
def test_a_head_that_is_clearly_worse_is_not(n_per_class: int) -> None:
    assert not verdict(n_per_class, 0, n_per_class // 4 + 1, class_margin=1.0).adopted


def test_as_good_as_before_is_enough_only_with_enough_judges() -> None:
    few, many = verdict(5, 0, 0), verdict(50, 0, 0)
    assert many.adopted and not few.adopted
    assert "on 20 held back leaves a fall of" in few.reason


def test_answers_that_changed_in_both_directions_need_more_judges() -> None:
    assert verdict(200, 1, 1).adopted
    assert not verdict(20, 4, 4).adopted


def test_too_few_judges_keep_the_old_head() -> None:
    found = verdict(7, 3, 0, n_classes=1)
    assert not found.adopted and found.reason == "only 7 held-back exemplars; 8 are needed"
    nobody = np.zeros((0, 2))
    assert not judge(nobody, nobody, np.zeros(0, dtype=np.int64)).adopted


def test_a_class_that_nobody_judges_counts_as_unknown() -> None:
    assert verdict(100, 10, 0, n_known=4).adopted
    unjudged = verdict(100, 10, 0, n_known=8)
    assert not unjudged.adopted and "4 of 8 classes unjudged" in unjudged.reason


@pytest.mark.parametrize("n_of_it", [5, 30])
def test_no_class_pays_for_the_others(n_of_it: int) -> None:
    y = np.repeat(np.arange(11), [100] * 10 + [n_of_it])
    before = np.where(y == 10, True, np.arange(len(y)) % 2 == 0)
    after = y < 10
    assert judge(surely(before), surely(after), y, class_margin=1.0).adopted
    found = judge(surely(before), surely(after), y)
    assert not found.adopted and found.reason.startswith("a class would lose")


def test_one_lost_answer_of_a_rare_class_is_chance_and_not_a_fall() -> None:
    y = np.repeat([0, 1, 2], [100, 100, 4])
    before = np.where(y == 2, True, np.arange(len(y)) % 2 == 0)
    after = np.ones(len(y), dtype=bool)
    after[-1] = False
    assert judge(surely(before), surely(after), y).adopted


def test_the_fewer_judge_the_more_they_must_agree() -> None:
    """A fifth gained, a tenth lost: better, if that many said so."""
    assert verdict(100, 20, 10, n_classes=2).adopted
    assert not verdict(20, 4, 2, n_classes=1).adopted


def test_sureness_decides_where_right_and_wrong_say_nothing() -> None:
    """Nothing changes sides; all come nearer to the rival, or farther."""
    y = np.repeat([0, 1, 2], 20)
    at = lambda p: np.tile([p, 1 - p], (60, 1))  # noqa: E731
    assert judge(at(0.8), at(0.9), y).adopted
    found = judge(at(0.9), at(0.8), y)
    assert not found.adopted and found.accuracy_before == found.accuracy_after == 1
    assert "balanced accuracy +0.0%, sureness -10.0%" in found.reason


def test_a_head_that_is_surer_and_wrong_more_often_is_refused() -> None:
    """One in ten falls just below a half, the others grow surer."""
    y = np.repeat([0, 1], 100)
    p = np.where(np.arange(200) % 10 == 0, 0.49, 0.95)
    before, after = np.tile([0.6, 0.4], (200, 1)), np.stack([p, 1 - p], axis=1)
    assert not judge(before, after, y).adopted


def test_answers_are_the_true_class_and_its_best_rival() -> None:
    scores = np.array([[0.2, 0.5, 0.3], [0.7, 0.1, 0.2]], dtype=np.float32)
    assert answers(scores, np.array([2, 0])) == pytest.approx(np.array([[0.3, 0.5], [0.7, 0.2]]))
    assert answers(np.ones((1, 1)), np.array([0])).tolist() == [[1, 0]]


def test_the_verdict_says_how_each_class_fares() -> None:
    y = np.array([3, 3, 5, 5, 5, 5, 5, 5, 5, 5])
    before, after = np.zeros(10, dtype=bool), np.zeros(10, dtype=bool)
    before[0] = after[[0, 1, 2, 3]] = True
    found = judge(surely(before), surely(after), y)
    assert found.by_class == {3: (0.5, 1.0), 5: (0.0, 0.25)}
    assert (found.accuracy_before, found.accuracy_after, found.n_judged) == (0.25, 0.625, 10)


@settings(max_examples=50)
@given(
    found=st.lists(
        st.tuples(st.integers(0, 3), st.floats(0.4, 0.6), st.floats(0.4, 0.8)), min_size=8, max_size=60
    ),
    more=st.integers(0, 60),
)
def test_one_surer_answer_never_turns_a_yes_into_a_no(
    found: list[tuple[int, float, float]], more: int
) -> None:
    y, before, after = (np.array(column) for column in zip(*found, strict=True))
    old, new = (np.stack([p, 1 - p], axis=1) for p in (before, after))
    if judge(old, new, y).adopted:
        new[more % len(y)] = (SURE, 1 - SURE)
        assert judge(old, new, y).adopted


def test_sleeps_in_trouble_do_no_harm() -> None:
    """As ``python -m bench.gate``, a few of the thousand, of which one may; ungated, one in six does harm."""
    found = bench_gate.figures(list(bench_gate.sleeps(45, seed=7)))["all but alike"]
    assert found["harm_rate"] <= 0.025 < 0.08 < found["harm_rate_ungated"]
    assert found["mean_gain_points"] > 0.1


def test_the_simulation_is_deterministic() -> None:
    one, two = (list(bench_gate.sleeps(5, seed=1)) for _ in range(2))
    assert [s.gain for s in one] == [s.gain for s in two]
    assert [s.verdict() for s in one] == [s.verdict() for s in two]


def pinned_loss(lost: int, won: int, n: int = 64, n_classes: int = 4, *, in_class: int | None = None) -> str:
    """Of n pinned exemplars so many lost and won, in one class or spread."""
    y = np.arange(n) % n_classes
    order = np.argsort(y != in_class, kind="stable") if in_class is not None else np.arange(n)
    was, will = np.zeros((2, n), dtype=np.bool_)
    was[order[:lost]] = True
    will[order[lost : lost + won]] = True
    return loss_on_pinned(surely(was), surely(will), y)


def test_a_head_that_loses_on_pinned_exemplars_beyond_chance_is_named() -> None:
    assert pinned_loss(0, 0) == pinned_loss(5, 0) == pinned_loss(8, 4) == pinned_loss(0, 20) == ""
    assert pinned_loss(7, 0) == "it loses 7 of 64 pinned exemplars and wins 0"
    assert "loses 20 of 64" in pinned_loss(20, 5)


def test_one_class_that_is_lost_is_seen_behind_gains_elsewhere() -> None:
    y = np.arange(64) % 4
    was = y == 0  # class 0 all right, others all wrong
    will = y == 1
    loss = loss_on_pinned(surely(was), surely(will), y)
    assert loss == "it loses 16 of 16 pinned exemplars of a class and wins 0"


def test_nobody_pinned_means_nothing_lost() -> None:
    nobody = np.zeros((0, 2))
    assert loss_on_pinned(nobody, nobody, np.zeros(0, dtype=np.int64)) == ""


def test_chance_refuses_hardly_ever_on_pinned_exemplars() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(96) % 6
    refused = 0
    for _ in range(300):
        was, will = rng.random((2, 96)) < 0.8
        refused += bool(loss_on_pinned(surely(was), surely(will), y))
    assert refused <= 9


class Forgetful:
    """Right about everything until it rehearses; then wrong where the first feature is negative."""

    learns_by_steps = False
    class_counts = np.ones(2)
    rehearsed = False

    def copy(self) -> Forgetful:
        return Forgetful()

    def exam(self, X: FloatArray, y: NDArray[np.int64], *, learned: bool) -> FloatArray:
        wrong = self.rehearsed & (X[:, 0] < 0)
        scores: FloatArray = np.eye(2)[np.where(wrong, 1 - y, y)] * (SURE - (1 - SURE)) + (1 - SURE)
        return scores

    def settle(self, X: FloatArray, y: NDArray[np.int64]) -> None: ...

    def rehearse(self, exemplars: Exemplars) -> Iterator[None]:
        self.rehearsed = True
        yield


@pytest.mark.parametrize(("n_pinned", "adopted"), [(0, True), (16, False)])
def test_a_sleep_that_loses_what_is_pinned_is_refused(n_pinned: int, adopted: bool) -> None:
    memory = ReplayMemory(n_features=3, capacity_bytes=50_000)
    for k in range(300):
        memory.add(np.ones(3, dtype=np.float32), k % 2)
    pinned = np.full((n_pinned, 3), -1.0), np.arange(n_pinned) % 2
    rehearsal = Rehearsal(Forgetful(), memory, SleepPlan(), seed=0, pinned=pinned)
    for _ in rehearsal.pieces():
        pass
    verdict = rehearsal.verdict
    assert verdict is not None and verdict.adopted == adopted
    assert adopted or "it loses 16 of 16 pinned exemplars" in verdict.reason
