"""Does sleeping do harm? Random sleeps of real heads in trouble, judged by the gate and by a test set.

``python -m bench.gate [--sleeps 1000] [--seed 0] [--worlds gauss|modes] [--json FILE]``. Deterministic.
With ``--streams DATA [--only NAME,…] [--heads NAME,…]`` on real streams instead: :mod:`bench.gate_streams`.

Each sleep: a head learns a stream in a random Gaussian world (``gauss``; ``modes``: two forms per class and
heavy tails), a class-balanced memory of it is spoiled, the head rehearses it, and the gate decides. *Harm*
is a sleep that was adopted and that lowers balanced accuracy on 4,000 separate samples by more than a point.

================  ====================================================================================
``steady``        nothing is wrong, and nothing is new
``new-class``     a class that came late
``drift``         the classes moved halfway
``label-noise``   a share of all labels, learned and held back alike, is random
``poisoned``      a share of the rehearsed labels is moved to the next class; the judges are sound
``single-class``  the rehearsed part holds one class; at every other sleep the judges too
``tiny``          a memory of 8 to 60 exemplars after hundreds of labels
``healed``        a share of the labels was random awake, the memory is sound: here sleep helps
``alike``         as ``poisoned``, the judges too: no gate that judges by them can see it; counted apart
================  ====================================================================================
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from bench import gate_streams
from edge_cl import heads
from edge_cl.datasets.streams import find_streams
from edge_cl.heads import Head
from edge_cl.memory import Exemplars
from edge_cl.memory.replay import HELD_BACK_EVERY
from edge_cl.records import FloatArray
from edge_cl.sleep import Verdict, answers, judge

SEEN = ("steady", "new-class", "drift", "label-noise", "poisoned", "single-class", "tiny", "healed")
KINDS = (*SEEN, "alike")
HEADS = {
    "dual": {"lift": 32, "window": 16, "anchors": 32},
    "slda": {},
    "kalman": {},
    "prototype": {},
    "logistic": {},
    "sgd": {},
}
HARM = 0.01
N_TEST = 4000


@dataclass(frozen=True, eq=False)
class Sleep:
    """One sleep: what the gate saw, and what adopting does to accuracy on the test set."""

    kind: str
    head: str
    before: FloatArray
    after: FloatArray
    y: NDArray[np.int64]
    n_known: int
    gain: float

    def verdict(self) -> Verdict:
        """What the gate says."""
        return judge(self.before, self.after, self.y, n_known=self.n_known)


class Sgd:
    """A softmax layer that learns by steps and forgets: what a plastic head is, in small."""

    name = "sgd"

    def __init__(self, n_features: int, n_classes: int) -> None:
        self.class_counts = np.zeros(n_classes)
        self.weights = np.zeros((n_features + 1, n_classes))

    def copy(self) -> Sgd:
        """An independent copy."""
        twin = Sgd(len(self.weights) - 1, len(self.class_counts))
        twin.weights, twin.class_counts = self.weights.copy(), self.class_counts.copy()
        return twin

    def predict_many(self, X: FloatArray) -> FloatArray:
        """Scores (n, C) of X (n, D)."""
        logits = _with_one(X) @ self.weights + np.where(self.class_counts > 0, 0.0, -1e9)
        scores: FloatArray = np.exp(logits - logits.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)

    def exam(self, X: FloatArray, y: NDArray[np.int64], *, learned: bool) -> FloatArray:
        """As `predict_many`."""
        return self.predict_many(X)

    def learn_one(self, x: FloatArray, y: int) -> None:
        """One step."""
        self.class_counts[y] += 1
        self._step(x[None], np.array([y]))

    def rehearse(self, exemplars: Exemplars) -> Iterator[None]:
        """100 steps of 32."""
        for step in range(exemplars.n_steps if len(exemplars.y) else 0):
            rows = exemplars.sampler.batch(step, 32)
            self._step(exemplars.features(rows), exemplars.y[rows])
            yield

    def settle(self, X: FloatArray, y: NDArray[np.int64]) -> None:
        """Nothing."""

    def _step(self, X: FloatArray, y: NDArray[np.int64]) -> None:
        error = np.eye(len(self.class_counts))[y] - self.predict_many(X)
        self.weights += 0.1 / len(X) * _with_one(X).T @ error


def _with_one(X: FloatArray) -> FloatArray:
    return np.concatenate([X, np.ones((len(X), 1))], axis=1)


class World:
    """Random classes; `draw` after `move` gives them elsewhere."""

    def __init__(self, rng: np.random.Generator, *, modes: bool) -> None:
        self.rng = rng
        self.n_classes, self.n_features = int(rng.integers(2, 9)), int(rng.integers(4, 17))
        self.n_forms, self.tails = (2, 4.0) if modes else (1, 0.0)
        spread = rng.uniform(0.4, 1.6)
        self.means = rng.normal(0, spread, (self.n_classes, self.n_forms, self.n_features))

    def draw(self, y: NDArray[np.int64]) -> FloatArray:
        """Features (n, D) of classes y (n,)."""
        shape = (len(y), self.n_features)
        noise = self.rng.standard_t(self.tails, shape) if self.tails else self.rng.normal(size=shape)
        forms = self.rng.integers(self.n_forms, size=len(y))
        return (self.means[y, forms] + noise).astype(np.float32)

    def move(self) -> None:
        """Every class drifts by about its spread."""
        self.means = self.means + self.rng.normal(0, 0.7, self.means.shape)


def sleeps(n: int, *, seed: int = 0, modes: bool = False) -> Iterator[Sleep]:
    """n sleeps, kinds and heads in turn."""
    for k in range(n):
        kind = KINDS[k % len(KINDS)]
        head = list(HEADS)[k // len(KINDS) % len(HEADS)]
        yield one_sleep(kind, head, np.random.default_rng([seed, k]), modes=modes)


def one_sleep(kind: str, head_name: str, rng: np.random.Generator, *, modes: bool) -> Sleep:
    """Awake, a memory, what goes wrong with it, asleep, and the exam on both sides."""
    world = World(rng, modes=modes)
    X, y, test_X, test_y = _stream(world, kind, int(np.exp(rng.uniform(np.log(100), np.log(3200)))))
    if kind == "label-noise":
        y = _spoiled(y, rng, world.n_classes, random=True)
    head = _new_head(head_name, world)
    learned = _spoiled(y, rng, world.n_classes, random=True) if kind == "healed" else y
    for x, c in zip(X, learned.tolist(), strict=True):
        head.learn_one(x, c)
    n_kept = int(rng.integers(8, 61) if kind == "tiny" else np.exp(rng.uniform(np.log(48), np.log(3000))))
    kept, turn = _balanced(y, n_kept, rng)
    judges = turn % HELD_BACK_EVERY == HELD_BACK_EVERY // 2
    held_back, rehearsed = kept[judges], np.sort(kept[~judges])
    if kind == "single-class":
        only = rng.integers(world.n_classes)
        rehearsed = rehearsed[y[rehearsed] == only]
        held_back = held_back[y[held_back] == only] if rng.random() < 0.5 else held_back
    rehearsed_y, held_back_y = y[rehearsed], y[held_back]
    if kind in ("poisoned", "alike"):
        both = _spoiled(np.concatenate([rehearsed_y, held_back_y]), rng, world.n_classes, random=False)
        rehearsed_y = both[: len(rehearsed)]
        held_back_y = both[len(rehearsed) :] if kind == "alike" else held_back_y
    return _judged(kind, head, (X[rehearsed], rehearsed_y), (X[held_back], held_back_y), (test_X, test_y))


def _new_head(name: str, world: World) -> Head | Sgd:
    if name == Sgd.name:
        return Sgd(world.n_features, world.n_classes)
    return heads.create(name, n_features=world.n_features, n_classes=world.n_classes, **HEADS[name])


def _judged(
    kind: str,
    head: Head | Sgd,
    rehearsed: tuple[FloatArray, NDArray[np.int64]],
    held_back: tuple[FloatArray, NDArray[np.int64]],
    test: tuple[FloatArray, NDArray[np.int64]],
) -> Sleep:
    X, y = held_back
    candidate = head.copy()
    before = answers(candidate.exam(X, y, learned=True), y)
    for _ in candidate.rehearse(Exemplars.of(*rehearsed)):
        pass
    after = answers(candidate.exam(X, y, learned=False), y)
    candidate.settle(X, y)
    gain = balanced_accuracy(candidate, *test) - balanced_accuracy(head, *test)
    return Sleep(kind, head.name, before, after, y, int(np.count_nonzero(head.class_counts)), gain)


def balanced_accuracy(head: Head | Sgd, X: FloatArray, y: NDArray[np.int64]) -> float:
    """Mean over classes of the share that the whole head answers right."""
    right = head.predict_many(X).argmax(axis=1) == y
    return float(np.mean([right[y == c].mean() for c in np.unique(y)]))


def _stream(
    world: World, kind: str, n: int
) -> tuple[FloatArray, NDArray[np.int64], FloatArray, NDArray[np.int64]]:
    """A stream (n, D), (n,) and a test set of the same times and classes, all classes alike."""
    y = world.rng.integers(world.n_classes, size=n)
    test_y = np.arange(N_TEST) % world.n_classes
    if kind == "new-class":
        late = y == world.n_classes - 1
        y[late & (np.arange(n) < 0.9 * n)] = 0
    if kind != "drift":
        return world.draw(y), y, world.draw(test_y), test_y
    half, test_half = n // 2, N_TEST // 2
    X, test_X = world.draw(y[:half]), world.draw(test_y[:test_half])
    world.move()
    return (
        np.concatenate([X, world.draw(y[half:])]),
        y,
        np.concatenate([test_X, world.draw(test_y[test_half:])]),
        test_y,
    )


def _balanced(
    y: NDArray[np.int64], n: int, rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """At most n indices, classes in turn, at random within a class, and the turn of each."""
    turns = np.empty(len(y), dtype=np.int64)
    for c in np.unique(y):
        turns[y == c] = rng.permutation(np.count_nonzero(y == c))
    kept = np.argsort(turns + rng.random(len(y)), kind="stable")[:n]
    return kept, turns[kept]


def _spoiled(
    y: NDArray[np.int64], rng: np.random.Generator, n_classes: int, *, random: bool
) -> NDArray[np.int64]:
    """A share of 5 to 80 % gets a random class, or the next one."""
    wrong = rng.random(len(y)) < rng.uniform(0.05, 0.8)
    other = rng.integers(n_classes, size=len(y)) if random else (y + 1) % n_classes
    return np.where(wrong, other, y)


def simulate(n: int = 1000, *, seed: int = 0, modes: bool = False) -> dict[str, Any]:
    """`figures` of n sleeps, and ``gate_harm_rate`` of those that a gate can see, in [0, 1]."""
    groups = figures(list(sleeps(n, seed=seed, modes=modes)))
    return {"gate_harm_rate": groups["all but alike"]["harm_rate"], "groups": groups}


def figures(done: list[Sleep]) -> dict[str, dict[str, float]]:
    """Per kind, per head, and of all kinds that a gate can see: sleeps, adopted, harm, gains in points."""
    groups = {kind: [s for s in done if s.kind == kind] for kind in KINDS}
    groups |= {name: [s for s in done if s.head == name and s.kind != "alike"] for name in HEADS}
    groups["all but alike"] = [s for s in done if s.kind != "alike"]
    return {name: _figures(group) for name, group in groups.items() if group}


def _figures(group: list[Sleep]) -> dict[str, float]:
    gains = np.array([s.gain for s in group])
    adopted = np.array([s.verdict().adopted for s in group])
    return {
        "sleeps": len(group),
        "adopted_rate": float(adopted.mean()),
        "harm_rate": float((adopted & (gains < -HARM)).mean()),
        "harm_rate_ungated": float((gains < -HARM).mean()),
        "mean_gain_points": 100 * float(np.where(adopted, gains, 0).mean()),
        "possible_gain_points": 100 * float(np.maximum(gains, 0).mean()),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sleeps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--worlds", choices=("gauss", "modes"), default="gauss")
    parser.add_argument("--streams", type=Path, metavar="DATA", help="a folder of streams, instead of worlds")
    parser.add_argument("--only", default=",".join(gate_streams.DEVELOPMENT))
    parser.add_argument("--heads", default=",".join(gate_streams.HEADS))
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    if asked.streams:
        streams = find_streams(asked.streams, only=asked.only.split(","))
        found = gate_streams.measure(streams, tuple(asked.heads.split(",")))
    else:
        found = simulate(asked.sleeps, seed=asked.seed, modes=asked.worlds == "modes")
        show(found["groups"])
    if asked.json:
        asked.json.write_bytes(msgspec.json.encode(found))


def show(groups: dict[str, dict[str, float]]) -> None:
    """One line per group."""
    print(f"{'':15}{'sleeps':>8}{'adopted':>9}{'harm':>8}{'ungated':>9}{'gain':>8}{'possible':>9}")
    for name, row in groups.items():
        print(
            f"{name:15}{row['sleeps']:8.0f}{row['adopted_rate']:9.1%}{row['harm_rate']:8.2%}"
            f"{row['harm_rate_ungated']:9.2%}{row['mean_gain_points']:+8.2f}{row['possible_gain_points']:+9.2f}"
        )


if __name__ == "__main__":
    main()
