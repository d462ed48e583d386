"""A covariance, shrunk and factored: what linear discriminants need of its inverse, without the inverse."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import NumericalError
from edge_cl.records import FloatArray

BLOCK = 128
"""Rows of the factor solved at a time; numpy has no triangular solver."""
LEAF = 32
"""Rows that LAPACK factors and inverts at a time: it knows no triangular inverse, products do the rest."""


def shrunk_factor(cov: FloatArray, shrinkage: float, magnitude: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Factor of a covariance shrunk towards its own diagonal, for `precision_times`.

    Worked out on correlations, so rescaling a feature changes nothing; an absolute ridge would.

    Parameters
    ----------
    cov
        (D, D) symmetric, positive semi-definite up to rounding.
    shrinkage
        In (0, 1]: 0.01 keeps 99 % of each correlation.
    magnitude
        (D,) typical absolute value of each feature: what varies less than 1e-5 of it is constant but
        for rounding, and gets that much spread.

    Returns
    -------
    (D, D) float32 lower Cholesky factor of the correlations with its diagonal blocks inverted (what is above
    them means nothing), and (D,) float32 inverse deviations. Costs D³/3 multiplications, most in sgemm.

    Notes
    -----
    Rounding can make a covariance of nearly dependent features indefinite: then ten times the shrinkage
    is used, as often as needed.

    Raises
    ------
    NumericalError
        When the covariance is not finite.
    """
    var = np.maximum(np.diagonal(cov), 0).astype(np.float64)
    std = np.maximum(np.sqrt(var), 1e-5 * magnitude.astype(np.float64))
    std[std == 0] = 1.0
    if not np.isfinite(std).all():
        raise NumericalError(f"covariance of {len(std)} features is not finite; relearn it from memory")
    inv_std = (1 / std).astype(np.float32)
    while True:
        factor = cov * (np.float32(1 - shrinkage) * inv_std)
        factor *= inv_std[:, None]
        factor[np.diag_indices_from(factor)] = 1.0
        try:
            _factor_in_place(factor)
            return factor, inv_std
        except np.linalg.LinAlgError as error:
            if shrinkage == 1:
                raise NumericalError(f"covariance of {len(std)} features is not finite ({error})") from error
            shrinkage = min(10 * shrinkage, 1.0)


def _factor_in_place(matrix: FloatArray) -> None:
    """Symmetric (D, D) to its lower Cholesky factor with inverted diagonal blocks, left to right."""
    for rows in blocks(len(matrix)):
        known, below = slice(0, rows.start), slice(rows.stop, None)
        matrix[rows.start :, rows] -= matrix[rows.start :, known] @ matrix[rows, known].T
        matrix[rows, rows] = _inverse_factor(matrix[rows, rows].astype(np.float64))
        matrix[below, rows] = matrix[below, rows] @ matrix[rows, rows].T


def _inverse_factor(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of the lower Cholesky factor of a symmetric (n, n), half by half."""
    n = len(matrix)
    if n <= LEAF:
        return np.linalg.inv(np.linalg.cholesky(matrix))
    first, last = slice(0, n // 2), slice(n // 2, n)
    inverse = np.zeros_like(matrix)
    inverse[first, first] = _inverse_factor(matrix[first, first])
    across = matrix[last, first] @ inverse[first, first].T
    inverse[last, last] = _inverse_factor(matrix[last, last] - across @ across.T)
    inverse[last, first] = -inverse[last, last] @ (across @ inverse[first, first])
    return inverse


def precision_times(factor: FloatArray, inv_std: FloatArray, vectors: FloatArray) -> FloatArray:
    """Rows of `vectors` (n, D) times the inverse of the covariance that was factored, (n, D); O(n·D²)."""
    solved = (vectors * inv_std).T
    columns = blocks(len(factor))
    for rows in columns:
        if rows.start:
            solved[rows] -= factor[rows, : rows.start] @ solved[: rows.start]
        solved[rows] = factor[rows, rows] @ solved[rows]
    for rows in reversed(columns):
        if rows.stop < len(factor):
            solved[rows] -= factor[rows.stop :, rows].T @ solved[rows.stop :]
        solved[rows] = factor[rows, rows].T @ solved[rows]
    product: FloatArray = solved.T * inv_std
    return product


def blocks(n: int) -> list[slice]:
    """Consecutive ranges of at most `BLOCK` that cover n."""
    return [slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
