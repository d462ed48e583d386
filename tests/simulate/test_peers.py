"""Other libraries' learners keep the protocol's promises; Deep SLDA's rule against its closed form."""

from __future__ import annotations

import numpy as np
import pytest

from edge_cl.datasets.streams import Stream
from edge_cl.simulate.peers import PEERS, SEEDED, SLDA_SOLVE_EVERY, DeepSldaPeer, Peer, Standardised
from edge_cl.simulate.streams import run_stream

river = pytest.importorskip("river", reason="the extra `bench` is not installed")


def drawn(n: int = 120, n_classes: int = 3, n_features: int = 5, seed: int = 0):
    rng = np.random.default_rng(seed)
    y = rng.integers(n_classes, size=n)
    X = 2 * np.eye(n_classes, n_features)[y] + rng.standard_normal((n, n_features))
    return X.astype(np.float32), y


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_that_knows_nothing_answers_nothing(name):
    peer = PEERS[name](4, 3)
    before = peer.predict_one(np.ones(4, dtype=np.float32))
    peer.learn_one(np.ones(4, dtype=np.float32), 2)
    after = peer.predict_many(np.ones((2, 4), dtype=np.float32))
    assert before.shape == (3,) and not before.any()
    assert after.shape == (2, 3) and after.sum() == 2


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_gets_the_same_figures_twice(name):
    X, y = drawn()
    stream = Stream("drawn", X, y, np.arange(len(y)) % 5 == 4)
    seed = {"seed": 3} if name in SEEDED else {}
    one, two = (run_stream(stream, lambda d, c: PEERS[name](d, c, **seed)) for _ in range(2))
    assert (one.now0, one.now50, one.ever, one.ever_sorted) == (
        two.now0,
        two.now50,
        two.ever,
        two.ever_sorted,
    )


@pytest.mark.parametrize("name", sorted(SEEDED))
def test_another_seed_makes_another_peer(name):
    X, y = drawn(n=300, n_features=8)
    learned = [PEERS[name](8, 3, seed=seed) for seed in (0, 1)]
    for peer in learned:
        peer.learn_many(X, y)
    one, two = (peer.predict_many(drawn(n=200, n_features=8, seed=9)[0]) for peer in learned)
    assert (one != two).any()


def test_deep_slda_answers_by_the_published_rule():
    X, y = drawn(n=90)
    peer = DeepSldaPeer(5, 4)
    peer.learn_many(X, y)
    # T·S = Σ t/(t+1) d dᵀ, d from the mean of what the class had before: 0 at its first sample
    before = [X[:i][y[:i] == y[i]] for i in range(len(y))]
    off = [X[i] - (seen.mean(axis=0) if len(seen) else 0) for i, seen in enumerate(before)]
    S = sum(t / (t + 1) * np.outer(d, d) for t, d in enumerate(off)) / len(y)
    means = np.stack([X[y == c].mean(axis=0) for c in range(3)]).astype(np.float64)
    precision = np.linalg.inv((1 - 1e-4) * S + 1e-4 * np.eye(5))
    new, _ = drawn(n=200, seed=1)
    scores = new @ precision @ means.T - 0.5 * np.einsum("cd,de,ce->c", means, precision, means)
    np.testing.assert_array_equal(peer.predict_many(new).argmax(axis=1), scores.argmax(axis=1))
    np.testing.assert_allclose(peer.weights[:, :3], precision @ means.T, rtol=1e-4)
    assert not peer.predict_many(new)[:, 3].any(), "a class never seen is never answered"


def test_deep_slda_solves_always_at_first_then_every_sixteen_labels(monkeypatch):
    solved = 0
    pinv = np.linalg.pinv

    def counted(*arguments, **options):
        nonlocal solved
        solved += 1
        return pinv(*arguments, **options)

    monkeypatch.setattr(np.linalg, "pinv", counted)
    X, y = drawn(n=500)
    peer = DeepSldaPeer(5, 3)

    def step(i):
        peer.learn_one(X[i], y[i])
        peer.predict_one(X[i])

    for i in range(10):
        step(i)
    assert solved == 10
    for i in range(10, 340):
        step(i)
    before = solved
    for i in range(340, 500):
        step(i)
    assert solved - before == 160 // SLDA_SOLVE_EVERY
    peer.predict_many(X)
    peer.learn_one(X[0], y[0])
    before = solved
    peer.predict_many(X)
    assert solved == before + 1, "an exam is answered by all that was learned"


class Notes(Peer):
    nbytes = 0

    def predict_one(self, x):
        self.asked = x
        return np.zeros(self.n_classes, dtype=np.float32)

    def learn_one(self, x, y):
        self.taught = x


def test_running_scales_are_those_of_all_samples_so_far():
    X, y = drawn(n=40)
    X[:, 2] = 7
    X[:, 0] *= 1000
    inner = Notes(3)
    peer = Standardised(inner, 5)
    for n in range(1, len(X) + 1):
        peer.learn_one(X[n - 1], y[n - 1])
        seen = X[:n].astype(np.float64)
        scale = np.where(seen.std(axis=0) > 0, seen.std(axis=0), 1)
        np.testing.assert_allclose(inner.taught, (X[n - 1] - seen.mean(axis=0)) / scale, atol=1e-9)
    peer.predict_one(X[3])
    np.testing.assert_allclose(inner.asked, (X[3] - seen.mean(axis=0)) / scale, atol=1e-9)
