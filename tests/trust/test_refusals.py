"""What readings are not: a refusal acts where it was said, as far as is known, until it is taken back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.trust import Refusals

D = 5
seeds = st.integers(0, 2**32 - 1)
sizes = st.sampled_from([1, 4, 64, 1280])


def world(seed, n_features=D, n=40):
    rng = np.random.default_rng(seed)
    return rng, rng.normal(size=(n, n_features)).astype(np.float32)


def refused(rng, X, n, n_classes=4, capacity=16):
    """A memory of n refusals of some of X, the other rows known to be of the refused classes."""
    refusals = Refusals(capacity, X.shape[1])
    for _ in range(n):
        refusals.add(X[rng.integers(20)], int(rng.integers(n_classes)), X[20:], X)
    return refusals


def some_scores(rng, *shape):
    scores = rng.random((*shape, 4)).astype(np.float32) + 0.01
    return scores / scores.sum(axis=-1, keepdims=True)


@settings(max_examples=20)
@given(seed=seeds, n_features=sizes)
def test_a_refused_reading_is_never_answered_so_again_and_others_keep_their_order(seed, n_features):
    rng, X = world(seed, n_features)
    refusals = refused(rng, X, 2)
    x, c = X[0], int(rng.integers(4))
    refusals.add(x, c, X[20:], X)
    scores = some_scores(rng)
    left = refusals(x, scores)
    assert left[c] == 0 and left.dtype == scores.dtype
    free = [k for k in range(4) if not any(refusals.holds(row, k) for row in X[:20])]
    if len(free) > 1:
        assert (np.argsort(left[free]) == np.argsort(scores[free])).all()
    assert left.sum() == pytest.approx(1, abs=1e-5) or not left.any()


@settings(max_examples=20)
@given(seed=seeds, scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_it_does_not_depend_on_the_units_of_the_features(seed, scale):
    rng, X = world(seed)
    units = (scale * 10 ** rng.uniform(-2, 2, D)).astype(np.float32)
    y, scores = int(rng.integers(4)), some_scores(rng, len(X))
    plain, scaled = Refusals(4, D), Refusals(4, D)
    plain.add(X[0], y, X[20:], X)
    scaled.add(X[0] * units, y, X[20:] * units, X * units)
    np.testing.assert_allclose(plain(X, scores), scaled(X * units, scores), rtol=2e-3, atol=1e-5)


@settings(max_examples=20)
@given(seed=seeds)
def test_what_is_known_to_be_of_a_class_is_out_of_reach_when_said_before_or_after(seed):
    rng, X = world(seed)
    refusals, scores = Refusals(16, D), some_scores(rng)
    refusals.add(X[0], 2, X[20:], X)
    for x in X[20:]:
        assert refusals(x, scores) == pytest.approx(scores, abs=1e-6)
    refusals.learn(X[1], 2)
    assert refusals(X[1], scores) == pytest.approx(scores, abs=1e-6), "the latest word"
    refusals.learn(X[0], 2)
    assert refusals.n == 0 and refusals(X[0], scores) is scores


def test_it_reaches_to_the_nearest_known_reading_and_fades_on_the_way():
    refusals = Refusals(4, 1)
    known = np.array([[10.0]], dtype=np.float32)
    refusals.add(np.zeros(1, dtype=np.float32), 0, known, np.array([[0.0], [10.0]], dtype=np.float32))
    half = np.array([0.5, 0.5], dtype=np.float32)
    first = [
        float(refusals(np.array([at], dtype=np.float32), half)[0]) for at in (0, 1, 5, 9, 10, 11, -9.9, -11)
    ]
    assert first[0] == 0 < first[1] < first[2] < first[3] < first[4] == first[5] == first[7] == 0.5
    assert first[2] == pytest.approx(0.25 / 1.25), "k = 1 - d² / reach²"


def test_a_label_nearby_takes_it_back_and_one_farther_off_ends_it_there():
    zero, far = np.zeros(1, dtype=np.float32), np.array([[10.0]], dtype=np.float32)
    half = np.array([0.5, 0.5], dtype=np.float32)
    for at, kept in ((4.0, 0), (6.0, 1)):
        refusals = Refusals(4, 1)
        refusals.add(zero, 0, far, np.array([[0.0], [10.0]], dtype=np.float32))
        refusals.learn(np.array([at], dtype=np.float32), 1)
        assert refusals.n == 1, "of another class"
        refusals.learn(np.array([at], dtype=np.float32), 0)
        assert refusals.n == kept
        assert (refusals(zero, half)[0] == 0) == bool(kept)
        assert refusals(np.array([8.0], dtype=np.float32), half)[0] == 0.5


def test_with_nothing_known_only_that_very_reading_is_refused():
    x = np.ones(D, dtype=np.float32)
    half = np.array([0.5, 0.5], dtype=np.float32)
    nothing = np.zeros((0, D), dtype=np.float32)
    for known, typical in ((nothing, nothing), (nothing, x[None]), (x[None], x[None]), (nothing, np.eye(D))):
        refusals = Refusals(4, D)
        refusals.add(x, 1, known, typical)
        assert refusals(x, half).tolist() == [1, 0]
        assert refusals(x + np.float32(1e-5), half).tolist() == [0.5, 0.5]


def test_a_feature_that_never_moved_says_nothing_about_distance():
    _, X = world(3)
    X[:, 2] = 7
    refusals, half = Refusals(4, D), np.array([0.5, 0.5], dtype=np.float32)
    refusals.add(X[0], 0, X[20:], X)
    other = X[0].copy()
    other[2] = 7.1
    assert np.isfinite(refusals(X, np.tile(half, (40, 1)))).all() and refusals(other, half)[0] == 0


def test_when_every_class_was_refused_there_is_no_answer():
    _, X = world(0)
    refusals = Refusals(4, D)
    for c in (0, 1):
        refusals.add(X[0], c, X[20:], X)
    assert refusals(X[:1], np.array([[0.3, 0.7]], dtype=np.float32)).tolist() == [[0, 0]]
    assert refusals(X[0], np.zeros(2, dtype=np.float32)).tolist() == [0, 0], "a head without an answer"


def test_when_it_is_full_the_oldest_goes_and_one_said_again_is_the_newest():
    _, X = world(1)
    refusals = Refusals(3, D)
    for k in (0, 1, 2, 0, 3):
        refusals.add(X[k], 0, X[20:], X)
    assert refusals.n == 3 and [refusals.holds(X[k], 0) for k in range(4)] == [True, False, True, True]
    assert not refusals.holds(X[0], 1)


def test_extreme_values_are_far_and_raise_nothing():
    _, X = world(2)
    refusals, half = Refusals(4, D), np.array([0.5, 0.5], dtype=np.float32)
    refusals.add(X[0], 0, X[20:], X)
    with np.errstate(all="raise"):
        for x in (X[0] + np.float32(3e38), np.full(D, -3e38, dtype=np.float32)):
            assert refusals(x, half).tolist() == [0.5, 0.5]


@settings(max_examples=20)
@given(seed=seeds, n=st.integers(0, 24))
def test_state_comes_back_bit_for_bit_and_many_are_answered_as_each_is(seed, n):
    rng, X = world(seed)
    refusals = refused(rng, X, n)
    again = Refusals(16, D)
    again.add(X[5], 1, X[20:], X)
    again.restore(refusals.state())
    scores = some_scores(rng, len(X))
    many = refusals(X, scores)
    np.testing.assert_array_equal(again(X, scores), many)
    np.testing.assert_array_equal([refusals(x, row) for x, row in zip(X, scores, strict=True)], many)
    for memory in (refusals, again):
        memory.add(X[1], 3, X[30:], X[10:])
    assert {k: v.tobytes() for k, v in again.state().items()} == {
        k: v.tobytes() for k, v in refusals.state().items()
    }
    if n == 0:
        assert many is scores


def test_less_room_keeps_the_newest():
    _, X = world(4)
    refusals, smaller = Refusals(8, D), Refusals(2, D)
    for k in range(5):
        refusals.add(X[k], 0, X[20:], X)
    smaller.restore(refusals.state())
    assert [smaller.holds(X[k], 0) for k in range(5)] == [False, False, False, True, True]
    assert smaller.nbytes < refusals.nbytes and Refusals.within(10**9, D).capacity == 256
