"""What the source data looks like in feature space, so that a device starts warm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_cl.bundle import Prior
from edge_cl.records import FloatArray


def make_prior(
    features: FloatArray,
    y: NDArray[np.int64],
    *,
    n_classes: int,
    exemplars: int,
    rng: np.random.Generator,
) -> Prior:
    """Class statistics and the first memories.

    Parameters
    ----------
    features
        (n, D); computed in float64.
    y
        (n,) classes.
    exemplars
        At most so many per class, drawn at random; every class gets the same number (the
        smallest class decides), unless that one has none.

    Returns
    -------
    Prior
        `shared_cov` divides by n − (classes present), the unbiased pooled estimate.
    """
    F = np.asarray(features, np.float64)
    counts = np.bincount(y, minlength=n_classes).astype(np.float64)
    sums = np.zeros((n_classes, F.shape[1]))
    np.add.at(sums, y, F)
    means = sums / np.maximum(counts, 1)[:, None]
    within = F - means[y]
    freedom = max(1, len(F) - int((counts > 0).sum()))
    chosen = _balanced(y, counts, exemplars, rng)
    return Prior(
        class_counts=counts,
        class_means=means.astype(np.float32),
        shared_cov=(within.T @ within / freedom).astype(np.float32),
        second_moment=(F.T @ F / len(F)).astype(np.float32),
        exemplars=F[chosen].astype(np.float16),
        exemplar_labels=y[chosen].astype(np.int64),
    )


def _balanced(
    y: NDArray[np.int64], counts: FloatArray, per_class: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    present = np.flatnonzero(counts)
    n = min(per_class, int(counts[present].min()))
    chosen = [rng.permutation(np.flatnonzero(y == label))[:n] for label in present]
    return np.sort(np.concatenate(chosen)) if n else np.empty(0, np.int64)


def linear_scores(prior: Prior, features: FloatArray) -> FloatArray:
    """Log-posterior, up to a constant, of a linear discriminant on the prior: (n, D) to (n, C).

    The covariance is shrunk by 1 % of its mean variance; absent classes score −inf.
    What a head that never learns would answer: a floor for any that does.
    """
    cov = np.asarray(prior.shared_cov, np.float64)
    cov = cov + 0.01 * np.trace(cov) / len(cov) * np.eye(len(cov))
    means = np.asarray(prior.class_means, np.float64)
    weights = np.linalg.solve(cov, means.T)
    counts = np.asarray(prior.class_counts, np.float64)
    with np.errstate(divide="ignore"):
        offset = np.log(counts / counts.sum()) - 0.5 * (means.T * weights).sum(0)
    scores: FloatArray = features @ weights + offset
    return scores
