"""A fixed random lift: standardised features, and ReLUs of random combinations of them."""

from __future__ import annotations

import numpy as np

from edge_cl.records import FloatArray


class Lift:
    """phi(x) = (4/√d) · [1, z, relu(W z + b)] with z the standardised x.

    Parameters
    ----------
    n_features, n_lifted
        D and d ≥ D + 1; with D + 1 nothing random is added.
    seed
        W ~ N(0, 1/D) and b ~ U(-1, 1) are drawn from it, so they are never stored.

    Notes
    -----
    O(D·d) per vector, 4·D·d bytes. Source: random features as in McDonnell et al., RanPAC (2023).
    """

    def __init__(self, n_features: int, n_lifted: int, seed: int) -> None:
        self.n_lifted = n_lifted
        n_random = n_lifted - 1 - n_features
        rng = np.random.default_rng(seed)
        self._weights = rng.normal(0, n_features**-0.5, (n_features, n_random)).astype(np.float32)
        self._bias = rng.uniform(-1, 1, n_random).astype(np.float32)

    @staticmethod
    def needed_bytes(n_features: int, n_lifted: int) -> int:
        """`nbytes` of a new one."""
        n_random = n_lifted - 1 - n_features
        return 4 * n_random * (n_features + 1)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._weights.nbytes + self._bias.nbytes

    def __call__(self, z: FloatArray) -> FloatArray:
        """(n, D) standardised features → (n, d) float32."""
        n_features = z.shape[1]
        phi = np.empty((len(z), self.n_lifted), dtype=np.float32)
        phi[:, 0] = 1
        phi[:, 1 : 1 + n_features] = z
        random = phi[:, 1 + n_features :]
        np.matmul(z, self._weights, out=random)
        random += self._bias
        np.maximum(random, 0, out=random)
        phi *= np.float32(4 / np.sqrt(self.n_lifted))
        return phi
