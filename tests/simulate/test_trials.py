"""What a learner is taught, in which order trials answer, what the figures say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.datasets.streams import Stream
from edge_cl.simulate.streams import UNLABELLED, Labelling, run_stream
from edge_cl.simulate.trials import Trial, is_seeded, mean_of_seeds, run_trials
from edge_cl.simulate.verdicts import summary, verdict

N, N_CLASSES = 100, 3


class Notes:
    """A learner that only writes down what it is asked and taught."""

    nbytes = 0

    def __init__(self) -> None:
        self.did: list[tuple[str, int, int]] = []

    def predict_one(self, x):
        self.did.append(("asked", int(x[0]), 0))
        return np.zeros(N_CLASSES, dtype=np.float32)

    def predict_many(self, X):
        self.did += [("examined", int(x[0]), 0) for x in X]
        return np.eye(N_CLASSES, dtype=np.float32)[np.zeros(len(X), int)]

    def learn_one(self, x, y):
        self.did.append(("taught", int(x[0]), y))

    def learn_many(self, X, y):
        for features, c in zip(X, y.tolist(), strict=True):
            self.learn_one(features, c)


def numbered(name: str = "numbers") -> Stream:
    index = np.arange(N)
    return Stream(name, index[:, None].astype(np.float32), index % N_CLASSES, index % 5 == 4)


def taught(labelling: Labelling) -> list[list[tuple[int, int]]]:
    """(row, label) as given at once, given late, and sorted by class."""
    made: list[Notes] = []

    def make(n_features, n_classes):
        made.append(Notes())
        return made[-1]

    run_stream(numbered(), make, labelling)
    return [[(row, y) for what, row, y in notes.did if what == "taught"] for notes in made]


def test_every_label_is_taught_after_its_question_and_late_labels_fifty_questions_later():
    made: list[Notes] = []
    run_stream(numbered(), lambda *_: made.append(Notes()) or made[-1])
    rows = [i for i in range(N) if i % 5 != 4]
    at_once, late, in_order = (notes.did for notes in made)
    expected = [step for i in rows for step in (("asked", i, 0), ("taught", i, i % N_CLASSES))]
    assert at_once[: len(expected)] == expected
    assert [row for what, row, _ in late if what == "taught"] == rows[:-50]
    assert late.index(("taught", rows[0], 0)) == late.index(("asked", rows[50], 0)) + 1
    by_class = [row for what, row, _ in in_order if what == "taught"]
    assert by_class == sorted(rows, key=lambda i: i % N_CLASSES)
    for did in (at_once, in_order):
        assert [row for what, row, _ in did if what == "examined"] == [i for i in range(N) if i % 5 == 4]


@given(every=st.integers(1, 12), noise=st.sampled_from([0.0, 0.3, 1.0]))
def test_one_of_every_so_many_is_taught_the_same_to_all(every, noise):
    at_once, late, in_order = taught(Labelling(noise=noise, every=every))
    rows = [i for i in range(N) if i % 5 != 4]
    place = [rows.index(row) // every for row, _ in at_once]
    assert place == sorted(set(place)), "at most one in each"
    assert set(place) >= set(range(len(rows) // every)), "and one in each that is whole"
    assert late == [given for given in at_once if rows.index(given[0]) < len(rows) - 50]
    assert in_order == sorted(at_once, key=lambda given: given[1])


@given(noise=st.floats(0, 1), n_classes=st.integers(2, 6))
def test_the_share_of_wrong_labels_is_the_one_asked_for(noise, n_classes):
    y = np.arange(4000) % n_classes
    given_y = Labelling(noise=noise).taught(y, n_classes)
    assert ((given_y >= 0) & (given_y < n_classes)).all()
    assert (given_y != y).mean() == pytest.approx(noise, abs=0.04)  # five standard errors


def test_labels_that_cycle_are_not_hit_alone():
    y = np.arange(1000) % 10
    some = Labelling(every=10).taught(y, 10)
    assert set(some[some != UNLABELLED]) == set(range(10))


def test_trials_answer_in_order_and_alike_in_one_process_or_two():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    X = (np.eye(3, 4)[y] + rng.standard_normal((60, 4))).astype(np.float32)
    stream = Stream("small", X, y, np.arange(60) % 5 == 4)
    trials = [
        Trial(stream, name, seed, Labelling())
        for name, seed in (("dual", 0), ("slda", 0), ("dual", 1), ("prototype", 0))
    ]
    alone, together = ([mean_of_seeds([r]) for r in run_trials(trials, jobs)] for jobs in (1, 2))
    for one, two in zip(alone, together, strict=True):
        assert one["range"] == two["range"] and one["nbytes"] == two["nbytes"]
    assert len({result["nbytes"] for result in alone}) == 3, "each its own learner"
    assert alone[0]["range"] != alone[2]["range"], "and its own seed"


def test_what_has_a_seed():
    assert [name for name in ("dual", "slda", "kalman", "prototype") if is_seeded(name)] == ["dual"]
    assert [name for name in ("river-arf", "river-tree", "river-knn", "deep-slda") if is_seeded(name)] == [
        "river-arf",
        "river-tree",
    ]


def figures(dual, slda, arf, knn):
    """One stream, where every accuracy of a learner is the same, with its µs."""

    def of(value, us):
        return {"now0": value, "now50": value, "ever": value, "ever_sorted": value, "us_per_step": us}

    return {
        "heads": {"dual": of(dual, 100), "slda": of(slda, 10)},
        "peers": {"river-arf": of(arf, 400), "river-knn": of(knn, 50)},
    }


def test_a_verdict_names_the_best_peer_and_a_tie_is_won():
    tie, lost = verdict(figures(0.8, 0.9, 0.7, 0.8)), verdict(figures(0.8, 0.9, 0.81, 0.7))
    assert tie["ever"] == {"best_peer": "river-knn", "peer": 0.8, "head": 0.8, "at_or_above": True}
    assert lost["now50"] == {"best_peer": "river-arf", "peer": 0.81, "head": 0.8, "at_or_above": False}


def test_the_summary_counts_cells_and_averages_streams():
    streams = {"a": figures(0.8, 0.6, 0.7, 0.8), "b": figures(0.6, 0.9, 0.7, 0.1)}
    streams["b"]["heads"]["dual"]["us_per_step"] = 25
    found = summary(streams)
    assert (found["cells"], found["at_or_above"]) == (8, 4)
    assert found["mean"]["heads"]["slda"]["ever"] == pytest.approx(0.75)
    assert found["mean"]["peers"]["river-knn"]["now0"] == pytest.approx(0.45)
    assert found["speed"] == pytest.approx({"dual": 8.0, "slda": 40.0}), "geometric mean of 4 and 16"
    for stream in streams.values():
        del stream["peers"]["river-arf"]
    assert summary(streams)["speed"] == {}
