"""The Free Spoken Digit Dataset as features: 8 times × 16 bands of log power for each clip.

The file ``fsdd_audio_8k.npz`` holds `audio` (n,) int16 at 8 kHz, `offsets` (K + 1,) of its K clips, and for
each clip `y`, `speaker`, `take`. Its clips go by speaker, then take, then digit 0 to 9: ten clips, one of
each digit, are one take of one speaker.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_cl.datasets.recordings import open_npz
from edge_cl.errors import DataError
from edge_cl.records import FloatArray

FILE = "fsdd_audio_8k.npz"
STREAM = "fsdd_8x16"
N_TIMES, N_BANDS = 8, 16
FRAME, HOP = 256, 64
"""Samples: 32 ms, so that each of 16 bands of 250 Hz averages 8 bins; the shortest clip has 14 frames."""
FLOOR = 1e-8
"""Added to the power of a signal in [−1, 1]: about ten times the rounding noise of 16 bits."""


def load(path: Path) -> tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]]:
    """Features (K, 128) float32, digits (K,), and the take of one speaker that each clip is of (K,).

    Raises
    ------
    DataError
        When the file cannot be read or an array is missing.
    """
    with open_npz(path) as data:
        missing = {"audio", "offsets", "y", "speaker", "take"} - set(data.files)
        if missing:
            raise DataError(f"{path}: no array {sorted(missing)}; found {sorted(data.files)}")
        audio, offsets = data["audio"], data["offsets"].tolist()
        y, speaker, take = (data[name].astype(np.int64) for name in ("y", "speaker", "take"))
    clips = (audio[a:b] for a, b in pairwise(offsets))
    group = np.cumsum((np.diff(speaker, prepend=speaker[:1]) != 0) | (np.diff(take, prepend=take[:1]) != 0))
    return np.stack([log_spectrum(clip) for clip in clips]), y, group


def log_spectrum(clip: NDArray[np.int16]) -> FloatArray:
    """Mean log power of one clip in 8 equal times × 16 equal bands to 4 kHz: (n,) int16 → (128,) float32.

    A clip shorter than 88 ms is filled with silence.
    """
    need = FRAME + HOP * (N_TIMES - 1)
    signal = np.pad(clip, (0, max(0, need - len(clip)))) / 32768.0
    frames = np.lib.stride_tricks.sliding_window_view(signal, FRAME)[::HOP] * np.hanning(FRAME)
    power = np.abs(np.fft.rfft(frames)[:, 1:]) ** 2 / FRAME
    bands = power.reshape(len(power), N_BANDS, -1).mean(axis=2)
    times = np.stack([part.mean(axis=0) for part in np.array_split(bands, N_TIMES)])
    features: FloatArray = np.log(times + FLOOR).astype(np.float32).ravel()
    return features
