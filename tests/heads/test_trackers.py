"""The two quick learners against the textbook, as classes come."""

import numpy as np
import pytest

from edge_cl.heads.trackers import (
    FORGETTING,
    INPUT_SCALE,
    LEARNING_RATE,
    N_INPUTS,
    OBS_NOISE_VAR,
    ResidualTracker,
    SoftmaxTracker,
)


@pytest.mark.parametrize("n_lifted", [10, N_INPUTS + 44])
def test_the_residual_tracker_is_forgetting_least_squares_on_the_last_inputs(n_lifted):
    rng = np.random.default_rng(0)
    tracker = ResidualTracker(n_lifted, 2)
    lifted = (rng.normal(size=(120, n_lifted)) / np.sqrt(n_lifted)).astype(np.float32)
    residuals = rng.normal(size=(120, 2)).astype(np.float32)
    n = min(N_INPUTS, n_lifted)
    design = np.column_stack([np.ones(120), INPUT_SCALE * np.sqrt(n_lifted) * lifted[:, -n:].astype(float)])
    M, P = np.zeros((n + 1, 2)), np.eye(n + 1)
    for x, phi, residual in zip(lifted, design, residuals, strict=True):
        np.testing.assert_allclose(tracker.predict(x[None])[0], phi @ M, atol=1e-3)
        tracker.learn_one(x[None], residual)
        P = P / FORGETTING
        gain = P @ phi / (phi @ P @ phi + OBS_NOISE_VAR)
        M, P = M + np.outer(gain, residual - phi @ M), P - np.outer(gain, phi @ P)
        assert np.trace(P) / len(P) < 4, "far from the cap on the variance"


def test_the_softmax_tracker_takes_gradient_steps_and_a_new_class_begins_at_zero():
    rng = np.random.default_rng(1)
    tracker, W, b = SoftmaxTracker(3, 2), np.zeros((3, 2)), np.zeros(2)
    for k in range(80):
        if k == 40:
            tracker.grow()
            W, b = np.pad(W, ((0, 0), (0, 1))), np.append(b, 0.0)
        z, y = rng.normal(size=3).astype(np.float32), int(rng.integers(len(b)))
        scores = np.exp(z @ W + b)
        p = scores / scores.sum()
        predicted = tracker.predict(z[None], np.ones(len(b), dtype=np.bool_))[0]
        np.testing.assert_allclose(predicted, p, atol=1e-5)
        tracker.learn_one(z, predicted, y)
        error = np.eye(len(b))[y] - p
        W, b = W + LEARNING_RATE / 3 * np.outer(z, error), b + LEARNING_RATE / 3 * error
