"""Labelled feature streams: ``.npz`` files of features, spoken digits, recordings through a bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_cl.datasets import encoded, spoken_digits
from edge_cl.datasets.recordings import open_npz
from edge_cl.errors import DataError
from edge_cl.records import FloatArray

ROWS = 25_000
HELD_OUT_OF = 5
"""One group of so many is held out."""

Labelled: TypeAlias = tuple[FloatArray, NDArray[np.int64], NDArray[np.int64]]
"""X (n, D), y (n,) classes from 0, and (n,) the group of each row: held out whole or not at all."""


class Stream(msgspec.Struct, frozen=True):
    """A labelled feature stream in its natural order: X (n, D), y (n,) classes from 0."""

    name: str
    X: FloatArray
    y: NDArray[np.int64]
    held_out: NDArray[np.bool_]


class _Source(NamedTuple):
    name: str
    load: Callable[[], Labelled]


def find_streams(
    folder: str | Path,
    bundles: Sequence[Path] = (),
    *,
    scenario: str | None = None,
    only: Iterable[str] = (),
    rows: int = ROWS,
    skip: int = 0,
) -> Iterator[Stream]:
    """The streams of a folder, and what the encoders of `bundles` make of their recordings.

    A stream is every ``.npz`` that holds `X` (n, D) and `y` (n,), and ``fsdd_8x16`` where
    ``fsdd_audio_8k.npz`` is there. Every fifth row is held out, never learned from. A file whose labels
    cycle names its cycle length in `frame`; then every fifth whole frame is. Of recordings and of spoken
    digits, every fifth recording or take is held out whole.

    Parameters
    ----------
    bundles
        Each gives one stream, see :func:`edge_cl.datasets.encoded.encode_stream`.
    scenario
        For bundles that do not say which recordings they are made for.
    only
        Names of the streams wanted; all of them when empty.
    rows, skip
        The first `skip` rows of each stream are dropped, the `rows` after them used.

    Raises
    ------
    DataError
        When there is no stream, one that is wanted is not there, or one cannot be used.
    """
    sources = _sources(Path(folder), bundles, scenario)
    names = [source.name for source in sources]
    if len(set(names)) < len(names):
        raise DataError(f"two streams have one name in {sorted(names)}; rename a file or a bundle")
    unknown = set(only) - set(names)
    if unknown:
        raise DataError(f"no stream {sorted(unknown)} in {folder}; found {sorted(names)}")
    for source in sources:
        if not only or source.name in only:
            yield _stream(source.name, *source.load(), cut=slice(skip, skip + rows))


def _sources(folder: Path, bundles: Sequence[Path], scenario: str | None) -> list[_Source]:
    paths = sorted(folder.glob("*.npz"))
    if not paths and not bundles:
        raise DataError(f"{folder}: no .npz files there; `edge-cl data list` shows where data is looked for")
    sources = [source for source in map(_of_file, paths) if source]
    if not sources and not bundles:
        raise DataError(
            f"{folder}: none of its {len(paths)} .npz files holds X (n, D) and y (n,), "
            f"or is {spoken_digits.FILE}"
        )
    return [*sources, *_of_bundles(folder, bundles, scenario)]


def _of_file(path: Path) -> _Source | None:
    if path.name == spoken_digits.FILE:
        return _Source(spoken_digits.STREAM, partial(spoken_digits.load, path))
    with open_npz(path) as data:
        is_stream = {"X", "y"} <= set(data.files) and len(_shape(data, "X")) == 2
    return _Source(path.stem, partial(_read, path)) if is_stream else None


def _shape(data: Any, name: str) -> tuple[int, ...]:
    """Of an array in an open ``.npz``, from its header alone."""
    with data.zip.open(f"{name}.npy") as member:
        np.lib.format.read_magic(member)
        shape, _, _ = np.lib.format.read_array_header_1_0(member)
    return shape


def _read(path: Path) -> Labelled:
    with open_npz(path) as data:
        frame = int(data["frame"]) if "frame" in data.files else 1
        return data["X"], data["y"], np.arange(len(data["y"])) // frame


def _of_bundles(folder: Path, bundles: Sequence[Path], scenario: str | None) -> Iterator[_Source]:
    found = [(path, *encoded.find_recordings(path, folder, scenario)) for path in bundles]
    for path, plan, data in found:
        name = f"{plan.data}_features"
        if sum(other == plan for _, other, _ in found) > 1:
            name += f"_{path.stem}"
        yield _Source(name, partial(encoded.encode_stream, path, plan, data))


def _stream(
    name: str, X: FloatArray, y: NDArray[np.int64], group: NDArray[np.int64], *, cut: slice
) -> Stream:
    if y.shape != (len(X),) or not np.issubdtype(y.dtype, np.integer) or (y < 0).any():
        raise DataError(f"{name}: y should be {len(X)} integers from 0, found {y.dtype} of shape {y.shape}")
    X, y, held_out = X[cut].astype(np.float32), y[cut].astype(np.int64), group[cut] % HELD_OUT_OF == 4
    if not held_out.any() or held_out.all():
        raise DataError(
            f"{name}: {len(y)} rows after skipping {cut.start} leave nothing to learn or nothing "
            "to hold out; use more rows"
        )
    if not np.isfinite(X).all():
        raise DataError(f"{name}: X holds values that are not finite; remove those rows")
    return Stream(name, X, y, held_out)
