"""How an exemplar is stored: a row of bytes per feature vector."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import DTypeLike

from edge_cl.records import FloatArray


class Codec(Protocol):
    """Turns (n, D) float32 features into stored rows and back."""

    dtype: DTypeLike

    def row_size(self, n_features: int) -> int:
        """Stored values per exemplar."""
        ...

    def encode(self, features: FloatArray) -> np.ndarray:
        """(n, D) float32 → (n, row_size) stored rows."""
        ...

    def decode(self, rows: np.ndarray) -> FloatArray:
        """(n, row_size) stored rows → (n, D) float32."""
        ...


class Float32:
    """Exact; 4 bytes a value."""

    dtype: DTypeLike = np.float32

    def row_size(self, n_features: int) -> int:
        """One value per feature."""
        return n_features

    def encode(self, features: FloatArray) -> np.ndarray:
        """Unchanged."""
        return np.asarray(features, dtype=np.float32)

    def decode(self, rows: np.ndarray) -> FloatArray:
        """Unchanged."""
        return rows


class Float16:
    """2 bytes a value, relative error 5e-4; values beyond ±65,504 are clipped."""

    dtype: DTypeLike = np.float16

    def row_size(self, n_features: int) -> int:
        """One value per feature."""
        return n_features

    def encode(self, features: FloatArray) -> np.ndarray:
        """Rounded to half precision."""
        return np.clip(features, -65504.0, 65504.0).astype(np.float16)

    def decode(self, rows: np.ndarray) -> FloatArray:
        """Widened to float32."""
        return rows.astype(np.float32)


CODECS: dict[str, Codec] = {"float32": Float32(), "float16": Float16()}
