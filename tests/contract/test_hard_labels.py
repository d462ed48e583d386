"""Labels as people give them: some wrong, very few, or very uneven."""

import numpy as np
import pytest

from edge_cl.heads import HEADS
from tests.programs import make_head, sleep_if_it_must
from tests.worlds import World

SMALL = {"dual": {"lift": 300, "window": 32, "memory_bytes": 100_000}}
SEEDS = range(3)


def make(name):
    return make_head(name, **SMALL.get(name, {}))


def right(head, seed):
    """For each of 300 new samples: its class, and whether it was known."""
    X, y = World(seed=seed + 50).draw(300)
    return y, head.predict_many(X).argmax(axis=1) == y


@pytest.mark.parametrize("name", list(HEADS))
def test_a_fifth_of_the_labels_may_be_wrong(name):
    accuracy = []
    for seed in SEEDS:
        X, y = World(seed=seed).draw(600)
        rng = np.random.default_rng(seed)
        wrong = rng.random(600) < 0.2
        head = make(name)
        said = np.where(wrong, (y + rng.integers(1, 3, 600)) % 3, y)
        head.learn_many(X, said)
        sleep_if_it_must(head, X, said)
        accuracy.append(right(head, seed)[1].mean())
    assert np.mean(accuracy) > 0.9 and min(accuracy) >= 0.85


@pytest.mark.parametrize("name", list(HEADS))
def test_one_label_of_each_class_is_enough_to_beat_chance(name):
    accuracy = []
    for seed in range(12):
        X, y = World(seed=seed).draw(60)
        head = make(name)
        for c in range(3):
            head.learn_one(X[y == c][0], c)
        accuracy.append(right(head, seed)[1].mean())
    assert np.mean(accuracy) > 0.55 and min(accuracy) > 0.35, "chance is 1 in 3"


@pytest.mark.parametrize("name", list(HEADS))
def test_a_class_with_one_label_in_a_hundred_is_still_recalled(name):
    recall, others = [], []
    for seed in SEEDS:
        X, y = World(seed=seed).draw(3000)
        rare = np.flatnonzero(y == 2)[10:]
        head = make(name)
        X, y = np.delete(X, rare, axis=0), np.delete(y, rare)
        head.learn_many(X, y)
        sleep_if_it_must(head, X, y)
        y, correct = right(head, seed)
        recall.append(correct[y == 2].mean())
        others.append(correct[y != 2].mean())
    assert np.mean(recall) > 0.5 and np.mean(others) > 0.9
