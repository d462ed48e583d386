"""Poison or drift: what is asked when trusted answers get worse, and what is concluded."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edge_cl.trust import TrustedAnswers, try_without
from edge_cl.trust.relapse import N_KEPT, N_LAST


def answers(*shares: float, n: int = N_LAST, seed: int = 0) -> TrustedAnswers:
    rng, made = np.random.default_rng(seed), TrustedAnswers()
    for seq, share in enumerate(np.repeat(shares, n), start=1):
        made.note(seq, right=bool(rng.random() < share))
    return made


def test_a_head_that_is_much_better_without_is_taken_with_the_figures() -> None:
    was = np.array([True] * 50 + [False] * 50)
    trial = try_without(was, np.array([True] * 80 + [False] * 20))
    assert trial.take_back
    assert trial.reason.startswith("of 100 trusted labels 50 % were answered right, without them ")
    assert "80 % (30 more, 0 fewer, chance 9.3e-10)" in trial.reason


def test_a_head_that_is_as_good_or_worse_without_is_not() -> None:
    rng = np.random.default_rng(0)
    was = rng.random(150) < 0.6
    assert not try_without(was, was).take_back
    assert not try_without(was, rng.random(150) < 0.6).take_back
    assert not try_without(was, rng.random(150) < 0.4).take_back
    nobody = np.zeros(0, dtype=bool)
    assert not try_without(nobody, nobody).take_back


def test_of_many_heads_one_must_be_better_by_more() -> None:
    was, without = np.zeros(40, dtype=bool), np.arange(40) < 10
    assert try_without(was, without).take_back  # chance 0.00098
    assert not try_without(was, without, n_tried=2).take_back
    assert try_without(was, np.arange(40) < 11, n_tried=2).take_back


def test_many_labels_a_little_better_are_not_worth_it() -> None:
    was = np.array([True] * 1000 + [False] * 20)
    assert not try_without(was, np.ones(1020, dtype=bool)).take_back


@pytest.mark.parametrize("share", [0.95, 0.75])
def test_a_fall_is_seen_and_steadiness_is_not_one(share: float) -> None:
    falls = [answers(share, share, share, share - 0.3, seed=seed).fell() for seed in range(20)]
    steady = [answers(share, share, share, share, seed=seed).fell() for seed in range(20)]
    assert sum(falls) >= 17 and sum(steady) <= 3


def test_the_next_trial_needs_new_labels_and_what_is_kept_comes_back() -> None:
    made = answers(0.9, 0.9, 0.9, 0.2)
    assert made.fell() and made.since_seq == 1 and len(made.right) == N_KEPT
    tried, twin = made.newest_seq, TrustedAnswers()
    twin.restore(json.loads(json.dumps(made.state())))
    for seq in range(N_LAST):
        for each in (made, twin):
            assert not each.fell(after_seq=tried)
            each.note(1000 + seq, right=False)
    assert (
        made.fell(after_seq=tried) and twin.fell(after_seq=tried) and np.array_equal(made.right, twin.right)
    )
