"""The local memory while it fills, as classes come and after scales changed, against a direct solution."""

import numpy as np
import pytest

from edge_cl.heads.fast import DECAY, LENGTH_SCALE, OBS_NOISE_VAR, REINVERT_EVERY, FastMemory
from edge_cl.heads.standardise import Standardiser

D, W = 3, 8


def learn(memory, standardise, raw, y, residuals):
    for x, c, residual in zip(raw, y, residuals, strict=True):
        z = standardise(x[None])[0]
        memory.learn_one(x, z, memory.near(z[None])[0], int(c), residual)


def assert_is_exact(memory, standardise, raw, residuals, atol=1e-4):
    """Whatever was learned longer than W samples ago is gone."""
    z, residuals = standardise(raw)[-memory.window :].astype(np.float64), residuals[-memory.window :]
    n = len(z)
    query = np.random.default_rng(9).normal(size=(4, D))

    def close(a, b):
        return np.exp(-((a[:, None] - b) ** 2).sum(axis=2) / (2 * LENGTH_SCALE * D))

    time = np.arange(n)
    gram = close(z, z) * DECAY ** np.abs(time[:, None] - time) + OBS_NOISE_VAR * np.eye(n)
    between = close(query, z) * DECAY ** (n - time)
    near = memory.near(query.astype(np.float32))
    predicted, surety = memory.predict(near), memory.surety(near)
    np.testing.assert_allclose(predicted, between @ np.linalg.solve(gram, residuals), atol=atol)
    np.testing.assert_allclose(
        surety, np.einsum("qn,nm,qm->q", between, np.linalg.inv(gram), between), atol=atol
    )


def draw(n, n_classes=2):
    rng = np.random.default_rng(n)
    raw = rng.normal(1, 2, size=(n, D)).astype(np.float32)
    return raw, rng.integers(n_classes, size=n), rng.normal(size=(n, n_classes)).astype(np.float32)


@pytest.mark.parametrize("window", [1, W])
@pytest.mark.parametrize("n", [0, 1, 5, W, W + 1, 3 * W + 2])
def test_at_any_fill(window, n):
    memory, standardise = FastMemory(window, D, 2), Standardiser(D)
    raw, y, residuals = draw(n)
    learn(memory, standardise, raw, y, residuals)
    assert memory.n == min(n, window)
    if n:
        assert_is_exact(memory, standardise, raw, residuals)
        np.testing.assert_array_equal(memory.newest(memory.n), raw[-memory.n :])
    else:
        near = memory.near(np.ones((1, D), np.float32))
        assert not memory.predict(near).any() and not memory.surety(near).any()
    oldest = memory.oldest()
    if n < window:
        assert oldest is None
    else:
        np.testing.assert_array_equal(oldest[0], raw[n - window])
        assert oldest[1] == y[n - window]


@pytest.mark.parametrize("n", [3, W + 3])
def test_after_a_class_came_and_the_scales_changed_and_a_round_trip(n):
    memory, standardise = FastMemory(W, D, 2), Standardiser(D)
    raw, y, residuals = draw(n)
    learn(memory, standardise, raw, y, residuals)
    memory.grow()
    standardise.set_moments(np.ones(D), np.full(D, 4.0))
    memory.restandardise(standardise)
    residuals = np.pad(residuals, ((0, 0), (0, 1)))
    assert_is_exact(memory, standardise, raw, residuals)
    twin = FastMemory(W, D, 3)
    twin.set_state(*memory.get_state())
    more = draw(7, 3)
    for one in (memory, twin):
        learn(one, standardise, *more)
        assert_is_exact(
            one, standardise, np.concatenate([raw, more[0]]), np.concatenate([residuals, more[2]])
        )
    for mine, other in zip(memory.get_state()[0].values(), twin.get_state()[0].values(), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_rounding_does_not_accumulate_over_repeats_of_one_sample():
    memory, standardise = FastMemory(W, D, 2), Standardiser(D)
    raw, y, residuals = draw(REINVERT_EVERY - 3)
    raw[:] = raw[0]
    learn(memory, standardise, raw, y, residuals)
    assert_is_exact(memory, standardise, raw, residuals, atol=2e-3)
    more = draw(5)
    learn(memory, standardise, *more)
    raw, residuals = np.concatenate([raw, more[0]]), np.concatenate([residuals, more[2]])
    assert_is_exact(memory, standardise, raw, residuals)


def test_the_nearest_are_told_with_their_age():
    memory, standardise = FastMemory(W, D, 2), Standardiser(D)
    raw, y, residuals = draw(W + 3)
    learn(memory, standardise, raw, y, residuals)
    found = memory.nearest(raw[-3], 1)[0]
    assert found == {"class": int(y[-3]), "memory": "recent", "closeness": pytest.approx(1), "labels_ago": 2}


def test_without_itself_a_sample_is_predicted_as_if_it_had_never_come():
    memory, standardise = FastMemory(W, D, 2), Standardiser(D)
    raw, y, residuals = draw(2 * W)
    learn(memory, standardise, raw, y, residuals)
    z, r, time = raw[-W:].astype(np.float64), residuals[-W:], np.arange(W)
    gram = np.exp(-((z[:, None] - z) ** 2).sum(axis=2) / (2 * LENGTH_SCALE * D))
    covariance = gram * DECAY ** np.abs(time[:, None] - time) + OBS_NOISE_VAR * np.eye(W)
    expected = []
    for i in range(W):
        kept = np.arange(W) != i
        weights = np.linalg.solve(covariance[np.ix_(kept, kept)], r[kept])
        expected.append((gram[i] * DECAY ** (W - time))[kept] @ weights)
    near = memory.near(standardise(raw[-W:]))
    np.testing.assert_allclose(memory.predict_others(near, y[-W:]), expected, atol=1e-4)
    other_class = memory.predict_others(near, 1 - y[-W:])
    np.testing.assert_allclose(other_class, memory.predict(near), atol=1e-6)
