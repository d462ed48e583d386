"""Relearning in the background gives what learning everything at once would give."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.heads.lift import Lift
from edge_cl.heads.refit import BLOCK, OBS_NOISE_VAR, PER_LABEL, Refit
from edge_cl.heads.standardise import RunningMoments, Standardiser

D, C = 4, 3
LIFT = Lift(D, 12, 0)


def stream(n, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(C, size=n)
    X = spread * rng.normal(size=(n, D)) + 2 * np.eye(C, D)[y]
    return X.astype(np.float32), y


def run(refit, X, y, standardise=None):
    """Every finished refit as (labels when it was done, standardiser, slow memory)."""
    standardise, done = standardise or Standardiser(D), []
    for k, (x, c) in enumerate(zip(X, y.tolist(), strict=True), start=1):
        refit.add(x, c)
        finished = refit.advance(standardise, C)
        if finished is not None:
            standardise = finished[0]
            done.append((k, *finished))
    return done


def ridge(standardise, X, y):
    """Weights and covariance in float64 of all samples at once."""
    phi = LIFT(standardise(X)).astype(np.float64)
    cov = np.linalg.inv(np.eye(LIFT.n_lifted) + phi.T @ phi / OBS_NOISE_VAR)
    return cov @ (phi.T @ np.eye(C)[y]) / OBS_NOISE_VAR, cov


def assert_knows(slow, standardise, X, y, atol):
    weights, cov = ridge(standardise, X, y)
    phi = LIFT(standardise(X))
    np.testing.assert_allclose(slow.predict(phi), phi @ weights, atol=atol)
    np.testing.assert_allclose(slow.cov(), cov, atol=atol)
    assert slow.n_updates == len(X), "every sample once"


@settings(max_examples=15)
@given(seed=st.integers(0, 999), n=st.integers(33, 400), growth=st.floats(1.0, 1.02))
def test_a_finished_refit_equals_learning_all_samples_afresh(seed, n, growth):
    X, y = stream(n, seed)
    X *= (growth ** np.arange(n, dtype=np.float32))[:, None]  # so that the scales go on moving
    done = run(Refit(100_000, D, LIFT), X, y)
    assert [k for k, *_ in done[:6]] == [1, 2, 4, 8, 16, 32]
    for k, standardise, slow in done:
        exact = k <= BLOCK
        assert_knows(slow, standardise, X[:k], y[:k], 1e-4 if exact else 0.05)
    if growth > 1.015 and n > 200:
        assert len(done) > 6


def test_the_first_scales_are_those_of_the_samples_so_far():
    X, y = stream(32)
    for k, standardise, _ in run(Refit(100_000, D, LIFT), X, y):
        if k == 1:
            np.testing.assert_array_equal(standardise.mean, X[0])
        if k >= 8:  # of fewer some may look like outliers
            np.testing.assert_allclose(standardise.mean, X[:k].mean(axis=0), atol=1e-5)
            np.testing.assert_allclose(1 / standardise.inv_std, X[:k].std(axis=0), rtol=1e-4)


def test_later_it_looks_at_the_scales_of_everything_and_only_when_they_moved():
    X, y = stream(600, seed=3)
    still = run(Refit(100_000, D, LIFT), X, y)
    moved = X.copy()
    moved[100:] = 5 + 3 * moved[100:]
    done = run(Refit(100_000, D, LIFT), moved, y)
    assert len(still) <= 7 < len(done)
    began = done[-1][0] - np.arange(400)  # it began at the multiple of 32 whose scales it has
    means = {int(k): moved[:k].mean(axis=0) for k in began if k > 100 and k % BLOCK == 0}
    closest = min(means, key=lambda k: float(np.abs(means[k] - done[-1][1].mean).max()))
    n_done = done[-1][0]
    assert n_done - closest == pytest.approx(closest / (PER_LABEL - 1), abs=2)


def test_no_room_ends_a_refit_and_begins_none():
    X, y = stream(400)
    X *= (1.02 ** np.arange(400, dtype=np.float32))[:, None]
    done = run(Refit(100 * (D + 4), D, LIFT), X, y)
    assert done and all(k < 100 for k, *_ in done)
    full = Refit(100 * (D + 4), D, LIFT)
    run(full, X, y)
    assert full.get_state()[1]["slow"] is None and full.get_state()[1]["n"] == 100


@pytest.mark.parametrize("cut", [5, 33, 70, 72, 90])
def test_a_class_may_come_and_the_state_go_round_at_any_moment(cut):
    X, y = stream(200)
    X[40:] *= 4
    one = Refit(100_000, D, LIFT)
    standardise = Standardiser(D)
    under_way = False
    for k, (x, c) in enumerate(zip(X, y.tolist(), strict=True), start=1):
        if k == cut:
            under_way = one.get_state()[1]["slow"] is not None
            one.grow()
            twin = Refit(100_000, D, LIFT)
            twin.set_state(*one.get_state())
            one = twin
        n_outputs = C + (k >= cut)
        one.add(x, C if k >= cut and k % 5 == 0 else c)
        finished = one.advance(standardise, n_outputs)
        if finished:
            standardise, slow = finished
            assert slow.predict(LIFT(standardise(X[:1]))).shape == (1, n_outputs)
    assert under_way == (cut in (70, 72)), "some cuts fall into a refit"


def test_a_broken_reading_does_not_make_the_kept_samples_coarse():
    X, y = stream(300)
    broken = X.copy()
    broken[[3, 150]] = 1e7
    refit = Refit(100_000, D, LIFT)
    run(refit, broken, y)
    kept = refit._samples(0, 288)
    sound = np.delete(np.arange(288), [3, 150])
    assert np.abs(kept[sound] - X[sound]).max() < 0.25
    assert np.abs(kept).max() < 100


@settings(max_examples=30)
@given(seed=st.integers(0, 999), n_blocks=st.integers(1, 6), size=st.integers(2, 40))
def test_running_moments_are_those_of_all_samples(seed, n_blocks, size):
    X = np.random.default_rng(seed).uniform(-1, 1, (n_blocks * size, D)).astype(np.float32)
    moments = RunningMoments(D)
    for start in range(0, len(X), size):
        moments.add(X[start : start + size])
    if size >= 16:  # of fewer some may look like outliers
        np.testing.assert_allclose(moments.mean, X.mean(axis=0), atol=1e-6)
        np.testing.assert_allclose(moments.var, X.var(axis=0), rtol=1e-4)
    assert moments.count == len(X)


def begins(X, y):
    """Numbers of labels at which a refit began, after the first few."""
    refit, standardise, found = Refit(100_000, D, LIFT), Standardiser(D), []
    for k, (x, c) in enumerate(zip(X, y.tolist(), strict=True), start=1):
        refit.add(x, c)
        was = refit.get_state()[1]["refitted_at"]
        finished = refit.advance(standardise, C)
        standardise = finished[0] if finished else standardise
        if refit.get_state()[1]["refitted_at"] != was and k > BLOCK:
            found.append(k)
    return found


def test_a_small_move_waits_for_twice_the_labels_and_a_far_one_for_half_as_many_more():
    X, y = stream(300, seed=7)
    X[32:] *= 3
    small, far = X.copy(), X.copy()
    small[64:] *= 1.5
    far[64:] *= 40
    assert begins(small, y)[:2] == [64, 128]
    assert begins(far, y)[:2] == [64, 96]


def test_one_wild_feature_is_not_a_far_move():
    X, y = stream(1500, seed=7)
    X[:, 0] = 1.0
    X[300:, 0] = np.random.default_rng(0).normal(size=1200) * 1e3
    began = [k for k in begins(X, y) if k >= 200]
    assert all(b >= 2 * a for a, b in itertools.pairwise(began)), began


def test_a_refit_under_way_ends_when_the_room_does():
    X, y = stream(300, seed=7)
    X[64:] *= 10
    refit = Refit(100 * (D + 4), D, LIFT)
    done = run(refit, X[:99], y[:99])
    assert refit.get_state()[1]["slow"] is not None, "one has begun at 96"
    assert not run(refit, X[99:], y[99:], done[-1][1])
    assert refit.get_state()[1]["slow"] is None
