"""The parts of `dual` are all in play, and all follow when scales, classes or the slow memory change."""

import numpy as np
import pytest

from edge_cl import heads
from edge_cl.heads.dual import CONSTANT_GATE
from edge_cl.memory.exemplars import Exemplars
from tests.worlds import D, World, make_bundle

SMALL = {"lift": 120, "window": 32, "anchors": 64, "memory_bytes": 50_000}


def dual(n=0, n_classes=3, seed=0, **options):
    head = heads.create("dual", n_features=D, n_classes=n_classes, **{**SMALL, **options})
    X, y = World(seed=seed).draw(max(n, 1))
    for x, c in zip(X[:n], y[:n].tolist(), strict=True):
        head.learn_one(x, c)
    return head


def in_step(head):
    """Whether what is kept standardised is so by the scales of now."""
    fast, anchors = head.fast, head.anchors
    np.testing.assert_allclose(fast._z[: fast.n], head.standardise(fast._raw[: fast.n]), atol=1e-5)
    X = anchors._held.exemplars()[0]
    np.testing.assert_allclose(anchors.exemplars(list(range(len(X))))[0], head.standardise(X), atol=1e-5)


def test_remembered_exemplars_move_the_gate_but_not_the_temperature():
    asked, unasked = dual(200, replay=4.0), dual(200, replay=0.0)
    assert np.abs(asked.gate.weights - unasked.gate.weights).max() > 0.05
    X, y = World(seed=3).draw(1)
    before = asked.temperature.log
    weights = asked.gate.weights.copy()
    asked._judge(asked._look(X[0]), y.tolist(), own=False)
    assert asked.temperature.log == before and (asked.gate.weights != weights).any()
    asked._judge(asked._look(X[0]), y.tolist(), own=True)
    assert asked.temperature.log != before


def test_the_gate_learns_to_give_the_right_answer():
    head = dual(150)
    X, y = World(seed=3).draw(20)
    for k in (3, 7, 11):
        for c in (int(y[k]), int(y[k] + 1) % 3):
            taught = head.copy()
            for _ in range(30):
                taught._judge(taught._view(taught.standardise(X[k : k + 1])), [c], own=False)
            assert taught.copy().predict_one(X[k])[c] > head.predict_one(X[k])[c]


def test_every_label_reaches_every_part():
    head = dual(100)
    assert head.slow.n_updates == head.tracker.filter.n_updates == 100
    assert head.fast.n == SMALL["window"] and head.anchors._held.n == min(100 - SMALL["window"], 64)
    assert np.abs(head.softmax.weights).max() > 0


def test_without_anchors_the_local_memory_counts_at_a_constant_weight():
    head = dual(100, anchors=0)
    view = head._look(World(seed=4).draw(1)[0][0])
    assert np.abs(view.parts).max() > 1e-3
    np.testing.assert_allclose(view.scores, view.slow + CONSTANT_GATE * view.parts[:, 0], atol=1e-6)
    assert pytest.approx(0.6) == CONSTANT_GATE


def test_what_is_kept_follows_new_scales():
    head = dual(100)
    X, y = World(seed=1).draw(100)
    list(head.rehearse(Exemplars.of(3 * X + 5, y)))
    in_step(head)
    far = dual()
    for k, (x, c) in enumerate(zip(*World().draw(300), strict=True)):
        scales = far.standardise
        far.learn_one(x if k < 100 else 4 * x + 9, int(c))
        if k > 100 and far.standardise is not scales:
            break
    else:
        pytest.fail("the scales moved and nothing was relearned")
    in_step(far)


@pytest.mark.parametrize("change", ["settle", "rehearse", "warm_start", "add_class"])
def test_an_answer_is_never_older_than_what_was_learned(change, tmp_path):
    X, y = World(seed=2).draw(60)
    head = dual(0 if change == "warm_start" else 100)
    before = head.predict_one(X[0])
    if change == "settle":
        head.settle(X, (y + 1) % 3)
        assert head.slow.n_updates == 160
    elif change == "rehearse":
        list(head.rehearse(Exemplars.of(X, (y + 1) % 3)))
    elif change == "warm_start":
        head.warm_start(make_bundle(tmp_path / "b.ecl").prior(), strength=10)
    else:
        head.add_class()
    after = head.predict_one(X[0])
    np.testing.assert_array_equal(after, head.copy().predict_one(X[0]))
    assert len(after) != len(before) or (after != before).any()


def test_a_warm_start_fills_the_anchors_and_keeps_its_scales(tmp_path):
    prior = make_bundle(tmp_path / "b.ecl").prior()
    head = dual()
    head.warm_start(prior, strength=10)
    assert head.refit is None and head.anchors._held.n == min(len(prior.exemplars), SMALL["anchors"])
    assert head.anchors.draw(4.0)
    in_step(head)


def test_a_class_may_come_while_the_slow_memory_is_relearned():
    head = dual(96)
    X, y = World(seed=5).draw(200)
    for x, c in zip(4 * X[:60] + 9, y[:60].tolist(), strict=True):
        head.learn_one(x, c)
        if head.refit._slow is not None:
            break
    else:
        pytest.fail("nothing was relearned")
    head.add_class()
    scales = head.standardise
    for k, x in enumerate(4 * X[60:] + 9):
        head.learn_one(x, 3 if k % 4 == 0 else int(y[60 + k]))
    assert head.standardise is not scales
    assert head.predict_one(X[60]).shape == (4,)
    assert head.slow.mean().shape[1] == 4
