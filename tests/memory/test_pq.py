"""Product-quantised exemplars: how far off they are, and that centroids follow the world."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.memory import ReplayMemory, Reservoir, default_codes, fit_codebook
from edge_cl.memory.pq import FOLLOW, Pq

D = 16


def clustered(n, seed=0, shift=0.0):
    """Features around 40 places, with channels of very different units."""
    rng = np.random.default_rng(seed)
    places = np.random.default_rng(42).normal(size=(40, D))
    X = places[rng.integers(40, size=n)] + 0.2 * rng.normal(size=(n, D)) + shift
    return (X * np.logspace(-3, 3, D)).astype(np.float32)


def codebook(*, n_codes=4, rotate=False, n_centroids=64):
    return fit_codebook(
        clustered(1500), n_codes, np.random.default_rng(1), n_centroids=n_centroids, rotate=rotate
    )


def error(codec, X):
    """Mean squared error in units of the source's variance."""
    return float(np.mean(((codec.reconstruct(X) - X) * codec._scale) ** 2))


def nearest_by_hand(book, X):
    """Codes by the definition, one part and one vector at a time."""
    Z = (X * book.scale).astype(np.float64)
    if len(book.rotation):
        Z = Z @ book.rotation
    n_parts, _, size = book.centroids.shape
    Z = np.pad(Z, ((0, 0), (0, n_parts * size - Z.shape[1])))
    codes = [
        ((book.centroids[m] - Z[:, None, m * size : (m + 1) * size]) ** 2).sum(2).argmin(1)
        for m in range(n_parts)
    ]
    return np.stack(codes, axis=1)


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("n_codes", [1, 4, 5, 16])
def test_codes_are_the_nearest_centroids_one_by_one_and_together(rotate, n_codes):
    book = codebook(n_codes=n_codes, rotate=rotate)
    codec, X = Pq(book), clustered(300, seed=5)
    codes = codec.encode(X)
    assert codes.dtype == np.uint8 and codes.shape == (300, codec.width)
    assert (codes == nearest_by_hand(book, X)).mean() > 0.999
    one_by_one = np.stack([codec.encode(x) for x in X])
    assert (codes == one_by_one).mean() > 0.999
    np.testing.assert_array_equal(codec.reconstruct(X), codec.decode(codes))
    np.testing.assert_allclose(codec.reconstruct(X[:1]), codec.decode(codes[:1]), rtol=1e-5, atol=1e-6)


def test_small_units_count_as_much_as_large_ones():
    X = clustered(500, seed=5)
    off = np.mean((Pq(codebook()).reconstruct(X) - X) ** 2, axis=0) / X.var(axis=0)
    assert off.max() < 0.5


def test_a_rotation_helps_where_channels_repeat_each_other():
    """Four channels of news and twelve copies: without a rotation each copy takes bits of its own."""
    rng = np.random.default_rng(3)
    base = rng.normal(size=(2000, 4))
    X = (np.repeat(base, 4, axis=1) + 0.05 * rng.normal(size=(2000, D))).astype(np.float32)
    X = X[:, np.argsort(np.arange(D) % 4, kind="stable")]
    plain, turned = (
        Pq(fit_codebook(X[:1500], 4, np.random.default_rng(1), n_centroids=32, rotate=rotate))
        for rotate in (False, True)
    )
    assert error(turned, X[1500:]) < 0.5 * error(plain, X[1500:])


def test_fitting_is_repeatable_and_few_samples_are_exact():
    X = clustered(20)
    for rotate in (False, True):
        one, two = (fit_codebook(X, 4, np.random.default_rng(9), rotate=rotate) for _ in range(2))
        np.testing.assert_array_equal(one.centroids, two.centroids)
        assert one.centroids.shape == (4, 20, 4)
        assert error(Pq(one), X) < 1e-6


def test_a_number_of_codes_that_cannot_be_is_refused():
    for n_codes in (0, D + 1):
        with pytest.raises(ValueError, match=f"n_codes is {n_codes}, found 20 features of size 16"):
            fit_codebook(clustered(20), n_codes, np.random.default_rng(0))
    assert default_codes(128) == 32 and default_codes(33) == 9


def test_what_lies_far_out_or_is_constant_stays_finite():
    X = clustered(300)
    X[:, 3] = 7.0
    codec = Pq(fit_codebook(X, 4, np.random.default_rng(0), rotate=True))
    for value in (3e38, -3e38, 1e-40):
        assert np.isfinite(codec.reconstruct(np.full((1, D), value, dtype=np.float32))).all()
    assert np.abs(codec.reconstruct(X)[:, 3] - 7).max() < 0.01


@pytest.mark.parametrize("rotate", [False, True])
def test_centroids_follow_a_drift_and_old_exemplars_hardly_suffer(rotate):
    """After one refresh new data is off by at least a fifth less; old exemplars by at most half more."""
    old, new, unseen = clustered(250), clustered(250, seed=1, shift=0.6), clustered(800, seed=2, shift=0.6)
    memory = ReplayMemory(capacity_bytes=100_000, n_features=D, codec=codebook(rotate=rotate))
    for k, x in enumerate(old):
        memory.add(x, k % 3)
    memory.refresh()
    codec = memory._shared
    before_old, before_new = error(codec, old), error(codec, unseen)
    stored = codec.encode(old)
    for k, x in enumerate(new):
        memory.add(x, k % 3)
    rows = memory.rehearsed._rows.all.copy()
    memory.refresh()
    np.testing.assert_array_equal(memory.rehearsed._rows.all, rows, err_msg="nothing is encoded again")
    after_old = float(np.mean(((codec.decode(stored) - old) * codec._scale) ** 2))
    assert error(codec, unseen) < 0.8 * before_new
    assert after_old < (1 + 2 * FOLLOW) * before_old, "as many are new as old"


def test_a_centroid_moves_to_the_mean_of_all_that_it_stands_for():
    """Sixty at the centroid's place, twenty a little off: a quarter of the way; far off: what is allowed."""
    X = clustered(200)
    for off, share in ((0.1, 1.0), (50.0, None)):
        codec = Pq(fit_codebook(X, 1, np.random.default_rng(0), n_centroids=1))
        reservoir = Reservoir(100, D, codec=codec, rng=np.random.default_rng(0))
        place = codec.decode(np.zeros((1, 1), dtype=np.uint8))[0]
        for _ in range(60):
            reservoir.add(place, 0)
        codec.refresh(reservoir.stored())
        news = place + np.float32(off) / codec._scale
        for _ in range(20):
            reservoir.add(news, 0)
        codec.refresh(reservoir.stored())
        moved = (codec.decode(np.zeros((1, 1), dtype=np.uint8))[0] - place) * codec._scale
        if share:
            np.testing.assert_allclose(moved, off / 4, rtol=1e-2, atol=1e-4)
        else:
            np.testing.assert_allclose((moved**2).sum(), FOLLOW * codec._error[0] * 80 / 60, rtol=1e-3)


def test_a_refresh_without_news_changes_nothing():
    memory = ReplayMemory(capacity_bytes=100_000, n_features=D, codec=codebook())
    memory.add(clustered(1)[0], 0)
    memory.refresh()
    before = memory.state()[0]["codec.centroids"]
    memory.refresh()
    np.testing.assert_array_equal(memory.state()[0]["codec.centroids"], before)


@settings(max_examples=15)
@given(n=st.integers(0, 60), then=st.integers(0, 40), evict=st.sampled_from(["random", "redundant"]))
def test_state_round_trips_and_goes_on_alike(n, then, evict):
    book, X = codebook(n_centroids=16), clustered(120, seed=3, shift=0.5)
    one, twin = (
        ReplayMemory(capacity_bytes=8_000, n_features=D, codec=book, evict=evict, seed=s) for s in (0, 7)
    )
    for k in range(n):
        one.add(X[k], k % 3)
    one.refresh()
    for k in range(n // 2):
        one.add(X[k], k % 3)
    twin.restore(*one.state())
    for memory in (one, twin):
        for k in range(60, 60 + then):
            memory.add(X[k], k % 3)
        memory.refresh()
    (ours, our_meta), (theirs, their_meta) = one.state(), twin.state()
    assert our_meta == their_meta
    for key, array in ours.items():
        np.testing.assert_array_equal(array, theirs[key])


def test_one_codebook_is_shared_and_counted_once():
    book = codebook(n_centroids=16)
    memory = ReplayMemory(capacity_bytes=40_000, n_features=D, codec=book)
    parts = (memory.rehearsed, memory.held_back)
    assert parts[0]._codec is parts[1]._codec is memory._shared
    assert memory.nbytes == sum(part.nbytes for part in parts) + memory._shared.nbytes <= 40_000
    assert memory.nbytes > 40_000 - memory.row_bytes
    assert memory.row_bytes <= 4 + 18, "bookkeeping is small beside a row of four bytes"
    held = [value for value in vars(memory._shared).values() if isinstance(value, np.ndarray)]
    assert memory._shared.nbytes == sum(array.nbytes for array in held)


def test_what_was_stored_can_be_removed():
    reservoir = Reservoir(50, D, codec=Pq(codebook()), rng=np.random.default_rng(0))
    X = clustered(20, seed=8)
    for x in X:
        reservoir.add(x, 0)
    assert not reservoir.remove(X[0], 1)
    for x in X:
        assert reservoir.remove(x, 0)
    assert reservoir.n == 0


def test_prediction_sees_what_rehearsal_sees():
    X = clustered(30, seed=4)
    memory = ReplayMemory(capacity_bytes=90_000, n_features=D, codec=codebook(), held_back_every=0)
    for x in X:
        memory.add(x, 0)
    np.testing.assert_allclose(
        memory.rehearsed.features(np.arange(30)), memory.reconstruct(X), rtol=1e-5, atol=1e-6
    )
    half = ReplayMemory(capacity_bytes=90_000, n_features=D)
    assert half.reconstruct(X) is X


def test_a_codebook_of_another_feature_size_is_refused():
    with pytest.raises(ValueError, match="codebook is for features of size 16, found 17"):
        ReplayMemory(capacity_bytes=90_000, n_features=D + 1, codec=codebook())
