"""What sleep does to heads in closed form: against float64 oracles, and to forms of classes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl import heads
from edge_cl.heads.clusters import recluster
from edge_cl.heads.dual import SLICE, DualHead
from edge_cl.heads.kalman import KalmanHead
from edge_cl.heads.prototype import PrototypeHead
from edge_cl.heads.slda import SldaHead
from edge_cl.memory import Exemplars

D, C = 5, 3


def world(n, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    y = rng.integers(C, size=n)
    X = np.random.default_rng(9).normal(0, 2, (C, D))[y] + rng.normal(size=(n, D)) + offset
    return X.astype(np.float32), y


def taught(head, X, y):
    for x, c in zip(X, y.tolist(), strict=True):
        head.learn_one(x, c)
    return head


def asleep(head, X, y):
    for _ in head.rehearse(Exemplars.of(X, y)):
        pass
    return head


def test_kalman_repeats_exemplars_without_growing_surer():
    X, y = world(300)
    head = taught(KalmanHead(D, C), X, y)
    mean, cov = head.mean.astype(np.float64), head.cov.astype(np.float64)
    seen_X, seen_y = world(40, seed=1)
    asleep(head, seen_X, seen_y)
    np.testing.assert_allclose(head.cov, cov, atol=1e-6)
    design = np.column_stack([np.ones(40), head.standardise(seen_X)])
    gain = cov @ design.T @ np.linalg.inv(design @ cov @ design.T + head.obs_noise_var * np.eye(40))
    np.testing.assert_allclose(head.mean, mean + gain @ (np.eye(C)[seen_y] - design @ mean), atol=1e-4)


def test_kalman_takes_a_label_after_many_sleeps_for_as_much_as_before():
    X, y = world(200)
    slept, awake = taught(KalmanHead(D, C), X, y), taught(KalmanHead(D, C), X, y)
    for _ in range(20):
        asleep(slept, X, y)
    assert slept.score_var(X[0]) == pytest.approx(awake.score_var(X[0]), rel=1e-4)


def test_what_kalman_and_slda_hold_in_float32_needs_no_rebuilding():
    """The drift of 4,000 labels, one by one, against the batch solution in float64."""
    X, y = world(4000, offset=3.0)
    exact = X.astype(np.float64)
    slda = asleep(taught(SldaHead(D, C), X, y), X[:64], y[:64])
    means = np.stack([exact[y == c].mean(axis=0) for c in range(C)])
    cov = (exact - means[y]).T @ (exact - means[y]) / (len(X) - C)
    np.testing.assert_allclose(slda.class_means, means, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(slda.shared_cov(), cov, atol=1e-4 * np.abs(cov).max())
    kalman = taught(KalmanHead(D, C), X, y)
    design = np.column_stack([np.ones(len(X)), kalman.standardise(X)]).astype(np.float64)
    covariance = np.linalg.inv(np.eye(D + 1) + design.T @ design / kalman.obs_noise_var)
    weights = covariance @ design.T @ np.eye(C)[y] / kalman.obs_noise_var
    np.testing.assert_allclose(kalman.mean, weights, atol=5e-3 * np.abs(weights).max())
    assert ((design @ kalman.mean).argmax(axis=1) == (design @ weights).argmax(axis=1)).mean() > 0.999


def test_dual_gives_way_after_every_few_exemplars():
    X, y = world(SLICE * 5)
    head = taught(DualHead(D, C, lift=16, window=8, anchors=8), X[:50], y[:50])
    assert len(list(head.rehearse(Exemplars.of(X, y)))) == 6  # scales, then five slices


# ---------------------------------------------------------------- forms


def forms(seed, n=60):
    """Samples of three clusters, and means of which two share a cluster and one has two."""
    rng = np.random.default_rng(seed)
    centres = np.array([[0.0, 0, 0, 0, 0], [9, 0, 0, 0, 0], [0, 9, 0, 0, 0]])
    Z = (centres[np.arange(n) % 3] + rng.normal(0, 0.3, (n, D))).astype(np.float32)
    means = np.array([[0.2, 0, 0, 0, 0], [-0.2, 0, 0, 0, 0], [4.5, 4.5, 0, 0, 0]], dtype=np.float32)
    return Z, means, np.array([10.0, 10.0, 40.0]), centres


@pytest.mark.parametrize("seed", range(5))
def test_two_close_forms_become_one_and_a_wide_one_two(seed):
    Z, means, counts, centres = forms(seed)
    list(recluster(Z, means, counts))
    apart = np.linalg.norm(means[:, None] - centres, axis=2)
    assert sorted(apart.argmin(axis=1)) == [0, 1, 2] and apart.min(axis=1).max() < 0.3
    assert counts.tolist() == [20, 20, 20]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 99),
    n=st.integers(0, 60),
    k=st.integers(1, 5),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 1e6]),
    n_labels=st.integers(5, 500),
)
def test_reclustering_keeps_the_labels_and_what_is_finite(seed, n, k, spread, n_labels):
    rng = np.random.default_rng(seed)
    Z = np.round(rng.normal(0, spread, (n, D)), 3).astype(np.float32)  # with duplicates
    means = rng.normal(0, 1, (k, D)).astype(np.float32)
    counts = np.full(k, float(n_labels))
    list(recluster(Z, means, counts))
    assert counts.sum() == k * n_labels and counts.min() >= 1
    assert np.isfinite(means).all()


def test_prototype_finds_the_forms_that_the_order_of_labels_hid():
    rng = np.random.default_rng(0)
    modes = np.array([[0.0, 0], [6, 0], [0, 6], [6, 6]]) + 1e4  # far from the origin
    X = (np.repeat(modes, 100, axis=0) + rng.normal(0, 0.5, (400, 2))).astype(np.float32)
    X = np.concatenate([X, (modes.mean(axis=0) + rng.normal(0, 0.5, (400, 2))).astype(np.float32)])
    y = np.repeat([0, 1], 400)
    order = rng.permutation(800)
    head = taught(PrototypeHead(2, 2, sub_prototypes=4), X[order], y[order])
    head.forms.means[0] = X[:4] + np.array([[0, 0], [0.1, 0], [0, 0.1], [0.1, 0.1]], dtype=np.float32)
    labels = head.forms.counts.sum(axis=1)
    asleep(head, X, y)
    apart = np.linalg.norm(head.forms.means[0][:, None] - modes, axis=2)
    assert sorted(apart.argmin(axis=1)) == [0, 1, 2, 3] and apart.min(axis=1).max() < 0.3
    np.testing.assert_array_equal(head.forms.counts.sum(axis=1), labels)


@pytest.mark.parametrize("name", ["slda", "kalman", "prototype", "logistic", "dual", "knn"])
@pytest.mark.parametrize("n", [0, 1, 2])
def test_a_sleep_on_next_to_nothing_does_no_harm(name, n):
    X, y = world(120)
    options = {"lift": 16, "window": 8, "anchors": 8} if name == "dual" else {}
    head = taught(heads.create(name, n_features=D, n_classes=C, **options), X, y)
    asleep(head, X[:n], np.zeros(n, dtype=np.int64))
    assert np.isfinite(head.predict_many(X)).all()
    head.learn_one(X[0], int(y[0]))
