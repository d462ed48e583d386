"""int8 exemplars: how far off they may be, and that nothing saturates."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.memory import ReplayMemory, Reservoir
from edge_cl.memory.codecs import STEPS

D = 3
values = st.floats(-1e6, 1e6, width=32)
rows = st.lists(st.tuples(values, values, values), min_size=1, max_size=40)


def holding(X, capacity=100):
    reservoir = Reservoir(capacity, D, codec="int8", rng=np.random.default_rng(0))
    for x in X:
        reservoir.add(np.array(x, dtype=np.float32), 0)
    return reservoir


@settings(max_examples=60)
@given(rows)
def test_no_value_is_off_by_more_than_a_step(X):
    reservoir = holding(X)
    X = np.array(X, dtype=np.float32)
    codec = reservoir._codec
    rounding = 2 * np.spacing(np.abs(X).max(axis=0) + np.abs(codec.centre))
    assert (np.abs(reservoir.exemplars()[0] - X) <= codec.step + rounding).all()
    reach = np.abs(X - codec.centre).max(axis=0)
    assert (codec.step <= np.maximum(2 * reach / STEPS, 2 * np.spacing(np.abs(codec.centre)) + 2e-24)).all()


@settings(max_examples=60)
@given(rows)
def test_without_widening_it_is_half_a_step(X):
    wide = np.full(D, 2e6, dtype=np.float32)
    reservoir = holding([np.zeros(D), wide, *X])
    error = np.abs(reservoir.exemplars()[0][2:] - np.array(X, dtype=np.float32))
    assert (error <= reservoir._codec.step / 2).all()


@settings(max_examples=40)
@given(rows, rows)
def test_state_round_trips_and_goes_on_alike(first, then):
    reservoir = holding(first, capacity=20)
    twin = Reservoir(20, D, codec="int8", rng=np.random.default_rng(7))
    twin.restore(*reservoir.state())
    for x in then:
        for one in (reservoir, twin):
            one.add(np.array(x, dtype=np.float32), 1)
    for ours, theirs in zip(reservoir.exemplars(), twin.exemplars(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@settings(max_examples=40)
@given(rows)
def test_whatever_was_stored_can_be_removed(X):
    reservoir = holding(X)
    for x in X:
        assert reservoir.remove(np.array(x, dtype=np.float32), 0)
    assert reservoir.n == 0


def test_only_the_one_that_was_stored_is_removed():
    X = np.random.default_rng(0).normal(size=(50, D)).astype(np.float32)
    reservoir = holding(X)
    assert not reservoir.remove(X[7] + 1, 0) and not reservoir.remove(X[7], 1)
    assert reservoir.remove(X[7], 0)
    left = reservoir.exemplars()[0]
    assert np.abs(left - X[7]).max(axis=1).min() > 5 * reservoir._codec.step.max()


def test_a_channel_that_never_varies_is_exact():
    X = np.random.default_rng(0).normal(size=(50, D)).astype(np.float32)
    X[:, 1] = 1234.5
    np.testing.assert_array_equal(holding(X).exemplars()[0][:, 1], 1234.5)


@pytest.mark.parametrize("value", [3e38, -3e38, 1e-40])
def test_extreme_values_stay_finite(value):
    assert np.isfinite(holding([np.zeros(D), np.full(D, value), np.full(D, -value)]).exemplars()[0]).all()


def test_a_memory_holds_almost_twice_as_many_as_in_float16_and_goes_on_alike():
    size = {"capacity_bytes": 60_000, "n_features": 128}
    memory = ReplayMemory(**size, codec="int8")
    rng = np.random.default_rng(0)
    X = rng.normal(size=(900, 128)).astype(np.float32)
    half = ReplayMemory(**size)
    for k, x in enumerate(X[:600]):
        memory.add(x, k % 5)
        half.add(x, k % 5)
    assert memory.nbytes <= 60_000 and memory.n > 1.8 * half.n
    twin = ReplayMemory(**size, codec="int8")
    twin.restore(*memory.state())
    for one in (memory, twin):
        one.resize(30_000)
        for k, x in enumerate(X[600:]):
            one.add(3 * x, k % 5)
        assert one.nbytes <= 30_000
    np.testing.assert_array_equal(memory.rehearsed.exemplars()[0], twin.rehearsed.exemplars()[0])
