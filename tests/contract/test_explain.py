"""A head that answers from what it has seen can show it; the others say that they cannot."""

import json

import numpy as np
import pytest

from edge_cl import heads
from edge_cl.heads import HEADS
from tests.programs import make_head
from tests.worlds import D, World

EXPLAINS = ("prototype", "knn")


@pytest.mark.parametrize("name", EXPLAINS)
def test_the_nearest_explain_the_answer(name):
    head = heads.create(name, n_features=D, n_classes=4)
    assert head.explain_one(np.zeros(D)) == {"nearest": []}
    X, y = World().draw(300)
    head.learn_many(X, y)
    x = head.class_means[1] if name == "prototype" else X[7]
    nearest = head.explain_one(x, n=5)["nearest"]
    assert len(nearest) == 5
    assert nearest[0]["class"] == head.predict_one(x).argmax() == (1 if name == "prototype" else y[7])
    distances = [one["distance"] for one in nearest]
    assert distances[0] == pytest.approx(0, abs=5e-3) and distances == sorted(distances)
    assert all(one["class"] != 3 for one in head.explain_one(x, n=500)["nearest"]), "3 was never seen"
    json.dumps(nearest)
    with pytest.raises(ValueError, match="n is 0"):
        head.explain_one(x, n=0)
    with pytest.raises(ValueError, match="features"):
        head.explain_one(x[1:])


def test_a_prototype_says_whether_it_is_old_or_new():
    head = heads.create("prototype", n_features=1, n_classes=2, fast_gain=0.5)
    for x in (-1.0, 1.0) * 20 + (9.0, 11.0) * 5:
        head.learn_one([x], 0)
    was, now = (head.explain_one([x], n=1)["nearest"][0]["which"] for x in (2.0, 10.0))
    assert (was, now) == ("all-time", "fast")


@pytest.mark.parametrize("name", [name for name in HEADS if not HEADS[name].can_explain])
def test_a_head_of_weights_names_those_that_can(name):
    with pytest.raises(ValueError, match="dual, prototype, knn and kalman can"):
        make_head(name).explain_one(np.zeros(D))


def test_dual_says_what_is_near_and_how_much_of_the_answer_is_fast():
    head = heads.create("dual", n_features=D, n_classes=4, lift=200, window=32, anchors=64)
    assert head.explain_one(np.zeros(D))["class"] == -1
    X, y = World().draw(300)
    head.learn_many(X, y)
    found = head.explain_one(X[290], n=5)  # among the last 32
    assert found["class"] == head.predict_one(X[290]).argmax()
    nearest = found["nearest"]
    assert len(nearest) == 5 and nearest[0]["memory"] == "recent" and nearest[0]["labels_ago"] == 9
    assert nearest[0]["class"] == y[290] and nearest[0]["closeness"] == pytest.approx(1, abs=1e-3)
    assert [one["closeness"] for one in nearest] == sorted(
        (one["closeness"] for one in nearest), reverse=True
    )
    assert {"remembered", "recent"} == {one["memory"] for one in head.explain_one(X[0], n=96)["nearest"]}
    assert set(found["scores"]) == {"slow", "local", "tracker", "softmax"}
    json.dumps(found)


def test_dual_rests_on_fast_memory_where_the_world_has_just_changed():
    head = heads.create("dual", n_features=D, n_classes=3, lift=200, window=32, anchors=0)
    X, y = World().draw(600)
    head.learn_many(X, y)
    before = np.mean([head.explain_one(x)["fast_share"] for x in X[:50]])
    head.learn_many(X[:60], (y[:60] + 1) % 3)
    after = [head.explain_one(x) for x in X[50:60]]
    assert np.mean([one["fast_share"] for one in after]) > 1.5 * before
    assert set(after[0]["scores"]) == {"slow", "local"}, "no gate, no trackers"
