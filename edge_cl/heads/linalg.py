"""Pure kernels on arrays. Single letters are mapped in each docstring."""

from __future__ import annotations

import math

import numpy as np

from edge_cl.records import FloatArray

STRIPE = 128
"""Rows of a covariance updated at a time, so that they stay in the processor's cache."""


def merged_means(
    counts: FloatArray, means: FloatArray, other_counts: FloatArray, other_means: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Class means of two sets of samples together.

    Parameters
    ----------
    counts, other_counts
        (C,) float64, samples of each class, 0 allowed.
    means, other_means
        (C, D).

    Returns
    -------
    (C, D) float64 means of all samples, and (C, D) float64 deviations V such that Vᵀ V is what the
    two within-class scatters lack: n m / (n + m) · δ δᵀ summed over the classes.

    Notes
    -----
    O(C·D). Source: Chan, Golub & LeVeque, updating formulae for sample variances (1979).
    """
    total = np.maximum(counts + other_counts, 1e-300)
    delta = other_means.astype(np.float64) - means
    merged = means + (other_counts / total)[:, None] * delta
    return merged, np.sqrt(counts * other_counts / total)[:, None] * delta


def lift_floor(cov: FloatArray, floor: float) -> None:
    """Make a covariance symmetric again and add `floor` to every variance, in place.

    A direction seen n times has a variance of about r / n, and float32 loses about 1e-7 of the largest
    variance per update; without a floor the smallest turn negative after thousands of updates, and
    then grow without bound. O(d²), no temporary as large as the covariance.
    """
    for start in range(0, len(cov), STRIPE):
        rows = slice(start, start + STRIPE)
        mean = (cov[rows] + cov[:, rows].T) * np.float32(0.5)
        cov[rows], cov[:, rows] = mean, mean.T
    cov[np.diag_indices_from(cov)] += np.float32(floor)


def drift_gradient(
    drift: float, var: float, square: float, outputs: FloatArray, target: FloatArray, obs_noise_var: float
) -> tuple[float, float]:
    """Derivative of the log-likelihood of a label by the drift before it, and its expected square.

    Parameters
    ----------
    drift
        δ at least 0; γ = exp(−δ/2). The scores are normal around γ z, with variance
        s = γ² var + (1 − γ²) square + obs_noise_var.
    var, square
        xᵀPx before the drift, and |x|².
    outputs, target
        z = Mᵀx before the drift, and the label, (C,).

    Notes
    -----
    O(C). The first is a sum over the classes of −s'/2s + e² s'/2s² − γ z e / 2s, e = target − γ z.
    """
    decay = math.exp(-drift)
    gamma = math.sqrt(decay)
    s = decay * var + (1 - decay) * square + obs_noise_var
    slope = decay * (square - var)
    error = target - gamma * outputs
    first = len(target) * slope / (2 * s) * (float(error @ error) / (len(target) * s) - 1)
    expected = len(target) * slope**2 / (2 * s**2) + decay * float(outputs @ outputs) / (4 * s)
    return first - gamma * float(error @ outputs) / (2 * s), expected


def median(rows: FloatArray) -> FloatArray:
    """Median along the first axis, of values that are numbers; as numpy's, which would load 1 MB for NaNs.

    >>> median(np.array([[3.0], [1.0], [4.0], [1.0]]))
    array([2.])
    """
    ordered = np.sort(rows, axis=0)
    return np.asarray((ordered[(len(rows) - 1) // 2] + ordered[len(rows) // 2]) / 2)
