"""A recording of a simulated wrist as `edge-cl run` reads it: JSON lines of sample blocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np

from edge_cl.manifest import Manifest
from edge_cl.simulate import wrist

BOUT_S = 20


def lines(manifest: Manifest, n_windows: int, *, seed: int, labelled: bool = True) -> Iterator[bytes]:
    """One line per hop, each with the hop's samples and what they were; at least `n_windows`.

    A new person every ten minutes, so that there is something to learn all the time.
    """
    rng = np.random.default_rng(seed)
    names = list(wrist.SOURCE_ACTIVITIES)
    hop, rate_hz = manifest.hop_samples, manifest.rate_hz
    n_lines = n_windows + -(-manifest.window_samples // hop)
    per_bout = max(int(BOUT_S * rate_hz) // hop, 1)
    encoder = msgspec.json.Encoder(decimal_format="number")
    who = wrist.person(rng)
    for k in range(n_lines):
        at = k % per_bout
        if at == 0:
            if k % (30 * per_bout) == 0:
                who = wrist.person(rng)
            name = names[int(rng.integers(len(names)))]
            felt = wrist.signal(who, name, per_bout * hop, rng).astype(np.float64).round(4)
        t_s = ((k * hop + np.arange(hop)) / rate_hz).round(4)
        block = {"t": t_s.tolist(), "x": felt[at * hop : (at + 1) * hop].tolist()}
        yield encoder.encode(block | {"label": name} if labelled else block) + b"\n"


def write(path: Path, manifest: Manifest, n_windows: int, *, seed: int, labelled: bool = True) -> Path:
    """The lines as a file."""
    with path.open("wb") as file:
        file.writelines(lines(manifest, n_windows, seed=seed, labelled=labelled))
    return path
