"""What does saying "not this" do? ``python -m bench.refusals [--heads NAMES] [--json FILE] [DATA]``.

A head learns the first rows of a stream. Then somebody refuses every wrong answer, and

- ``only``: says nothing else; or
- ``late``: also names the class of one reading in 5, 50 readings later.

Heads learn the same with and without refusals, so both answers to each reading are compared. Keys are flat,
in percent: ``elec2_kalman_only_plain`` is the accuracy without refusals, ``…_gain`` what they add, ``…_harm`` the
part of right answers they made wrong, ``…_mended`` the part of wrong ones they made right, ``…_none`` the part of
readings that were left without an answer, ``…_again`` the part of refused readings that were answered so again when
asked once more at the end.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_cl import heads
from edge_cl.datasets import places
from edge_cl.datasets.streams import Stream, find_streams
from edge_cl.knowledge import N_KNOWN
from edge_cl.memory import Reservoir
from edge_cl.records import FloatArray
from edge_cl.simulate.streams import DELAY
from edge_cl.trust import Calibrator, Refusals

CHOSEN_ON = ("insects_gradual_balanced", "outdoor_objects", "elec2")
SHOWN_ON = ("uci_har_feat265", "gas_drift_zscored10", "fsdd_8x16")
HEADS = ("slda", "kalman", "prototype", "knn", "dual")
N_TAUGHT, N_ASKED = 600, 4000
LABEL_EVERY = 5
PER_CLASS = 64


class Device:
    """Head, memory, calibration and refusals, as `Knowledge` puts them together."""

    def __init__(self, head: str, n_features: int, n_classes: int) -> None:
        self.head = heads.create(head, n_features=n_features, n_classes=n_classes)
        self.memory = Reservoir(PER_CLASS * n_classes, n_features, rng=np.random.default_rng(0))
        self.calibrate = Calibrator()
        self.refusals = Refusals(256, n_features)

    def learn(self, x: FloatArray, y: int) -> None:
        """Learn x (D,) as class y."""
        if self.head.class_counts[y]:
            self.calibrate.update(self.head.predict_one(x), y)
        self.head.learn_one(x, y)
        self.memory.add(x, y)
        self.refusals.learn(x, y)

    def refuse(self, x: FloatArray, y: int) -> None:
        """Learn that x (D,) is not of class y."""
        labels = self.memory.labels
        known, typical = (_spread(rows) for rows in (np.flatnonzero(labels == y), np.arange(len(labels))))
        self.refusals.add(x, y, self.memory.features(known), self.memory.features(typical))


def study(stream: Stream, head: str, *, late: bool) -> dict[str, float]:
    """Figures of one stream and head: ``{"plain": …, "gain": …, "harm": …, …}``, in percent."""
    X, y = stream.X[: N_TAUGHT + N_ASKED], stream.y[: N_TAUGHT + N_ASKED]
    device = Device(head, X.shape[1], int(stream.y.max()) + 1)
    for x, c in zip(X[:N_TAUGHT], y[:N_TAUGHT].tolist(), strict=True):
        device.learn(x, c)
    plain, answers = (np.full(len(y), -1) for _ in range(2))
    for i in range(N_TAUGHT, len(y)):
        scores = device.calibrate(device.head.predict_one(X[i]))
        plain[i], answers[i] = scores.argmax(), _best(device.refusals(X[i], scores))
        if answers[i] not in (-1, y[i]):
            device.refuse(X[i], int(answers[i]))
        due = i - DELAY
        if late and due >= N_TAUGHT and due % LABEL_EVERY == 0:
            device.learn(X[due], int(y[due]))
    asked = slice(N_TAUGHT, None)
    was, now = plain[asked] == y[asked], answers[asked] == y[asked]
    figures = {
        "plain": was.mean(),
        "gain": now.mean() - was.mean(),
        "harm": (was & ~now).sum() / max(was.sum(), 1),
        "mended": (now & ~was).sum() / max((~was).sum(), 1),
        "none": (answers[asked] < 0).mean(),
        "again": _answered_again(device),
    }
    return {key: round(100 * float(value), 2) for key, value in figures.items()}


def _answered_again(device: Device) -> float:
    state = device.refusals.state()
    if not state:
        return 0.0
    again = [
        _best(device.refusals(x, device.calibrate(device.head.predict_one(x)))) == c
        for x, c in zip(state["rows"], state["classes"], strict=True)
    ]
    return float(np.mean(again))


def _best(scores: FloatArray) -> int:
    return int(scores.argmax()) if scores.any() else -1


def _spread(rows: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(rows) <= N_KNOWN:
        return rows
    return rows[np.linspace(0, len(rows) - 1, N_KNOWN).astype(np.int64)]


def main() -> None:
    """Run the study and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, help="folder of the streams")
    parser.add_argument("--streams", default=",".join(CHOSEN_ON), help=f"also: {','.join(SHOWN_ON)}")
    parser.add_argument("--heads", default=",".join(HEADS))
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    folder = arguments.data or places.folders()[0]
    results = {}
    for stream in find_streams(folder, only=arguments.streams.split(",")):
        for head in arguments.heads.split(","):
            for when in ("only", "late"):
                figures = study(stream, head, late=when == "late")
                row = "  ".join(f"{key} {value:.2f}" for key, value in figures.items())
                print(f"{stream.name:26}{head:10} {when}  {row}", flush=True)
                results |= {f"{stream.name}_{head}_{when}_{key}": value for key, value in figures.items()}
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)))


if __name__ == "__main__":
    main()
