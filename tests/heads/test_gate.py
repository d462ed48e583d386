"""The gate and the temperature against finite differences of the likelihood they learn by."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.heads.gate import MOST, MOST_LOG_TEMPERATURE, STEP_CAP, TEMPERATURE_STEP, Gate, Temperature

ALL = np.ones(4, dtype=np.bool_)


def draw(seed, n_parts=3, n_context=4, n_classes=4):
    rng = np.random.default_rng(seed)
    gate = Gate((0.3, -1.0, -2.0)[:n_parts], n_context)
    gate.weights += 0.3 * rng.normal(size=gate.weights.shape)
    context = np.append(1.0, rng.normal(size=n_context - 1))
    return gate, rng.normal(size=n_classes), 0.5 * rng.normal(size=(n_parts, n_classes)), context


def loss(weights, slow, parts, context, factor, y):
    scores = factor * (slow + MOST / (1 + np.exp(-(weights @ context))) @ parts)
    return np.log(np.exp(scores).sum()) - scores[y]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**16), y=st.integers(0, 3), factor=st.floats(1.0, 8.0))
def test_a_step_follows_the_gradient_of_the_likelihood(seed, y, factor):
    gate, slow, parts, context = draw(seed)
    numeric = np.empty_like(gate.weights)
    for at in np.ndindex(*numeric.shape):
        sides = []
        for change in (1e-5, -1e-5):
            weights = gate.weights.copy()
            weights[at] += change
            sides.append(loss(weights, slow, parts, context, factor, y))
        numeric[at] = (sides[0] - sides[1]) / 2e-5
    scores = factor * (slow + gate(context[None])[0] @ parts)
    error = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    error[y] -= 1
    before, square = gate.weights.copy(), gate.mean_square.copy()
    gate.learn_one(parts, context, error, factor)
    square = 0.999 * square + 0.001 * numeric**2
    np.testing.assert_allclose(gate.mean_square, square, rtol=1e-3, atol=1e-9)
    step = np.clip(0.02 * numeric / np.sqrt(square + 1e-8), -STEP_CAP, STEP_CAP)
    np.testing.assert_allclose(before - gate.weights, step, rtol=2e-3, atol=1e-5)


@settings(max_examples=40)
@given(seed=st.integers(0, 2**16), y=st.integers(0, 3))
def test_the_temperature_follows_the_gradient_and_keeps_its_limits(seed, y):
    scores = np.random.default_rng(seed).normal(size=4).astype(np.float32)
    temperature = Temperature()

    def likelihood(log):
        logits = np.exp(log) * scores.astype(np.float64)
        return logits[y] - np.log(np.exp(logits).sum())

    slope = (likelihood(temperature.log + 1e-5) - likelihood(temperature.log - 1e-5)) / 2e-5
    before = temperature.log
    temperature.learn_one(scores, temperature.probabilities(scores[None], ALL)[0], y)
    assert temperature.log - before == pytest.approx(TEMPERATURE_STEP * np.clip(slope, -1, 1), abs=1e-4)
    for _ in range(400):
        temperature.learn_one(scores, temperature.probabilities(scores[None], ALL)[0], y)
        assert 0 <= temperature.log <= MOST_LOG_TEMPERATURE


def test_a_gate_opens_for_a_part_that_is_right_only_somewhere():
    """Right where the second context value is 1, wrong where it is -1."""
    rng = np.random.default_rng(0)
    gate = Gate((0.0,), 2)
    for _ in range(500):
        y, side = int(rng.integers(2)), float(rng.choice([-1.0, 1.0]))
        context, parts = np.array([1.0, side]), np.zeros((1, 2))
        parts[0, y], parts[0, 1 - y] = side, -side
        scores = 2 * gate(context[None])[0] @ parts
        error = np.exp(scores) / np.exp(scores).sum()
        error[y] -= 1
        gate.learn_one(parts, context, error, 2.0)
    right, wrong = gate(np.array([[1.0, 1.0], [1.0, -1.0]]))[:, 0]
    assert right > 0.8 * MOST and wrong < 0.2 * MOST
