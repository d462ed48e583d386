"""From samples that arrive anyhow to windows on a fixed grid of time.

Real sensors jitter, repeat a timestamp, pause, and their clock may be set back. Here samples in
blocks of any size become windows at the bundle's rate; what cannot be used is dropped and
counted, with the last reason kept, and never reaches a window.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import BadReading
from edge_cl.records import FloatArray

SNAP = 1e-3
"""A sample this close to a grid point (in grid steps) is taken as it is: clocks round."""


class Windower:
    """Resamples a stream by linear interpolation and cuts it into windows.

    The grid begins at the first sample and again after every gap or clock reset. The windows
    do not depend on how the stream was split into blocks, to the last bit.

    Parameters
    ----------
    rate_hz
        The grid's rate, > 0.
    window_samples, hop_samples
        Length of a window and distance between two, in grid points, ≥ 1.
    n_channels
        Channels of every sample.
    max_gap_s
        A longer pause starts a new window; so does a clock set back by more. By default 0.5 s
        or five grid steps, whichever is longer.

    Attributes
    ----------
    n_bad
        Samples dropped: not finite, wrong number of channels, or older than the one before.
    n_gaps, n_resets
        Pauses longer than `max_gap_s`; clocks set back by more than that.
    last_bad
        The latest reason, as an error that was not raised, or None.

    >>> windower = Windower(rate_hz=2, window_samples=2, hop_samples=2, n_channels=1)
    >>> windower.push([0.0, 0.8, 1.0], [[0.0], [8.0], [10.0]])
    [(0.5, array([[0.],
           [5.]], dtype=float32))]
    """

    def __init__(
        self,
        *,
        rate_hz: float,
        window_samples: int,
        hop_samples: int,
        n_channels: int,
        max_gap_s: float | None = None,
    ) -> None:
        if not (rate_hz > 0 and window_samples >= 1 and hop_samples >= 1 and n_channels >= 1):
            raise ValueError(
                f"rate {rate_hz} Hz, window {window_samples}, hop {hop_samples} and {n_channels} channels "
                "must all be above 0"
            )
        self.rate_hz = float(rate_hz)
        self.window_samples = window_samples
        self.hop_samples = hop_samples
        self.n_channels = n_channels
        self.max_gap_s = max(0.5, 5 / rate_hz) if max_gap_s is None else max_gap_s
        self.n_bad = self.n_gaps = self.n_resets = 0
        self.last_bad: BadReading | None = None
        self._begin()

    def _begin(self) -> None:
        self._last_t: float = -np.inf
        self._last_x: NDArray[np.float32] = np.empty((0, self.n_channels), np.float32)
        self._rows: NDArray[np.float32] = np.empty((0, self.n_channels), np.float32)
        self._t0: float = 0.0
        self._n_grid: int = 0
        self._n_skip: int = 0

    def restart(self) -> None:
        """Begin a new grid with the next sample: what came before is in no window with it."""
        self._begin()

    def push(self, t_s: FloatArray, samples: FloatArray) -> list[tuple[float, NDArray[np.float32]]]:
        """Take a block of samples; return the windows it completes.

        Parameters
        ----------
        t_s
            (n,) seconds in the source's clock, rising; other samples are dropped and counted.
        samples
            (n, n_channels) in physical units.

        Returns
        -------
        list of (float, ndarray)
            Time of a window's last grid point, and the (window_samples, n_channels) float32
            window. Never raises for what a sensor may deliver. Cost: O(n · n_channels).
        """
        t = np.asarray(t_s, dtype=np.float64).reshape(-1)
        block = np.asarray(samples)
        if block.ndim != 2 or block.shape != (len(t), self.n_channels):
            self._drop(max(len(t), 1), f"samples of shape {block.shape}, need ({len(t)}, {self.n_channels})")
            return []
        with np.errstate(over="ignore"):
            x = block.astype(np.float32)
        finite = np.isfinite(x).all(axis=1) & np.isfinite(t)
        if not finite.all():
            at = int(np.argmin(finite))
            self._drop(int((~finite).sum()), f"value not finite at {t[at]} s: {x[at].tolist()}")
            t, x = t[finite], x[finite]
        windows: list[tuple[float, NDArray[np.float32]]] = []
        while len(t):
            n, keep = self._usable(t)
            windows += self._pieces(t[:n][keep], x[:n][keep])
            t, x = t[n:], x[n:]
            if len(t):
                self._reset(float(t[0]))
        return windows

    def _usable(self, t: FloatArray) -> tuple[int, NDArray[np.bool_]]:
        """How many samples come before a clock reset, and which of them advance the clock."""
        newest = np.maximum.accumulate(np.concatenate([[self._last_t], t]))[:-1]
        back = t < newest - self.max_gap_s
        n = int(np.argmax(back)) if back.any() else len(t)
        t, newest = t[:n], newest[:n]
        older = t < newest
        if older.any():
            at = int(np.argmax(older))
            self._drop(int(older.sum()), f"clock went back from {newest[at]} s to {t[at]} s")
        return n, t > newest

    def _pieces(self, t: FloatArray, x: FloatArray) -> list[tuple[float, NDArray[np.float32]]]:
        """Windows of rising samples, cut at gaps."""
        if not len(t):
            return []
        starts = np.flatnonzero(np.diff(t, prepend=self._last_t) > self.max_gap_s)
        windows = []
        for part in np.split(np.arange(len(t)), starts):
            if len(part) and part[0] in starts and np.isfinite(self._last_t):
                self.n_gaps += 1
                self._begin()
            if len(part):
                self._extend(t[part], x[part])
                windows += self._cut()
        return windows

    def _extend(self, t: FloatArray, x: FloatArray) -> None:
        """Interpolate the grid points that rising samples without a gap make known."""
        if np.isfinite(self._last_t):
            t, x = np.concatenate([[self._last_t], t]), np.concatenate([self._last_x, x])
        else:
            self._t0 = float(t[0])
        eps = SNAP / self.rate_hz
        n_known = int((t[-1] - self._t0) * self.rate_hz) + 2
        grid = self._t0 + np.arange(self._n_grid, max(n_known, self._n_grid)) / self.rate_hz
        grid = grid[grid - eps <= t[-1]]
        after = np.searchsorted(t, grid - eps)
        before = np.maximum(after - 1, 0)
        share = np.ones(len(grid))
        between = t[after] > grid + eps
        i, j = before[between], after[between]
        share[between] = (grid[between] - t[i]) / (t[j] - t[i])
        low, high = x[before].astype(np.float64), x[after].astype(np.float64)
        points = np.where(share[:, None] == 1, high, low + share[:, None] * (high - low))
        self._n_grid += len(grid)
        self._rows = np.concatenate([self._rows, points.astype(np.float32)])
        self._last_t, self._last_x = float(t[-1]), x[-1:]

    def _cut(self) -> list[tuple[float, NDArray[np.float32]]]:
        """Take the finished windows off the resampled rows."""
        skipped = min(self._n_skip, len(self._rows))
        rows, self._n_skip = self._rows[skipped:], self._n_skip - skipped
        first = self._n_grid - len(rows)
        windows = []
        for start in range(0, len(rows) - self.window_samples + 1, self.hop_samples):
            end = start + self.window_samples
            windows.append((self._t0 + (first + end - 1) / self.rate_hz, rows[start:end].copy()))
        used = len(windows) * self.hop_samples
        self._n_skip += max(used - len(rows), 0)
        self._rows = rows[used:].copy()
        return windows

    def _reset(self, t: float) -> None:
        self.n_resets += 1
        self.last_bad = BadReading(f"clock set back from {self._last_t} s to {t} s; started a new window")
        self._begin()

    def _drop(self, n: int, reason: str) -> None:
        self.n_bad += n
        self.last_bad = BadReading(f"{reason}; dropped {n}")


def windows_of(
    signal: FloatArray, t_s: FloatArray, *, rate_hz: float, window_samples: int, hop_samples: int
) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Cut one recording exactly as the device would.

    Parameters
    ----------
    signal
        (n, n_channels) samples in physical units.
    t_s
        (n,) seconds.

    Returns
    -------
    windows, t_s
        (k, window_samples, n_channels) float32 and the (k,) times of their last grid points.

    >>> windows, ends = windows_of(np.eye(4), np.arange(4), rate_hz=1, window_samples=3, hop_samples=1)
    >>> windows.shape, ends.tolist()
    ((2, 3, 4), [2.0, 3.0])
    """
    n_channels = np.asarray(signal).shape[1]
    windower = Windower(
        rate_hz=rate_hz, window_samples=window_samples, hop_samples=hop_samples, n_channels=n_channels
    )
    found = windower.push(t_s, signal)
    if not found:
        return np.empty((0, window_samples, n_channels), np.float32), np.empty(0)
    return np.stack([window for _, window in found]), np.array([t for t, _ in found])
