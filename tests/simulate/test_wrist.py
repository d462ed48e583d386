"""The simulated wrist: plausible physics, reproducible, and hard in the ways it claims."""

import numpy as np
import pytest

from edge_cl.simulate import wrist


@pytest.fixture
def somebody(rng):
    return wrist.person(rng, left_handed=False)


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def test_a_resting_wrist_feels_gravity_and_hardly_turns(somebody, rng):
    felt = wrist.signal(somebody, "resting", 2000, rng)
    assert felt.dtype == np.float32
    length = np.linalg.norm(felt[:, :3], axis=1)
    assert abs(length.mean() - wrist.GRAVITY) < 0.1
    assert length.std() < 0.3
    assert np.abs(felt[:, 3:]).mean() < 0.25


def test_the_gyroscope_agrees_with_how_gravity_turns(somebody, rng):
    """dg/dt = −ω × g in the sensor's frame; drinking has no bounce to hide it."""
    felt = wrist.signal(somebody, "drinking", 4000, rng).astype(float)
    smooth = np.apply_along_axis(np.convolve, 0, felt, np.full(9, 1 / 9), mode="same")[50:-50]
    g, omega = smooth[:, :3], smooth[:, 3:]
    change = np.gradient(g, 1 / wrist.RATE_HZ, axis=0)
    expected = -np.cross(omega, g)
    correlation = np.corrcoef(change.ravel(), expected.ravel())[0, 1]
    assert correlation > 0.8


def test_cadence_follows_the_person(rng):
    def peak_hz(tempo):
        who = wrist.Person(
            tempo=tempo,
            amplitude=1.0,
            posture=(0, 0, 0),
            left_handed=False,
            style={name: np.concatenate([np.ones((3, 3)), np.zeros((1, 3))]) for name in wrist.ACTIVITIES},
        )
        gyro_y = wrist.signal(who, "walking", 5000, rng)[:, 4]
        power = np.abs(np.fft.rfft(gyro_y)) ** 2
        return np.fft.rfftfreq(5000, 1 / wrist.RATE_HZ)[power.argmax()]

    assert peak_hz(1.3) / peak_hz(0.8) == pytest.approx(1.3 / 0.8, rel=0.2)


def test_the_same_seed_gives_the_same_people_and_signals():
    a, b, c = (wrist.source_windows(seed, n_people=2, windows_each=40) for seed in (5, 5, 6))
    np.testing.assert_array_equal(a[0], b[0])
    assert not np.array_equal(a[0], c[0])


def test_source_windows_fit_the_exporter():
    X, y, person, names, channels = wrist.source_windows(n_people=3, windows_each=150)
    assert X.shape == (450, wrist.WINDOW_SAMPLES, len(channels))
    assert np.isfinite(X).all()
    assert sorted(set(person)) == [0, 1, 2]
    assert set(y) == set(range(len(names)))
    assert not set(names) & set(wrist.NEW_ACTIVITIES)


def test_a_knock_keeps_lengths_up_to_gain_and_bias(rng):
    mount = wrist.knock(rng, turn_rad=2.0, drift=0.0)
    np.testing.assert_allclose(mount.rotation @ mount.rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(mount.rotation) == pytest.approx(1)
    turned = np.arccos((np.trace(mount.rotation) - 1) / 2)
    assert turned == pytest.approx(2.0)
    assert (mount.gain == 1).all()
    assert (wrist.knock(rng).bias != 0).all()


def test_left_and_right_hands_are_mirror_images():
    left, right = (
        wrist.signal(
            wrist.person(np.random.default_rng(8), left_handed=hand), "walking", 500, np.random.default_rng(9)
        )
        for hand in (True, False)
    )
    mirror = [1, -1, 1, -1, 1, -1]
    np.testing.assert_allclose(left, right * mirror, atol=1.5)
    assert np.corrcoef(left[:, 5], right[:, 5])[0, 1] < -0.9


def test_bouts_are_labelled_by_what_they_mostly_show(somebody, rng):
    windows, names = wrist.bouts(somebody, ["resting", "running"], 200, rng)
    assert len(windows) == len(names) == 200
    unrest = windows[:, :, :3].std(axis=1).sum(axis=1)
    is_running = np.array(names) == "running"
    assert np.median(unrest[is_running]) > 5 * np.median(unrest[~is_running])
    assert ((unrest > 3) == is_running).mean() > 0.9
