"""Product quantisation: a feature vector as some bytes, each the number of its part's nearest centroid."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge_cl.bundle import Codebook
from edge_cl.memory.codecs import Float32
from edge_cl.records import FloatArray

MAX_CENTROIDS = 256
LARGEST = np.float32(1e15)
"""In deviations: what is farther out is clipped, so that a square fits float32."""
BLOCK = 256
"""Vectors encoded together: bounds the table of distances."""
N_ITERATIONS = 20
N_ROTATIONS = 6
FOLLOW = 0.25
"""What a refresh may add to the older vectors of a centroid, of the squared error that all of its have."""


def default_codes(n_features: int) -> int:
    """Codes for a sixteenth of float32: one byte for four channels."""
    return -(-n_features // 4)


def fit_codebook(
    X: FloatArray,
    n_codes: int,
    rng: np.random.Generator,
    *,
    n_centroids: int = MAX_CENTROIDS,
    rotate: bool = False,
) -> Codebook:
    """Learn a product quantiser: k-means in every part (Jégou, Douze & Schmid, 2011).

    Parameters
    ----------
    X
        (n, D) features, n ≥ 1; a few thousand do.
    n_codes
        Bytes per exemplar wanted, 1 to D; when they do not divide D there may be fewer.
    rng
        Chooses the first centroids.
    n_centroids
        At most; never more than n.
    rotate
        Learn a rotation, too, that shares the variance out among the parts (Ge et al., 2013, OPQ): about half
        the squared error for 4·D² more bytes and seven times the work.

    Notes
    -----
    O(n · n_centroids · D) for each of at most 20 iterations. Channels are scaled by their deviation, so that
    what is small in its unit is not lost.
    """
    X = np.asarray(X, dtype=np.float32)
    n, n_features = X.shape
    if not 1 <= n_codes <= n_features or n < 1:
        raise ValueError(
            f"n_codes is {n_codes}, found {n} features of size {n_features}; allowed: 1 to the size"
        )
    std, mean = X.std(axis=0, dtype=np.float64), X.mean(axis=0, dtype=np.float64)
    scale = (1 / np.maximum(std, 1e-6 * np.abs(mean) + 1e-12)).astype(np.float32)
    size, Z = -(-n_features // n_codes), X * scale
    rotation = _balanced_axes(Z, size) if rotate else np.empty((0, 0), dtype=np.float32)
    for _ in range(N_ROTATIONS if rotate else 0):
        found = _reconstructed(Z @ rotation, size, min(n_centroids, n), rng)
        left, _, right = np.linalg.svd(Z.T.astype(np.float64) @ found)
        rotation = (left @ right).astype(np.float32)
    parts = _parts(Z @ rotation if rotate else Z, size)
    fitted = [_k_means(part, min(n_centroids, n), rng) for part in parts]
    return Codebook(
        centroids=np.stack([centroids for centroids, _ in fitted]),
        scale=scale,
        rotation=rotation,
        error=np.array([error for _, error in fitted], dtype=np.float32),
    )


class Pq(Float32):
    """One byte for each part of a feature vector.

    Parameters
    ----------
    codebook
        Centroids to start from.

    Notes
    -----
    `encode` O(K·D), `decode` O(D) per vector; with a rotation D² more each. Codes are never rewritten:
    `refresh` moves the centroids under them, as DeDrift (Baranchuk et al., 2023) does for an index. What was
    stored then decodes a little differently, and `find` misses it where x would get another code now.
    Holds (8·K + 8)·D + 8·K·M bytes, and 4·D² with a rotation.
    """

    name: ClassVar[str] = "pq"
    dtype: ClassVar[DTypeLike] = np.uint8

    def __init__(self, codebook: Codebook) -> None:
        super().__init__(len(codebook.scale))
        self._centroids = np.array(codebook.centroids, dtype=np.float32)
        self.width, n_centroids, self._size = self._centroids.shape
        self._scale = np.array(codebook.scale, dtype=np.float32)
        self._reach = np.minimum(LARGEST / self._scale.astype(np.float64), 3e38).astype(np.float32)
        self._rotation = np.array(codebook.rotation, dtype=np.float32)
        self._error = np.array(codebook.error, dtype=np.float32)
        self._first = np.arange(self.width) * n_centroids  # of each part, in all centroids
        self._sums = np.zeros_like(self._centroids)  # of what new vectors differ from their centroid by
        self._counts = np.zeros(self._centroids.shape[:2], dtype=np.float32)
        self._norms = self._half_squares()

    @property
    def nbytes(self) -> int:
        """Bytes held beside the rows: centroids, what is to move them, scale and rotation."""
        arrays = (
            self._centroids,
            self._sums,
            self._counts,
            self._norms,
            self._scale,
            self._reach,
            self._rotation,
        )
        return int(sum(array.nbytes for array in arrays) + self._error.nbytes + self._first.nbytes)

    def encode(self, x: FloatArray) -> np.ndarray:
        """(D,) or (n, D) float32 → codes (M,) or (n, M): the nearest centroids."""
        if x.ndim == 1:
            scores = np.matmul(self._centroids, self._turned(x[None]).transpose(0, 2, 1))[:, :, 0]
            scores -= self._norms
            nearest: np.ndarray = scores.argmax(axis=1).astype(np.uint8)
            return nearest
        codes = np.empty((len(x), self.width), dtype=np.uint8)
        for start in range(0, len(x), BLOCK):
            parts = self._turned(x[start : start + BLOCK])
            scores = np.matmul(parts, self._centroids.transpose(0, 2, 1))
            scores -= self._norms[:, None]
            codes[start : start + BLOCK] = scores.argmax(axis=2).T
        return codes

    def decode(self, rows: np.ndarray) -> FloatArray:
        """(n, M) codes → (n, D) float32."""
        centroids = self._centroids.reshape(-1, self._size)
        found = centroids.take(rows + self._first, axis=0).reshape(len(rows), -1)[:, : self.n_features]
        decoded: FloatArray = (found @ self._rotation.T if len(self._rotation) else found) / self._scale
        return decoded

    def reconstruct(self, X: FloatArray) -> FloatArray:
        """(n, D) as it would come back from memory."""
        return self.decode(self.encode(X[0])[None] if len(X) == 1 else self.encode(X))

    def learn(self, x: FloatArray, row: np.ndarray) -> None:
        """Note how far x (D,) is from the centroids it was stored as."""
        at = self._first + row
        away = self._turned(x[None])[:, 0] - self._centroids.reshape(-1, self._size)[at]
        self._sums.reshape(-1, self._size)[at] += away
        self._counts.reshape(-1)[at] += 1

    def refresh(self, stored: Iterable[np.ndarray]) -> None:
        """Move each centroid towards the mean of what was stored as it since the last refresh.

        With `held` vectors stored as a centroid, `new` of them lately and those on average `away` from it,
        it moves by away · new / held: to the mean of all, if the older ones are spread around it evenly.
        That adds (held - new) · step² to the squared error of the older ones: at most `FOLLOW` times what
        all of them have. A centroid that only new vectors use goes to their mean.
        """
        held = np.zeros(self._counts.size)
        for rows in stored:
            held += np.bincount((rows + self._first).ravel(), minlength=held.size)
        held = np.maximum(held.reshape(self._counts.shape), self._counts)
        step = self._sums / np.maximum(held, 1)[..., None]
        added = (held - self._counts) * np.einsum("mkd,mkd->mk", step, step)
        allowed = np.sqrt(FOLLOW * self._error[:, None] * held / np.maximum(added, 1e-30))
        self._centroids += (step * np.minimum(allowed, 1)[..., None]).astype(np.float32)
        self._sums[:], self._counts[:] = 0, 0
        self._norms = self._half_squares()

    def state(self) -> dict[str, np.ndarray]:
        """Centroids and what is to move them."""
        return {
            "centroids": self._centroids.copy(),
            "sums": self._sums.copy(),
            "counts": self._counts.copy(),
        }

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take back what `state` gave."""
        self._centroids, self._sums = arrays["centroids"].copy(), arrays["sums"].copy()
        self._counts = arrays["counts"].copy()
        self._norms = self._half_squares()

    def _turned(self, X: FloatArray) -> FloatArray:
        """(n, D) → (M, n, d): scaled, rotated, in parts."""
        Z = np.clip(X, -self._reach, self._reach) * self._scale
        return _parts(Z @ self._rotation if len(self._rotation) else Z, self._size)

    def _half_squares(self) -> FloatArray:
        """(M, K): half of each centroid's square."""
        squares: FloatArray = 0.5 * np.einsum("mkd,mkd->mk", self._centroids, self._centroids)
        return squares


def _balanced_axes(Z: FloatArray, size: int) -> FloatArray:
    """Principal axes (D, D) of Z (n, D), so ordered that the parts have about equal volumes."""
    variances, axes = np.linalg.eigh(np.cov(Z.T.astype(np.float64)).reshape(Z.shape[1], -1))
    room = [len(part) for part in np.array_split(variances, range(size, len(variances), size))]
    parts: list[list[int]] = [[] for _ in room]
    volumes = np.zeros(len(room))
    for k in np.argsort(-variances, kind="stable").tolist():
        open_parts = [p for p in range(len(room)) if len(parts[p]) < room[p]]
        part = min(open_parts, key=lambda p: volumes[p])
        parts[part].append(k)
        volumes[part] += np.log1p(max(variances[k], 0))
    return axes[:, [k for part in parts for k in part]].astype(np.float32)


def _reconstructed(Z: FloatArray, size: int, n_centroids: int, rng: np.random.Generator) -> FloatArray:
    """Z (n, D) as k-means in its parts would give it back."""
    found = []
    for part in _parts(Z, size):
        centroids, _ = _k_means(part, n_centroids, rng)
        found.append(centroids[_assign(part, centroids)[0]])
    return np.concatenate(found, axis=1)[:, : Z.shape[1]]


def _parts(X: FloatArray, size: int) -> FloatArray:
    """(n, D) → (M, n, size), the last part zero-padded."""
    n, n_features = X.shape
    if short := -n_features % size:
        X = np.concatenate([X, np.zeros((n, short), dtype=np.float32)], axis=1)
    return X.reshape(n, -1, size).transpose(1, 0, 2)


def _k_means(X: FloatArray, n_centroids: int, rng: np.random.Generator) -> tuple[FloatArray, float]:
    """Centroids (k, d) of X (n, d) and the mean squared distance to them. Empty ones start again far out."""
    centroids = X[rng.permutation(len(X))[:n_centroids]].copy()
    error = np.inf
    for _ in range(N_ITERATIONS):
        nearest, away = _assign(X, centroids)
        if away.mean() > 0.999 * error:
            break
        error = float(away.mean())
        counts = np.bincount(nearest, minlength=n_centroids)
        for j in range(X.shape[1]):
            sums = np.bincount(nearest, weights=X[:, j], minlength=n_centroids)
            centroids[:, j] = sums / np.maximum(counts, 1)
        empty = np.flatnonzero(counts == 0)
        centroids[empty] = X[np.argsort(-away, kind="stable")[: len(empty)]]
    return centroids, float(_assign(X, centroids)[1].mean())


def _assign(X: FloatArray, centroids: FloatArray) -> tuple[NDArray[np.int64], FloatArray]:
    scores = X @ centroids.T
    scores -= 0.5 * np.einsum("kd,kd->k", centroids, centroids)
    nearest = scores.argmax(axis=1)
    return nearest, ((X - centroids[nearest]) ** 2).sum(axis=1)
