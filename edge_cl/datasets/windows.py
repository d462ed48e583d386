"""Recordings to labelled windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edge_cl.datasets.recordings import Recording
from edge_cl.errors import DataError
from edge_cl.sensing.windowing import windows_of


@dataclass(frozen=True, eq=False, kw_only=True)
class Windows:
    """n labelled windows, in the order of their recordings.

    Attributes
    ----------
    X
        (n, window_samples, n_channels) float32, physical units.
    y, person
        (n,) int64.
    recording
        (n,) int64, index into the recordings they were cut from.
    t_s
        (n,) float64, time of the last sample since its recording's start.
    """

    X: NDArray[np.float32]
    y: NDArray[np.int64]
    person: NDArray[np.int64]
    recording: NDArray[np.int64]
    t_s: NDArray[np.float64]


def windows(
    recordings: Sequence[Recording], *, rate_hz: float, window_samples: int, hop_samples: int
) -> Windows:
    """Cut recordings into windows; a window is of the class that most of its samples have.

    A window never crosses from one recording into the next; recordings shorter than one
    window give none.

    Raises
    ------
    DataError
        When not one window came out.
    """
    parts = []
    for recording in recordings:
        X, end_s = windows_of(
            recording.signal,
            recording.t_s,
            rate_hz=rate_hz,
            window_samples=window_samples,
            hop_samples=hop_samples,
        )
        parts.append((X, majority(recording, end_s, window_samples / rate_hz), end_s))
    n_windows = [len(X) for X, _, _ in parts]
    if not sum(n_windows):
        raise DataError(
            f"no window of {window_samples} samples at {rate_hz:g} Hz fits into any of the "
            f"{len(recordings)} recordings; choose a shorter window"
        )
    return Windows(
        X=np.concatenate([X for X, _, _ in parts]),
        y=np.concatenate([y for _, y, _ in parts]),
        person=np.repeat([recording.person for recording in recordings], n_windows),
        recording=np.repeat(np.arange(len(recordings)), n_windows),
        t_s=np.concatenate([t for _, _, t in parts]),
    )


def majority(recording: Recording, end_s: NDArray[np.float64], window_s: float) -> NDArray[np.int64]:
    """(k,) the most frequent class in each (end − window_s, end]; ties go to the lower class.

    Where a gap leaves no sample in a window, the last sample before its end decides.
    """
    seen = np.eye(int(recording.y.max()) + 1, dtype=np.int64)[recording.y].cumsum(axis=0)
    seen = np.concatenate([np.zeros_like(seen[:1]), seen])
    # Half a microsecond of slack: grid times and sample times are the same up to rounding.
    last = np.searchsorted(recording.t_s, end_s + 5e-7, side="right")
    first = np.searchsorted(recording.t_s, end_s - window_s + 5e-7, side="right")
    label: NDArray[np.int64] = (seen[last] - seen[np.minimum(first, last - 1)]).argmax(axis=1)
    return label
