"""Pure kernels on arrays. Single letters are mapped in each docstring."""

from __future__ import annotations

import numpy as np

from edge_cl.errors import NumericalError
from edge_cl.records import FloatArray


def shrunk_precision(cov: FloatArray, shrinkage: float) -> FloatArray:
    """Inverse of a covariance shrunk towards its own diagonal.

    Shrinking towards the diagonal, with a floor relative to the mean variance, is unchanged by
    rescaling all features; an absolute ridge is not.

    Parameters
    ----------
    cov
        (D, D) symmetric, positive semi-definite up to rounding.
    shrinkage
        In (0, 1]: 0.01 keeps 99 % of the off-diagonal.

    Returns
    -------
    (D, D) float32. Costs one float64 inverse, O(D³).
    """
    full = np.asarray(cov, dtype=np.float64)
    variances = np.diagonal(full)
    floor = max(float(variances.mean()), 1e-12) * 1e-6
    shrunk = (1 - shrinkage) * full
    shrunk[np.diag_indices_from(shrunk)] = np.maximum(variances, floor) + shrinkage * floor
    try:
        return np.linalg.inv(shrunk).astype(np.float32)
    except np.linalg.LinAlgError as error:
        raise NumericalError(f"covariance of {len(full)} features cannot be inverted ({error})") from error


def condition_on_block(
    mean: FloatArray, cov: FloatArray, design: FloatArray, targets: FloatArray, obs_noise_var: float
) -> None:
    """One Kalman measurement step for a block of rows, in place; one covariance for all outputs.

    With F the design, P the cov, M the mean, r the noise and E the innovation Y − F M:
    A = F P;  S = A Fᵀ + r I;  M += Aᵀ S⁻¹ E;  P −= Aᵀ S⁻¹ A.

    Parameters
    ----------
    mean
        (d, C), changed in place.
    cov
        (d, d), changed in place; positive definite.
    design, targets
        (B, d) and (B, C).
    obs_noise_var
        Above 0.

    Notes
    -----
    O(B d² + B² d + B d C). Equal to B single steps. Source: block recursive least squares,
    e.g. Zhuang et al., ACIL (2022), eq. 8-9.
    """
    projected = design @ cov
    innovation_cov = projected @ design.T
    innovation_cov[np.diag_indices_from(innovation_cov)] += obs_noise_var
    gain = np.linalg.solve(innovation_cov.astype(np.float64), projected).astype(np.float32)
    mean += gain.T @ (targets - design @ mean)
    cov -= projected.T @ gain
