"""A bundle's prior as labels: how many it counts for, and samples that stand for it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_cl.bundle import Prior
from edge_cl.records import FloatArray

N_DRAWN = 200
"""Features drawn per class to stand for the prior beside its exemplars."""


def prior_weights(prior: Prior, strength: float) -> NDArray[np.float64]:
    """Labels each prior class counts for: its own count, but at most `strength`; (C,)."""
    return np.minimum(prior.class_counts.astype(np.float64), strength)


def prior_samples(prior: Prior, strength: float) -> tuple[FloatArray, NDArray[np.int64], FloatArray]:
    """Features that stand for the prior: its real exemplars and draws from its class Gaussians.

    Returns
    -------
    (n, D) float32 features, (n,) classes, and (n,) float32 weights that make each class count for
    `prior_weights` labels. The draws are always the same ones.
    """
    n_classes, n_features = prior.class_means.shape
    noise = np.random.default_rng(0).multivariate_normal(
        np.zeros(n_features), prior.shared_cov.astype(np.float64), size=(n_classes, N_DRAWN), method="eigh"
    )
    drawn = (noise + prior.class_means[:, None, :]).reshape(-1, n_features)
    X = np.concatenate([prior.exemplars, drawn]).astype(np.float32)
    y = np.concatenate([prior.exemplar_labels, np.repeat(np.arange(n_classes), N_DRAWN)]).astype(np.int64)
    known = prior_weights(prior, strength)[y]
    weights = known / np.bincount(y, minlength=n_classes)[y]
    return X[known > 0], y[known > 0], weights[known > 0].astype(np.float32)
