"""Which of a few exemplars is missed least."""

from __future__ import annotations

import numpy as np

from edge_cl.records import FloatArray

DRAWN = 8
"""Exemplars of the fullest class looked at when one must go."""


def most_redundant(X: FloatArray) -> int:
    """Row of X (k, D), k ≥ 1, that another row resembles most.

    Of the two closest rows the one whose next neighbour is nearer. O(k²·D), Euclidean; of equals the first.
    """
    k = len(X)
    if k < 3:
        return 0
    squares = np.einsum("kd,kd->k", X, X)
    apart = squares[:, None] + squares - 2 * (X @ X.T)
    apart.flat[:: k + 1] = np.inf
    one, other = divmod(int(apart.argmin()), k)
    apart[one, other] = apart[other, one] = np.inf
    return one if apart[one].min() <= apart[other].min() else other
