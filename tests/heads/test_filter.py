"""The shared filter against dense float64 recursions, whatever is pending, folded in or scaled lazily."""

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.errors import NumericalError
from edge_cl.heads import filter
from edge_cl.heads.filter import AT_ONCE, FLOOR_EVERY, PENDING, VAR_CAP, SharedFilter

SMALL, LARGE = 7, AT_ONCE + 4
"""Numbers of inputs whose updates are folded in at once, and by rows."""
R = 0.1


def draw(n, d, n_outputs=3, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d), dtype=np.float32)
    X[:, 0] = 1
    return X, np.eye(n_outputs, dtype=np.float32)[rng.integers(n_outputs, size=n)]


def exact(X, T, *, forgetting=1.0, gamma=1.0):
    """The textbook recursion in float64: mean, cov."""
    M, P = np.zeros((X.shape[1], T.shape[1])), np.eye(X.shape[1])
    for x, target in zip(X.astype(np.float64), T, strict=True):
        M, P = gamma * M, (gamma**2 * P + (1 - gamma**2) * np.eye(len(P))) / forgetting
        gain = P @ x / (x @ P @ x + R)
        M, P = M + np.outer(gain, target - M.T @ x), P - np.outer(gain, P @ x)
    return M, P


def learned(X, T, *, forgetting=1.0, gamma=1.0):
    belief = SharedFilter(X.shape[1], T.shape[1], obs_noise_var=R, forgetting=forgetting)
    for x, target in zip(X, T, strict=True):
        if gamma < 1:
            belief.relax(gamma)
        belief.learn_one(x, target)
    return belief


def assert_is(belief, mean, cov):
    """Up to float32: plain rank-one updates are off by 2e-5 and 2e-4 (LARGE, 552 samples), blocks by 4e-5."""
    X, _ = draw(9, len(mean), seed=9)
    np.testing.assert_allclose(belief.mean(), mean, atol=5e-5)
    np.testing.assert_allclose(belief.cov(), cov, atol=1e-5)
    np.testing.assert_allclose(belief.predict(X), X @ mean, atol=5e-4)
    np.testing.assert_allclose([belief.predict_one(x) for x in X], X @ mean, atol=5e-4)
    np.testing.assert_allclose(belief.var(X), np.einsum("nd,de,ne->n", X, cov, X), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("d", [SMALL, LARGE])
@pytest.mark.parametrize("n", [0, 1, PENDING - 1, PENDING, 77, FLOOR_EVERY + 40])
def test_without_forgetting_it_is_ridge_regression(d, n):
    X, T = draw(n, d)
    F = X.astype(np.float64)
    information = np.eye(d) + F.T @ F / R
    assert_is(learned(X, T), np.linalg.solve(information, F.T @ T / R), np.linalg.inv(information))


@pytest.mark.parametrize("d", [SMALL, LARGE])
@pytest.mark.parametrize("drift", [{"forgetting": 0.99}, {"gamma": 0.999}, {"gamma": 0.8}, {"gamma": 1e-9}])
def test_with_forgetting_or_drift_it_is_the_dense_recursion(d, drift):
    X, T = draw(150, d)
    assert_is(learned(X, T, **drift), *exact(X, T, **drift))


@pytest.mark.parametrize("d", [SMALL, LARGE])
@pytest.mark.parametrize("gamma", [1.0, 0.99])
def test_a_block_equals_single_samples(d, gamma):
    X, T = draw(240, d)
    singly, blocked = learned(X[:45], T[:45], gamma=gamma), learned(X[:45], T[:45], gamma=gamma)
    blocked.learn_block(X[45:], T[45:])
    for x, target in zip(X[45:], T[45:], strict=True):
        singly.learn_one(x, target)
    assert blocked.n_updates == singly.n_updates == 240
    assert_is(blocked, singly.mean(), singly.cov())


def test_a_block_under_forgetting_equals_single_samples():
    X, T = draw(100, SMALL)
    blocked = SharedFilter(SMALL, 3, obs_noise_var=R, forgetting=0.99)
    blocked.learn_block(X, T)
    assert_is(blocked, *exact(X, T, forgetting=0.99))


def test_learning_returns_what_was_not_foreseen():
    X, T = draw(60, LARGE)
    belief = learned(X[:59], T[:59])
    foreseen = belief.predict_one(X[59])
    np.testing.assert_allclose(belief.learn_one(X[59], T[59]), T[59] - foreseen, atol=1e-6)


@settings(max_examples=30)
@given(
    d=st.sampled_from([3, SMALL, LARGE]),
    n=st.integers(0, 3 * PENDING),
    drift=st.sampled_from([{}, {"forgetting": 0.7}, {"gamma": 0.9}]),
)
def test_state_continues_bit_for_bit(d, n, drift):
    X, T = draw(n + 70, d)
    belief = learned(X[:n], T[:n], **drift)
    arrays, meta = belief.get_state()
    twin = SharedFilter(d, 3, obs_noise_var=R, forgetting=belief.forgetting)
    twin.set_state(arrays, msgspec.json.decode(msgspec.json.encode(meta)))
    for one in (belief, twin):
        for x, target in zip(X[n:], T[n:], strict=True):
            one.learn_one(x, target)
    for mine, theirs in zip(belief.get_state()[0].values(), twin.get_state()[0].values(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert belief.get_state()[1] == twin.get_state()[1]


def test_asking_changes_nothing():
    belief = learned(*draw(50, LARGE), gamma=0.99)
    before = belief.get_state()
    X, _ = draw(20, LARGE, seed=3)
    for ask in (belief.predict, belief.var, lambda X: belief.predict_one(X[0])):
        ask(X)
    belief.mean(), belief.cov()
    after = belief.get_state()
    assert before[1] == after[1]
    for key, array in before[0].items():
        np.testing.assert_array_equal(after[0][key], array)


@pytest.mark.parametrize("d", [SMALL, LARGE])
def test_a_new_output_begins_at_zero_and_leaves_the_others(d):
    X, T = draw(50, d)
    belief = learned(X, T)
    mean, cov, nbytes = belief.mean(), belief.cov(), belief.nbytes
    belief.grow()
    np.testing.assert_allclose(belief.mean(), np.pad(mean, ((0, 0), (0, 1))), atol=1e-7)
    np.testing.assert_array_equal(belief.cov(), cov)
    assert belief.nbytes - nbytes == belief.bytes_per_output
    belief.learn_one(X[0], np.eye(4, dtype=np.float32)[3])
    assert belief.predict_one(X[0])[3] > 0.01


@pytest.mark.parametrize("forgetting", [0.9, 0.3])
@pytest.mark.parametrize("n", [1000, 1010, 1023])
def test_forgetting_does_not_wind_up(forgetting, n):
    X, T = draw(n, 20)
    X[:, 5:] = 0  # nothing is ever learned in these directions
    belief = learned(X, T, forgetting=forgetting)
    variances = np.diagonal(belief.cov())
    assert 0.5 * VAR_CAP < variances.mean() < 1.001 * VAR_CAP
    assert np.abs(belief.mean()[5:]).max() == 0


@pytest.mark.parametrize("d", [SMALL, LARGE])
@pytest.mark.parametrize("blocked", [False, True])
def test_variances_are_lifted_once_per_512_samples(d, blocked, monkeypatch):
    monkeypatch.setattr(filter, "FLOOR", 0.5)  # so much that it shows
    X, T = draw(FLOOR_EVERY, d)
    cut = FLOOR_EVERY - PENDING
    belief = learned(X[:cut], T[:cut])
    assert np.diagonal(belief.cov()).mean() < 0.1
    if blocked:
        belief.learn_block(X[cut:], T[cut:])
    else:
        for x, target in zip(X[cut:], T[cut:], strict=True):
            belief.learn_one(x, target)
    cov = belief.cov()
    assert 0.3 < np.diagonal(cov).mean() < 0.7
    np.testing.assert_allclose(cov, cov.T, atol=1e-6)


def test_a_drifting_belief_returns_to_its_start():
    belief = learned(*draw(100, SMALL))
    for _ in range(4000):
        belief.relax(0.99)
    assert_is(belief, np.zeros((SMALL, 3)), np.eye(SMALL))


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_what_is_not_a_number_is_refused_and_not_learned(bad):
    belief = learned(*draw(10, SMALL))
    before = belief.get_state()[0]
    with pytest.raises(NumericalError, match="innovation variance"), np.errstate(all="ignore"):
        belief.learn_one(np.full(SMALL, bad, dtype=np.float32), np.zeros(3, dtype=np.float32))
    for key, array in before.items():
        np.testing.assert_array_equal(belief.get_state()[0][key], array)


@pytest.mark.parametrize("options", [{"obs_noise_var": 0.0}, {"obs_noise_var": 1, "forgetting": 1.5}])
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="allowed: above 0, and in"):
        SharedFilter(3, 2, **options)


def stream(n, d, seed):
    """Inputs of five orders of magnitude, most of them nearly collinear."""
    rng = np.random.default_rng(seed)
    few = rng.standard_normal((n, 3))
    X = few @ np.random.default_rng(0).standard_normal((3, d)) + 1e-3 * rng.standard_normal((n, d))
    X *= np.logspace(-4, 1, d)
    X[:, 0] = 1
    return X.astype(np.float32), np.eye(2, dtype=np.float32)[(few[:, 0] > 0).astype(int)]


def assert_healthy_after(n, forgetting, gamma):
    """Positive, symmetric, as right as at the start; a drifting belief as after its last samples alone."""
    d = 12
    belief = SharedFilter(d, 2, obs_noise_var=R, forgetting=forgetting)
    for start in range(0, n, 10_000):
        X, T = stream(min(10_000, n - start), d, seed=start)
        for x, target in zip(X, T, strict=True):
            if gamma < 1:
                belief.relax(gamma)
            belief.learn_one(x, target)
    cov = belief.cov().astype(np.float64)
    np.testing.assert_allclose(cov, cov.T, atol=1e-5 * np.abs(cov).max())
    assert np.linalg.eigvalsh(cov).min() > -1e-6 * np.linalg.eigvalsh(cov).max()
    if gamma < 1:
        np.testing.assert_allclose(belief.predict(X), X @ exact(X, T, gamma=gamma)[0], atol=1e-3)
    else:
        assert (belief.predict(X).argmax(axis=1) == T.argmax(axis=1)).mean() > 0.95


DRIFTS = [(1.0, 1.0), (0.999, 1.0), (0.9, 1.0), (1.0, 0.999)]


@pytest.mark.parametrize(("forgetting", "gamma"), DRIFTS)
def test_float32_stays_healthy_for_long(forgetting, gamma):
    assert_healthy_after(30_000, forgetting, gamma)


@pytest.mark.slow
@pytest.mark.parametrize(("forgetting", "gamma"), DRIFTS)
def test_float32_stays_healthy_for_a_million_samples(forgetting, gamma):
    """About 20 s each."""
    assert_healthy_after(1_000_000, forgetting, gamma)
