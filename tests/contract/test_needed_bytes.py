"""What a head will hold is known before it is made, to the byte; a budget too small says what fits."""

import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl import heads
from edge_cl.budget import MIB, Ledger
from edge_cl.errors import BudgetExceeded
from edge_cl.heads import STANDALONE
from edge_cl.knowledge import Knowledge
from edge_cl.memory.exemplars import Exemplars
from tests.worlds import make_bundle

OPTIONS = {
    "dual": st.fixed_dictionaries(
        {},
        optional={
            "lift": st.sampled_from([0, 100, 300]),
            "window": st.integers(1, 64),
            "memory_bytes": st.sampled_from([0, 10_000, 300_000]),
        },
    ),
    "prototype": st.fixed_dictionaries({}, optional={"sub_prototypes": st.integers(0, 8)}),
    "knn": st.fixed_dictionaries({"memory_bytes": st.integers(6_000, 500_000)}),
}
sizes = st.one_of(
    st.tuples(st.integers(1, 300), st.integers(0, 100)), st.sampled_from([(1280, 10), (64, 1000), (1, 0)])
)


@pytest.mark.parametrize("name", list(STANDALONE))
@settings(max_examples=15)
@given(st.data())
def test_needed_bytes_are_those_of_a_new_head(name, data):
    n_features, n_classes = data.draw(sizes)
    options = data.draw(OPTIONS.get(name, st.just({})))
    size = {"n_features": n_features, "n_classes": n_classes}
    head = heads.create(name, **size, **options)
    needed = heads.needed_bytes(name, **size, **options)
    assert needed == head.nbytes
    assert heads.create(name, **size, max_bytes=needed, **options).nbytes == needed
    with pytest.raises(BudgetExceeded, match=f"needs {needed:,} bytes .* allowed are {needed - 1:,}; "):
        heads.create(name, **size, max_bytes=needed - 1, **options)
    assert heads.needed_bytes(name, n_features=n_features, n_classes=n_classes + 1, **options) <= (
        needed + head.bytes_per_class
    )


def refused(name, max_bytes, **options):
    with pytest.raises(BudgetExceeded) as refusal:
        heads.create(name, n_features=128, n_classes=10, max_bytes=max_bytes, **options)
    return str(refusal.value)


def test_a_smaller_version_of_the_same_head_is_named_first():
    expectations = ((11_500_000, "memory_bytes = 0"), (3_000_000, "lift = 512"), (900_000, "lift = 256"))
    for max_bytes, expected in expectations:
        said = refused("dual", max_bytes)
        assert f"what fits: dual with {expected}" in said
        (size,) = (int(n.replace(",", "")) for n in re.findall(r"dual with .* \(([\d,]+) bytes\)", said))
        assert size <= max_bytes


def test_else_the_heads_that_fit_with_their_bytes():
    said = refused("kalman", 50_000)
    assert "prototype" in said and "slda" not in said and "dual" not in said
    size = int(re.search(r"prototype \(([\d,]+) bytes\)", said)[1].replace(",", ""))
    assert size <= 50_000
    assert "no head fits" in refused("dual", 100)


def test_and_how_many_classes_would():
    said = refused("slda", heads.needed_bytes("slda", n_features=128, n_classes=4))
    assert "slda as asked for with at most 4 classes" in said


def test_unknown_heads_and_options_are_refused_alike():
    with pytest.raises(ValueError, match="known: dual"):
        heads.needed_bytes("nope", n_features=3)
    with pytest.raises(ValueError, match="known: dual"):
        heads.fit("nope", max_bytes=10**9, n_features=3)
    with pytest.raises(ValueError, match=r"frobnicate.*its options: shrinkage"):
        heads.needed_bytes("slda", n_features=3, frobnicate=1)


@pytest.mark.parametrize("name", list(STANDALONE))
@settings(max_examples=20)
@given(st.data())
def test_fit_is_the_largest_version_within_the_bytes(name, data):
    size = dict(zip(("n_features", "n_classes"), data.draw(sizes), strict=True))
    needed = [heads.needed_bytes(name, **size, **options) for options in heads.versions(name)]
    assert needed == sorted(needed, reverse=True)
    max_bytes = data.draw(st.one_of(st.sampled_from(needed), st.integers(0, needed[0] + 1)))
    if max_bytes < needed[-1]:
        with pytest.raises(
            BudgetExceeded, match=f"needs {needed[-1]:,} bytes .* allowed are {max_bytes:,}; "
        ):
            heads.fit(name, max_bytes=max_bytes, **size)
        return
    options = heads.fit(name, max_bytes=max_bytes, **size)
    assert heads.needed_bytes(name, **size, **options) == max(n for n in needed if n <= max_bytes)
    assert heads.device_options(name, options) == options, "on a device it holds no memory of its own"


def test_a_device_budget_too_small_says_what_fits(tmp_path):
    bundle = make_bundle(tmp_path / "b.ecl", lift=1024, window=128)
    with pytest.raises(
        BudgetExceeded, match=r"what fits: dual with .*lift = 256.*raise budget.ram_mb.*edge-cl heads"
    ):
        Knowledge(bundle, Ledger(2 * MIB))
    assert Knowledge(bundle, Ledger(2 * MIB), head_name="slda").head.name == "slda"


def test_learning_relearning_and_copying_a_dual_stay_near_what_it_holds():
    """A second covariance beside those that are counted would double the budget."""
    X, y = np.random.default_rng(0).normal(size=(70, 8)).astype(np.float32), np.arange(70) % 3
    tracemalloc.start()
    try:
        head = heads.create("dual", n_features=8, n_classes=3, window=32, anchors=40, memory_bytes=60_000)
        head.learn_many(X, y)  # refits at every doubling
        for _ in head.rehearse(Exemplars.of(X, y)):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        held = tracemalloc.get_traced_memory()[0]
        head.copy()
        copying = tracemalloc.get_traced_memory()[1] - held
    finally:
        tracemalloc.stop()
    assert peak < 1.25 * head.nbytes
    assert copying < 1.5 * head.nbytes
