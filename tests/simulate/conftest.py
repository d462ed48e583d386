"""A tiny bundle for the simulated wrist, made without an exporter."""

import numpy as np
import pytest

from edge_cl.bundle import Prior, npz_bytes, write_bundle
from edge_cl.manifest import EncoderSpec, HeadSpec, Manifest
from edge_cl.simulate import wrist


def make_bundle(path, X, y, class_names, channels, *, rate_hz, hop_samples, **more):
    """Windows themselves as features, with a warm prior."""
    feature = X.reshape(len(X), -1).astype(np.float64)
    n, d = feature.shape
    classes = range(len(class_names))
    means = np.stack([feature[y == c].mean(axis=0) for c in classes])
    apart = feature - means[y]
    chosen = np.concatenate([np.flatnonzero(y == c)[:20] for c in classes])
    prior = Prior(
        class_counts=np.bincount(y, minlength=len(class_names)).astype(float),
        class_means=means.astype(np.float32),
        shared_cov=(apart.T @ apart / n).astype(np.float32),
        second_moment=(feature.T @ feature / n).astype(np.float32),
        exemplars=feature[chosen].astype(np.float16),
        exemplar_labels=y[chosen].astype(np.int64),
    )
    manifest = Manifest(
        format="edge-cl-bundle",
        format_version=1,
        name="stand-in",
        class_names=tuple(class_names),
        channels=tuple(channels),
        rate_hz=rate_hz,
        window_samples=X.shape[1],
        hop_samples=hop_samples,
        feature_size=d,
        encoder=EncoderSpec(kind="identity"),
        head=HeadSpec(name="slda"),
    )
    members = {"prior.npz": npz_bytes(**{name: getattr(prior, name) for name in Prior.__struct_fields__})}
    return write_bundle(path, manifest, members)


@pytest.fixture(scope="session")
def wrist_bundle_path(tmp_path_factory):
    """The simulator at a fifth of its rate, so that the raw window is a small feature."""
    path = tmp_path_factory.mktemp("bundle") / "stand-in.ecl"
    X, y, _, names, channels = wrist.source_windows(n_people=6, windows_each=120)
    make_bundle(path, summary(X), y, names, channels, rate_hz=10.0, hop_samples=wrist.HOP_SAMPLES)
    return path


def summary(X):
    """(n, 100, 6) to (n, 4, 6): mean, spread and roughness; a stand-in for an encoder."""
    X = np.asarray(X, np.float32)
    jump = np.abs(np.diff(X, axis=1))
    return np.stack([X.mean(axis=1), X.std(axis=1), jump.mean(axis=1), jump.max(axis=1)], axis=1)
