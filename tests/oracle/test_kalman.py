"""The drift, its clock and the moving scale of the kalman head against dense float64 forms."""

import json

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl import heads
from edge_cl.heads import kalman
from edge_cl.heads.kalman import WARM_UP
from edge_cl.heads.linalg import drift_gradient
from edge_cl.heads.standardise import RunningMoments, ScaleChange, Standardiser
from tests.worlds import D, World, make_bundle

R = 0.1


def make(n_classes=3, **options):
    return heads.create("kalman", n_features=D, n_classes=n_classes, **options)


def learned(X, y, **options):
    head = make(**options)
    for x, c in zip(X, y, strict=True):
        head.learn_one(x, int(c))
    return head


def designed(head, X):
    z = (X.astype(np.float64) - head.standardise.mean) * head.standardise.inv_std
    return np.concatenate([np.ones((len(z), 1)), np.clip(z, -5, 5)], axis=1)


def ridge(head, X, y):
    F = designed(head, X)
    return np.linalg.solve(F.T @ F + R * np.eye(D + 1), F.T @ np.eye(3)[y])


@pytest.mark.parametrize("towards", ["zero", "prior"])
def test_drift_is_the_dense_kalman_filter(towards, tmp_path):
    X, y = World().draw(200)
    head = make(forgetting=0.995, drift_to=towards)
    head.warm_start(make_bundle(tmp_path / "b.ecl").prior(), strength=20)
    M, P = head.mean.astype(np.float64), head.cov.astype(np.float64)
    towards_mean = M.copy() if towards == "prior" else np.zeros_like(M)
    for x, c in zip(X, y, strict=True):
        f = designed(head, x[None])[0]
        M = towards_mean + 0.995 * (M - towards_mean)
        P = 0.995**2 * P + (1 - 0.995**2) * np.eye(D + 1)
        gain = P @ f / (f @ P @ f + R)
        M, P = M + np.outer(gain, np.eye(3)[c] - M.T @ f), P - np.outer(gain, P @ f)
        head.learn_one(x, int(c))
    np.testing.assert_allclose(head.mean, M, atol=1e-4)
    np.testing.assert_allclose(head.cov, P, atol=1e-5)


def log_likelihood(drift, var, square, outputs, target):
    gamma = np.exp(-drift / 2)
    s = gamma**2 * var + (1 - gamma**2) * square + R
    return -0.5 * np.sum(np.log(2 * np.pi * s) + (target - gamma * outputs) ** 2 / s)


@settings(max_examples=60)
@given(st.integers(0, 2**16), st.floats(1e-3, 0.3), st.floats(0, 1))
def test_the_drift_follows_the_gradient_of_the_likelihood(seed, drift, known):
    rng = np.random.default_rng(seed)
    outputs, target = rng.normal(size=4), np.eye(4)[rng.integers(4)]
    square = rng.uniform(1, 20)
    given = (1 - known) * square, square, outputs, target
    step = 1e-6
    numeric = log_likelihood(drift + step, *given) - log_likelihood(drift - step, *given)
    first, expected = drift_gradient(drift, *given, R)
    assert first == pytest.approx(numeric / (2 * step), rel=1e-4, abs=1e-4)
    assert expected >= 0


def test_the_expected_square_of_the_gradient_is_that_of_labels_drawn_from_the_belief():
    rng = np.random.default_rng(0)
    var, square, drift, outputs = 0.2, 3.0, 0.05, np.array([0.5, -0.2, 0.7])
    gamma = np.exp(-drift / 2)
    s = gamma**2 * var + (1 - gamma**2) * square + R
    targets = gamma * outputs + np.sqrt(s) * rng.normal(size=(40_000, 3))
    firsts = [drift_gradient(drift, var, square, outputs, target, R)[0] for target in targets]
    assert np.mean(firsts) == pytest.approx(0, abs=0.05)
    expected = drift_gradient(drift, var, square, outputs, targets[0], R)[1]
    assert np.mean(np.square(firsts)) == pytest.approx(expected, rel=0.05)


def test_the_learned_drift_grows_where_the_world_moves_and_vanishes_where_it_rests():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(3000, D))
    angle = np.linspace(0, 60, len(X))
    moving = (np.cos(angle) * X[:, 0] + np.sin(angle) * X[:, 1] > 0).astype(int)
    resting = (X[:, 0] > 0).astype(int)
    on_moving, on_resting = (learned(X, y, n_classes=2, forgetting="learned") for y in (moving, resting))
    assert on_moving.drift > 1e-4 > 1e-6 > on_resting.drift
    late = slice(2960, 3000)
    right = (on_moving.predict_many(X[late]).argmax(axis=1) == moving[late]).mean()
    steady = learned(X, moving, n_classes=2)
    assert right > (steady.predict_many(X[late]).argmax(axis=1) == moving[late]).mean() + 0.1


def test_with_the_clock_of_classes_what_is_not_seen_stays_known():
    """Sorted by class: drift with every label forgets the first class, with its own labels it does not."""
    X, y = World().draw(6000)
    order = np.argsort(y, kind="stable")
    test, truth = World(seed=5).draw(300)
    first = truth == 0
    right = {}
    for clock in ("label", "class"):
        head = learned(X[order], y[order], forgetting=0.99, clock=clock)
        right[clock] = (head.predict_many(test[first]).argmax(axis=1) == 0).mean()
    assert right["class"] > 0.9 > 0.5 > right["label"]


def test_the_clock_of_classes_lets_a_class_that_moves_be_followed():
    X, y = World().draw(4000)
    moved = np.where((y == 1)[:, None] & (np.arange(len(y)) > 3000)[:, None], -X, X).astype(np.float32)
    late = slice(3200, 4000)
    wrong = {}
    for gamma in (1.0, 0.9):
        head = learned(moved[:3200], y[:3200], forgetting=gamma, clock="class")
        wrong[gamma] = np.square(np.eye(3)[y[late]] - head.predict_many(moved[late])).mean()
    assert wrong[0.9] < 0.8 * wrong[1.0]


def test_inflation_of_one_class_is_its_own_filter_along_x():
    """Output c has the gain of covariance v P, and v P stays right along x."""
    X, y = World().draw(80)
    head = learned(X[:79], y[:79], forgetting=0.8, clock="class")
    f = designed(head, X[79:])[0]
    v = head.inflation.astype(np.float64)
    v[y[79]] /= 0.8**2
    M, P = head.mean.astype(np.float64), head.cov.astype(np.float64)
    h = f @ P @ f
    head.learn_one(X[79], int(y[79]))
    gain = np.outer(P @ f, v / (v * h + R))
    np.testing.assert_allclose(head.mean, M + gain * (np.eye(3)[y[79]] - M.T @ f), atol=1e-5)
    np.testing.assert_allclose(
        head.inflation * (f @ head.cov @ f), v * h - (v * h) ** 2 / (v * h + R), rtol=1e-3
    )


@pytest.mark.parametrize("sorted_by_class", [False, True])
def test_following_the_scale_comes_near_ridge_regression_on_all_of_it(sorted_by_class, monkeypatch):
    """The scale of one feature is not shown by the first labels; a constant one begins to vary."""
    X, y = World().draw(1200)
    if sorted_by_class:
        order = np.argsort(y, kind="stable")
        X, y = X[order], y[order]
    X[:200, 4] *= 0.05
    X[:100, 5] = 3.0
    head, fixed = make(), make()
    head.learn_many(X, y)
    monkeypatch.setattr(kalman, "MOVED", np.inf)
    fixed.learn_many(X, y)
    assert (np.abs(np.log(head.standardise.inv_std * X.std(axis=0))) < np.log(5)).all()
    want = designed(head, X) @ ridge(head, X, y)
    off, off_fixed = (np.abs(designed(one, X) @ one.mean - want).mean() for one in (head, fixed))
    assert off < 0.4 * off_fixed, "not 0: what was clipped in the old scale stays so"
    assert np.linalg.eigvalsh(head.cov.astype(float)).min() > 0


def test_a_change_of_scale_alone_changes_no_answer():
    X, y = World().draw(500)
    head = learned(X, y)
    new = Standardiser(D)
    new.set_moments(head.standardise.mean + 0.3, (np.linspace(0.7, 4, D) / head.standardise.inv_std) ** 2)
    change = ScaleChange(head.standardise, new)
    information, targets = head.filter.information()
    before = designed(head, X) @ head.mean
    weights = change.weights(head.mean.astype(np.float64))
    head.filter.start_from(change.information(information), change.targets(targets), n_updates=500)
    head.standardise = new
    F = designed(head, X)
    np.testing.assert_allclose(F @ weights, before, atol=1e-4)
    np.testing.assert_allclose(F @ head.mean, before, atol=5e-3)  # the start weighs otherwise, a little
    np.testing.assert_allclose(head.mean, ridge(head, X, y), atol=1e-3)


def test_what_weights_drift_to_answers_alike_in_the_new_scale(tmp_path):
    head = make(forgetting=0.999, drift_to="prior")
    head.warm_start(make_bundle(tmp_path / "b.ecl").prior(), strength=20)
    X, y = World().draw(400)
    scale, before = head.standardise.inv_std, designed(head, X[:50]) @ head.centre
    wide = X.copy()
    wide[:, 3] *= 40
    head.learn_many(wide, y)
    assert head.standardise.inv_std[3] < scale[3] / 5
    np.testing.assert_allclose(designed(head, X[:50]) @ head.centre, before, atol=2e-3)


@settings(max_examples=25)
@given(st.integers(0, 2**16), st.floats(-6, 6), st.booleans())
def test_no_move_of_scale_breaks_it(seed, decades, constant):
    X, y = World(seed=seed).draw(300)
    X[60:, 1] *= 10**decades
    X[60:, 2] = 1e4 if constant else X[60:, 2]
    head = learned(X, y)
    scores = head.predict_many(X)
    assert np.isfinite(scores).all() and np.isfinite(head.cov).all()
    assert np.diagonal(head.cov).min() > 0 and np.diagonal(head.cov).max() < 1.01


def test_moments_are_those_of_all_samples_and_one_broken_reading_does_not_move_them():
    X = np.random.default_rng(0).normal([5.0, -2.0, 7.0], [1.0, 30.0, 0.0], (640, 3)).astype(np.float32)
    moments = RunningMoments(3)
    for start in range(0, 640, WARM_UP):
        moments.add(X[start : start + WARM_UP])
    exact = X.astype(np.float64)
    np.testing.assert_allclose(moments.mean, exact.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(moments.var, exact.var(axis=0), rtol=1e-5)
    before = np.sqrt(moments.var)
    moments.add(np.array([[1e9, -1e9, 7.0]], dtype=np.float32))
    assert (np.sqrt(moments.var) <= 1.2 * before).all()


@pytest.mark.parametrize(
    "options",
    [
        {"forgetting": 0.99},
        {"forgetting": "learned"},
        {"forgetting": 0.9, "clock": "class"},
        {"forgetting": 0.99, "drift_to": "prior"},
    ],
)
@pytest.mark.parametrize("cut", [10, 50, 333])
def test_every_kind_round_trips_bit_for_bit(options, cut, tmp_path):
    X, y = World().draw(400)
    X[150:] *= 30
    head = make(**options)
    if "drift_to" in options:
        head.warm_start(make_bundle(tmp_path / "b.ecl").prior(), strength=20)
    head.learn_many(X[:cut], y[:cut])
    twin = head.copy()
    for one in (head, twin):
        one.learn_many(X[cut:], y[cut:])
        one.add_class()
        one.learn_one(X[0], 3)
    np.testing.assert_array_equal(head.predict_many(X), twin.predict_many(X))
    assert msgspec.json.encode(head.state().meta) == msgspec.json.encode(twin.state().meta)


def test_explains_how_sure_it_is():
    head = make()
    assert head.explain_one(np.zeros(D)) == {"score_var": pytest.approx(R + 1), "of_prior": pytest.approx(1)}
    X, y = World().draw(500)
    head.learn_many(X, y)
    near, far = head.explain_one(X[0]), head.explain_one(X[0] + 50)
    assert near["of_prior"] < 0.02 and near["score_var"] == pytest.approx(head.score_var(X[0]))
    assert far["score_var"] > near["score_var"] + 0.01
    json.dumps(near)
    for unusable, complaint in ((X[0, 1:], "features"), (np.full(D, np.nan), "features")):
        with pytest.raises(ValueError, match=complaint):
            head.explain_one(unusable)


@pytest.mark.parametrize(
    "options",
    [
        {"forgetting": 0},
        {"forgetting": "often"},
        {"obs_noise_var": 0.0},
        {"drift_to": "mean"},
        {"clock": "wall"},
        {"clock": "class", "forgetting": "learned"},
        {"clock": "class", "drift_to": "prior"},
    ],
)
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ValueError, match=r"allowed|needs"):
        make(**options)
