"""How much one label shows in what leaves a device: features cut to a length, Gaussian noise, and its ε.

Numbers of labels and sums of features change, when one label is added or left out, by (1, x) for its
feature x. With x cut to length C and the sums in units of C, that is a vector of at most √2. Noise of σ
times that is the Gaussian mechanism; k reports about one label are one with σ / √k. The second moment x xᵀ is
not told with noise: that on D² numbers is more than what they say (docs/decisions/0023-merging.md).
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

from edge_cl.records import FloatArray
from edge_cl.statistics import Statistics

DELTA = 1e-5
SENSITIVITY = math.sqrt(2.0)
"""Of (numbers of labels, sums / clip_norm) to one label, as a length."""
MOST_EPSILON = 1e4


def clip(X: FloatArray, norm: float) -> FloatArray:
    """Features (n, D) as float64, those that are longer than `norm` cut to it."""
    X = np.asarray(X, np.float64)
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    cut: FloatArray = X * np.minimum(1.0, norm / np.maximum(lengths, 1e-300))
    return cut


def noised(statistics: Statistics, clip_norm: float, noise: float, rng: np.random.Generator) -> Statistics:
    """Numbers and sums with Gaussian noise of `noise` times what one label can change, and nothing else.

    The features were clipped to `clip_norm`.
    """
    std = noise * SENSITIVITY
    return msgspec.structs.replace(
        statistics,
        counts=statistics.counts + std * rng.normal(size=statistics.counts.shape),
        sums=statistics.sums + std * clip_norm * rng.normal(size=statistics.sums.shape),
        second=np.zeros_like(statistics.second),
    )


def epsilon(noise: float, delta: float = DELTA) -> float:
    """The ε of noise with `noise` times the sensitivity as its standard deviation.

    Exact (Balle & Wang 2018, the analytic Gaussian mechanism), by bisection; infinite where it is above
    `MOST_EPSILON`, and so without noise.

    >>> round(epsilon(3.7306), 3)
    1.0
    """
    low, high = 0.0, MOST_EPSILON
    if noise <= 0 or _delta(MOST_EPSILON, noise) > delta:
        return math.inf
    if _delta(0.0, noise) <= delta:
        return 0.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _delta(middle, noise) > delta else (low, middle)
    return high


def noise_for(wanted: float, delta: float = DELTA) -> float:
    """The least noise that gives this ε: the inverse of `epsilon`."""
    low, high = 1e-2, 1e6
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if _delta(wanted, middle) > delta else (low, middle)
    return high


def _delta(eps: float, noise: float) -> float:
    """The δ of noise at ε."""
    inner, outer = 0.5 / noise - eps * noise, -0.5 / noise - eps * noise
    return math.exp(_log_normal_cdf(inner)) - math.exp(min(eps + _log_normal_cdf(outer), 0.0))


def _log_normal_cdf(x: float) -> float:
    if x > -30:
        return math.log(0.5 * math.erfc(-x / math.sqrt(2.0)))
    return -0.5 * x * x - math.log(-x * math.sqrt(2 * math.pi)) + math.log1p(-1 / (x * x))
