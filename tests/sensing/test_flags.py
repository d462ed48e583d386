"""Dead channels, saturated ones, wrong rates: said, and taken back when all is well."""

import itertools

import numpy as np
import pytest

from edge_cl.sensing.flags import Flags, held_since, share_saturated

RATE = 50.0


def fed(flags, t0, seconds, signal, *, rate_hz=RATE):
    """Feed `signal(t) -> (n, channels)`, twenty reads a second; the time after, the alarms seen."""
    seen, t = [], t0 + np.arange(int(seconds * rate_hz)) / rate_hz
    for part in np.array_split(t, max(1, int(seconds * 20))):
        flags.note(part, signal(part))
        seen.append(flags.alarm)
    return t0 + seconds, seen


def alive(t):
    return np.stack([np.sin(7 * t), np.cos(3 * t)], axis=1)


def half_dead(t):
    return np.stack([np.sin(7 * t), np.full_like(t, 0.25)], axis=1)


@pytest.fixture
def flags():
    return Flags(["acc_x", "acc_y"], RATE, np.array([2.0, 2.0]))


def test_a_living_sensor_is_not_flagged(flags):
    _, seen = fed(flags, 100.0, 120.0, alive)
    assert set(seen) == {""}


def test_a_dead_channel_is_named_and_cleared_when_it_lives_again(flags):
    t, _ = fed(flags, 0.0, 20.0, alive)
    t, seen = fed(flags, t, 8.0, half_dead)
    assert seen[80] == "" and seen[-1].startswith("channel acc_y stays exactly 0.25 for more than 5 s: ")
    assert len(set(seen)) == 2, "the same words as long as it is so"
    said = seen[-1]
    t, seen = fed(flags, t, 10.0, alive)
    assert seen[0] == said and seen[-1] == "" and len(set(seen)) == 2


def test_a_sensor_that_is_dead_from_the_start_is_found(flags):
    _, seen = fed(flags, 5.0, 8.0, lambda t: np.zeros((len(t), 2)))
    assert seen[-1].startswith("every channel stays the same for")


def coarse(step_s):
    return lambda t: np.stack([np.sin(t), np.floor(t / step_s) % 2], axis=1)


def test_a_coarse_channel_that_lives_is_not_dead(flags):
    t, seen = fed(flags, 0.0, 48.0, coarse(4))
    assert set(seen) == {""}, "it keeps every value for four seconds"
    t, seen = fed(flags, t, 120.0, coarse(12))
    assert set(seen) == {""}, "and sometimes for twelve"
    t, seen = fed(flags, t, 130.0, half_dead)
    assert "acc_y" in seen[-1], "but not for two minutes"


def test_saturation_is_said_by_its_share_and_does_not_flap(flags):
    t, seen = fed(flags, 0.0, 10.0, lambda t: np.clip(2.3 * alive(t), -2, 2))
    assert "" not in seen[-20:] and "every channel is often at the end of its range" in seen[-1]
    t, seen = fed(flags, t, 60.0, lambda t: np.clip((2.0 + 0.03 * (t % 6 < 3))[:, None] * alive(t), -2, 2))
    assert sum(bool(a) != bool(b) for a, b in itertools.pairwise(seen)) <= 2
    _, seen = fed(flags, t, 10.0, alive)
    assert seen[-1] == ""


@pytest.mark.parametrize("off", [-0.1, 0.1])
def test_a_rate_that_is_off_by_a_tenth_is_said(flags, off):
    t, seen = fed(flags, 0.0, 30.0, alive, rate_hz=RATE * (1 + off))
    assert seen[-1].startswith(f"samples come at {RATE * (1 + off):.3g} Hz, expected 50 Hz")
    assert len(set(seen)) == 2
    _, seen = fed(flags, t, 30.0, alive)
    assert seen[-1] == ""


def test_four_percent_is_no_alarm_and_what_is_missing_is_no_rate(flags):
    t, seen = fed(flags, 0.0, 30.0, alive, rate_hz=RATE * 1.04)
    assert set(seen) == {""}
    flags.interrupt()
    _, seen = fed(flags, t + 100, 30.0, alive)
    assert set(seen) == {""}


def test_a_slow_sensor_is_given_more_time():
    flags = Flags(["celsius"], 0.5)
    rng = np.random.default_rng(0)
    t = 2.0 * np.arange(200) + rng.uniform(-0.4, 0.4, 200)
    for k in range(200):
        flags.note(t[k : k + 1], np.array([[float(rng.integers(3))]]))
        assert flags.alarm == ""
    for k in range(200, 300):
        flags.note(np.array([2.0 * k]), np.array([[7.0]]))
    assert flags.alarm.startswith("channel celsius stays exactly 7 for more than 40 s")


def test_pure_parts():
    t, x = np.arange(4.0), np.array([[1, 5], [2, 5], [2, 5], [2, 6]])
    since, changed = held_since(t, x, np.array([1, 5]), np.array([-9.0, -9.0]))
    assert since.tolist() == [1, 3] and changed.tolist() == [True, True]
    full = np.array([1.0, 2.0])
    assert share_saturated(np.array([[-1.0, 1], [0.9999, 2], [0, 0], [0.5, -2]]), full).tolist() == [0.5, 0.5]


def test_values_that_are_not_finite_are_not_looked_at(flags):
    flags.note(np.array([np.nan, 1.0]), np.array([[0.0, 1.0], [np.inf, 0.0]]))
    assert flags.alarm == ""
