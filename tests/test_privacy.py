"""How much one label shows: the bound on what it changes, and the ε of the noise that covers it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl import privacy
from edge_cl.statistics import add, collect, empty
from tests.worlds import D

NAMES = ("rest", "walk")
features = st.lists(st.floats(-1e6, 1e6, width=32), min_size=D, max_size=D)


@given(x=features, norm=st.floats(1e-3, 1e3), y=st.integers(0, 1))
@settings(max_examples=200)
def test_one_label_changes_no_more_than_the_noise_is_made_for(x: list[float], norm: float, y: int) -> None:
    X = privacy.clip(np.array([x]), norm)
    before = collect(np.ones((3, D)), np.array([0, 1, 1]), NAMES)
    after = add(before, collect(X, np.array([y]), NAMES))
    change = np.append((after.counts - before.counts).ravel(), (after.sums - before.sums).ravel() / norm)
    assert np.linalg.norm(change) <= privacy.SENSITIVITY * (1 + 1e-9) + 1e-9 / norm


def test_short_features_are_not_cut() -> None:
    X = np.array([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]])
    np.testing.assert_allclose(privacy.clip(X, 1.0), [[0.6, 0.8], [0.3, 0.4], [0, 0]])


def test_epsilon_is_the_one_that_integrals_give() -> None:
    """δ(ε) = ∫ max(0, p(t) − e^ε q(t)) dt for the two distributions that one label tells apart."""
    t = np.linspace(-60, 60, 400_001)
    for noise in (0.6, 1.0, 3.730631634944469):
        eps = privacy.epsilon(noise)
        p, q = (np.exp(-((t - m) ** 2) / (2 * noise**2)) / (noise * math.sqrt(2 * math.pi)) for m in (1, 0))
        delta = np.trapezoid(np.maximum(p - math.exp(eps) * q, 0), t)
        assert delta == pytest.approx(privacy.DELTA, rel=1e-3)
    assert privacy.epsilon(3.730631634944469) == pytest.approx(1.0, abs=1e-6), "as Balle & Wang's own code"


@given(noise=st.floats(0.05, 1e3), factor=st.floats(1.01, 10))
@settings(max_examples=100)
def test_more_noise_is_more_private(noise: float, factor: float) -> None:
    assert privacy.epsilon(noise * factor) <= privacy.epsilon(noise)
    assert privacy.epsilon(noise, 1e-6) >= privacy.epsilon(noise, 1e-5)


@given(eps=st.floats(0.05, 50))
@settings(max_examples=50)
def test_noise_for_an_epsilon_has_it(eps: float) -> None:
    assert privacy.epsilon(privacy.noise_for(eps)) == pytest.approx(eps, rel=1e-6)


def test_no_noise_is_no_privacy() -> None:
    assert privacy.epsilon(0.0) == math.inf == privacy.epsilon(1e-6)


def test_the_noise_is_as_large_as_it_says_and_the_second_moment_is_left_out() -> None:
    names = tuple(f"c{k}" for k in range(2000))
    found = privacy.noised(empty(names, D), 7.0, 2.0, np.random.default_rng(0))
    std = 2.0 * math.sqrt(2)
    assert found.counts.std() == pytest.approx(std, rel=0.05)
    assert found.sums.std() == pytest.approx(7 * std, rel=0.05)
    told = collect(np.ones((3, D)), np.zeros(3, np.int64), ("a",))
    assert not privacy.noised(told, 7.0, 2.0, np.random.default_rng(0)).second.any()
