"""What trusted labels say: ranks that hold for any overlap, order by distance, room shared fairly."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.trust.reference import BLOCK, LEAST_MEASURED, Reference

D = 5


def taught(n: int, *, apart: float, seed: int = 0, n_classes: int = 3, capacity: int = 512) -> Reference:
    rng = np.random.default_rng(seed)
    reference = Reference(D, capacity)
    for _ in range(n):
        y = int(rng.integers(n_classes))
        reference.add(drawn(rng, y, apart), y)
    reference.measure()
    return reference


def drawn(rng: np.random.Generator, y: int, apart: float) -> np.ndarray:
    x = rng.standard_normal(D)
    x[y % D] += apart * (1 + y // D)
    return x.astype(np.float32)


@pytest.mark.parametrize("apart", [0.5, 2.0, 8.0])
def test_p_values_of_honest_labels_are_uniform_whatever_the_overlap(apart: float) -> None:
    reference, rng = taught(300, apart=apart), np.random.default_rng(1)
    ps = []
    for _ in range(400):  # both go on, as at home
        y, z = int(rng.integers(3)), int(rng.integers(3))
        doubt = reference.doubt(drawn(rng, y, apart), y)
        assert doubt is not None and doubt.known
        ps.append(doubt.p)
        reference.add(drawn(rng, z, apart), z)
    for share in (0.1, 0.25, 0.5, 0.75):
        assert np.mean(np.array(ps) <= share) == pytest.approx(share, abs=0.09)


def test_a_flip_is_stranger_than_the_truth_and_its_rival_is_the_truth() -> None:
    reference, rng = taught(300, apart=6.0), np.random.default_rng(2)
    for y in range(3):
        x = drawn(rng, y, 6.0)
        true, flip = reference.doubt(x, y), reference.doubt(x, (y + 1) % 3)
        assert true is not None and flip is not None
        assert flip.p < 0.04 < true.p and flip.evidence > true.evidence and flip.rival == y


def test_little_is_said_from_few_trusted_labels_or_one_class() -> None:
    x = np.zeros(D, np.float32)
    assert taught(0, apart=3.0).doubt(x, 0) is None
    assert taught(LEAST_MEASURED, apart=3.0).doubt(x, 0) is None  # the first of a class measures nothing
    assert taught(LEAST_MEASURED + 10, apart=3.0).doubt(x, 0) is not None
    assert taught(200, apart=3.0, n_classes=1).doubt(x, 0) is None


def test_a_rare_class_keeps_its_rows_when_a_common_one_floods() -> None:
    reference, rng = Reference(D, 64), np.random.default_rng(3)
    for _ in range(5):
        reference.add(drawn(rng, 1, 6.0), 1)
    for _ in range(500):
        reference.add(drawn(rng, 0, 6.0), 0)
    reference.measure()
    arrays, _ = reference.state()
    assert np.bincount(arrays["y"]).tolist() == [59, 5]
    assert arrays["born"][arrays["y"] == 0].min() == 505 - 59  # of the common one the last


def test_while_new_classes_keep_coming_an_unseen_one_is_no_news() -> None:
    few, many = taught(60, apart=6.0, n_classes=20), taught(400, apart=6.0, n_classes=3)
    x = np.zeros(D, np.float32)
    assert few.doubt(x, 33) is None and few.doubt(x, -1) is not None  # but nobody had named a class -1
    doubt = many.doubt(x, 33)
    assert doubt is not None and not doubt.known


@given(scale=st.sampled_from([1e-3, 1.0, 1e3]), shift=st.sampled_from([0.0, 5.0]), seed=st.integers(0, 50))
@settings(max_examples=10)
def test_units_do_not_matter(scale: float, shift: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    plain, other = Reference(D), Reference(D)
    for _ in range(100):
        y = int(rng.integers(3))
        x = drawn(rng, y, 4.0)
        plain.add(x, y)
        other.add((scale * (x + shift)).astype(np.float32), y)
    x = drawn(rng, 0, 4.0)
    a, b = plain.doubt(x, 0), other.doubt((scale * (x + shift)).astype(np.float32), 0)
    assert a is not None and b is not None
    assert a.p == pytest.approx(b.p, abs=0.06)  # half precision is coarser far from 0


def test_wild_features_raise_nothing() -> None:
    reference = taught(100, apart=3.0)
    for value in (1e30, -1e30, 0.0):
        x = np.full(D, value, np.float32)
        reference.add(x, 0)
        doubt = reference.doubt(x, 1)
        assert doubt is not None and 0 < doubt.p <= 1 and np.isfinite(doubt.evidence)


def test_it_holds_no_more_than_it_says() -> None:
    reference = Reference(D, 64)
    before = reference.nbytes
    for k in range(300):
        reference.add(np.full(D, k, np.float32), k % 3)
    assert reference.nbytes == before and 64 <= len(reference.state()[0]["y"]) < 64 + BLOCK


@given(st.lists(st.booleans(), min_size=60, max_size=120), st.integers(0, 50))
@settings(max_examples=10)
def test_when_it_is_measured_changes_nothing_but_the_scale(measure_now: list[bool], seed: int) -> None:
    """Each label is measured among those before it, at once or later."""
    rng = np.random.default_rng(seed)
    now_and_then, by_blocks = Reference(2), Reference(2)
    for reference in (now_and_then, by_blocks):  # the same scale, kept: the corners of a square
        reference._inv_std[:] = 1.0
    for now in measure_now:
        y = int(rng.integers(3))
        x = rng.choice([-1.0, 1.0], 2).astype(np.float32)
        for reference in (now_and_then, by_blocks):
            reference.add(x, y)
        if now:
            now_and_then.measure()
    for reference in (now_and_then, by_blocks):
        reference.measure()
    (a, counts), (b, others) = now_and_then.state(), by_blocks.state()
    assert counts == others and np.array_equal(a["rows"], b["rows"]) and np.array_equal(a["y"], b["y"])
    assert np.array_equal(a["inv_std"], b["inv_std"])
