"""Heads that merge and unlearn do so exactly; the others refuse."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl import heads
from edge_cl.heads import HEADS
from edge_cl.heads.standardise import CLIP
from edge_cl.memory.exemplars import Exemplars
from tests.programs import make_head
from tests.worlds import D, World, make_bundle

MERGES = [name for name, cls in HEADS.items() if cls.can_merge]
FORGETS = [name for name, cls in HEADS.items() if cls.can_forget]
CLOSE = {"slda": 1e-5, "kalman": 5e-4, "prototype": 2e-5}


def learned(name, X, y, **options):
    head = heads.create(name, n_features=D, n_classes=3, **options)
    head.learn_many(X, y)
    return head


def answers(head, X):
    """Scores with every lazy solve done: a rehearsal of nothing."""
    twin = head.copy()
    if head.name == "slda":
        list(twin.rehearse(Exemplars.of(np.zeros((0, D), np.float32), np.zeros(0, np.int64))))
    return twin.predict_many(X)


def settled(name, head):
    """The part of the head that must not depend on the order of labels."""
    if name == "prototype":
        head.fast_means = head.class_means.copy()
        head.forms.counts.fill(0)
    return head


def same_scales(head, other):
    """Scales are those of the first labels; in other scales the prior weighs otherwise."""
    return np.array_equal(head.standardise.inv_std, other.standardise.inv_std)


def clipped(X, *learners):
    """Whether some feature was an outlier in the scale of one head, and perhaps none in another's."""
    scales = [head.standardise for head in learners]
    return any((np.abs((X - scale.mean) * scale.inv_std) > CLIP).any() for scale in scales)


counts = st.tuples(st.integers(0, 2**16), st.integers(0, 120), st.integers(0, 120))


@pytest.mark.parametrize("name", MERGES)
@settings(max_examples=40)
@given(counts)
def test_merging_equals_learning_both(name, draw):
    seed, n, m = draw
    X, y = World(seed=seed).draw(n + m)
    merged, both = learned(name, X[:n], y[:n]), learned(name, X, y)
    other = learned(name, X[n:], y[n:])
    before = other.predict_many(X)
    merged.merge(other)
    np.testing.assert_array_equal(other.predict_many(X), before)
    np.testing.assert_array_equal(merged.class_counts, both.class_counts)
    if name != "kalman" or (same_scales(merged, both) and not clipped(X, merged, other)):
        seen = World(seed=1).draw(50)[0]
        ours, theirs = (answers(settled(name, head), seen) for head in (merged, both))
        close = CLOSE[name] if n + m > 40 else 5e-3  # of few samples the covariance is nearly singular
        np.testing.assert_allclose(ours, theirs, rtol=10 * close, atol=close)


@pytest.mark.parametrize("name", MERGES)
@settings(max_examples=40)
@given(counts)
def test_merging_either_way_round_is_the_same(name, draw):
    seed, n, m = draw
    X, y = World(seed=seed).draw(n + m)
    one, other = learned(name, X[:n], y[:n]), learned(name, X[n:], y[n:])
    turned = other.copy()
    turned.merge(one)
    one.merge(other)
    seen = World(seed=1).draw(50)[0]
    if name != "kalman":  # its scales are those of the head that is merged into
        np.testing.assert_allclose(answers(one, seen), answers(turned, seen), rtol=0.01, atol=5e-3)
    else:
        assert (answers(one, seen).argmax(axis=1) == answers(turned, seen).argmax(axis=1)).mean() >= 0.9


@pytest.mark.parametrize("name", FORGETS)
@settings(max_examples=40)
@given(counts)
def test_forgetting_what_was_learned_last_leaves_the_rest(name, draw):
    seed, n, m = draw
    n += 32  # fewer: kalman's scales follow every label, and slda divides by what rounding leaves
    X, y = World(seed=seed).draw(n + m)
    kept, head = learned(name, X[:n], y[:n]), learned(name, X, y)
    for x, c in zip(X[n:], y[n:], strict=True):
        head.forget_one(x, int(c))
    np.testing.assert_array_equal(head.class_counts, kept.class_counts)
    seen = World(seed=1).draw(50)[0]
    np.testing.assert_allclose(answers(head, seen), answers(kept, seen), rtol=1e-2, atol=5e-4)


@pytest.mark.parametrize("name", FORGETS)
def test_everything_can_be_forgotten_and_learned_again(name):
    X, y = World().draw(20)
    head = learned(name, X, y)
    for x, c in zip(X, y, strict=True):
        head.forget_one(x, int(c))
    assert not head.predict_many(X).any() and head.n_seen == 0
    head.learn_many(X, y)
    np.testing.assert_allclose(answers(head, X), answers(learned(name, X, y), X), atol=2e-3)


@pytest.mark.parametrize("name", FORGETS)
def test_what_was_never_learned_cannot_be_forgotten(name):
    X, y = World().draw(100)
    head = learned(name, X[y != 2], y[y != 2])
    with pytest.raises(ValueError, match="class 2 has no label left"):
        head.forget_one(X[0], 2)
    before = head.predict_many(X)
    with pytest.raises(ValueError, match="features"):
        head.forget_one(np.full(D, np.nan), 0)
    np.testing.assert_array_equal(head.predict_many(X), before)


@pytest.mark.parametrize("name", list(HEADS))
def test_a_head_that_cannot_says_so(name):
    head = make_head(name)
    if not head.can_merge:
        with pytest.raises(ValueError, match=f"{name!r} cannot merge exactly"):
            head.merge(head.copy())
    if not head.can_forget:
        with pytest.raises(ValueError, match=f"{name!r} cannot forget exactly"):
            head.forget_one(np.zeros(D), 0)


@pytest.mark.parametrize("name", MERGES)
def test_only_like_merges_with_like(name):
    head = heads.create(name, n_features=D, n_classes=3)
    stranger = next(other for other in MERGES if other != name)
    for other, complaint in (
        (heads.create(name, n_features=D + 1, n_classes=3), "n_features"),
        (heads.create(name, n_features=D, n_classes=4), "n_classes"),
        (heads.create(stranger, n_features=D, n_classes=3), "name"),
    ):
        with pytest.raises(ValueError, match=complaint):
            head.merge(other)
    options = {"slda": {"shrinkage": 0.5}, "kalman": {"obs_noise_var": 0.5}, "prototype": {"fast_gain": 0.5}}
    with pytest.raises(ValueError, match="options"):
        head.merge(heads.create(name, n_features=D, n_classes=3, **options[name]))


def test_kalman_that_forgets_neither_merges_nor_unlearns():
    head = learned("kalman", *World().draw(50), forgetting=0.99)
    with pytest.raises(ValueError, match=r"merge needs forgetting = 1, found 0\.99"):
        head.merge(head.copy())
    with pytest.raises(ValueError, match="forget_one needs forgetting = 1"):
        head.forget_one(World().draw(1)[0][0], 0)


def test_kalman_knows_a_sample_too_telling_to_have_been_learned():
    head = learned("kalman", *World().draw(100))
    with pytest.raises(ValueError, match="never learned"):
        head.forget_one(np.full(D, 1e3), 0)
    few = learned("kalman", *World().draw(5))
    with pytest.raises(ValueError, match="never learned"):
        few.forget_one(np.full(D, 0.5), int(World().draw(5)[1][0]))


def test_kalman_merges_its_moments_and_keeps_no_trace_of_what_it_forgot():
    X, y = World().draw(200)
    merged, other = learned("kalman", X[:96], y[:96]), learned("kalman", X[96:192], y[96:192])
    both = learned("kalman", X[:192], y[:192])
    merged.merge(other)
    np.testing.assert_allclose(merged.moments.mean, both.moments.mean, atol=1e-5)
    np.testing.assert_allclose(merged.moments.var, both.moments.var, rtol=1e-4)
    for k in (180, 5):
        both.forget_one(X[k], int(y[k]))
        assert not (both.state().arrays["recent"] == X[k]).all(axis=1).any()


def test_two_devices_of_one_bundle_merge(tmp_path):
    prior = make_bundle(tmp_path / "b.ecl").prior()
    X, y = World(seed=6, shift=3.0).draw(200)
    for name in MERGES:
        pair = [heads.create(name, n_features=D, n_classes=3) for _ in range(2)]
        for head, rows in zip(pair, (slice(0, 100), slice(100, 200)), strict=True):
            head.warm_start(prior, strength=20)
            head.learn_many(X[rows], y[rows])
        pair[0].merge(pair[1])
        assert (pair[0].predict_many(X).argmax(axis=1) == y).mean() > 0.9
