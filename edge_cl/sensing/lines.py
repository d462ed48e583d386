"""The text a stream is written in: JSON lines and CSV, decoded one line at a time.

A decoder turns a line into `Samples`, a `Labelled` ready window, or a `Label`, or raises
`BadReading` with what it found. It keeps no windows and counts nothing.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_cl.errors import BadReading, SensorUnavailable
from edge_cl.manifest import Manifest
from edge_cl.records import FloatArray, Label, LabelKind


class Samples(msgspec.Struct, frozen=True):
    """(n,) times, (n, n_channels) values and one label per sample ("": not labelled)."""

    t_s: FloatArray
    values: FloatArray
    labels: list[str]


class Labelled(msgspec.Struct, frozen=True):
    """A ready window with the id and label its line gave ("": none), and whether it is urgent."""

    id: str
    t_s: float
    window: FloatArray
    label: str
    urgent: bool = False


class Interrupted(BadReading):
    """A driver's word that samples were lost: what comes next has nothing to do with what came before."""


Item: TypeAlias = Samples | Labelled | Label


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    t: float | list[float] | None = None
    x: list[float | list[float]] | None = None
    window: list[list[float]] | None = None
    label: str | list[str] = ""
    id: str = ""
    reading_id: str = ""
    source: str = "stream"
    kind: LabelKind = "is"
    urgent: bool = False


class JsonDecoder:
    """``{"t": 1.2, "x": [...]}``, ``{"t": 1.2, "window": [[...]]}`` or ``{"label": "walking"}``.

    A label may name its reading (``"reading_id": "r7"``), and say what that was not (``"kind": "not"``).
    Unless `timed`, samples may come without "t"; their times are then NaN.
    """

    def __init__(self, manifest: Manifest, *, timed: bool = True) -> None:
        self._manifest = manifest
        self._timed = timed
        self._decoder = msgspec.json.Decoder(_Line)

    def decode(self, line: bytes) -> Item | None:
        """One line; None for an empty one."""
        if not line.strip():
            return None
        try:
            parsed = self._decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BadReading(f"not a usable JSON line ({error}): {_excerpt(line)}") from error
        if parsed.kind == "not" and (parsed.window is not None or parsed.x is not None):
            raise BadReading('"kind": "not" beside data; say what a reading was not in a line of its own')
        if parsed.window is not None:
            return self._window(parsed)
        if parsed.x is not None:
            return self._samples(parsed)
        if isinstance(parsed.label, str) and parsed.label:
            return Label(
                label=parsed.label,
                kind=parsed.kind,
                reading_id=parsed.reading_id,
                source=parsed.source,
                t_s=parsed.t if isinstance(parsed.t, float) else 0.0,
            )
        raise BadReading(f"neither x, window nor label in {_excerpt(line)}")

    def _samples(self, line: _Line) -> Samples:
        assert line.x is not None
        untimed = line.t is None and not self._timed
        many = isinstance(line.t, list) or (untimed and bool(line.x) and isinstance(line.x[0], list))
        rows = line.x if many else [line.x]
        times = line.t if isinstance(line.t, list) else [line.t]
        if untimed:
            times = [np.nan] * len(rows)
        if None in times:
            raise BadReading('a sample without "t", its time in seconds')
        n, values = len(times), _matrix(rows)
        if values.shape != (n, self._manifest.n_channels):
            raise BadReading(_shape("x", values.shape, (n, self._manifest.n_channels)))
        labels = line.label if isinstance(line.label, list) else [line.label] * n
        if len(labels) != n:
            raise BadReading(f"{len(labels)} labels for {n} samples")
        return Samples(np.array(times, np.float64), values, labels)

    def _window(self, line: _Line) -> Labelled:
        window, need = _matrix(line.window), (self._manifest.window_samples, self._manifest.n_channels)
        if window.shape != need:
            raise BadReading(_shape("window", window.shape, need))
        if not np.isfinite(window).all():
            raise BadReading(f"window at {line.t} s holds values that are not finite")
        if not isinstance(line.t, float) or not isinstance(line.label, str):
            raise BadReading('a ready window needs one "t" (its last sample\'s time, seconds) and one label')
        return Labelled(line.id, line.t, window, line.label, line.urgent)


class CsvDecoder:
    """Rows of ``t_s,<channels…>[,label]``; the header names them, in any order."""

    def __init__(self, manifest: Manifest) -> None:
        self._names = [channel.name for channel in manifest.channels]
        self._columns: list[int] = []
        self._n_columns = 0
        self._t_column = 0
        self._label_column = -1

    def decode(self, line: bytes) -> Item | None:
        """One row; None for the header and for empty ones."""
        import csv  # most devices read none

        try:
            cells = next(csv.reader([line.decode("utf-8")]), [])
        except (UnicodeDecodeError, csv.Error) as error:
            raise BadReading(f"not a CSV row ({error}): {_excerpt(line)}") from error
        cells = [cell.strip() for cell in cells]
        if not any(cells):
            return None
        if not self._columns:
            self._header([cell.removeprefix("\ufeff") for cell in cells])
            return None
        return self._row(cells)

    def _header(self, cells: list[str]) -> None:
        want = {"t_s", *self._names}
        if set(cells) - {"label"} != want or len(set(cells)) != len(cells):
            raise SensorUnavailable(
                f"CSV header is {','.join(cells)}; need {','.join(['t_s', *self._names])} and perhaps label "
                "(the bundle's channels, in any order)"
            )
        self._n_columns = len(cells)
        self._t_column = cells.index("t_s")
        self._label_column = cells.index("label") if "label" in cells else -1
        self._columns = [cells.index(name) for name in self._names]

    def _row(self, cells: list[str]) -> Samples:
        if len(cells) != self._n_columns:
            raise BadReading(f"{len(cells)} columns, the header has {self._n_columns}")
        try:
            t = np.array([float(cells[self._t_column])])
            x = np.array([[float(cells[column]) for column in self._columns]])
        except ValueError as error:
            raise BadReading(f"not a number ({error})") from error
        return Samples(t, x, [cells[self._label_column] if self._label_column >= 0 else ""])


def _matrix(rows: Any) -> NDArray[np.float32]:
    try:
        with np.errstate(over="ignore"):
            return np.array(rows, dtype=np.float64).astype(np.float32)
    except (ValueError, TypeError):
        raise BadReading("rows of unequal length") from None


def _shape(name: str, found: tuple[int, ...], need: tuple[int, ...]) -> str:
    return f"{name} has shape {found}, need {need} (samples, channels)"


def _excerpt(line: bytes) -> str:
    text = line[:60].decode("utf-8", "replace").strip()
    return repr(text) + ("…" if len(line) > 60 else "")
