"""A sensor's count on the host's clock: it follows, rises, and is smooth."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.sensing.host_clock import HostClock


def played(drift, *, jitter_s=0.005, for_s=60.0, rate_hz=100.0, seed=0):
    """Reads of about 20 a second from a sensor that is off by `drift`: (true, said) times of all samples."""
    rng = np.random.default_rng(seed)
    clock, true_hz = HostClock(1 / rate_hz), rate_hz * (1 + drift)
    said, n_seen, now_s = [], 0, 1000.0
    while now_s < 1000.0 + for_s:
        now_s += 0.05
        n = int((now_s - 1000.0) * true_hz) + 1
        said.append(clock.times(np.arange(n_seen, n), now_s + rng.exponential(jitter_s)))
        n_seen = n
    return 1000.0 + np.arange(n_seen) / true_hz, np.concatenate(said)


@pytest.mark.parametrize("drift", [-0.1, -0.02, 0.0, 0.001, 0.1])
def test_it_follows_a_sensor_whose_oscillator_is_off(drift):
    true, said = played(drift)
    assert np.abs(said - true).max() < 0.12, "while it settles"
    settled = true > true[0] + 20
    late = (said - true)[settled]
    assert np.abs(late - np.median(late)).max() < 0.01, "the reads are up to 0.04 s late"
    assert 0 <= np.median(late) < 0.02
    rate = (settled.sum() - 1) / np.ptp(said[settled])
    assert rate == pytest.approx(100 * (1 + drift), rel=2e-3)


def test_steps_are_even():
    _, said = played(0.03)
    steps = np.diff(said[3000:]) * 103
    assert steps.min() > 0.95 and steps.max() < 1.05


def test_a_pause_is_a_new_anchor_and_so_is_a_count_that_begins_anew():
    clock = HostClock(0.01)
    clock.times(np.arange(10), 50.0)
    assert clock.times(np.arange(10, 20), 60.0)[-1] == 60.0
    again = clock.times(np.arange(3), 61.0)
    assert again[-1] == 61.0 and again[0] == pytest.approx(60.98)
    assert len(clock.times([], 62.0)) == 0


@given(st.lists(st.tuples(st.integers(1, 40), st.floats(0.001, 0.3)), min_size=2, max_size=60))
def test_times_always_rise_and_stay_near_the_host(reads):
    clock, n_seen, now_s, last_s = HostClock(0.01), 0, 100.0, -np.inf
    for n, passed_s in reads:
        now_s += passed_s
        times = clock.times(np.arange(n_seen, n_seen + n), now_s)
        n_seen += n
        assert (np.diff(times) > 0).all()
        assert abs(times[-1] - now_s) < 0.5
        if times[0] > last_s:
            last_s = times[-1]
