"""Windows do not depend on how samples arrive, and nothing unusable gets into one."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.errors import BadReading
from edge_cl.sensing.windowing import Windower, windows_of


def make(**changes):
    options = {"rate_hz": 50.0, "window_samples": 20, "hop_samples": 10, "n_channels": 2}
    return Windower(**{**options, **changes})


def line(t):
    return np.stack([3.0 * t - 1, -0.5 * t + 2], axis=1)


def jittered(rng, n):
    t = np.cumsum(
        rng.choice(
            [0.0, 1e-7, 0.004, 0.01, 0.02, 0.05, 0.2, 0.9], n, p=[0.05, 0.05, 0.2, 0.2, 0.3, 0.15, 0.04, 0.01]
        )
    )
    back = rng.random(n) < 0.02
    t[back] -= rng.choice([0.01, 5.0], back.sum())
    x = rng.normal(size=(n, 2))
    x[rng.random(n) < 0.02] = np.nan
    return t, x


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    cuts=st.lists(st.integers(0, 400), max_size=30),
    hop=st.sampled_from([1, 10, 20, 33]),
)
def test_any_split_gives_the_same_windows(seed, cuts, hop):
    t, x = jittered(np.random.default_rng(seed), 400)
    whole, parts, single = make(hop_samples=hop), make(hop_samples=hop), make(hop_samples=hop)
    expected = whole.push(t, x)
    edges = sorted({0, len(t), *cuts})
    found = [w for a, b in itertools.pairwise(edges) for w in parts.push(t[a:b], x[a:b])]
    one_by_one = [w for k in range(len(t)) for w in single.push(t[k : k + 1], x[k : k + 1])]
    for other in (found, one_by_one):
        assert [t for t, _ in other] == [t for t, _ in expected]
        for (_, a), (_, b) in zip(other, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    assert (parts.n_bad, parts.n_gaps, parts.n_resets) == (whole.n_bad, whole.n_gaps, whole.n_resets)
    assert all(np.isfinite(w).all() for _, w in expected)


@settings(max_examples=60)
@given(
    steps=st.lists(st.floats(0.001, 0.3), min_size=30, max_size=200),
    rate=st.sampled_from([7.0, 50.0, 100.0]),
    start=st.sampled_from([0.0, 1.7e9]),
)
def test_a_linear_signal_is_resampled_exactly(steps, rate, start):
    t = np.cumsum(steps)
    windower = make(rate_hz=rate)
    for end, window in windower.push(start + t, line(t)):
        grid = end - start - np.arange(19, -1, -1) / rate
        np.testing.assert_allclose(window, line(grid), atol=SNAP_ERROR / rate, rtol=2e-6)


SNAP_ERROR = 3e-3 + 1e-3  # slope 3 per second times the snap distance, and the resolution of unix time


def test_a_regular_stream_loses_no_window():
    for rate in (3.0, 50.0, 60.0, 99.7):
        t = 1000 + np.floor(np.arange(100) / rate * 1e5) / 1e5
        windows, ends = windows_of(line(t), t, rate_hz=rate, window_samples=20, hop_samples=10)
        assert len(windows) == 9
        np.testing.assert_allclose(ends, t[19::10], atol=1e-6)
        np.testing.assert_allclose(windows[0], line(t)[:20], rtol=1e-6)


def test_hop_longer_than_window_skips_samples():
    t = np.arange(200) / 50
    _, ends = windows_of(line(t), t, rate_hz=50, window_samples=10, hop_samples=25)
    np.testing.assert_allclose(ends, t[9::25])


def test_a_gap_starts_a_new_window():
    t = np.concatenate([np.arange(15), np.arange(100, 125)]) / 50
    windower = make()
    windows = windower.push(t, line(t))
    assert windower.n_gaps == 1
    assert windower.n_bad == 0
    assert [round(end * 50) for end, _ in windows] == [119]


def test_a_short_pause_is_bridged():
    t = np.delete(np.arange(20), [7, 8, 9, 10]) / 50
    windower = make()
    [(_, window)] = windower.push(t, line(t))
    np.testing.assert_allclose(window, line(np.arange(20) / 50), rtol=1e-6)
    assert windower.n_gaps == 0


def test_slow_sensors_have_no_gap_between_neighbours():
    t = np.arange(20) * 60.0
    windower = make(rate_hz=1 / 60)
    assert len(windower.push(t, line(t))) == 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_values_that_are_not_finite_are_dropped_and_counted(value):
    t = np.arange(21) / 50
    x = line(t)
    x[5, 1] = value
    windower = make()
    [(_, window)] = windower.push(t, x)
    np.testing.assert_allclose(window, line(t)[:20], rtol=1e-6)
    assert windower.n_bad == 1
    assert isinstance(windower.last_bad, BadReading)
    assert "not finite at 0.1 s" in str(windower.last_bad)


def test_older_samples_are_dropped_and_repeats_are_tolerated():
    t = np.arange(22) / 50
    t[6], t[9] = t[4], t[8]
    x = line(t)
    x[6] = 1e6
    windower = make()
    [(_, window)] = windower.push(t, x)
    np.testing.assert_allclose(window, line(np.arange(20) / 50), rtol=1e-6)
    assert windower.n_bad == 1
    assert "clock went back from 0.1 s to 0.08 s" in str(windower.last_bad)


def test_a_clock_reset_starts_anew():
    t = np.concatenate([1000 + np.arange(15) / 50, np.arange(20) / 50])
    windower = make()
    windows = windower.push(t, line(t))
    assert windower.n_resets == 1
    assert len(windows) == 1
    np.testing.assert_allclose(windows[0][1], line(t[15:]), rtol=1e-6)
    assert "clock set back" in str(windower.last_bad)


@pytest.mark.parametrize("shape", [(4, 3), (4,), (3, 2), (0, 3), (4, 2, 1)])
def test_wrong_shapes_are_counted_not_raised(shape):
    windower = make()
    assert windower.push(np.arange(4.0), np.zeros(shape)) == []
    assert windower.n_bad == 4
    assert "need (4, 2)" in str(windower.last_bad)


def test_memory_does_not_grow_with_the_stream():
    windower = make()
    for k in range(200):
        t = (k * 50 + np.arange(50)) / 50
        windower.push(t, line(t))
    assert len(windower._rows) < 20


def test_a_caller_mistake_is_a_value_error():
    with pytest.raises(ValueError, match="hop 0"):
        make(hop_samples=0)
