"""The reservoir keeps its promises for any stream."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.memory import ReplayMemory, Reservoir
from edge_cl.memory.codecs import CODECS

D = 3


def filled(labels, capacity, codec="float32", seed=0):
    reservoir = Reservoir(capacity, D, codec=codec, rng=np.random.default_rng(seed))
    for k, y in enumerate(labels):
        reservoir.add(np.full(D, k, dtype=np.float32), y)
    return reservoir


@settings(max_examples=200)
@given(labels=st.lists(st.integers(0, 3), max_size=60), capacity=st.integers(1, 20))
def test_restoring_changes_no_state(labels, capacity):
    reservoir, twin = filled(labels, capacity), filled([], capacity)
    twin.restore(*reservoir.state())
    (arrays, meta), (twin_arrays, twin_meta) = reservoir.state(), twin.state()
    assert meta == twin_meta
    for key, array in arrays.items():
        np.testing.assert_array_equal(array, twin_arrays[key])


@settings(max_examples=200)
@given(labels=st.lists(st.integers(0, 5), max_size=120), capacity=st.integers(1, 20), seed=st.integers(0, 99))
def test_any_stream(labels, capacity, seed):
    reservoir = filled(labels, capacity, seed=seed)
    X, y = reservoir.exemplars()
    assert reservoir.n == len(X) == min(len(labels), capacity)
    assert [labels[int(k)] for k in X[:, 0]] == y.tolist(), "every exemplar keeps its own label"
    assert len(set(X[:, 0])) == len(X), "nothing is held twice"
    counts = np.bincount(y, minlength=6)
    assert reservoir.class_counts == counts[: len(reservoir.class_counts)].tolist()
    offered = np.bincount(np.array(labels, dtype=int), minlength=6)
    if len(labels) > capacity:
        for c in range(6):
            if counts[c] < offered[c]:  # a class lost something: then it is (nearly) a fullest one
                assert counts[c] >= counts.max() - 1


@settings(max_examples=100)
@given(
    labels=st.lists(st.integers(0, 4), max_size=80),
    capacity=st.integers(1, 20),
    to=st.integers(1, 30),
    more=st.lists(st.integers(0, 4), max_size=30),
)
def test_resize_and_restore(labels, capacity, to, more):
    reservoir = filled(labels, capacity)
    before = set(reservoir.exemplars()[0][:, 0])
    reservoir.resize(to)
    assert reservoir.n == min(len(before), to) and reservoir.capacity == to
    assert set(reservoir.exemplars()[0][:, 0]) <= before
    twin = Reservoir(to, D, codec="float32", rng=np.random.default_rng(7))
    twin.restore(*reservoir.state())
    for k, y in enumerate(more):
        for one in (reservoir, twin):
            one.add(np.full(D, 1000 + k, dtype=np.float32), y)
    for a, b in zip(reservoir.exemplars(), twin.exemplars(), strict=True):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=100)
@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=40), which=st.integers(0, 39))
def test_removing_leaves_all_others(labels, which):
    reservoir = filled(labels, 40)
    which %= len(labels)
    x = np.full(D, which, dtype=np.float32)
    assert not reservoir.remove(x, labels[which] + 1), "the label must match, too"
    assert reservoir.remove(x, labels[which])
    assert not reservoir.remove(x, labels[which])
    X, y = reservoir.exemplars()
    assert sorted(zip(X[:, 0], y, strict=True)) == [(k, c) for k, c in enumerate(labels) if k != which]
    assert reservoir.n == sum(reservoir._n_seen), "nothing that was offered was dropped"
    reservoir.add(x, labels[which])
    assert reservoir.class_counts == np.bincount(labels).tolist()


def test_inside_a_class_every_time_is_kept_alike():
    kept = np.concatenate([filled([0] * 400, 40, seed=s).exemplars()[0][:, 0] for s in range(50)])
    quarters = np.histogram(kept, bins=4, range=(0, 400))[0] / len(kept)
    np.testing.assert_allclose(quarters, 0.25, atol=0.04)


def test_classes_of_almost_equal_size_forget_no_time_either():
    """40 places for 3 classes: 13 or 14 each, and the one with 13 must not always take the newest."""
    kept = np.concatenate([filled([0, 1, 2] * 200, 40, seed=s).exemplars()[0][:, 0] for s in range(40)])
    quarters = np.histogram(kept, bins=4, range=(0, 600))[0] / len(kept)
    np.testing.assert_allclose(quarters, 0.25, atol=0.04)


def test_bytes_held_are_the_arrays():
    for codec in CODECS:
        reservoir = filled([0, 1, 2] * 50, 100, codec)
        stored = reservoir._rows.nbytes + reservoir._about.nbytes
        stored += sum(array.nbytes for array in reservoir._codec.state().values())
        assert stored <= reservoir.nbytes <= stored + 100 * 8


def test_float16_survives_huge_values():
    reservoir = Reservoir(2, D, codec="float16", rng=np.random.default_rng(0))
    reservoir.add(np.full(D, 1e9, dtype=np.float32), 0)
    assert np.isfinite(reservoir.exemplars()[0]).all()


def test_an_unknown_codec_names_those_there_are():
    with pytest.raises(ValueError, match="unknown codec 'int4'; known: float32, float16, int8"):
        Reservoir(2, D, codec="int4", rng=np.random.default_rng(0))


class EagerReservoir(Reservoir):
    """The published algorithm word for word: every class is looked at whenever the memory is full."""

    def _slot_for(self, y):
        if self.n < self.capacity:
            return super()._slot_for(y)
        sizes = self.class_counts
        for c, size in enumerate(sizes):
            self._was_fullest[c] |= size == max(sizes)
        if not self._was_fullest[y]:
            return self._evict(sizes.index(max(sizes)))
        return self._evict(y) if self.rng.random() * self._n_seen[y] < sizes[y] else -1


@settings(max_examples=60)
@given(labels=st.lists(st.integers(0, 9), max_size=200), capacity=st.integers(1, 30))
def test_looking_only_at_the_fullest_changes_nothing(labels, capacity):
    quick, eager = (
        cls(capacity, D, codec="float32", rng=np.random.default_rng(0)) for cls in (Reservoir, EagerReservoir)
    )
    for k, y in enumerate(labels):
        for reservoir in (quick, eager):
            reservoir.add(np.full(D, k, dtype=np.float32), y)
    for ours, theirs in zip(quick.exemplars(), eager.exemplars(), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_one_in_six_of_every_class_is_held_back_and_stays_out_of_rehearsal():
    memory = ReplayMemory(capacity_bytes=100_000, n_features=D, codec="float32")
    for k in range(80):
        memory.add(np.full(D, k, dtype=np.float32), k % 2)
    rehearsed, held_back = memory.rehearsed.exemplars()[0], memory.held_back.exemplars()[0]
    assert sorted(held_back[:, 0]) == sorted([*range(6, 80, 12), *range(7, 80, 12)]), "the 4th, the 10th, …"
    assert not set(rehearsed[:, 0]) & set(held_back[:, 0])
    assert memory.nbytes <= 100_000
