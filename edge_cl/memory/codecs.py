"""How exemplars are stored: one row of numbers per feature vector."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from edge_cl.records import FloatArray

LARGEST = np.float32(1e36)
"""int8 clips larger values, so that no difference of two overflows float32."""
STEPS = 127
"""int8 stores whole steps from -127 to 127."""


class Float32:
    """Exact; 4 bytes a value. Also the base of the other codecs: what they share needs no state.

    Parameters
    ----------
    n_features
        Length D of a feature vector.
    """

    name: ClassVar[str] = "float32"
    dtype: ClassVar[DTypeLike] = np.float32
    rewrites: ClassVar[bool] = False
    """True: `widen` may change rows that were stored long ago."""

    def __init__(self, n_features: int) -> None:
        self.n_features = n_features
        self.width = n_features
        """Numbers in a stored row."""

    @staticmethod
    def own_bytes(n_features: int) -> int:
        """Bytes that a codec of this kind holds beside the rows."""
        return 0

    @property
    def nbytes(self) -> int:
        """Bytes held beside the rows."""
        return self.own_bytes(self.n_features)

    @property
    def row_bytes(self) -> int:
        """Bytes of a stored row."""
        return self.width * np.dtype(self.dtype).itemsize

    def widen(self, x: FloatArray, rows: np.ndarray) -> None:
        """Before x (D,) is encoded: extend the range if needed, and re-encode rows (n, D) in place."""

    def encode(self, x: FloatArray) -> np.ndarray:
        """(D,) or (n, D) float32 → stored row (width,) or rows (n, width)."""
        row: np.ndarray = np.asarray(x, dtype=self.dtype)
        return row

    def decode(self, rows: np.ndarray) -> FloatArray:
        """(n, width) stored rows → (n, D) float32."""
        return np.asarray(rows, dtype=np.float32)

    def reconstruct(self, X: FloatArray) -> FloatArray:
        """(n, D) as a head should see it in prediction to see it as in rehearsal; here X itself."""
        return X

    def learn(self, x: FloatArray, row: np.ndarray) -> None:
        """Note that x (D,) was stored as row (width,)."""

    def refresh(self, stored: Iterable[np.ndarray]) -> None:
        """Follow what was stored lately, without changing rows; `stored` are all rows held, in parts."""

    def find(self, x: FloatArray, rows: np.ndarray) -> int:
        """Index of a row of rows (n, width) that x (D,) was stored as; -1: none."""
        equal = (rows == self.encode(x)).all(axis=1)
        return int(equal.argmax()) if equal.any() else -1

    def state(self) -> dict[str, np.ndarray]:
        """Arrays that `restore` takes back."""
        return {}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take back what `state` gave."""


class Float16(Float32):
    """2 bytes a value, relative error 5e-4; values beyond ±65,504 are clipped."""

    name: ClassVar[str] = "float16"
    dtype: ClassVar[DTypeLike] = np.float16

    def encode(self, x: FloatArray) -> np.ndarray:
        """Rounded to half precision."""
        return np.clip(x, -65504.0, 65504.0).astype(np.float16)


class Int8(Float32):
    """1 byte a value: whole steps around the first exemplar, one step size per channel.

    Steps are powers of two and start near float32's own precision. A value out of range doubles its
    channel's step as often as needed and rounds what is stored to it, so nothing saturates.

    Notes
    -----
    O(D) per exemplar; O(n·D) when a range grows, which a channel of range R and precision p does at most
    log2(R / p) times. |x - decoded| ≤ step / 2 if the channel was not widened since x was stored, ≤ step
    otherwise; step ≤ 2 R / 127. A single wild value makes a channel coarse for good.
    """

    name: ClassVar[str] = "int8"
    dtype: ClassVar[DTypeLike] = np.int8
    rewrites: ClassVar[bool] = True

    def __init__(self, n_features: int) -> None:
        super().__init__(n_features)
        self.centre = np.zeros(n_features, dtype=np.float32)
        self.step = np.zeros(n_features, dtype=np.float32)
        """0 until the first exemplar."""

    @staticmethod
    def own_bytes(n_features: int) -> int:
        """Centre and step."""
        return 8 * n_features

    def widen(self, x: FloatArray, rows: np.ndarray) -> None:
        """Grow the step of channels that x leaves, or start around x."""
        x = np.clip(x, -LARGEST, LARGEST)
        if not self.step.any():
            self.centre = x.astype(np.float32)
            precision = np.maximum(np.spacing(np.abs(self.centre)), np.float32(2.0**-80))
            self.step = np.exp2(np.ceil(np.log2(precision))).astype(np.float32)
            return
        steps = np.abs(x.astype(np.float64) - self.centre) / self.step
        out = np.flatnonzero(steps > STEPS + 0.5)
        if len(out):
            factor = np.exp2(np.ceil(np.log2(steps[out] / STEPS)))
            self.step[out] = (self.step[out] * factor).astype(np.float32)
            rows[:, out] = np.rint(rows[:, out] / factor).astype(np.int8)

    def encode(self, x: FloatArray) -> np.ndarray:
        """Whole steps from the centre; clipped where `widen` did not see x."""
        step = np.where(self.step > 0, self.step, np.float32(1))
        steps = np.rint((np.clip(x, -LARGEST, LARGEST) - self.centre) / step.astype(np.float64))
        return np.clip(steps, -STEPS, STEPS).astype(np.int8)

    def decode(self, rows: np.ndarray) -> FloatArray:
        """Centre plus steps."""
        return np.add(rows * self.step, self.centre, dtype=np.float32)

    def find(self, x: FloatArray, rows: np.ndarray) -> int:
        """The nearest row, at most one step away in any channel: widening may round by one."""
        apart = np.abs(rows.astype(np.int16) - self.encode(x))
        near = np.flatnonzero((apart <= 1).all(axis=1))
        return int(near[apart[near].sum(axis=1).argmin()]) if len(near) else -1

    def state(self) -> dict[str, NDArray[np.float32]]:
        """Centre and step."""
        return {"centre": self.centre.copy(), "step": self.step.copy()}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        """Take back what `state` gave."""
        self.centre, self.step = arrays["centre"].copy(), arrays["step"].copy()


CODECS: dict[str, type[Float32]] = {codec.name: codec for codec in (Float32, Float16, Int8)}
"""Those that need nothing but the feature size; `pq` needs a codebook."""
