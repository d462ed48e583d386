"""The product quantiser that a device may keep its memories in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_cl.bundle import Codebook, npz_bytes
from edge_cl.memory import default_codes, fit_codebook
from edge_cl.records import FloatArray

N_FITTED = 4096
"""Source features that centroids are learned from, at most; all classes alike."""
MOST_ROTATED = 512
"""Features above which there is no rotation: it would be larger than the centroids."""
LEAST = 256
"""Fewer source features than centroids make no codebook."""


def make_codebook(
    features: FloatArray, y: NDArray[np.int64], *, rng: np.random.Generator, n_codes: int = 0
) -> Codebook | None:
    """Centroids for features (n, D) of classes y (n,); None when there are too few of them.

    `n_codes` are the bytes per exemplar; 0 takes a sixteenth of float32, D / 4.
    """
    if len(features) < LEAST:
        return None
    n_features = features.shape[1]
    shuffled = rng.permutation(len(y))
    # the k-th of every class, k = 0, 1, …: as even as the classes allow
    by_class = shuffled[np.argsort(y[shuffled], kind="stable")]
    counts = np.bincount(y)
    rank = np.concatenate([np.arange(count) for count in counts])
    chosen = by_class[np.argsort(rank, kind="stable")][:N_FITTED]
    return fit_codebook(
        features[chosen], n_codes or default_codes(n_features), rng, rotate=n_features <= MOST_ROTATED
    )


def codebook_member(codebook: Codebook | None) -> dict[str, bytes]:
    """The bundle member, none for no codebook."""
    if codebook is None:
        return {}
    arrays = {name: getattr(codebook, name) for name in Codebook.__struct_fields__}
    return {"codebook.npz": npz_bytes(**arrays)}
