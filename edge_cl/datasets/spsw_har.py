"""The smartphone and smartwatch recordings of Matey-Sanz et al., *Data in Brief*, 2023.

CC BY 4.0, doi 10.5281/zenodo.8398688. The publisher's CSV files (at a pinned commit, each with its
size and SHA-256 in ``spsw_har.sha256``) become one ``.npz`` in the layout of
:mod:`edge_cl.datasets.recordings`.
"""

from __future__ import annotations

import csv
import re
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from edge_cl.datasets.fetch import RemoteFile, parse_list
from edge_cl.errors import DataError

BASE_URL = (
    "https://raw.githubusercontent.com/GeoTecINIT/sp-sw-har-dataset/1408d85a512a53861de7bc4729dee283fff2ea9d"
)
COLUMNS = ["x_acc", "y_acc", "z_acc", "x_gyro", "y_gyro", "z_gyro", "timestamp", "label"]
CHANNELS = ["acc_x", "acc_y", "acc_z", "gyr_x", "gyr_y", "gyr_z"]
CLASSES = ["SEATED", "STANDING_UP", "WALKING", "TURNING", "SITTING_DOWN"]
DEVICES = {"sp": "smartphone", "sw": "smartwatch"}
# int16 holds ±65 m/s² in steps of 0.002 and ±21 rad/s in steps of 1/1500.
SCALE = np.array([0.002] * 3 + [1 / 1500] * 3)

Array: TypeAlias = NDArray[Any]

_RECORDING = re.compile(r"s(\d+)_(\d+)_(sp|sw)\.csv")


def remote_files() -> list[RemoteFile]:
    """What the publisher offers, as checked once."""
    return parse_list(files("edge_cl.datasets").joinpath("spsw_har.sha256").read_text("ascii"))


def convert(folder: Path, out: Path) -> None:
    """All recordings under ``folder/DATA`` into the file `out`, by person, execution, device.

    Raises
    ------
    DataError
        When a file is not what the publisher's description says.
    """
    found = sorted((_key(path), path) for path in (folder / "DATA").glob("s*/s*_s[pw].csv"))
    if not found:
        raise DataError(f"{folder}: no recordings DATA/s*/*.csv; run `edge-cl data get spsw-har` again")
    orientations = _orientations(folder / "DATA" / "executions_info.csv")
    parts = [read_recording(path) for _, path in found]
    arrays: dict[str, Array] = {
        "signal": np.concatenate([signal for signal, _, _, _ in parts]),
        "y": np.concatenate([y for _, y, _, _ in parts]),
        "t_ms": np.concatenate([t_ms for _, _, t_ms, _ in parts]),
        "offsets": np.cumsum([0, *(len(y) for _, y, _, _ in parts)], dtype=np.int64),
        "rec_subject": np.array([person for (person, _, _), _ in found], np.int8),
        "rec_execution": np.array([execution for (_, execution, _), _ in found], np.int8),
        "rec_device": np.array([list(DEVICES).index(device) for (_, _, device), _ in found], np.int8),
        "rec_start_unix_ms": np.array([start for *_, start in parts], np.int64),
        "rec_phone_orientation": np.array([orientations[path.name[:6]] for _, path in found]),
        "device_names": np.array(list(DEVICES.values())),
        "class_names": np.array(CLASSES),
        "channel_names": np.array(CHANNELS),
        "scale": SCALE.astype(np.float32),
    }
    part = out.with_name(out.name + ".part")
    with part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    part.replace(out)


def read_recording(path: Path) -> tuple[Array, Array, Array, int]:
    """One CSV file: signal int16 (n, 6), y int8 (n,), t_ms int32 (n,) from its start, start in Unix ms."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    if len(rows) < 2 or rows[0] != COLUMNS:
        raise DataError(f"{path}: columns are {rows[0] if rows else []}, should be {COLUMNS} and rows below")
    try:
        values = np.array([row[:6] for row in rows[1:]], np.float64)
        stamps = np.array([row[6] for row in rows[1:]], np.int64)
        y = np.array([CLASSES.index(row[7]) for row in rows[1:]], np.int8)
    except (ValueError, IndexError) as error:
        raise DataError(f"{path}: a row is not {', '.join(COLUMNS)} ({error}); download it again") from error
    limits = np.iinfo(np.int16)
    signal = np.clip(np.rint(values / SCALE), limits.min, limits.max).astype(np.int16)
    return signal, y, (stamps - stamps[0]).astype(np.int32), int(stamps[0])


def _key(path: Path) -> tuple[int, int, str]:
    match = _RECORDING.fullmatch(path.name)
    if match is None:
        raise DataError(f"{path}: not named sPERSON_EXECUTION_sp.csv or _sw.csv; remove it")
    return int(match[1]), int(match[2]), match[3]


def _orientations(path: Path) -> dict[str, str]:
    with path.open(newline="", encoding="utf-8") as file:
        return {row["execution_id"]: row["orientation"] for row in csv.DictReader(file)}
