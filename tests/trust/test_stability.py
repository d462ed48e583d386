"""Stability metrics against examples worked out by hand."""

from __future__ import annotations

import json

import pytest

from edge_cl.trust import Stability


def run(*evaluations: dict[int, float]) -> Stability:
    stability = Stability()
    for evaluation in evaluations:
        stability.update(evaluation)
    return stability


def test_nothing_is_claimed_before_there_is_something_to_compare() -> None:
    stability = run()
    stability.update({})
    assert (stability.n_evaluations, stability.min_acc, stability.wc_acc, stability.gap) == (
        0,
        None,
        0.0,
        0.0,
    )
    stability.update({0: 0.5})
    assert (stability.min_acc, stability.wc_acc, stability.gap, stability.accuracy) == (None, 0.5, 0.0, 0.5)


def test_the_first_evaluation_of_a_class_is_not_its_minimum() -> None:
    assert run({0: 0.1}, {0: 0.9}, {0: 0.8}).min_acc == pytest.approx(0.8)


def test_classes_one_after_another_as_in_the_paper() -> None:
    # class 0: 0.9 | 0.6 0.8 → min 0.6;  class 1, new at the second evaluation: 0.7 | 0.9 → min 0.9;
    # class 2 is being learned at the third: 0.5
    stability = run({0: 0.9}, {0: 0.6, 1: 0.7}, {0: 0.8, 1: 0.9, 2: 0.5})
    assert stability.min_acc == pytest.approx((0.6 + 0.9) / 2)
    assert stability.wc_acc == pytest.approx(0.5 / 3 + (1 - 1 / 3) * (0.6 + 0.9) / 2)
    assert stability.average_accuracy == pytest.approx((0.9 + 0.65 + 2.2 / 3) / 3)


def test_the_gap_is_before_less_the_worst_moment_after() -> None:
    stability = run({0: 1.0, 1: 0.8}, {0: 0.5, 1: 0.9}, {0: 0.9, 1: 0.5}, {0: 1.0, 1: 1.0})
    assert stability.gap == pytest.approx(0.9 - 0.7)  # of the mean: not both classes at their own worst
    stability.mark()
    assert stability.gap == 0.0
    stability.update({0: 1.0, 1: 0.9, 5: 0.0})  # a class of after the mark does not count
    assert stability.gap == pytest.approx(0.05)


def test_a_gap_that_only_rose_is_negative() -> None:
    assert run({0: 0.5}, {0: 0.7}, {0: 0.6}).gap == pytest.approx(-0.1)


def test_a_class_that_an_evaluation_leaves_out_keeps_its_last_accuracy() -> None:
    stability = run({0: 0.8, 1: 0.4}, {0: 0.6}, {0: 0.9})
    assert stability.accuracy == pytest.approx((0.9 + 0.4) / 2)
    assert stability.min_acc == pytest.approx(0.6)
    assert stability.gap == pytest.approx(0.6 - 0.5)


def test_it_goes_on_after_a_restart_as_if_there_was_none() -> None:
    evaluations = [{3: 0.1, 0: 0.7}, {0: 0.3, 1: 0.2}, {1: 0.9, 3: 0.35}, {0: 0.41}]
    whole, begun, resumed = run(*evaluations), run(*evaluations[:2]), Stability()
    resumed.restore(json.loads(json.dumps(begun.state())))
    for evaluation in evaluations[2:]:
        resumed.update(evaluation)
    assert resumed.state() == whole.state()
    assert (resumed.min_acc, resumed.wc_acc, resumed.gap) == (whole.min_acc, whole.wc_acc, whole.gap)
