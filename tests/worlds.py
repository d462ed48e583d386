"""A small world for tests: Gaussian classes as features, a bundle around them, streams of events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edge_cl.bundle import FORMAT, Bundle, npz_bytes, write_bundle
from edge_cl.manifest import Channel, EncoderSpec, HeadSpec, Manifest
from edge_cl.records import Event, Label, Reading

D = 6
NAMES = ("rest", "walk", "run", "climb")


class World:
    """Four Gaussian classes in six dimensions; the last one is not known at export."""

    def __init__(self, seed: int = 0, shift: float = 0.0) -> None:
        self.rng = np.random.default_rng(seed)
        self.means = np.random.default_rng(99).normal(0, 2, (len(NAMES), D))
        self.shift = shift

    def draw(self, n: int, n_classes: int = 3) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """n features and classes."""
        y = self.rng.integers(n_classes, size=n)
        X = self.means[y] + self.shift + self.rng.normal(0, 1, (n, D))
        return X.astype(np.float32), y

    def events(self, n: int, *, n_classes: int = 4, label_every: int = 1) -> Iterator[Event]:
        """n readings, one in `label_every` labelled at once."""
        X, y = self.draw(n, n_classes)
        for i in range(n):
            yield reading(X[i], f"r{i}")
            if i % label_every == 0:
                yield Label(label=NAMES[y[i]], reading_id=f"r{i}", source="test")


def reading(x: NDArray[np.float32], reading_id: str) -> Reading:
    """A feature as a one-sample window."""
    return Reading(id=reading_id, t_s=0.0, window=np.asarray(x, dtype=np.float32)[None])


def make_bundle(path: Path, head: str = "dual", *, prior: bool = True, **options: object) -> Bundle:
    """An identity-encoder bundle of the three classes known at export."""
    X, y = World(seed=1).draw(300)
    means = np.stack([X[y == c].mean(axis=0) for c in range(3)])
    first = np.concatenate([np.flatnonzero(y == c)[:20] for c in range(3)])
    members = {}
    if prior:
        members["prior.npz"] = npz_bytes(
            class_counts=np.bincount(y).astype(np.float64),
            class_means=means,
            shared_cov=np.cov((X - means[y]).T).astype(np.float32),
            second_moment=(X.T @ X / len(X)).astype(np.float32),
            exemplars=X[first].astype(np.float16),
            exemplar_labels=y[first],
        )
    plastic = None
    if head == "step":
        from edge_cl_export.warm import members as members_of

        from tests.programs import program

        members |= members_of(program())
        plastic = program().spec
    members["golden.npz"] = npz_bytes(inputs=X[:8, None, :], features=X[:8])
    if head == "dual":
        options = {"lift": 32, "window": 16, "anchors": 32, **options}
    manifest = Manifest(
        format=FORMAT,
        format_version=1,
        name="test",
        class_names=NAMES[:3],
        channels=tuple(Channel(name=f"c{i}", unit="1") for i in range(D)),
        rate_hz=1.0,
        window_samples=1,
        hop_samples=1,
        feature_size=D,
        encoder=EncoderSpec(kind="identity"),
        head=HeadSpec(name=head, options=options),
        plastic=plastic,
    )
    return write_bundle(path, manifest, members)
