"""Resident memory of a sleep: a device that never saw torch, beside torch doing the same.

Two processes per network take as many steps on batches of the same exemplars. ``ours`` is a whole device: it
loads a bundle, answers and learns every exemplar, journals it, and sleeps. ``torch`` imports torch, makes the
module and trains it. Each reports the kernel's own maximum (VmHWM) and what it holds at the end (RssAnon,
RssFile), in MB of 2²⁰ bytes. ``resident_ratio_to_torch`` is the smaller ratio of the maxima, torch / ours.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edge_cl.budget import MIB
from edge_cl.bundle import FORMAT, Bundle, npz_bytes, write_bundle
from edge_cl.manifest import Channel, EncoderSpec, HeadSpec, Manifest

SHAPES: dict[str, tuple[int, ...]] = {"mlp-128": (128,), "conv-8x20": (8, 20)}
N_EXEMPLARS = 2000
N_CLASSES, N_STEPS = 10, 300
"""As in `bench.torch_step`, which a device must not import."""
FIELDS = ("VmHWM", "VmRSS", "RssAnon", "RssFile")


def measure(*, seed: int = 0) -> dict[str, Any]:
    """Both processes of both networks."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            place = Path(folder) / name
            place.mkdir()
            _prepare(place, shape, seed)
            ours = _child("bench.step_memory", str(place))
            torch = _child("bench.torch_step", str(place), ",".join(map(str, shape)))
            found[name] = {"ours_mb": ours, "torch_mb": torch}
            found[name]["ratio"] = round(torch["VmHWM"] / ours["VmHWM"], 2)
    return {"resident": found, "resident_ratio_to_torch": min(row["ratio"] for row in found.values())}


def _prepare(place: Path, shape: tuple[int, ...], seed: int) -> None:
    """The exemplars, and a bundle with a compiled network for them."""
    from edge_cl_export.step_graph import compile_program
    from edge_cl_export.warm import members

    from bench.torch_step import factory_of

    rng = np.random.default_rng(seed)
    y = np.arange(N_EXEMPLARS) % N_CLASSES
    means = rng.normal(size=(N_CLASSES, int(np.prod(shape))))
    X = (means[y] + rng.normal(size=(len(y), means.shape[1]))).astype(np.float32)
    np.savez(place / "exemplars.npz", X=X, y=y)
    program = compile_program(factory_of(shape), shape, N_CLASSES, seed=seed)
    write_bundle(
        place / "step.ecl",
        Manifest(
            format=FORMAT,
            format_version=1,
            name="step-memory",
            class_names=tuple(f"class {c}" for c in range(N_CLASSES)),
            channels=tuple(Channel(name=f"c{k}", unit="1") for k in range(X.shape[1])),
            rate_hz=1.0,
            window_samples=1,
            hop_samples=1,
            feature_size=X.shape[1],
            encoder=EncoderSpec(kind="identity"),
            head=HeadSpec(name="step"),
            plastic=program.spec,
        ),
        {**members(program), "golden.npz": npz_bytes(inputs=X[:8, None, :], features=X[:8])},
    )


def _child(module: str, *words: str) -> dict[str, float]:
    """What the process says of its memory at its end."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    command = [sys.executable, "-m", module, *words]
    status = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, text=True).stdout
    kilobytes = {name: int(rest.split()[0]) for name, _, rest in _lines(status) if name in FIELDS}
    return {name: round(kilobytes[name] * 1024 / MIB, 2) for name in FIELDS}


def _lines(status: str) -> list[tuple[str, str, str]]:
    return [line.partition(":") for line in status.splitlines()]


def _sleep(place: Path) -> None:
    """A device's whole life: every exemplar answered, learned, journalled; then one sleep."""
    from edge_cl.config import Settings, SleepSettings
    from edge_cl.learner import Learner
    from edge_cl.records import Label, Reading

    data = np.load(place / "exemplars.npz")
    settings = Settings(sleep=SleepSettings(after_labels=0, idle_s=0.0, drift_points=0, steps=N_STEPS))
    bundle = Bundle.load(place / "step.ecl")
    with Learner.from_bundle(bundle, state_dir=place / "state", settings=settings) as learner:
        events = (
            event
            for k, (x, y) in enumerate(zip(data["X"], data["y"].tolist(), strict=True))
            for event in (
                Reading(id=f"r{k}", t_s=float(k), window=x[None]),
                Label(reading_id=f"r{k}", label=f"class {y}", source="bench"),
            )
        )
        learner.run(events)
        for _ in learner.sleep():
            pass
        report = learner.sleep_reports()[-1]
        if report.n_steps != N_STEPS or "torch" in sys.modules:
            raise RuntimeError(f"the device slept {report.n_steps} steps: {report.reason}")
        print(Path("/proc/self/status").read_text())


if __name__ == "__main__":
    _sleep(Path(sys.argv[1]))
