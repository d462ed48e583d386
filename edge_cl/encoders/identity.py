"""No encoder: the window's values are the feature."""

from __future__ import annotations

import numpy as np

from edge_cl.encoders.forms import Form
from edge_cl.errors import BundleError
from edge_cl.manifest import Manifest
from edge_cl.records import FloatArray


class IdentityEncoder:
    """Flattens a window: for sensors that already deliver features (a gas sensor's summary, say)."""

    running_on = ""
    form: Form | None = None

    def __init__(self, manifest: Manifest) -> None:
        self.n_features = manifest.window_samples * manifest.n_channels
        if self.n_features != manifest.feature_size:
            raise BundleError(
                f"identity encoder: {manifest.window_samples} samples × {manifest.n_channels} channels are "
                f"not the manifest's {manifest.feature_size} features; export the bundle again"
            )

    def encode(self, window: FloatArray) -> FloatArray:
        """(n_samples, n_channels) → (n_samples · n_channels,)."""
        return np.asarray(window, dtype=np.float32).reshape(-1)

    def encode_many(self, windows: FloatArray) -> FloatArray:
        """(n, n_samples, n_channels) → (n, n_samples · n_channels)."""
        return np.asarray(windows, dtype=np.float32).reshape(len(windows), -1)
