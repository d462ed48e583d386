"""What every encoder offers."""

from __future__ import annotations

from typing import Protocol

from edge_cl.encoders.forms import Form
from edge_cl.records import FloatArray


class Encoder(Protocol):
    """Turns windows (n_samples, n_channels) in physical units into features (D,) float32."""

    n_features: int
    running_on: str
    """What does the work: the active providers or delegate of the runtime; "" without one."""
    form: Form | None
    """Which of the bundle's forms it runs."""

    def encode(self, window: FloatArray) -> FloatArray:
        """(n_samples, n_channels) → (D,)."""
        ...

    def encode_many(self, windows: FloatArray) -> FloatArray:
        """(n, n_samples, n_channels) → (n, D)."""
        ...
