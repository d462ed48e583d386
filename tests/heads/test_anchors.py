"""What is remembered to judge the gate on."""

import numpy as np
import pytest

from edge_cl.heads.anchors import ENOUGH, LEAST, Anchors
from edge_cl.heads.fast import LENGTH_SCALE
from edge_cl.heads.gate import REACH
from edge_cl.heads.standardise import Standardiser

D = 3


def scales(mean=0.0, std=1.0):
    standardise = Standardiser(D)
    standardise.set_moments(np.full(D, mean), np.full(D, std**2))
    return standardise


def filled(capacity, labels, standardise=None, seed=0):
    anchors = Anchors(capacity, D, seed)
    for x, y in zip(np.random.default_rng(1).normal(size=(len(labels), D)), labels, strict=True):
        anchors.add(x.astype(np.float32), y, standardise or scales())
    return anchors


def test_a_rare_class_is_held_and_asked_as_often_as_a_frequent_one():
    labels = [0] * 400 + [1] * 20 + [0] * 400
    anchors = filled(40, labels)
    asked = [slot for _ in range(400) for slot in anchors.draw(1.0)]
    _, classes = anchors.exemplars(asked)
    assert len(asked) == 400
    assert 0.4 < np.mean(classes) < 0.6
    _, classes = anchors.exemplars(list(range(40)))
    assert sum(classes) == 20


@pytest.mark.parametrize(
    ("share", "calls", "total"), [(0.0, 100, 0), (0.5, 100, 48), (1.5, 40, 57), (16, 5, 80)]
)
def test_as_many_are_asked_as_are_due(share, calls, total):
    """Together when four are due, so at most three are still owed at the end."""
    anchors = filled(50, [0, 1] * 25)
    asked = [len(anchors.draw(share)) for _ in range(calls)]
    assert total <= sum(asked) <= share * calls
    assert all(n == 0 or n >= 4 for n in asked)


@pytest.mark.parametrize("capacity", [1, 10, ENOUGH, ENOUGH + 8])
def test_none_is_asked_before_there_are_enough_or_all_places_are_taken(capacity):
    enough = min(capacity, ENOUGH)
    anchors = filled(capacity, [0] * (enough - 1))
    assert not any(anchors.draw(4.0) for _ in range(9))
    anchors.add(np.zeros(D, dtype=np.float32), 1, scales())
    assert anchors.draw(4.0)


@pytest.mark.parametrize("n_window", [0, 5])
@pytest.mark.parametrize("left_out", [False, True])
def test_the_context_is_as_written(n_window, left_out):
    rng = np.random.default_rng(2)
    anchors = filled(9, [0, 1, 2] * 3, scales(0.1, 2.0))
    slots = [4, 0]
    z, _ = anchors.exemplars(slots)
    held, _ = anchors.exemplars(list(range(9)))
    recent, surety = rng.uniform(size=(2, n_window)), np.array([0.2, 0.7])
    context = anchors.context(z, recent, surety, asked=slots if left_out else None)
    near = np.exp(-((z[:, None] - held) ** 2).sum(axis=2) / (2 * LENGTH_SCALE * D))
    if left_out:
        near[[0, 1], slots] = 0
    exact = np.zeros((2, 4))
    exact[:, 0], exact[:, 3] = 1, surety
    if n_window:
        for k, measure in ((1, np.mean), (2, np.max)):
            exact[:, k] = np.log((measure(recent, axis=1) + LEAST) / (measure(near, axis=1) + LEAST))
    np.testing.assert_allclose(context, np.clip(exact, -REACH, REACH), atol=1e-4)


def test_new_scales_apply_to_all_that_is_held_and_survive_a_round_trip():
    anchors = filled(8, [0, 1] * 6)
    anchors.restandardise(scales(0.5, 3.0))
    raw = anchors.get_state()[0]["held.rows"]
    slots = list(range(8))
    np.testing.assert_array_equal(anchors.exemplars(slots)[0], scales(0.5, 3.0)(raw))
    twin = Anchors(8, D, 5)
    twin.set_state(*anchors.get_state())
    query = np.ones((1, D), dtype=np.float32), np.ones((1, 2)), np.zeros(1)
    np.testing.assert_array_equal(twin.context(*query), anchors.context(*query))
    assert [twin.draw(0.7) for _ in range(30)] == [anchors.draw(0.7) for _ in range(30)]
