"""Board files: what a board has, and what was measured or reckoned of it, each figure with its source.

A file of the folder ``boards/``, or one that ``edge-cl estimate --measure my.toml`` wrote::

    format = "edge-cl-board"
    format_version = 1
    name = "Raspberry Pi 5"
    [hardware]
    cpu = "4 × Cortex-A76, 2.4 GHz"
    cores = 4
    ram_mb = 2048
    [figures.times_slower]
    value = 1.15
    kind = "scaled"
    source = "…"

`times_slower` is how long one core takes for what the reference (``boards/reference.toml``) does in 1;
figures that a file gives itself go before those that are scaled by it.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Literal

import msgspec

from edge_cl.errors import ConfigError

FORMAT, FORMAT_VERSION = "edge-cl-board", 1
FOLDER = Path(__file__).with_name("boards")
REFERENCE = "reference"

UNITS = {
    "times_slower": "",
    "onnx_encode_ms": "ms",
    "litert_encode_ms": "ms",
    "tflite_encode_ms": "ms",
    "predict_ms": "ms",
    "learn_ms": "ms",
    "sleep_s": "s",
    "base_mb": "MB",
    "mqtt_mb": "MB",
    "onnx_mb": "MB",
    "litert_mb": "MB",
    "tflite_mb": "MB",
    "installed_mb": "MB",
}
"""Figures that a file may give. Times are those of the bundle that comes with the package, its largest head,
one window or label; `sleep_s` is a whole sleep with a full memory. `base_mb` is the resident memory of a
running device without runtime and budget, `…_mb` what MQTT, or a runtime with the encoder, adds;
`installed_mb` is what the virtual environment takes of the disk."""
TIMES = tuple(name for name, unit in UNITS.items() if unit in ("ms", "s"))


class Figure(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One figure.

    Attributes
    ----------
    kind
        ``measured`` on such a board, ``scaled`` from another's by a ratio that was, ``assumed`` by nobody's
        measurement.
    source
        Where it is from: an address, or what was run.
    spread
        The real figure is expected between so many times this one.
    """

    value: float
    kind: Literal["measured", "scaled", "assumed"]
    source: str
    spread: tuple[float, float] = (1.0, 1.0)


class Hardware(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the board has; `ram_mb` of the smallest sold, `rtc` whether a clock, which needs its battery."""

    cpu: str
    cores: int
    ram_mb: int
    rtc: bool = False
    source: str = ""


class BoardFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One board."""

    format: Literal["edge-cl-board"]
    format_version: Literal[1]
    name: str
    hardware: Hardware
    figures: dict[str, Figure] = {}

    def figure(self, name: str, reference: BoardFile) -> Figure | None:
        """The board's own figure, else the reference's, its times scaled; None when neither tells."""
        if own := self.figures.get(name):
            return own
        found, slower = reference.figures.get(name), self.figures.get("times_slower")
        if found is None or name not in TIMES:
            return found
        if slower is None:
            return None
        source = f"{reference.name}: {found.value:g} {UNITS[name]}, × {slower.value:g} ({slower.source})"
        return Figure(value=found.value * slower.value, kind="scaled", source=source, spread=slower.spread)


def board_names() -> list[str]:
    """Boards that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_board(name: str | Path) -> BoardFile:
    """A board that comes with the package, by its name, or a file.

    Raises
    ------
    ConfigError
        Says what is wrong in the file, or which names there are.
    """
    path = Path(name)
    if path.suffix != ".toml":
        path = FOLDER / f"{name}.toml"
        if not path.exists():
            raise ConfigError(f"no board {str(name)!r}; known: {', '.join(board_names())}, or a FILE.toml")
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the board file ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    try:
        board = msgspec.convert(raw, BoardFile)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}; see the head of edge_cl_device/board_files.py") from error
    _check(path, board)
    return board


def _check(path: Path, board: BoardFile) -> None:
    for name, figure in board.figures.items():
        if name not in UNITS:
            raise ConfigError(f"{path}: unknown figure {name!r}; known: {', '.join(UNITS)}")
        if not 0 < figure.value < float("inf"):
            raise ConfigError(f"{path}: figures.{name}.value is {figure.value:g}; allowed: above 0")
        low, high = figure.spread
        if not 0 < low <= high:
            raise ConfigError(f"{path}: figures.{name}.spread is {figure.spread}; allowed: 0 < low ≤ high")


def save_board(path: Path, board: BoardFile) -> None:
    """Write a board file that `load_board` reads. Raises ConfigError when it cannot be written."""
    lines = [f'format = "{FORMAT}"', f"format_version = {FORMAT_VERSION}", f"name = {_quoted(board.name)}"]
    lines += ["", "[hardware]", *_table(msgspec.to_builtins(board.hardware))]
    for name, figure in board.figures.items():
        lines += ["", f"[figures.{name}]", *_table(msgspec.to_builtins(figure))]
    _check(path, board)
    try:
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write the board file ({error.strerror})") from error


def _table(values: dict[str, object]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in values.items()]


def _toml(value: object) -> str:
    if isinstance(value, str):
        return _quoted(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(part) for part in value) + "]"
    return repr(value)


def _quoted(text: str) -> str:
    """A JSON string is a TOML basic string, but for the one character that JSON leaves bare."""
    return msgspec.json.encode(text).decode().replace("\x7f", "\\u007f")
