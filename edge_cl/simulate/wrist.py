"""A simulated wrist sensor: people who move, an accelerometer and a gyroscope that watch them.

An activity is a posture of the forearm (which way is up, in the sensor's frame), angles that
swing about it, a body that bounces, and bursts, taps and noise. The accelerometer feels gravity
through the orientation plus the bounce; the gyroscope feels how the angles change. A person has
their own tempo, amplitude, posture, style and hand. A knock turns the sensor on the wrist and
shifts its gains and zero points.

It is a caricature: good enough to break a frozen model the way real people do, no evidence of
how well anything works on real people.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_cl.manifest import Channel
from edge_cl.records import FloatArray
from edge_cl.sensing.windowing import windows_of

RATE_HZ = 50.0
WINDOW_SAMPLES = 100
HOP_SAMPLES = 50
GRAVITY = 9.81
CHANNELS = tuple(
    Channel(f"{sensor}_{axis}", unit)
    for sensor, unit in (("acc", "m/s²"), ("gyro", "rad/s"))
    for axis in "xyz"
)


class Activity(msgspec.Struct, frozen=True, kw_only=True):
    """How one activity looks at the wrist; x points to the hand, z out of the watch's face.

    `up` is the mean direction of "up"; `tempo_hz` the cycle's rate; `swing` the amplitude (rad)
    of the angles about x, y, z at that rate and `swing2` at twice it; `bounce` the body's
    acceleration (m/s²) along x, y, z at twice the rate; `taps_hz` the rate of short knocks
    of `tap` m/s²; `wander` the slow change of posture (rad); `active` the share of time that
    the cycle is on, in bursts of `burst_s`.
    """

    up: tuple[float, float, float]
    tempo_hz: float
    swing: tuple[float, float, float] = (0, 0, 0)
    swing2: tuple[float, float, float] = (0, 0, 0)
    bounce: tuple[float, float, float] = (0, 0, 0)
    taps_hz: float = 0.0
    tap: float = 0.0
    wander: float = 0.1
    active: float = 1.0
    burst_s: float = 2.0


SOURCE_ACTIVITIES = {
    "resting": Activity(up=(0.1, 0.1, 1.0), tempo_hz=0.28, swing=(0.01, 0.015, 0), wander=0.25),
    "typing": Activity(
        up=(0.0, 0.15, 1.0), tempo_hz=2.6, swing=(0.03, 0.02, 0.03), taps_hz=4.0, tap=1.2, active=0.6
    ),
    "drinking": Activity(
        up=(0.5, 0.2, 0.8), tempo_hz=0.22, swing=(0.55, 0.6, 0.15), swing2=(0.15, 0.2, 0.05), active=0.75,
        burst_s=5.0, wander=0.2,
    ),
    "walking": Activity(
        up=(-0.95, 0.1, 0.2), tempo_hz=0.92, swing=(0.12, 0.4, 0.15), swing2=(0.05, 0.05, 0.05),
        bounce=(1.8, 0.6, 0.8), taps_hz=1.8, tap=1.0,
    ),
    "stairs": Activity(
        up=(-0.9, 0.15, 0.35), tempo_hz=0.8, swing=(0.15, 0.3, 0.18), swing2=(0.05, 0.1, 0.05),
        bounce=(2.4, 0.9, 0.9), taps_hz=1.6, tap=1.6,
    ),
    "running": Activity(
        up=(-0.15, 0.2, 0.95), tempo_hz=1.38, swing=(0.25, 0.55, 0.3), swing2=(0.1, 0.1, 0.1),
        bounce=(5.5, 2.5, 6.0), taps_hz=2.8, tap=4.0,
    ),
}  # fmt: skip
NEW_ACTIVITIES = {
    "washing": Activity(
        up=(0.25, -0.35, 0.85), tempo_hz=1.9, swing=(0.4, 0.2, 0.3), swing2=(0.1, 0.08, 0.1),
        bounce=(1.2, 1.0, 0.6), active=0.85, wander=0.2,
    ),
}  # fmt: skip
ACTIVITIES = SOURCE_ACTIVITIES | NEW_ACTIVITIES


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """How somebody moves: factors on tempo and amplitude, a posture (rad about x, y, z), a hand."""

    tempo: float
    amplitude: float
    posture: tuple[float, float, float]
    left_handed: bool
    style: dict[str, FloatArray]
    """Per activity (4, 3): factors on swing, swing2, bounce and an offset of the posture (rad)."""


class Mount(msgspec.Struct, frozen=True, kw_only=True):
    """How the sensor sits: a rotation (3, 3) and per-channel gain (6,) and bias (6,)."""

    rotation: FloatArray
    gain: FloatArray
    bias: FloatArray


STRAIGHT = Mount(rotation=np.eye(3), gain=np.ones(6), bias=np.zeros(6))


def person(rng: np.random.Generator, *, spread: float = 1.0, left_handed: bool | None = None) -> Person:
    """Somebody; `spread` 1 is the variety among the source people, more is further from them."""
    return Person(
        tempo=float(np.exp(spread * rng.normal(0, 0.10))),
        amplitude=float(np.exp(spread * rng.normal(0, 0.20))),
        posture=tuple((spread * rng.normal(0, [0.25, 0.15, 0.15])).tolist()),
        left_handed=bool(rng.random() < 0.1) if left_handed is None else left_handed,
        style={name: _style(rng, spread) for name in ACTIVITIES},
    )


def knock(rng: np.random.Generator, *, turn_rad: float = 1.0, drift: float = 1.0) -> Mount:
    """A sensor knocked round the wrist by `turn_rad` or so, with gains and zero points off."""
    about = np.array([1.0, 0.0, 0.0]) + rng.normal(0, 0.25, 3)
    return Mount(
        rotation=_rotation(about / np.linalg.norm(about) * turn_rad),
        gain=1 + drift * rng.normal(0, 0.08, 6),
        bias=drift * rng.normal(0, [0.5, 0.5, 0.5, 0.05, 0.05, 0.05]),
    )


def signal(
    who: Person, activity: str, n: int, rng: np.random.Generator, *, mount: Mount = STRAIGHT
) -> NDArray[np.float32]:
    """What the sensor feels while `who` does `activity` for `n` samples at `RATE_HZ`.

    Returns
    -------
    ndarray
        (n, 6) float32: acceleration x, y, z in m/s², then rotation rate x, y, z in rad/s.
    """
    does = ACTIVITIES[activity]
    swing, swing2, bounce, offset = who.style[activity]
    # every bout is a little slower or faster, stronger or weaker than the last
    tempo = who.tempo * np.exp(rng.normal(0, 0.05))
    amplitude = who.amplitude * np.exp(rng.normal(0, 0.12))
    phase = _phase(n, does.tempo_hz * tempo, rng)
    on = _bursts(n, does, rng) * amplitude
    angles = np.stack(
        [
            on * does.swing[k] * swing[k] * np.sin(phase + 1.1 * k)
            + on * does.swing2[k] * swing2[k] * np.sin(2 * phase + 0.7 * k)
            + does.wander * _slow(n, rng)
            for k in range(3)
        ],
        axis=1,
    )
    beat = np.sin(2 * phase[:, None] + np.arange(3)) + 0.35 * np.sin(4 * phase[:, None] + 2 * np.arange(3))
    push = on[:, None] * tempo**2 * (np.array(does.bounce) * bounce) * beat
    push += on[:, None] * _taps(n, does, rng)
    up = _rotation(np.array(who.posture) + offset) @ _unit(does.up)
    acc = GRAVITY * _turn(up, angles) + push
    gyro = np.gradient(angles, 1 / RATE_HZ, axis=0)
    if who.left_handed:  # the mirror image: vectors flip along y, rotations about x and z
        acc, gyro = acc * [1, -1, 1], gyro * [-1, 1, -1]
    felt = np.concatenate([acc @ mount.rotation.T, gyro @ mount.rotation.T], axis=1)
    felt = felt * mount.gain + mount.bias + rng.normal(0, [0.12, 0.12, 0.12, 0.03, 0.03, 0.03], (n, 6))
    return felt.astype(np.float32)


def bouts(
    who: Person,
    activities: list[str],
    n_windows: int,
    rng: np.random.Generator,
    *,
    mount: Mount = STRAIGHT,
    bout_s: tuple[float, float] = (8.0, 30.0),
) -> tuple[NDArray[np.float32], list[str]]:
    """At least `n_windows` of one activity after another, cut off at `n_windows`.

    Returns
    -------
    windows, names
        (n_windows, WINDOW_SAMPLES, 6) and what each mostly shows. Activities come in shuffled
        rounds, so each gets about its share; windows over a change of activity are included.
    """
    n_samples = (n_windows - 1) * HOP_SAMPLES + WINDOW_SAMPLES
    parts, names, n = [], list[str](), 0
    while n < n_samples:
        for name in rng.permutation(activities).tolist():
            length = int(rng.uniform(*bout_s) * RATE_HZ)
            parts.append(signal(who, name, length, rng, mount=mount))
            names += [name] * length
            n += length
    felt, t_s = np.concatenate(parts)[:n_samples], np.arange(n_samples) / RATE_HZ
    windows, _ = windows_of(
        felt, t_s, rate_hz=RATE_HZ, window_samples=WINDOW_SAMPLES, hop_samples=HOP_SAMPLES
    )
    middle = WINDOW_SAMPLES // 2
    return windows, [names[k * HOP_SAMPLES + middle] for k in range(len(windows))]


def source_windows(
    seed: int = 0, *, n_people: int = 24, windows_each: int = 300
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], list[str], tuple[Channel, ...]]:
    """What an exporter trains on: the source people, all source activities, a straight sensor.

    Returns
    -------
    X, y, person, class_names, channels
        (n, WINDOW_SAMPLES, 6) float32, (n,) classes, (n,) people, and what they are called.
    """
    names = list(SOURCE_ACTIVITIES)
    rng = np.random.default_rng([seed, 1])
    X, y, who = [], [], []
    for k in range(n_people):
        windows, found = bouts(person(rng), names, windows_each, rng)
        X.append(windows)
        y += [names.index(name) for name in found]
        who += [k] * len(windows)
    return np.concatenate(X), np.array(y), np.array(who), names, CHANNELS


def _style(rng: np.random.Generator, spread: float) -> FloatArray:
    factors = np.exp(spread * rng.normal(0, 0.22, (3, 3)))
    return np.concatenate([factors, spread * rng.normal(0, 0.12, (1, 3))])


def _phase(n: int, rate_hz: float, rng: np.random.Generator) -> FloatArray:
    """A clock that is not quite regular: (n,) radians from a random start."""
    rate = rate_hz * (1 + 0.06 * _slow(n, rng))
    return rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.cumsum(rate) / RATE_HZ


def _slow(n: int, rng: np.random.Generator, period_s: float = 2.5) -> FloatArray:
    """(n,) noise of unit variance or so that changes over seconds."""
    knots = rng.normal(size=int(n / (period_s * RATE_HZ)) + 3)
    at = np.arange(n) / (period_s * RATE_HZ)
    whole = at.astype(int)
    ease = (1 - np.cos(np.pi * (at - whole))) / 2
    drift: FloatArray = knots[whole] * (1 - ease) + knots[whole + 1] * ease
    return drift


def _bursts(n: int, does: Activity, rng: np.random.Generator) -> FloatArray:
    """(n,) in [0.15, 1]: on for the activity's share of time, with soft edges."""
    if does.active >= 1:
        return np.ones(n)
    step = int(does.burst_s * RATE_HZ)
    on = (rng.random(n // step + 2) < does.active).repeat(step)[rng.integers(step) :][:n]
    soft = np.convolve(on, np.full(15, 1 / 15), mode="same")
    return np.asarray(0.15 + 0.85 * soft)


def _taps(n: int, does: Activity, rng: np.random.Generator) -> FloatArray:
    """(n, 3) short damped knocks at random times, mostly along z."""
    hits = np.zeros((n, 3))
    at = rng.integers(n, size=rng.poisson(does.taps_hz * n / RATE_HZ))
    hits[at] = rng.normal(0, does.tap, (len(at), 3)) * [0.5, 0.5, 1.0]
    ring = np.exp(-np.arange(10) / 2.5) * np.cos(np.arange(10) * 1.3)
    return np.stack([np.convolve(hits[:, k], ring)[:n] for k in range(3)], axis=1)


def _turn(up: FloatArray, angles: FloatArray) -> FloatArray:
    """`up` (3,) seen from a frame turned by `angles` (n, 3) about x, then y, then z: (n, 3)."""
    x, y, z = (np.full(len(angles), value) for value in up)
    c, s = np.cos(angles), np.sin(angles)
    y, z = c[:, 0] * y + s[:, 0] * z, c[:, 0] * z - s[:, 0] * y
    x, z = c[:, 1] * x - s[:, 1] * z, c[:, 1] * z + s[:, 1] * x
    x, y = c[:, 2] * x + s[:, 2] * y, c[:, 2] * y - s[:, 2] * x
    return np.stack([x, y, z], axis=1)


def _rotation(vector: FloatArray) -> FloatArray:
    """Rotation matrix (3, 3) of a rotation vector (3,), radians (Rodrigues)."""
    angle = float(np.linalg.norm(vector))
    if angle == 0:
        return np.eye(3)
    a, b, c = vector / angle
    cross = np.array([[0, -c, b], [c, 0, -a], [-b, a, 0]])
    turned: FloatArray = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * (cross @ cross)
    return turned


def _unit(vector: tuple[float, float, float]) -> FloatArray:
    array = np.array(vector, dtype=float)
    return np.asarray(array / np.linalg.norm(array))
