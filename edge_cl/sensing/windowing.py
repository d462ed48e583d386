"""From irregular samples to fixed windows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.records import FloatArray


def windows_of(
    signal: FloatArray,
    t_s: NDArray[np.floating[Any]],
    *,
    rate_hz: float,
    window_samples: int,
    hop_samples: int,
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Cut one recording into windows on a regular grid (linear interpolation).

    Parameters
    ----------
    signal
        (n, n_channels), physical units.
    t_s
        (n,) seconds, not decreasing.

    Returns
    -------
    windows, end_s
        (k, window_samples, n_channels) float32 and (k,) time of each window's last sample.
    """
    grid = t_s[0] + np.arange(int((t_s[-1] - t_s[0]) * rate_hz + 1e-6) + 1) / rate_hz
    if len(grid) < window_samples:
        return np.empty((0, window_samples, signal.shape[1]), np.float32), np.empty(0)
    regular = np.stack([np.interp(grid, t_s, column) for column in signal.T], axis=1).astype(np.float32)
    ends = np.arange(window_samples - 1, len(grid), hop_samples)
    index = ends[:, None] + np.arange(1 - window_samples, 1)
    return regular[index], grid[ends]
