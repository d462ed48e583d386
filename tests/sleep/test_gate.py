"""The gate: what it refuses, what it lets through, and that few judges need more evidence."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import gate as bench_gate
from edge_cl.sleep import Verdict, judge


def verdict(n_per_class: int, gained: int, lost: int, *, n_classes: int = 4, **given: float) -> Verdict:
    """All classes alike: of n exemplars half right before, so many gained and lost."""
    before = np.arange(n_per_class) < n_per_class // 2
    after = before.copy()
    after[:lost] = False
    after[n_per_class - gained :] = True
    y = np.repeat(np.arange(n_classes), n_per_class)
    return judge(np.tile(before, n_classes), np.tile(after, n_classes), y, **given)  # type: ignore[arg-type]


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
    nobody = np.zeros(0, dtype=bool)
    assert not judge(nobody, nobody, np.zeros(0, dtype=np.int64)).adopted


def test_a_class_that_nobody_judges_counts_as_unknown() -> None:
    assert verdict(100, 10, 0, n_known=4).adopted
    unjudged = verdict(100, 10, 0, n_known=8)
    assert not unjudged.adopted and "4 of 8 classes unjudged" in unjudged.reason


@pytest.mark.parametrize("n_of_it", [4, 30])
def test_no_class_pays_for_the_others(n_of_it: int) -> None:
    y = np.repeat([0, 1, 2], [100, 100, n_of_it])
    before = np.where(y == 2, True, np.arange(len(y)) % 2 == 0)
    after = np.where(y == 2, np.arange(len(y)) % 3 == 0, True)
    assert judge(before, after, y, class_margin=1.0).adopted
    found = judge(before, after, y)
    assert not found.adopted and found.reason.startswith("a class would lose")


def test_one_lost_answer_of_a_rare_class_is_chance_and_not_a_fall() -> None:
    y = np.repeat([0, 1, 2], [100, 100, 4])
    before = np.where(y == 2, True, np.arange(len(y)) % 2 == 0)
    after = np.ones(len(y), dtype=bool)
    after[-1] = False
    assert judge(before, after, y).adopted


def test_the_fewer_judge_the_more_they_must_agree() -> None:
    """A fifth gained, nothing lost; with few judges one standard error is not enough."""
    assert verdict(50, 10, 0, n_classes=2).adopted
    assert not verdict(5, 1, 0, n_classes=2).adopted


def test_the_verdict_says_how_each_class_fares() -> None:
    y = np.array([3, 3, 5, 5, 5, 5, 5, 5, 5, 5])
    before, after = np.zeros(10, dtype=bool), np.zeros(10, dtype=bool)
    before[0] = after[[0, 1, 2, 3]] = True
    found = judge(before, after, y)
    assert found.by_class == {3: (0.5, 1.0), 5: (0.0, 0.25)}
    assert (found.accuracy_before, found.accuracy_after, found.n_judged) == (0.25, 0.625, 10)


@settings(max_examples=50, deadline=None)
@given(
    answers=st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans()), min_size=8, max_size=60),
    more=st.integers(0, 3),
)
def test_one_more_right_answer_never_turns_a_yes_into_a_no(
    answers: list[tuple[int, bool, bool]], more: int
) -> None:
    y, before, after = (np.array(column) for column in zip(*answers, strict=True))
    if not judge(before, after, y).adopted:
        return
    wrong = np.flatnonzero(~after)
    if len(wrong):
        better = after.copy()
        better[wrong[more % len(wrong)]] = True
        assert judge(before, better, y).adopted


def test_sleeps_in_trouble_do_no_harm() -> None:
    """As ``python -m bench.gate``, a few of the thousand; without the gate, one in six does harm."""
    found = bench_gate.figures(list(bench_gate.sleeps(45, seed=7)))["all but alike"]
    assert found["harm_rate"] == 0 < 0.08 < found["harm_rate_ungated"]
    assert found["mean_gain_points"] > 0.1


def test_the_simulation_is_deterministic() -> None:
    one, two = (list(bench_gate.sleeps(5, seed=1)) for _ in range(2))
    assert [s.gain for s in one] == [s.gain for s in two]
    assert [s.verdict() for s in one] == [s.verdict() for s in two]
