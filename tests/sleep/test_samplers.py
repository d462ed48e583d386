"""Samplers: all classes alike, no row twice in a selection, the same question has the same answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_cl.config import SAMPLER_NAMES
from edge_cl.errors import ConfigError
from edge_cl.sleep.samplers import MAX_BOX, SAMPLERS, Candidates, after, create

NAMES = list(SAMPLERS)


def candidates(
    y: list[int] | NDArray[np.int64], *, seed: int = 0, n_steps: int = 20, **given: object
) -> Candidates:
    classes = np.asarray(y, dtype=np.int64)
    X = np.random.default_rng(seed).normal(size=(len(classes), 3)).astype(np.float32)
    arrays: dict[str, object] = {
        "features": lambda rows: X[rows],
        "born": np.arange(len(classes)),
        "box": np.zeros(len(classes), dtype=np.int8),
        "due": np.zeros(len(classes), dtype=np.int64),
        "n_sleep": 1,
    }
    return Candidates(y=classes, seed=seed, n_steps=n_steps, **(arrays | given))  # type: ignore[arg-type]


MEMORIES = st.lists(st.sampled_from([0, 1, 2, 7]), max_size=40)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25)
@given(y=MEMORIES, n=st.integers(0, 50), size=st.integers(1, 17), step=st.integers(0, 30))
def test_rows_are_held_balanced_and_repeatable(name: str, y: list[int], n: int, size: int, step: int) -> None:
    first, second = create(name, candidates(y)), create(name, candidates(y))
    second.batch(step + 1, size)  # what was asked before must not matter
    selected, batch = first.select(n), first.batch(step, size)
    assert selected.tolist() == second.select(n).tolist()
    assert batch.tolist() == second.batch(step, size).tolist()
    assert len(selected) == min(n, len(y)) == len(set(selected.tolist()))
    assert len(batch) == (size if y else 0)
    for rows in (selected, batch):
        assert not len(rows) or (rows.min() >= 0 and rows.max() < len(y))
    classes = np.asarray(y, dtype=np.int64)
    held, given_ = np.bincount(classes, minlength=8), np.bincount(classes[selected], minlength=8)
    for c in np.unique(classes):  # a class gets less than another only when it has no more
        assert given_[c] == held[c] or given_[c] >= given_.max() - 1
    if y:
        drawn = np.bincount(classes[batch], minlength=8)[np.unique(classes)]
        assert drawn.max() - drawn.min() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_a_shorter_selection_begins_a_longer_one(name: str) -> None:
    sampler = create(name, candidates([0, 0, 0, 0, 1, 1, 2]))
    assert sampler.select(7)[:4].tolist() == sampler.select(4).tolist()


def test_balanced_batches_repeat_nothing_before_the_class_is_through() -> None:
    sampler = create("balanced", candidates([0] * 6 + [1] * 3))
    rows = np.concatenate([sampler.batch(step, 4) for step in range(3)])  # 6 of each class
    assert sorted(rows[rows < 6].tolist()) == [0, 1, 2, 3, 4, 5]
    ones = rows[rows >= 6]
    assert sorted(ones[:3].tolist()) == sorted(ones[3:].tolist()) == [6, 7, 8]


def test_another_seed_rehearses_in_another_order() -> None:
    orders = {
        tuple(create("balanced", candidates([0] * 30, seed=seed)).select(10).tolist()) for seed in range(5)
    }
    assert len(orders) == 5


def test_recent_prefers_what_came_lately_as_its_half_life_says() -> None:
    # one class: half of it new, half of it one half-life old
    born = np.array([100] * 20 + [60] * 20)
    sampler = create("recent", candidates([0] * 40, born=born))
    rows = np.concatenate([sampler.batch(step, 50) for step in range(100)])
    assert abs((rows < 20).mean() - 2 / 3) < 0.02
    assert (sampler.select(20) < 20).sum() > 10


def test_recent_still_rehearses_a_class_of_long_ago() -> None:
    born = np.array([0, 1, 2, 10_000_000, 10_000_001, 10_000_002])
    sampler = create("recent", candidates([0, 0, 0, 1, 1, 1], born=born))
    assert np.bincount(sampler.batch(0, 10) // 3).tolist() == [5, 5]


def test_recent_takes_any_age() -> None:
    born = np.array([0, 1, 10**12])
    sampler = create("recent", candidates([0, 0, 0], born=born))
    assert set(sampler.batch(0, 50).tolist()) == {2}
    assert sampler.select(3)[0] == 2


def test_easy_first_begins_near_the_class_mean_and_hard_first_far_from_it() -> None:
    y = np.repeat([0, 1], 50)
    X = np.random.default_rng(3).normal(size=(100, 4)).astype(np.float32) * np.where(y, 10, 1)[:, None]
    X = X.astype(np.float32)
    far = np.empty(100)
    for c in (0, 1):
        far[y == c] = np.linalg.norm(X[y == c] - X[y == c].mean(axis=0), axis=1)
    kept = {"features": lambda rows: X[rows], "n_steps": 11}
    easy, hard = create("easy-first", candidates(y, **kept)), create("hard-first", candidates(y, **kept))
    for c in (0, 1):
        mine = [row for row in easy.select(100).tolist() if y[row] == c]
        assert np.all(np.diff(far[mine]) >= 0)
        assert [row for row in hard.select(100).tolist() if y[row] == c] == mine[::-1]
        early, late = easy.batch(0, 40), easy.batch(10, 40)
        assert far[early[y[early] == c]].max() < far[late[y[late] == c]].min()


def test_distances_of_a_large_class_do_not_depend_on_how_it_is_decoded() -> None:
    X = np.random.default_rng(0).normal(size=(700, 2)).astype(np.float32)
    sampler = create("easy-first", candidates([0] * 700, features=lambda rows: X[rows]))
    far = np.linalg.norm(X.astype(np.float64) - X.mean(axis=0, dtype=np.float64), axis=1)
    assert sampler.select(700).tolist() == np.argsort(far, kind="stable").tolist()


def test_spaced_gives_what_is_due_and_pads_a_class_with_nothing_due() -> None:
    due = np.array([5, 3, 9, 9, 9, 8])
    sampler = create("spaced", candidates([0, 0, 0, 0, 1, 1], due=due, n_sleep=5))
    assert sampler.select(10).tolist() == [1, 5, 0, 4]  # class 0: due longest first; class 1: soonest first
    assert set(sampler.batch(0, 40).tolist()) == {0, 1, 4, 5}


def test_a_rested_exemplar_rests_longer_each_time_and_a_wrong_one_comes_back() -> None:
    box, rests = np.zeros(1, dtype=np.int8), []
    for _ in range(8):
        box, due = after(box, np.array([True]), 0)
        rests.append(int(due[0]) - 1)
    assert rests == [1, 2, 4, 8, 16, 32, 32, 32]
    assert box[0] == MAX_BOX
    box, due = after(box, np.array([False]), 100)
    assert (box[0], due[0]) == (0, 101)


def test_an_unknown_sampler_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match="'loud'; known samplers: balanced, recent, hard-first, easy-first"):
        create("loud", candidates([0]))
    assert tuple(SAMPLERS) == SAMPLER_NAMES
