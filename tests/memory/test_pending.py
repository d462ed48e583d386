"""Features that wait for a label."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.memory import Pending


def test_the_oldest_is_forgotten_first():
    pending = Pending(3, 2)
    for k in range(5):
        pending.add(f"r{k}", np.full(2, k), answer=k)
    assert pending.get("r1") is None and len(pending) == 3
    found = pending.get("r3")
    assert found is not None and found.feature.tolist() == [3, 3] and found.answer == 3 and found.taught == -1
    assert pending.newest_id == "r4"


def test_what_a_reading_was_answered_stays_what_it_was():
    pending = Pending(4, 2)
    pending.add("a", np.zeros(2), answer=0)
    pending.set_current(["a"], np.array([1]))
    assert pending.get("a").answer == 0
    assert pending.recent(4)[2].tolist() == [1]


@given(ids=st.lists(st.integers(0, 12), max_size=60), capacity=st.integers(1, 8))
def test_recent_are_the_last_distinct_ones_remembered(ids, capacity):
    pending = Pending(capacity, 1)
    for k in ids:
        pending.add(f"r{k}", np.full(1, k), answer=0)
    recent, features, _ = pending.recent(capacity)
    assert len(recent) == len(set(recent)) == len(pending) <= capacity
    assert [f"r{int(x)}" for x in features[:, 0]] == recent


def test_a_label_taken_back_can_be_given_again():
    pending = Pending(4, 1)
    pending.add("a", np.zeros(1), answer=3)
    pending.add("b", np.zeros(1), answer=1)
    pending.mark_taught("a", 3)
    pending.rename(["p", "q", "r", "s"], ["p", "q", "r"])
    pending.set_taught({"b": 2, "gone": 1})
    found = pending.get("a")
    assert found.taught == -1 and found.answer == -1, "class 3 is not known any more"
    assert pending.get("b").taught == 2 and pending.get("b").answer == 1
