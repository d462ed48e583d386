"""Which exemplar goes, and what a reservoir notes of those that stay."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.memory import Reservoir
from edge_cl.memory.eviction import most_redundant

D = 3


def by_hand(X):
    """The closest pair by the definition; of it the row whose next neighbour is nearer."""
    apart = np.linalg.norm(X[:, None] - X[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    one, other = np.unravel_index(apart.argmin(), apart.shape)
    rest = np.delete(apart, [one, other], axis=1)
    return {one, other}, one if rest[one].min() <= rest[other].min() else other


@settings(max_examples=50)
@given(seed=st.integers(0, 10_000), k=st.integers(3, 9))
def test_one_of_the_closest_pair_goes(seed, k):
    X = np.random.default_rng(seed).normal(size=(k, D)).astype(np.float32)
    pair, expected = by_hand(X)
    found = most_redundant(X)
    assert found in pair and found == expected


def test_few_or_equal_rows_have_an_answer():
    assert [most_redundant(np.zeros((k, D), dtype=np.float32)) for k in (1, 2)] == [0, 0]
    assert most_redundant(np.ones((8, D), dtype=np.float32)) in range(8)


def test_what_is_rare_stays_where_redundancy_decides():
    """Twenty lonely exemplars among a crowd: by chance most go, by redundancy most stay."""
    lonely = np.random.default_rng(1).uniform(50, 90, size=(20, D)).astype(np.float32)
    crowd = np.random.default_rng(2).normal(size=(380, D)).astype(np.float32)
    X = np.concatenate([lonely, crowd])
    kept = {}
    for evict in ("random", "redundant"):
        reservoir = Reservoir(60, D, evict=evict, rng=np.random.default_rng(0))
        for x in X:
            reservoir.add(x, 0)
        kept[evict] = int((reservoir.exemplars()[0].max(axis=1) > 20).sum())
    assert kept["random"] < 10 and kept["redundant"] >= 18


def test_redundancy_keeps_the_balance_of_classes():
    reservoir = Reservoir(30, D, evict="redundant", rng=np.random.default_rng(0))
    rng = np.random.default_rng(1)
    for k in range(400):
        reservoir.add(rng.normal(size=D).astype(np.float32), 0 if k % 10 else k // 10 % 2 + 1)
    assert reservoir.class_counts == [10, 10, 10]


def test_an_unknown_rule_names_those_there_are():
    with pytest.raises(ValueError, match="unknown evict 'oldest'; known: random, redundant"):
        Reservoir(2, D, evict="oldest", rng=np.random.default_rng(0))


@settings(max_examples=40)
@given(
    labels=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    capacity=st.integers(1, 20),
    to=st.integers(1, 20),
    drop=st.integers(0, 59),
)
def test_what_is_noted_stays_with_its_exemplar(labels, capacity, to, drop):
    """Through eviction, removal, shrinking and a restore; each feature is its offer's number."""
    reservoir = Reservoir(capacity, D, codec="float32", rng=np.random.default_rng(0))
    for k, y in enumerate(labels, start=1):
        slot = reservoir.add(np.full(D, k, dtype=np.float32), y)
        if slot >= 0:
            reservoir.rest(np.array([slot]), np.array([k % 5]), np.array([k * 7]))
    reservoir.remove(np.full(D, drop % len(labels) + 1, dtype=np.float32), labels[drop % len(labels)])
    reservoir.resize(to)
    twin = Reservoir(to, D, codec="float32", rng=np.random.default_rng(5))
    twin.restore(*reservoir.state())
    for one in (reservoir, twin):
        numbers = one.features(np.arange(one.n))[:, 0].astype(int)
        assert one.born.tolist() == numbers.tolist() and one.n_offered == len(labels)
        assert one.box.tolist() == (numbers % 5).tolist() and one.due.tolist() == (numbers * 7).tolist()
        assert one.labels.tolist() == [labels[k - 1] for k in numbers]
        assert np.bincount(one.labels, minlength=4)[: len(one.class_counts)].tolist() == one.class_counts


def test_what_is_read_is_a_copy():
    reservoir = Reservoir(5, D, rng=np.random.default_rng(0))
    reservoir.add(np.ones(D, dtype=np.float32), 1)
    for array in (reservoir.labels, reservoir.born, reservoir.box, reservoir.due):
        array += 9
    assert (reservoir.labels[0], reservoir.born[0], reservoir.box[0], reservoir.due[0]) == (1, 1, 0, 0)
    assert reservoir.labels.dtype == np.int64


def test_a_newcomer_has_no_past():
    """A slot's recall box is not handed on to the exemplar that replaces its own."""
    reservoir = Reservoir(2, D, rng=np.random.default_rng(0))
    for k in range(2):
        reservoir.add(np.full(D, k, dtype=np.float32), 0)
    reservoir.rest(np.arange(2), np.array([3, 3]), np.array([9, 9]))
    slot = reservoir.add(np.full(D, 5, dtype=np.float32), 1)
    assert reservoir.box[slot] == reservoir.due[slot] == 0 and sorted(reservoir.box) == [0, 3]


def test_a_class_number_that_does_not_fit_is_refused():
    reservoir = Reservoir(2, D, rng=np.random.default_rng(0))
    with pytest.raises(ValueError, match="class 65536 is more than a memory tells apart"):
        reservoir.add(np.zeros(D, dtype=np.float32), 65_536)
