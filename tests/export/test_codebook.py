"""The codebook that an export makes."""

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the export extra")
pytestmark = pytest.mark.torch

from edge_cl_export import codebook as made  # noqa: E402

from edge_cl.bundle import Codebook  # noqa: E402


def features(n, n_features=8, seed=0):
    rng = np.random.default_rng(seed)
    y = (rng.random(n) < 0.05).astype(np.int64)
    return (rng.normal(size=(n, n_features)) + 20 * y[:, None]).astype(np.float32), y


def test_a_rare_class_gets_its_share_of_centroids(monkeypatch):
    monkeypatch.setattr(made, "N_FITTED", 200)
    X, y = features(4000)
    book = made.make_codebook(X, y, rng=np.random.default_rng(0), n_codes=1)
    assert book.centroids.shape[:2] == (1, 200)
    places = (book.centroids[0, :, :8] @ book.rotation.T) / book.scale
    assert 80 <= (places.mean(axis=1) > 10).sum() <= 120, "one class in twenty, but half the sample"


def test_it_is_a_sixteenth_repeats_itself_and_is_packed_whole():
    X, y = features(600, n_features=24)
    one, two = (made.make_codebook(X, y, rng=np.random.default_rng(3)) for _ in range(2))
    assert one.centroids.shape == (6, 256, 4) and one.rotation.shape == (24, 24)
    np.testing.assert_array_equal(one.centroids, two.centroids)
    assert list(made.codebook_member(one)) == ["codebook.npz"]
    assert isinstance(one, Codebook)


def test_a_wide_feature_is_not_rotated_and_few_windows_make_none(monkeypatch):
    monkeypatch.setattr(made, "MOST_ROTATED", 7)
    X, y = features(300)
    assert made.make_codebook(X, y, rng=np.random.default_rng(0)).rotation.shape == (0, 0)
    assert made.make_codebook(X[:255], y[:255], rng=np.random.default_rng(0)) is None
    assert made.codebook_member(None) == {}
