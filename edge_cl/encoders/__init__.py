"""feature = encoder(window): one small class per runtime, picked by the bundle."""

from __future__ import annotations

import numpy as np

from edge_cl.bundle import Bundle
from edge_cl.encoders.base import Encoder
from edge_cl.encoders.identity import IdentityEncoder
from edge_cl.errors import BadReading, BundleError
from edge_cl.records import FloatArray, Reading

GOLDEN_TOLERANCE = 1e-3
"""Largest accepted difference to the exporter's features, relative to their scale."""

__all__ = ["GOLDEN_TOLERANCE", "Encoder", "create", "encode", "golden_error"]


def create(bundle: Bundle) -> Encoder:
    """The encoder a bundle asks for.

    Raises
    ------
    BundleError
        When its kind is unknown, its runtime is missing, or it does not fit the manifest.
    """
    kind = bundle.manifest.encoder.kind
    if kind == "identity":
        return IdentityEncoder(bundle.manifest)
    if kind == "onnx":
        from edge_cl.encoders.onnx import OnnxEncoder  # only here: a LiteRT board has no onnxruntime

        return OnnxEncoder(bundle)
    raise BundleError(
        f"bundle asks for encoder {kind!r}; this edge-cl knows onnx and identity: upgrade edge-cl"
    )


def encode(encoder: Encoder, reading: Reading, shape: tuple[int, int]) -> FloatArray:
    """The feature (D,) of a reading whose window should have this shape; BadReading when it is of no use."""
    window = np.asarray(reading.window, dtype=np.float32)
    if window.shape != shape:
        raise BadReading(f"reading {reading.id}: window {window.shape} is not the bundle's {shape}; dropped")
    if not np.isfinite(window).all():
        raise BadReading(f"reading {reading.id}: the window holds values that are not finite; dropped")
    feature = encoder.encode(window)
    if not np.isfinite(np.vdot(feature, feature)):  # heads refuse what has no square
        raise BadReading(
            f"reading {reading.id}: the encoder's feature is not finite, or beyond about 1e19; dropped"
        )
    return feature


def golden_error(encoder: Encoder, bundle: Bundle) -> float | None:
    """Self-test: the largest difference to the exporter's features, relative to their scale.

    None when the bundle carries no golden pair. Not finite when the encoder's output is not.
    """
    golden = bundle.golden()
    if golden is None:
        return None
    inputs, features = golden
    found = encoder.encode_many(inputs)
    if found.shape != features.shape:
        raise BundleError(f"encoder gives features of shape {found.shape}, the exporter had {features.shape}")
    return float(np.abs(found - features).max() / max(float(np.abs(features).max()), 1e-6))
