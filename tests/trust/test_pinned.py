"""Pinned exemplars: room shared among classes, spread over time, the same for the same labels."""

from __future__ import annotations

import json

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.trust import Pinned

D = 3


def pinned(classes: list[int], capacity: int = 32) -> Pinned:
    made = Pinned(D, capacity)
    for k, y in enumerate(classes):
        made.add(np.full(D, k, np.float32), y)
    return made


@given(st.lists(st.integers(0, 9), max_size=300), st.integers(0, 300))
@settings(max_examples=30)
def test_room_is_shared_and_a_restart_changes_nothing(classes: list[int], cut: int) -> None:
    whole, begun = pinned(classes), pinned(classes[:cut])
    arrays, meta = begun.state()
    resumed = Pinned(D, 32)
    resumed.restore(arrays, json.loads(json.dumps(meta)))
    for k, y in enumerate(classes[cut:], start=cut):
        resumed.add(np.full(D, k, np.float32), y)
    (X, y), (X_too, y_too) = whole.exam(), resumed.exam()
    assert np.array_equal(X, X_too) and np.array_equal(y, y_too)
    assert len(y) <= 32 and (np.bincount(y, minlength=10) <= max(32 // max(len(set(classes)), 1), 1)).all()
    assert set(y.tolist()) == set(classes)
    assert all(classes[int(x[0])] == c for x, c in zip(X, y, strict=True))


def test_a_flood_of_one_class_takes_nothing_from_another() -> None:
    made = pinned([0] * 8)
    before = made.exam()[0]
    for k in range(1000):
        made.add(np.full(D, k, np.float32), 1)
    X, y = made.exam()
    assert np.array_equal(X[y == 0], before) and (y == 1).sum() == 16


def test_what_is_pinned_is_spread_over_all_time() -> None:
    times = np.concatenate([pinned([c] * 1000).exam()[0][:, 0] for c in range(30)])
    assert 400 < times.mean() < 600 and (times < 250).mean() > 0.15 and (times > 750).mean() > 0.15


def test_an_exam_is_a_copy() -> None:
    made = pinned([0] * 5)
    X, _ = made.exam()
    X += 100
    assert made.exam()[0].max() == 4
