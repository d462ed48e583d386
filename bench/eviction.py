"""Which exemplar should go? ``python -m bench.eviction [--seeds N] [--json FILE] [DATA]``.

Every stream is offered to one memory per rule, in its natural order, float16; then a new head learns from
the memory alone and answers the stream's held-out rows. Keys are flat:
``insects_gradual_balanced_20_kalman_redundant`` is the mean balanced accuracy, in points, with room for 20
exemplars per class; ``…_gain`` is redundant less random, ``…_error`` its standard error over the seeds.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_cl import heads
from edge_cl.datasets import places
from edge_cl.datasets.streams import Stream, find_streams
from edge_cl.memory import Reservoir
from edge_cl.records import FloatArray

CHOSEN_ON = ("insects_gradual_balanced", "outdoor_objects", "elec2")
SHOWN_ON = ("uci_har_feat265", "gas_drift_zscored10", "fsdd_8x16")
HEADS = ("kalman", "slda", "knn")
PER_CLASS = (20, 100)
RULES = ("random", "redundant")


def study(stream: Stream, per_class: int, n_seeds: int) -> dict[str, float]:
    """Gains of one stream at one size: ``{"20_knn_random": …, "20_knn_redundant": …, "20_knn_gain": …}``."""
    found: dict[str, list[float]] = {}
    for seed in range(n_seeds):
        for rule in RULES:
            X, y = _remembered(stream, per_class, rule, seed)
            for name in HEADS:
                found.setdefault(f"{per_class}_{name}_{rule}", []).append(_accuracy(name, X, y, stream))
    figures = {key: round(100 * statistics.mean(values), 2) for key, values in found.items()}
    for name in HEADS:
        one, other = (found[f"{per_class}_{name}_{rule}"] for rule in RULES)
        gains = [100 * (b - a) for a, b in zip(one, other, strict=True)]
        error = statistics.stdev(gains) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
        figures |= {
            f"{per_class}_{name}_gain": round(statistics.mean(gains), 2),
            f"{per_class}_{name}_error": round(error, 2),
        }
    return figures


def _remembered(stream: Stream, per_class: int, rule: str, seed: int) -> tuple[FloatArray, NDArray[np.int64]]:
    learned = ~stream.held_out
    X, y = stream.X[learned], stream.y[learned]
    rng = np.random.default_rng(seed)
    memory = Reservoir(per_class * len(np.unique(y)), X.shape[1], evict=rule, rng=rng)
    for x, c in zip(X, y.tolist(), strict=True):
        memory.add(x, c)
    order = np.random.default_rng(seed).permutation(memory.n)
    return memory.features(order), memory.labels[order]


def _accuracy(name: str, X: FloatArray, y: NDArray[np.int64], stream: Stream) -> float:
    n_classes = int(stream.y.max()) + 1
    head = heads.create(name, n_features=X.shape[1], n_classes=n_classes)
    head.learn_many(X, y)
    truth = stream.y[stream.held_out]
    right = head.predict_many(stream.X[stream.held_out]).argmax(axis=1) == truth
    return float(np.mean([right[truth == c].mean() for c in np.unique(truth)]))


def main() -> None:
    """Run the study and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path, default=None, help="folder of the streams")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[str, float] = {}
    for stream in find_streams(options.data or places.folders()[0], only=(*CHOSEN_ON, *SHOWN_ON)):
        for per_class in PER_CLASS:
            found = study(stream, per_class, options.seeds)
            figures |= {f"{stream.name}_{key}": value for key, value in found.items()}
            for name in HEADS:
                row = [found[f"{per_class}_{name}_{what}"] for what in (*RULES, "gain", "error")]
                print(f"{stream.name:26}{per_class:5} {name:8}" + "".join(f"{value:9.2f}" for value in row))
    if options.json:
        options.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures)))


if __name__ == "__main__":
    main()
