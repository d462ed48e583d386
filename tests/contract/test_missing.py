"""A feature that was not measured argues for no class, and teaches little that is wrong."""

import numpy as np
import pytest

from edge_cl import heads
from edge_cl.heads import HEADS
from tests.programs import make_head
from tests.worlds import D, World

SMALL = {"dual": {"lift": 300, "window": 32, "memory_bytes": 100_000}}
OFFSET = 20.0


@pytest.fixture(params=list(HEADS))
def head(request):
    return make_head(request.param, **SMALL.get(request.param, {}))


def draw(n, seed, share=0.2):
    X, y = World(seed=seed, shift=OFFSET).draw(n)
    return X, y, np.random.default_rng(seed + 100).random(X.shape) < share


def accuracy(predict, y):
    return np.mean([predict(i).argmax() == y[i] for i in range(len(y))])


def test_predicting_without_a_fifth_of_the_features_costs_little(head):
    X, y, _ = draw(600, 0)
    head.learn_many(X, y)
    X, y, missing = draw(300, 5)
    whole = accuracy(lambda i: head.predict_one(X[i]), y)
    without = accuracy(lambda i: head.predict_one(X[i], missing=missing[i]), y)
    zeros = accuracy(lambda i: head.predict_one(np.where(missing[i], 0, X[i])), y)
    assert without > whole - 0.12 and without > zeros + 0.08, (whole, without, zeros)


def test_learning_without_a_fifth_of_the_features_costs_little(head):
    X, y, missing = draw(600, 0)
    for x, c, mask in zip(X, y, missing, strict=True):
        head.learn_one(x, int(c), missing=mask)
    X, y, _ = draw(300, 5)
    assert (head.predict_many(X).argmax(axis=1) == y).mean() > 0.9


def test_what_is_marked_missing_is_ignored_whatever_it_is(head):
    X, y, missing = draw(100, 0)
    head.learn_many(X, y)
    mask = missing[0] | (np.arange(D) == 2)
    head.predict_one(X[0])  # slda factors its covariance when asked, and both must then
    twin = head.copy()
    wild = np.where(mask, [np.nan, np.inf, np.nan, 1e39, 0, -np.inf], X[0])
    np.testing.assert_array_equal(head.predict_one(wild, missing=mask), head.predict_one(X[0], missing=mask))
    head.learn_one(wild, 1, missing=mask)
    twin.learn_one(X[0], 1, missing=mask)
    np.testing.assert_array_equal(head.predict_many(X), twin.predict_many(X))
    wild[~mask] = np.nan
    with pytest.raises(ValueError, match="not all finite"):
        head.predict_one(wild, missing=mask)


def test_nothing_missing_and_all_missing(head):
    none, everything = np.zeros(D, dtype=bool), np.ones(D, dtype=bool)
    assert not head.predict_one(np.full(D, np.nan), missing=everything).any(), "no label yet"
    X, y, _ = draw(200, 0)
    head.learn_many(X, y)
    np.testing.assert_array_equal(head.predict_one(X[0], missing=none), head.predict_one(X[0]))
    assert np.isfinite(head.predict_one(X[0], missing=everything)).all()


@pytest.mark.parametrize("mask", [np.zeros(D - 1, bool), np.zeros((1, D), bool), np.zeros(D), True])
def test_a_mask_of_another_form_is_refused(head, mask):
    with pytest.raises(ValueError, match=r"missing is .* should be bool of shape \(6,\)"):
        head.predict_one(np.zeros(D), missing=mask)
    with pytest.raises(ValueError, match="missing is"):
        head.learn_one(np.zeros(D), 0, missing=mask)
    with pytest.raises(ValueError, match="features have shape"):
        head.learn_one(np.zeros(D + 1), 0, missing=np.zeros(D, bool))
    assert head.n_seen == 0


@pytest.mark.parametrize("name", ["slda", "prototype", "logistic", "knn"])
def test_class_means_stay_where_they_are(name):
    head, whole = (heads.create(name, n_features=D, n_classes=3) for _ in range(2))
    X, y, missing = draw(900, 0)
    whole.learn_many(X, y)
    for x, c, mask in zip(X, y, missing, strict=True):
        head.learn_one(x, int(c), missing=mask)
    means, full = (getattr(h, "spread", h).class_means for h in (head, whole))
    between = np.abs(full[:, None] - full[None]).max()
    assert np.abs(means - full).max() < 0.1 * between
