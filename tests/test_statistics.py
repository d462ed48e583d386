"""Sums over labels: they add up whatever the order, and arrive as they were sent or not at all."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edge_cl import heads, statistics
from edge_cl.errors import SyncError
from edge_cl.heads import Head
from edge_cl.statistics import (
    Account,
    Statistics,
    add,
    collect,
    from_bytes,
    of_prior,
    subtract,
    to_bytes,
    to_prior,
)
from tests.worlds import NAMES, D, World, make_bundle

ACCOUNT = Account(device="home/a", bundle_id="b" * 64, encoder="e" * 32, history="f" * 16, seq=40)
NO_EXEMPLARS = np.zeros((0, D), np.float16), np.zeros(0, np.int64)


def close(one: Statistics, other: Statistics, *, to: float = 1e-9) -> bool:
    assert one.class_names == other.class_names
    pairs = [(one.counts, other.counts), (one.sums, other.sums), (one.second, other.second)]
    return all(np.allclose(a, b, rtol=to, atol=to * (1 + np.abs(b).max(initial=0))) for a, b in pairs)


def some(seed: int, n: int = 40, *, offset: float = 0.0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    X, y = World(seed=seed).draw(n, 4)
    return X + np.float32(offset), y


def named(seed: int, n: int = 40) -> Statistics:
    """Of a device that knows some of the classes, in an order of its own."""
    X, y = some(seed, n)
    order = np.random.default_rng(seed).permutation(4)[: 2 + seed % 3]
    rows = np.isin(y, order)
    place = {int(c): k for k, c in enumerate(order)}
    return collect(
        X[rows], np.array([place[int(c)] for c in y[rows]], np.int64), tuple(NAMES[c] for c in order)
    )


@given(seeds=st.lists(st.integers(0, 10_000), min_size=1, max_size=5, unique=True), rnd=st.randoms())
@settings(max_examples=25)
def test_the_order_does_not_matter_and_what_was_added_can_be_taken_away(seeds: Any, rnd: Any) -> None:
    base = collect(*some(99_999), NAMES)
    parts = [named(seed) for seed in seeds]
    shuffled = parts.copy()
    rnd.shuffle(shuffled)
    one, other = base, base
    for mine, theirs in zip(parts, shuffled, strict=True):
        one, other = add(one, mine), add(other, theirs)
    assert close(one, other)
    for part in shuffled:
        one = subtract(one, part)
    assert close(one, base, to=1e-7)


@given(seed=st.integers(0, 10_000), n_parts=st.integers(1, 6))
@settings(max_examples=20)
def test_sums_of_parts_are_those_of_all_labels_at_once(seed: int, n_parts: int) -> None:
    X, y = some(seed, 60, offset=30.0)
    found = statistics.empty(NAMES, D)
    for rows in np.array_split(np.arange(60), n_parts):
        found = add(found, collect(X[rows], y[rows], NAMES))
    F = X.astype(np.float64)
    assert np.array_equal(found.counts, np.bincount(y, minlength=4))
    np.testing.assert_allclose(found.second, F.T @ F, rtol=1e-12)
    means = np.stack([F[y == c].mean(axis=0) if (y == c).any() else np.zeros(D) for c in range(4)])
    within = (F - means[y]).T @ (F - means[y])
    prior = to_prior(found, *NO_EXEMPLARS)
    np.testing.assert_allclose(prior.class_means, means, rtol=1e-12)
    np.testing.assert_allclose(prior.shared_cov * 60, within, atol=1e-9 * np.abs(F.T @ F).max())


def test_new_classes_come_after_those_of_the_bundle() -> None:
    base = statistics.empty(("walk", "rest"), D)
    found = add(add(base, statistics.empty(("swim",), D)), statistics.empty(("climb", "walk"), D))
    assert found.class_names == ("walk", "rest", "swim", "climb")
    assert statistics.union(("walk",), ("b", "a", "walk")) == ("walk", "a", "b")


def test_labels_of_a_class_are_never_dropped_silently() -> None:
    with pytest.raises(ValueError, match="climb"):
        statistics.aligned(collect(*some(1), NAMES), NAMES[:3])


# ------------------------------------------------------------------ heads made from them


def fresh(name: str, prior: Any, strength: float, n_classes: int = 3, **options: Any) -> Head:
    head = heads.create(name, n_features=D, n_classes=n_classes, **options)
    head.warm_start(prior, strength=strength)
    return head


@pytest.mark.parametrize(
    ("name", "options"), [("slda", {}), ("prototype", {"sub_prototypes": 0, "fast_gain": 1e-9})]
)
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_head_made_from_sums_is_the_one_that_learned_all_labels(
    tmp_path: Any, name: str, options: dict[str, Any], offset: float
) -> None:
    prior = make_bundle(tmp_path / "b.ecl").prior()
    assert prior is not None
    prior = msgspec.structs.replace(prior, class_means=prior.class_means + np.float32(offset))
    central = fresh(name, prior, 10.0, **options)
    central.add_class()
    found = of_prior(prior, NAMES[:3], 10.0)
    for seed in range(8):
        X, y = some(seed, 60, offset=offset)
        for x, c in zip(X, y, strict=True):
            central.learn_one(x, int(c))
        found = add(found, collect(X, y, NAMES))
    ours = fresh(name, to_prior(found, *NO_EXEMPLARS), math.inf, n_classes=4, **options)
    for head in (central, ours):
        if name == "slda":
            head._solve()  # type: ignore[attr-defined]
    assert np.array_equal(central.class_counts, ours.class_counts)
    held_out = some(77, 200, offset=offset)[0]
    np.testing.assert_allclose(ours.predict_many(held_out), central.predict_many(held_out), atol=1e-4)


# ------------------------------------------------------------------ as bytes


@given(seed=st.integers(0, 10_000), noise=st.sampled_from([0.0, 1.0]))
@settings(max_examples=20)
def test_what_is_sent_arrives(seed: int, noise: float) -> None:
    account = msgspec.structs.replace(ACCOUNT, noise=noise, clip_norm=noise, epsilon=2.5 if noise else None)
    sent = named(seed)
    found, said = from_bytes(to_bytes(sent, account))
    assert said == account
    assert np.array_equal(found.counts, sent.counts) and np.array_equal(found.sums, sent.sums)
    if noise:
        assert not found.second.any(), "with noise no second moment is sent"
    else:
        np.testing.assert_allclose(found.second, sent.second, rtol=1e-15)
        assert np.array_equal(found.second, found.second.T)


@given(data=st.data())
@settings(max_examples=150)
def test_any_flipped_or_missing_byte_is_noticed(data: st.DataObject) -> None:
    body = bytearray(to_bytes(named(3), ACCOUNT))
    if data.draw(st.booleans()):
        body[data.draw(st.integers(0, len(body) - 1))] ^= data.draw(st.integers(1, 255))
    else:
        body = body[: data.draw(st.integers(0, len(body) - 1))]
    with pytest.raises(SyncError):
        from_bytes(bytes(body))


def changed(**arrays: Any) -> bytes:
    return to_bytes(msgspec.structs.replace(collect(*some(1), NAMES), **arrays), ACCOUNT)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (lambda: changed(counts=np.array([1, 1, np.nan, 1])), "not finite"),
        (lambda: changed(counts=np.array([-1.0, 1, 1, 1])), "no labels have such sums"),
        (lambda: changed(counts=np.zeros(4)), "no labels have such sums"),
        (lambda: changed(second=-np.eye(D)), "no labels have such sums"),
        (lambda: changed(second=np.zeros((D, D))), "no labels have such sums"),
        (lambda: changed(counts=np.ones(5)), "cannot have"),
        (lambda: changed(class_names=("a", "a", "b", "c")), "not usable"),
        (lambda: b"PK\x03\x04", "no statistics"),
    ],
)
def test_sums_that_no_labels_have_are_refused(body: Any, says: str) -> None:
    with pytest.raises(SyncError, match=says):
        from_bytes(body())


def test_a_header_that_is_too_long_is_not_sent() -> None:
    names = tuple(f"{k:0200d}" for k in range(400))
    with pytest.raises(SyncError, match="merge classes"):
        to_bytes(statistics.empty(names, D), ACCOUNT)
