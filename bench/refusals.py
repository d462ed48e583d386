"""What does saying "not this" do? ``python -m bench.refusals [--heads NAMES] [--json FILE] [DATA]``.

A head learns the first rows of a stream. Then somebody refuses every wrong answer, and

- ``only``: says nothing else;
- ``late``: also names the class of one reading in 5, 50 readings later;
- ``careless``: refuses one right answer in 20, too.

Heads learn the same with and without refusals, so both answers to each reading are compared. Keys are flat,
in percent: ``elec2_kalman_only_plain`` is the accuracy without refusals, ``…_gain`` what they add, ``…_harm``
the part of right answers they made wrong, ``…_mended`` the part of wrong ones they made right, ``…_none`` the
part of readings left without an answer, ``…_again`` of refused readings those answered so again at the end.
``elec2_kalman_attack_recall``: somebody refuses 100 right answers of one class, and nothing else; what that
takes from the class's recall afterwards, ``…_all`` from all accuracy, in points.
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
LABEL_EVERY, CARELESS, N_ATTACKS = 5, 0.05, 100
WHEN = ("only", "late", "careless")
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


def study(stream: Stream, head: str, when: str) -> dict[str, float]:
    """Figures of one stream and head: ``{"plain": …, "gain": …, "harm": …, …}``, in percent."""
    device, X, y = _taught(stream, head)
    rng = np.random.default_rng(0)
    plain, answers = (np.full(len(y), -1) for _ in range(2))
    for i in range(N_TAUGHT, len(y)):
        scores = device.calibrate(device.head.predict_one(X[i]))
        plain[i], answers[i] = scores.argmax(), _best(device.refusals(X[i], scores))
        mistaken = when == "careless" and answers[i] >= 0 and rng.random() < CARELESS
        if answers[i] not in (-1, y[i]) or mistaken:
            device.refuse(X[i], int(answers[i]))
        due = i - DELAY
        if when == "late" and due >= N_TAUGHT and due % LABEL_EVERY == 0:
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


def attack(stream: Stream, head: str) -> dict[str, float]:
    """Points that 100 refused right answers of the commonest class cost; empty where it comes no more."""
    device, X, y = _taught(stream, head)
    X, y = X[N_TAUGHT:], y[N_TAUGHT:]
    scores = device.calibrate(device.head.predict_many(X))
    right = scores.argmax(axis=1) == y
    c = int(np.bincount(y[right]).argmax())
    refused = np.flatnonzero(right & (y == c))[:N_ATTACKS]
    after = slice(refused[-1] + 1, None)
    of_class = y[after] == c
    if len(refused) < N_ATTACKS or not of_class.any():
        return {}
    for i in refused:
        device.refuse(X[i], c)
    now = device.refusals(X[after], scores[after]).argmax(axis=1) == y[after]
    lost = right[after].astype(float) - now
    return {key: round(100 * float(x.mean()), 2) for key, x in (("recall", lost[of_class]), ("all", lost))}


def _taught(stream: Stream, head: str) -> tuple[Device, FloatArray, NDArray[np.int64]]:
    """A device that has learned the first rows, and all rows used."""
    X, y = stream.X[: N_TAUGHT + N_ASKED], stream.y[: N_TAUGHT + N_ASKED]
    device = Device(head, X.shape[1], int(stream.y.max()) + 1)
    for x, c in zip(X[:N_TAUGHT], y[:N_TAUGHT].tolist(), strict=True):
        device.learn(x, c)
    return device, X, y


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
    results: dict[str, float] = {}
    for stream in find_streams(folder, only=arguments.streams.split(",")):
        for head in arguments.heads.split(","):
            found = {when: study(stream, head, when) for when in WHEN} | {"attack": attack(stream, head)}
            for when, figures in found.items():
                row = "  ".join(f"{key} {value:.2f}" for key, value in figures.items())
                print(f"{stream.name:26}{head:10} {when:9} {row}", flush=True)
                results |= {f"{stream.name}_{head}_{when}_{key}": value for key, value in figures.items()}
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(results)))


if __name__ == "__main__":
    main()
