"""Recordings of real sensors, from ``.npz`` files.

The layout of a file (R recordings, n samples in all, C channels; bring your own in it)

====================  ======================================================================
``signal``            (n, C) numbers; physical value = ``signal * scale``
``scale``             (C,) or a single number; 1 when absent
``offsets``           (R + 1,) integers: recording k is ``signal[offsets[k]:offsets[k + 1]]``
``y``                 (n,) or (R,) integers from 0: the class of each sample or recording
``t_ms``              (n,) milliseconds since the recording's start, not decreasing; or
``rate_hz``           one number, when sampling is regular
``class_names``       (n_classes,) text
``rec_subject``       (R,) integers: who; people are never split over train and test
``channel_names``     (C,) text, optional
``units``             (C,) text, optional
``rec_ANYTHING``      (R,) optional: kept as a tag; ``ANYTHING_names`` turns numbers to text
====================  ======================================================================

``emg`` may stand for ``signal`` and ``sample_rate`` for ``rate_hz``. Pickled arrays are refused.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import DataError
from edge_cl.manifest import Channel

Array: TypeAlias = NDArray[Any]

_UNITS = {"acc": "m/s^2", "gyr": "rad/s"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Recording:
    """One uninterrupted recording of one person.

    Attributes
    ----------
    signal
        (n, n_channels) float32, physical units.
    t_s
        (n,) float64 seconds since the recording's start, not decreasing.
    y
        (n,) int64 class of each sample.
    tags
        What else the file says of this recording, e.g. ``device`` or ``session``.
    """

    signal: NDArray[np.float32]
    t_s: NDArray[np.float64]
    y: NDArray[np.int64]
    person: int
    tags: Mapping[str, str | int | float] = field(default_factory=dict)


@dataclass(frozen=True, eq=False, kw_only=True)
class Dataset:
    """Recordings in the file's own order, with what their numbers mean."""

    name: str
    class_names: tuple[str, ...]
    channels: tuple[Channel, ...]
    rate_hz: float
    recordings: tuple[Recording, ...]


def load(path: str | Path) -> Dataset:
    """Read a recordings file.

    Raises
    ------
    DataError
        When the file is missing, is not such a file, or its arrays do not fit together.
    """
    path = Path(path)
    arrays = _read(path)
    signal = _first(path, arrays, "signal", "emg")
    offsets = _need(path, arrays, "offsets").astype(np.int64)
    if signal.ndim != 2:
        raise DataError(f"{path}: signal has shape {signal.shape}, should be (samples, channels)")
    if offsets[0] != 0 or offsets[-1] != len(signal) or (np.diff(offsets) <= 0).any():
        raise DataError(
            f"{path}: offsets should rise from 0 to {len(signal)} (the number of samples), "
            f"found {offsets[0]} to {offsets[-1]} or an empty recording"
        )
    class_names = tuple(str(name) for name in _need(path, arrays, "class_names"))
    y = _per_sample(path, _need(path, arrays, "y"), offsets, len(class_names))
    t_s, rate_hz = _times(path, arrays, offsets)
    people = _need(path, arrays, "rec_subject")
    tags = _tags(path, arrays, len(offsets) - 1)
    scale = np.asarray(arrays.get("scale", 1.0), np.float32)
    recordings = tuple(
        Recording(
            signal=signal[a:b].astype(np.float32) * scale,
            t_s=t_s[a:b],
            y=y[a:b],
            person=int(people[k]),
            tags={name: values[k] for name, values in tags.items()},
        )
        for k, (a, b) in enumerate(pairwise(offsets.tolist()))
    )
    return Dataset(
        name=path.stem,
        class_names=class_names,
        channels=_channels(path, arrays, signal.shape[1]),
        rate_hz=rate_hz,
        recordings=recordings,
    )


@contextmanager
def open_npz(path: Path) -> Iterator[np.lib.npyio.NpzFile]:
    """The arrays of a file, each read when asked for; a `DataError` when it is not such a file."""
    try:
        with np.load(path, allow_pickle=False) as loaded:
            if not isinstance(loaded, np.lib.npyio.NpzFile):
                raise DataError(f"{path}: a single array, not an .npz of several; see `edge-cl data list -h`")
            yield loaded
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `edge-cl data list` shows what is here") from None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable .npz file without pickles ({error})") from error


def _read(path: Path) -> dict[str, Array]:
    with open_npz(path) as loaded:
        return {key: loaded[key] for key in loaded.files}


def _need(path: Path, arrays: Mapping[str, Array], key: str) -> Array:
    return _first(path, arrays, key)


def _first(path: Path, arrays: Mapping[str, Array], *keys: str) -> Array:
    for key in keys:
        if key in arrays:
            return arrays[key]
    raise DataError(
        f"{path}: no array {' or '.join(repr(key) for key in keys)}; found {sorted(arrays)}. "
        "The layout is described in edge_cl.datasets.recordings"
    )


def _per_sample(path: Path, y: Array, offsets: Array, n_classes: int) -> NDArray[np.int64]:
    if len(y) == len(offsets) - 1:
        y = np.repeat(y, np.diff(offsets))
    if y.shape != (offsets[-1],):
        raise DataError(
            f"{path}: y has shape {y.shape}, should have one entry per sample ({offsets[-1]}) "
            f"or per recording ({len(offsets) - 1})"
        )
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= n_classes:
        raise DataError(f"{path}: y should be integers 0 to {n_classes - 1}, found {y.min()} to {y.max()}")
    return y.astype(np.int64)


def _times(path: Path, arrays: Mapping[str, Array], offsets: Array) -> tuple[NDArray[np.float64], float]:
    n = int(offsets[-1])
    if "t_ms" not in arrays:
        rate_hz = float(_first(path, arrays, "rate_hz", "sample_rate", "t_ms"))
        if not rate_hz > 0:
            raise DataError(f"{path}: rate_hz is {rate_hz}, must be above 0")
        starts = np.repeat(offsets[:-1], np.diff(offsets))
        return (np.arange(n) - starts) / rate_hz, rate_hz
    t_s = arrays["t_ms"].astype(np.float64) / 1000
    if t_s.shape != (n,):
        raise DataError(f"{path}: t_ms has shape {t_s.shape}, should be ({n},)")
    steps = np.delete(np.diff(t_s), offsets[1:-1] - 1)
    if not len(steps) or steps.min() < 0 or steps.sum() == 0:
        raise DataError(f"{path}: t_ms goes backwards or stands still inside a recording; sort its samples")
    return t_s, float(len(steps) / steps.sum())


def _channels(path: Path, arrays: Mapping[str, Array], n_channels: int) -> tuple[Channel, ...]:
    stem = "emg" if "emg" in arrays else "channel"
    names = arrays.get("channel_names", np.array([f"{stem}_{k}" for k in range(n_channels)]))
    units = arrays.get("units", np.array([_UNITS.get(str(name)[:3], "") for name in names]))
    if not len(names) == len(units) == n_channels:
        raise DataError(
            f"{path}: {len(names)} channel_names, {len(units)} units for {n_channels} channels in signal"
        )
    return tuple(Channel(str(name), str(unit)) for name, unit in zip(names, units, strict=True))


def _tags(path: Path, arrays: Mapping[str, Array], n_recordings: int) -> dict[str, list[Any]]:
    tags: dict[str, list[Any]] = {}
    for key in (key for key in arrays if key.startswith("rec_")):
        values = arrays[key]
        if values.shape != (n_recordings,):
            raise DataError(f"{path}: {key} has shape {values.shape}, should be ({n_recordings},)")
        name = key.removeprefix("rec_")
        texts = arrays.get(f"{name}_names")
        tags[name] = values.tolist() if texts is None else [str(texts[value]) for value in values]
    return tags
