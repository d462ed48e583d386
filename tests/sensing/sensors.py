"""A sensor that a test plays, and the bundle that wants its samples."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

import numpy as np

from edge_cl.errors import SensorUnavailable
from edge_cl.manifest import Channel, EncoderSpec, Manifest
from edge_cl.sensing.lines import Samples


def manifest_of(
    n_channels: int = 2, *, names: tuple[str, ...] = (), unit: str = "m/s²", **more: Any
) -> Manifest:
    """Ten samples a second, windows of ten with a hop of five, unless told otherwise."""
    given: dict[str, Any] = {"rate_hz": 10.0, "window_samples": 10, "hop_samples": 5, **more}
    return Manifest(
        format="edge-cl-bundle",
        format_version=1,
        name="test",
        class_names=("rest", "walk"),
        channels=tuple(Channel(name, unit) for name in names or [f"c{k}" for k in range(n_channels)]),
        feature_size=2,
        encoder=EncoderSpec(kind="identity"),
        **given,
    )


def samples(first: int, n: int, *, rate_hz: float = 10.0, n_channels: int = 2, at_s: float = 0.0) -> Samples:
    """`n` samples from number `first` on; each channel tells its sample's number."""
    k = np.arange(first, first + n, dtype=np.float64)
    values = np.stack([k + channel / 10 for channel in range(n_channels)], axis=1).astype(np.float32)
    return Samples(at_s + k / rate_hz, values, [""] * n)


class Played:
    """Gives what is put into `script`, one entry a read: items, or an exception to raise."""

    def __init__(self) -> None:
        self.script: deque[Any] = deque()
        self.full_scale = None
        self.rate_hz = 0.0
        self.n_open = self.n_made = 0
        self.there = True
        self.hang = threading.Event()
        self.hangs = threading.Event()

    def __call__(self) -> Played:
        self.n_made += 1
        if not self.there:
            raise SensorUnavailable("no such device")
        self.n_open += 1
        return self

    def read(self) -> list[Any]:
        if not self.script:
            time.sleep(0.001)
            return []
        entry = self.script.popleft()
        if entry == "hang":
            self.hangs.set()
            self.hang.wait(20)
            return []
        if isinstance(entry, Exception):
            raise entry
        return list(entry)

    def close(self) -> None:
        self.n_open -= 1
