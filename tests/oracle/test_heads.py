"""The heads against closed forms in float64 and against scikit-learn."""

import numpy as np
import pytest

from edge_cl import heads
from edge_cl.errors import NumericalError
from edge_cl.heads.cholesky import precision_times, shrunk_factor
from edge_cl.heads.dual import WARM_VAR
from edge_cl.heads.fast import DECAY, LENGTH_SCALE, OBS_NOISE_VAR, FastMemory
from edge_cl.heads.priors import prior_samples
from edge_cl.memory.exemplars import Exemplars
from tests.worlds import D, World, make_bundle


def test_slda_equals_the_batch_estimate():
    X, y = World().draw(500)
    head = heads.create("slda", n_features=D, n_classes=3)
    head.learn_many(X, y)
    means = np.stack([X[y == c].mean(axis=0, dtype=np.float64) for c in range(3)])
    within = (X - means[y]).astype(np.float64)
    np.testing.assert_allclose(head.class_means, means, atol=1e-4)
    np.testing.assert_allclose(head.shared_cov(), within.T @ within / (len(X) - 3), rtol=1e-3, atol=1e-3)


def test_slda_answers_as_scikit_learn_does():
    discriminant = pytest.importorskip("sklearn.discriminant_analysis")
    X, y = World().draw(600)
    head = heads.create("slda", n_features=D, n_classes=3, shrinkage=1e-6)
    head.learn_many(X, y)
    for _ in head.rehearse(Exemplars.of(X, y)):
        pass
    batch = discriminant.LinearDiscriminantAnalysis(solver="lsqr", priors=np.ones(3) / 3).fit(X, y)
    X, _ = World(seed=5).draw(200)
    np.testing.assert_allclose(head.predict_many(X), batch.predict_proba(X), atol=0.02)


def test_slda_does_not_change_when_features_are_rescaled():
    X, y = World().draw(400)
    scale = np.array([1e-3, 1, 1e3, 10, 0.1, 1], dtype=np.float32)
    plain, scaled = (heads.create("slda", n_features=D, n_classes=3) for _ in range(2))
    plain.learn_many(X, y)
    scaled.learn_many(X * scale, y)
    np.testing.assert_allclose(scaled.predict_many(X * scale), plain.predict_many(X), atol=5e-3)


def test_slda_first_sample_of_a_class_adds_nothing_to_the_scatter():
    head = heads.create("slda", n_features=D, n_classes=3)
    for c in range(3):
        head.learn_one(np.full(D, 1e3 * (c + 1)), c)
    assert not head.shared_cov().any()


@pytest.mark.parametrize("n_features", [1, 5, 128, 129, 300])
def test_the_factor_gives_what_the_inverse_gives(n_features):
    rng = np.random.default_rng(n_features)
    scale = np.exp(2 * rng.normal(size=n_features))
    cov = np.atleast_2d(
        np.cov((rng.normal(size=(200, n_features)) + rng.normal(size=(200, 1))).T * scale[:, None])
    )
    shrunk = 0.95 * cov + 0.05 * np.diag(np.diagonal(cov))
    vectors = rng.normal(size=(7, n_features)).astype(np.float32) * scale
    exact = np.linalg.solve(shrunk, vectors.T).T
    solved = precision_times(*shrunk_factor(cov, 0.05, np.ones(n_features)), vectors.astype(np.float32))
    np.testing.assert_allclose(solved * scale, exact * scale, atol=1e-4 * np.abs(exact * scale).max())


def test_a_covariance_that_rounding_made_indefinite_is_shrunk_more():
    cov = np.ones((3, 3), dtype=np.float32)
    cov[0, 1] = cov[1, 0] = 1 + 1e-3
    factor, inv_std = shrunk_factor(cov, 1e-6, np.ones(3, dtype=np.float32))
    solved = precision_times(factor, inv_std, np.eye(3, dtype=np.float32))
    assert np.isfinite(solved).all() and np.linalg.eigvalsh(solved.astype(float)).min() > 0
    with pytest.raises(NumericalError, match="not finite"):
        shrunk_factor(np.full((2, 2), np.nan, dtype=np.float32), 0.01, np.ones(2, dtype=np.float32))


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_slda_learns_blocks_exactly(offset):
    X, y = World().draw(700, 4)
    one, many = (heads.create("slda", n_features=D, n_classes=4) for _ in range(2))
    for x, c in zip(X + offset, y, strict=True):
        one.learn_one(x, int(c))
    for start, stop in ((0, 1), (1, 40), (40, 41), (41, 700)):
        many.learn_many(X[start:stop] + offset, y[start:stop])
    means = np.stack([X[y == c].mean(axis=0, dtype=np.float64) for c in range(4)])
    within = (X - means[y]).astype(np.float64)
    for head, close in ((one, 0.02 if offset else 1e-3), (many, 1e-3)):
        np.testing.assert_array_equal(head.class_counts, np.bincount(y))
        np.testing.assert_allclose(head.class_means, means + offset, atol=2e-4 + 1e-6 * offset)
        np.testing.assert_allclose(
            head.shared_cov(), within.T @ within / (len(X) - 4), rtol=close, atol=close
        )


def test_slda_does_not_mind_a_large_offset():
    X, y = World().draw(400)
    plain, moved = (heads.create("slda", n_features=D, n_classes=3) for _ in range(2))
    plain.learn_many(X, y)
    moved.learn_many(X + 1e4, y)
    agree = plain.predict_many(X).argmax(axis=1) == moved.predict_many(X + 1e4).argmax(axis=1)
    assert agree.mean() > 0.97


def test_kalman_equals_ridge_regression():
    X, y = World().draw(400)
    head = heads.create("kalman", n_features=D, n_classes=3)
    head.learn_many(X, y)
    z = np.clip((X - head.standardise.mean) * head.standardise.inv_std, -5, 5).astype(np.float64)
    design = np.concatenate([np.ones((len(z), 1)), z], axis=1)
    weights = np.linalg.solve(design.T @ design + 0.1 * np.eye(D + 1), design.T @ np.eye(3)[y])
    np.testing.assert_allclose(head.mean, weights, atol=2e-4)


def test_merging_and_unlearning_give_the_statistics_of_the_samples_that_remain():
    X, y = World().draw(400)
    for name, statistics in (("slda", ("class_means", "scatter")), ("kalman", ("mean", "cov"))):
        whole, first, second = (heads.create(name, n_features=D, n_classes=3) for _ in range(3))
        whole.learn_many(X, y)
        first.learn_many(X[:100], y[:100])
        second.learn_many(X[100:], y[100:])
        first.merge(second)
        for x, c in zip(X[300:], y[300:], strict=True):
            first.forget_one(x, c)
            whole.forget_one(x, c)
        remaining = heads.create(name, n_features=D, n_classes=3)
        remaining.learn_many(X[:300], y[:300])
        if name == "slda":
            remaining.shared_cov()  # takes in the last block
        for attribute in statistics:
            exact = getattr(remaining, attribute)
            for head in (first, whole):
                np.testing.assert_allclose(
                    getattr(head, attribute), exact, atol=2e-4 * np.abs(exact).max(), err_msg=name
                )


def test_kalman_variance_shrinks_where_it_learned():
    head = heads.create("kalman", n_features=D, n_classes=3)
    X, y = World().draw(40)
    head.learn_many(X, y)
    early = head.score_var(X[0])
    head.learn_many(*World(seed=2).draw(400))
    assert 0.1 < head.score_var(X[0]) < early


def test_kalman_with_forgetting_stays_finite_for_long():
    head = heads.create("kalman", n_features=D, n_classes=3, forgetting=0.999)
    X, y = World().draw(200)
    X[:, 3:] = 0  # directions that nothing excites
    for _ in range(100):
        head.learn_many(X, y)
    assert np.isfinite(head.cov).all() and np.diagonal(head.cov).min() > 0
    assert (head.predict_many(X).argmax(axis=1) == y).mean() > 0.7


def test_fast_memory_equals_a_gaussian_process_solved_directly():
    rng = np.random.default_rng(0)
    window, n = 16, 50
    memory = FastMemory(window, D, 2)
    z = rng.normal(size=(n, D)).astype(np.float32)
    residuals = rng.normal(size=(n, 2)).astype(np.float32)
    for k in range(n):
        memory.learn_one(z[k], z[k], memory.near(z[k][None])[0], 0, residuals[k])
    last = slice(n - window, n)
    time = np.arange(n)[last]

    def kernel(a, b, t, u):
        squared = ((a[:, None] - b[None]) ** 2).sum(axis=2).astype(np.float64)
        return np.exp(-squared / (2 * LENGTH_SCALE * D)) * DECAY ** np.abs(t[:, None] - u[None])

    gram = kernel(z[last], z[last], time, time) + OBS_NOISE_VAR * np.eye(window)
    query = rng.normal(size=(5, D)).astype(np.float32)
    between = kernel(query, z[last], np.full(5, n), time)
    predicted, explained = memory.predict(memory.near(query)), memory.surety(memory.near(query))
    np.testing.assert_allclose(predicted, between @ np.linalg.solve(gram, residuals[last]), atol=1e-4)
    exact = np.einsum("nw,nw->n", between @ np.linalg.inv(gram), between)
    np.testing.assert_allclose(explained, exact, atol=1e-4)


def test_dual_slow_part_equals_ridge_on_lifted_features():
    X, y = World().draw(300)
    head = heads.create("dual", n_features=D, n_classes=3, lift=300, window=8)
    head.learn_many(X, y)  # relearned from 8-bit samples meanwhile, as the scales became known
    phi = head.lift(head.standardise(X)).astype(np.float64)
    weights = np.linalg.solve(phi.T @ phi + 0.1 * np.eye(phi.shape[1]), phi.T @ np.eye(3)[y])
    np.testing.assert_allclose(phi @ head.slow.mean(), phi @ weights, atol=2e-2)
    list(head.rehearse(Exemplars.of(X, y)))  # from the samples themselves
    phi = head.lift(head.standardise(X)).astype(np.float64)
    weights = np.linalg.solve(phi.T @ phi + 0.1 * np.eye(phi.shape[1]), phi.T @ np.eye(3)[y])
    np.testing.assert_allclose(head.slow.mean(), weights, atol=2e-3)


def test_dual_warm_start_equals_weighted_ridge_with_smaller_weights(tmp_path):
    prior = make_bundle(tmp_path / "b.ecl").prior()
    head = heads.create("dual", n_features=D, n_classes=3, lift=300, window=8)
    head.warm_start(prior, strength=10)
    X, y = World(seed=7).draw(50)
    for _ in head.rehearse(Exemplars.of(X, y)):
        pass
    known, classes, weights = prior_samples(prior, 10)
    A = head.lift(head.standardise(np.concatenate([known, X]))).astype(np.float64)
    w = np.concatenate([weights, np.ones(50)])[:, None]
    Y = np.eye(3)[np.concatenate([classes, y])]
    expected = np.linalg.solve(A.T @ (w * A) + 0.1 / WARM_VAR * np.eye(300), A.T @ (w * Y))
    np.testing.assert_allclose(head.slow.mean(), expected, atol=2e-4)


def test_dual_is_right_about_now_and_about_ever():
    """Classes swap places in one region only: the answer there follows, elsewhere it stays."""
    rng = np.random.default_rng(0)
    head = heads.create("dual", n_features=2, n_classes=2, lift=300)
    here, there = np.array([2.0, 0.0]), np.array([-2.0, 0.0])

    def near(centre, n=1):
        return (centre + 0.2 * rng.normal(size=(n, 2))).astype(np.float32)

    for _ in range(150):
        head.learn_one(near(here)[0], 0)
        head.learn_one(near(there)[0], 1)
    for _ in range(25):
        head.learn_one(near(here)[0], 1)
    assert (head.predict_many(near(here, 50)).argmax(axis=1) == 1).mean() > 0.9
    assert (head.predict_many(near(there, 50)).argmax(axis=1) == 1).mean() == 1
    assert (head.predict_slow(near(here, 50)).argmax(axis=1) == 0).mean() > 0.9


def test_knn_finds_the_neighbours_that_scikit_learn_finds():
    neighbors = pytest.importorskip("sklearn.neighbors")
    X, y = World().draw(300)
    X = X * np.float32([1, 1000, 1e-3, 1, 1, 1]) + 500
    head = heads.create("knn", n_features=D, n_classes=3, k=7)
    head.learn_many(X, y)
    means = np.stack([X[y == c].mean(axis=0, dtype=np.float64) for c in range(3)])
    std = np.sqrt(((X - means[y]) ** 2).sum(axis=0) / (len(X) - 3))

    def vote(distances):
        return 1 / (distances**2 + (distances**2).mean(axis=1, keepdims=True))

    queries = World(seed=5).draw(100)[0] * np.float32([1, 1000, 1e-3, 1, 1, 1]) + 500
    batch = neighbors.KNeighborsClassifier(7, weights=vote).fit(X / std, y)
    exact = (batch.predict_proba(queries / std) + 0.02 / 3) / 1.02
    np.testing.assert_allclose(head.predict_many(queries), exact, atol=1e-3)


def test_knn_memory_stays_within_its_bytes_and_keeps_rare_classes():
    head = heads.create("knn", n_features=D, n_classes=3, memory_bytes=50 * (4 * D + 16))
    X, y = World().draw(600)
    common = (y != 2) | (np.arange(600) < 60)
    before = head.nbytes
    head.learn_many(X[common], y[common])
    assert head.nbytes == before
    assert min(head.memory.class_counts) >= 15
    with pytest.raises(ValueError, match="no such exemplar of class 0 is held"):
        head.forget_one(np.zeros(D), 0)


def test_knn_too_small_for_one_exemplar_says_what_would_fit():
    with pytest.raises(ValueError, match="memory_bytes is 10; allowed: a whole number from 41"):
        heads.create("knn", n_features=D, n_classes=3, memory_bytes=10)


def test_logistic_ends_near_the_batch_solution_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(4000, 4)).astype(np.float32) * np.float32([1, 100, 1e-2, 1]) + 5
    logits = (X - X.mean(axis=0)) / X.std(axis=0) @ rng.normal(size=(4, 3)) * 1.5
    y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    head = heads.create("logistic", n_features=4, n_classes=3, prior_var=1.0)
    head.learn_many(X, y)
    z = (X - X.mean(axis=0)) / X.std(axis=0)
    batch = linear_model.LogisticRegression(C=10.0).fit(z, y).predict_proba(z)
    scores = head.predict_many(X)
    assert np.abs(scores - batch).mean() < 0.02
    surprise = [-np.log(p[np.arange(len(y)), y]).mean() for p in (scores, batch)]
    assert surprise[0] < surprise[1] + 0.005


def test_logistic_answers_alike_in_new_scales():
    X, y = World().draw(400)
    head = heads.create("logistic", n_features=D, n_classes=3)
    head.learn_many(X, y)
    near = 0.3 * X  # nothing is clipped in either scale
    before = head.predict_many(near)
    head.spread.scatter *= 1.5
    cov = head.cov.copy()
    head._rescale()
    np.testing.assert_allclose(head.predict_many(near), before, atol=1e-5)
    assert np.diagonal(head.cov)[1:].min() > np.diagonal(cov)[1:].min(), "uncertainty is rescaled, too"


def test_a_constant_feature_does_not_explode_the_precision():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 3)).astype(np.float32)
    X[:, 1] = 7 + 1e-7 * rng.normal(size=100)
    precision = precision_times(*shrunk_factor(np.cov(X.T), 0.01, np.abs(X).max(axis=0)), np.eye(3))
    assert np.isfinite(precision).all() and precision.max() < 1e10


def test_covariance_stays_positive_on_a_long_narrow_stream():
    """Many random features of few real ones: the small variances must not go negative."""
    rng = np.random.default_rng(0)
    head = heads.create("dual", n_features=2, n_classes=2, lift=400, window=8, memory_bytes=50_000)
    for start in range(0, 12_000, 500):
        X = np.concatenate([rng.normal(size=(500, 1)), np.full((500, 1), start > 6000)], axis=1)
        head.learn_many(X, (X[:, 0] > 0).astype(int))
    cov = head.slow.cov()
    assert np.isfinite(cov).all() and np.linalg.eigvalsh(cov.astype(float)).min() > -1e-6
    np.testing.assert_allclose(cov, cov.T, atol=1e-6)
    assert (head.predict_many(X).argmax(axis=1) == (X[:, 0] > 0)).mean() > 0.95
