"""A bundle's codebook: made from source features, read back whole, refused when it does not fit."""

import msgspec
import numpy as np
import pytest

from edge_cl.bundle import Codebook, npz_bytes, write_bundle
from edge_cl.config import settings_from
from edge_cl.errors import BundleError, ConfigError
from edge_cl.memory import ReplayMemory, fit_codebook
from tests.worlds import D, World, make_bundle


def with_codebook(path, **changes):
    """A bundle with a codebook, some of its arrays replaced or (None) left out."""
    bundle = make_bundle(path)
    book = fit_codebook(World(seed=1).draw(300)[0], 3, np.random.default_rng(0), n_centroids=32, rotate=True)
    arrays = {name: getattr(book, name) for name in Codebook.__struct_fields__} | changes
    members = {name: bundle.member(name) for name in bundle.manifest.members}
    members["codebook.npz"] = npz_bytes(**{k: v for k, v in arrays.items() if v is not None})
    manifest = msgspec.structs.replace(bundle.manifest, members={})
    return book, write_bundle(path, manifest, members)


def test_a_codebook_comes_back_and_makes_a_memory(tmp_path):
    book, bundle = with_codebook(tmp_path / "b.ecl")
    found = bundle.codebook()
    for name in Codebook.__struct_fields__:
        np.testing.assert_array_equal(getattr(found, name), getattr(book, name))
    memory = ReplayMemory(capacity_bytes=20_000, n_features=D, codec=found)
    X, y = World(seed=2).draw(100)
    for x, c in zip(X, y.tolist(), strict=True):
        memory.add(x, c)
    assert memory.rehearsed.codec == "pq"
    assert np.mean((memory.reconstruct(X) - X) ** 2) < 0.2 * X.var()
    assert make_bundle(tmp_path / "without.ecl").codebook() is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"scale": np.ones(8, np.float32)}, "features of size 8, the manifest's feature_size is 6"),
        ({"rotation": np.eye(5, dtype=np.float32)}, r"rotation \(5, 5\)"),
        ({"error": np.ones(9, np.float32)}, r"error \(9,\) do not make up features of size 6"),
        ({"centroids": np.zeros((3, 300, 2), np.float32)}, r"centroids \(3, 300, 2\)"),
        ({"centroids": np.full((3, 32, 2), np.nan, np.float32)}, "not finite"),
        ({"error": None}, r"lacks \['error'\]"),
    ],
)
def test_a_codebook_that_does_not_fit_is_refused(tmp_path, changes, says):
    _, bundle = with_codebook(tmp_path / "b.ecl", **changes)
    with pytest.raises(BundleError, match=says):
        bundle.codebook()


def test_the_settings_of_memory_are_checked():
    found = settings_from({"memory": {"codec": "pq", "max_mb": 2.5, "file": True}}).memory
    assert (found.codec, found.evict, found.max_mb, found.file) == ("pq", "random", 2.5, True)
    for wrong, says in [
        ({"codec": "int4"}, "int4"),
        ({"max_mb": 0}, "memory.max_mb is 0.*above 0"),
        ({"codec": "int8", "file": True}, "memory.file is True; allowed: false with int8"),
        ({"evic": "random"}, "did you mean memory.evict"),
    ]:
        with pytest.raises(ConfigError, match=says):
            settings_from({"memory": wrong})
