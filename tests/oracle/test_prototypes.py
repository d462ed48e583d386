"""The sub-prototypes of a class: what they must add up to, and when they help."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl import heads
from edge_cl.heads.prototypes import SubPrototypes, closest

streams = st.tuples(st.integers(0, 2**16), st.integers(1, 80), st.integers(1, 5))


def clustered(X, n_per_class, scale=1.0):
    forms = SubPrototypes(X.shape[1], 1, n_per_class)
    for x in X:
        forms.learn_one(x, 0, np.full(len(x), scale, dtype=np.float32))
    return forms


@settings(max_examples=60)
@given(streams)
def test_together_they_are_the_mean_of_all_labels(draw):
    seed, n, k = draw
    X = np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)
    forms = clustered(X, k)
    assert forms.counts.sum() == n
    np.testing.assert_allclose(forms.counts[0] @ forms.means[0] / n, X.mean(axis=0), atol=1e-5)


@settings(max_examples=40)
@given(streams, st.sampled_from([1e-3, 1.0, 1e3]))
def test_merged_they_are_the_mean_of_both(draw, scale):
    seed, n, k = draw
    X = np.random.default_rng(seed).normal(size=(2 * n, 3)).astype(np.float32)
    one, other = clustered(X[:n], k, scale), clustered(X[n:], k, scale)
    one.merge(other, np.full(3, scale, dtype=np.float32))
    assert one.counts.sum() == 2 * n and (np.sort(one.counts[0] == 0) == (one.counts[0] == 0)).all(), (
        "free places come last"
    )
    np.testing.assert_allclose(one.counts[0] @ one.means[0] / (2 * n), X.mean(axis=0), atol=1e-5)


@pytest.mark.parametrize("in_order", [True, False])
def test_they_find_well_separated_clusters_in_any_order(in_order):
    """Even when all of the first cluster comes first, which fills every place."""
    rng = np.random.default_rng(0)
    centres = np.array([[0, 0], [40, 0], [0, 40], [40, 40]], dtype=np.float32)
    which = np.repeat(np.arange(4), 60)
    X = (centres[which] + rng.normal(size=(240, 2))).astype(np.float32)
    forms = clustered(X if in_order else X[rng.permutation(240)], 4)
    found = forms.means[0].round(-1)
    found = found[np.lexsort(found.T)]
    np.testing.assert_array_equal(found, centres)
    np.testing.assert_array_equal(forms.counts[0], 60)


def test_the_closest_pair_costs_what_merging_adds_to_the_squared_deviations():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(12, 3)).astype(np.float32)
    groups = [X[:2], X[2:7], X[7:]]
    means, counts = np.stack([g.mean(axis=0) for g in groups]), np.array([float(len(g)) for g in groups])
    first, second, cost = closest(means, counts, np.ones(3, dtype=np.float32))

    def deviation(samples):
        return ((samples - samples.mean(axis=0)) ** 2).sum()

    added = {
        (i, j): deviation(np.concatenate([groups[i], groups[j]]))
        - deviation(groups[i])
        - deviation(groups[j])
        for i in range(3)
        for j in range(i + 1, 3)
    }
    assert (first, second) == min(added, key=added.get)
    assert cost == pytest.approx(min(added.values()), rel=1e-4)


def test_classes_that_recur_in_other_forms_need_more_than_one_mean():
    """Two classes, each in two places crosswise: every mean of a class lies in the same middle."""
    rng = np.random.default_rng(0)
    place, y = rng.integers(2, size=600), rng.integers(2, size=600)
    X = np.zeros((600, 4), dtype=np.float32)
    X[:, 0], X[:, 1] = np.where(place == y, 6, -6), np.where(place, 6, -6)
    X += rng.normal(size=X.shape).astype(np.float32)
    accuracy = {}
    for k in (0, 4):
        head = heads.create("prototype", n_features=4, n_classes=2, sub_prototypes=k)
        head.learn_many(X[:500], y[:500])
        accuracy[k] = (head.predict_many(X[500:]).argmax(axis=1) == y[500:]).mean()
    assert accuracy[4] > 0.95 and accuracy[0] < 0.75


def test_a_form_made_by_wrong_labels_counts_for_less():
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=800)
    X = (np.where(y, 3, -3)[:, None] + rng.normal(size=(800, 2))).astype(np.float32)
    taught = np.where(rng.random(800) < 0.2, 1 - y, y)
    head = heads.create("prototype", n_features=2, n_classes=2)
    head.learn_many(X[:600], taught[:600])
    assert (head.predict_many(X[600:]).argmax(axis=1) == y[600:]).mean() > 0.97


@pytest.mark.parametrize("k", [-1, 65, 2.0, True])
def test_unusable_numbers_are_refused(k):
    with pytest.raises(ValueError, match=r"sub_prototypes is .*; allowed: a whole number from 0 to 64"):
        heads.create("prototype", n_features=2, sub_prototypes=k)
