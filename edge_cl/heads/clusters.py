"""Clusters afresh from remembered samples: two that are close become one, a wide one becomes two."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edge_cl.heads.prototypes import absorb, closest
from edge_cl.records import FloatArray, distinct

SWEEPS = 5
"""Of moving every mean to its samples; at 2 most of the gain is lost."""
LEAST = 4
"""Samples per cluster, on average, that are worth the work, and that a cluster needs to be split."""
GAIN = 2.0
"""A split must explain so many times what the merger that makes room for it costs."""


def recluster(Z: FloatArray, means: FloatArray, counts: NDArray[np.float64]) -> Iterator[None]:
    """Move means (K, D) of (K,) labels to samples Z (n, D) of the same class, in place.

    Each `yield` ends a piece of work of O(n·K·D), after which it may be left; with fewer than `LEAST` samples
    per mean nothing happens. The labels are shared out anew, every mean has one at least; their sum stays.
    Sources: Lloyd, Least squares quantization in PCM (1982); merging by Ward's cost as everywhere here.
    """
    if len(means) < 2 or len(Z) < LEAST * len(means):
        return
    n_labels = counts.sum()
    for _ in range(len(means)):
        if not _exchange(Z, means, counts):
            break
        yield
    for _ in range(SWEEPS):
        nearest = _nearest(Z, means)
        for k in distinct(nearest):
            means[k] = Z[nearest == k].mean(axis=0)
        yield
    share = np.bincount(_nearest(Z, means), minlength=len(means)) / len(Z)
    counts[:] = np.maximum(np.round(share * n_labels), 1)
    most = counts.argmax()
    counts[most] = max(counts[most] + n_labels - counts.sum(), 1)


def _exchange(Z: FloatArray, means: FloatArray, counts: NDArray[np.float64]) -> bool:
    """Merge the two closest means and split the widest cluster, if that explains more; False: it does not."""
    nearest = _nearest(Z, means)
    labels_per_sample = counts.sum() / len(Z)
    gain, wide, halves = max(
        (_split(Z[nearest == k], k) for k in range(len(means))), key=lambda split: split[0]
    )
    first, second, cost = closest(means, counts, np.ones(means.shape[1], dtype=np.float32))
    if wide in (first, second) or gain * labels_per_sample <= GAIN * cost:
        return False
    absorb(means, counts, first, second)
    share = len(halves[0]) / (len(halves[0]) + len(halves[1]))
    means[wide], means[second] = halves[0].mean(axis=0), halves[1].mean(axis=0)
    counts[wide], counts[second] = share * counts[wide], (1 - share) * counts[wide]
    return True


def _split(Z: FloatArray, k: int) -> tuple[float, int, tuple[FloatArray, FloatArray]]:
    """Squared deviation that two halves explain, k, and the halves: cut across the widest feature."""
    if len(Z) < LEAST:
        return 0.0, k, (Z, Z)
    feature = int(Z.var(axis=0).argmax())
    above = Z[:, feature] > Z[:, feature].mean()
    one, two = Z[above], Z[~above]
    if not len(one) or not len(two):
        return 0.0, k, (Z, Z)
    apart = np.square(one.mean(axis=0) - two.mean(axis=0)).sum()
    return float(len(one) * len(two) / len(Z) * apart), k, (one, two)


def _nearest(Z: FloatArray, means: FloatArray) -> NDArray[np.int64]:
    """The nearest mean of every sample, (n,), from exact differences."""
    squared = np.stack([np.square(Z - mean).sum(axis=1) for mean in means])
    nearest: NDArray[np.int64] = squared.argmin(axis=0)
    return nearest
