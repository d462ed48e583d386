"""Classes that arrive two by two, or one by one, and a torch head that learns them in sleep on the device.

A world is features of a frozen encoder trained on something else: images of clothes seen by an encoder
of drawn shapes, and people's forearm muscles seen by an encoder of other people's.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl import heads
from edge_cl.budget import MIB, Ledger
from edge_cl.bundle import FORMAT, FORMAT_VERSION, Bundle, Codebook, npz_bytes, write_bundle
from edge_cl.config import settings_from
from edge_cl.datasets.encoded import encode_stream, find_recordings
from edge_cl.heads.program import StepProgram
from edge_cl.knowledge import Knowledge
from edge_cl.manifest import Channel, EncoderSpec, HeadSpec, Manifest
from edge_cl.memory import Exemplars, ReplayMemory, fit_codebook
from edge_cl.records import FloatArray, SleepPlan

RAW_SHARE = 16
"""The memory may hold one part in this many of all features seen, as float32."""
WORLDS = ("fashion_mnist", "myo_emg")
STEPS = {"fashion_mnist": 4000, "myo_emg": 3000}
"""Optimisation steps per sleep."""
CODES = {"fashion_mnist": (64, 128, True), "myo_emg": (32, 64, False)}
"""Codes per exemplar, centroids and rotation of the codebook: 16 times fewer bytes than float32, and small
enough beside a memory of a sixteenth of all features seen."""
SOURCE_ROWS = 2000
ROOM_BYTES = 512 * MIB
PQ_STEPS = 4000
N_EQUAL = 4000
"""Exemplars when codecs are compared at equal numbers of them."""
EQUAL_BYTES_EXEMPLARS = {"fashion_mnist": 1000, "myo_emg": 350}
"""The budget when codecs are compared at equal bytes: so many raw features."""


@dataclass(frozen=True, eq=False)
class World:
    """Features (n, D) and classes (n,) to learn and to test by, and what an exporter would have seen."""

    name: str
    class_names: tuple[str, ...]
    X: FloatArray
    y: NDArray[np.int64]
    test: FloatArray
    test_classes: NDArray[np.int64]
    source: FloatArray
    per_task: int

    def tasks(self, seed: int) -> list[NDArray[np.int64]]:
        """Rows of X in the order in which they come: classes in a random order, shuffled within a task."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(self.class_names))
        groups = [order[k : k + self.per_task] for k in range(0, len(order), self.per_task)]
        return [rng.permutation(np.flatnonzero(np.isin(self.y, group))) for group in groups]


@cache
def fashion(data: Path) -> World:
    """30,000 images of clothes in 10 classes, two a task; the encoder knows drawn shapes only."""
    from bench import shapes

    encoder, source = shapes.trained_encoder()
    with np.load(data / "fashion_mnist.npz") as file:
        X, test = (shapes.encode(encoder, file[f"X_{part}"] / np.float32(255)) for part in ("train", "test"))
        y, test_classes = (file[f"y_{part}"].astype(np.int64) for part in ("train", "test"))
    names = tuple(f"clothes {c}" for c in range(10))
    return World("fashion_mnist", names, X, y, test, test_classes, source, per_task=2)


@cache
def myo(data: Path, bundle: Path) -> World:
    """Seven gestures of people the encoder never saw, one a task; a quarter of the recordings tests."""
    plan, file = find_recordings(bundle, data)
    X, y, recording = encode_stream(bundle, plan, file)
    opened = Bundle.load(bundle)
    prior = opened.prior()
    if prior is None:
        raise ValueError(f"{bundle} has no prior")
    first = {int(r): int(np.flatnonzero(recording == r)[0]) for r in np.unique(recording)}
    test = {r for c in np.unique(y) for r in [r for r, row in first.items() if y[row] == c][3::4]}
    is_test = np.isin(recording, list(test))
    source = prior.exemplars.astype(np.float32)
    names = opened.manifest.class_names
    return World("myo_emg", names, X[~is_test], y[~is_test], X[is_test], y[is_test], source, per_task=1)


@cache
def program(world: World) -> StepProgram:
    """A multi-layer perceptron, compiled; its scales are the source's."""
    from edge_cl_export.plastic import Mlp
    from edge_cl_export.step_graph import compile_program

    moments = world.source.mean(0), world.source.std(0) + 0.05
    return compile_program(Mlp, (world.X.shape[1],), len(world.class_names), moments=moments)


@cache
def codebook_of(world: World, n_codes: int, n_centroids: int, rotate: bool) -> Codebook:
    """A codebook of what an exporter would have seen."""
    rng = np.random.default_rng(0)
    source = world.source[rng.permutation(len(world.source))[:SOURCE_ROWS]]
    return fit_codebook(source, n_codes, rng, n_centroids=n_centroids, rotate=rotate)


@cache
def bundle_of(world: World) -> Bundle:
    """Features of the world, its step head and a codebook of the source; it has seen no class yet."""
    from edge_cl_export.warm import members

    compiled = program(world)
    n_features = world.X.shape[1]
    codebook = codebook_of(world, *CODES[world.name])
    arrays = {name: getattr(codebook, name) for name in codebook.__struct_fields__}
    manifest = Manifest(
        format=FORMAT,
        format_version=FORMAT_VERSION,
        name=world.name,
        class_names=world.class_names,
        channels=tuple(Channel(name=f"feature-{k}") for k in range(n_features)),
        rate_hz=1.0,
        window_samples=1,
        hop_samples=1,
        feature_size=n_features,
        encoder=EncoderSpec(kind="identity"),
        head=HeadSpec(name="step"),
        plastic=compiled.spec,
    )
    with tempfile.TemporaryDirectory() as folder:
        return write_bundle(
            Path(folder) / "world.ecl", manifest, members(compiled) | {"codebook.npz": npz_bytes(**arrays)}
        )


def device(world: World, codec: str, memory_bytes: int) -> Knowledge:
    """A new device; the budget is on its memory alone."""
    settings = settings_from({"memory": {"codec": codec, "max_mb": memory_bytes / MIB}})
    return Knowledge(bundle_of(world), Ledger(ROOM_BYTES), memory=settings.memory)


def stream(world: World, known: Knowledge, seed: int, *, steps: int) -> list[float]:
    """Teach task after task, with a sleep of so many steps after each (0: none); accuracy after each task."""
    accuracies = []
    seen: set[int] = set()
    for rows in world.tasks(seed):
        for row in rows:
            known.learn(world.X[row], world.class_names[world.y[row]])
        if steps:
            known.begin_sleep(SleepPlan(steps=steps))
            known.wake()
        seen |= set(world.y[rows].tolist())
        accuracies.append(accuracy(known, world, seen))
    return accuracies


def accuracy(known: Knowledge, world: World, seen: set[int] | None = None) -> float:
    """Share of test samples, of the classes seen, that the device answers right."""
    y = world.test_classes
    rows = np.flatnonzero(np.isin(y, list(seen))) if seen else np.arange(len(y))
    blocks = np.array_split(rows, len(rows) // 500 + 1)
    answers = np.concatenate([known.predict(world.test[block]).argmax(axis=1) for block in blocks])
    return float(np.mean(answers == y[rows]))


def trained_offline(world: World, parts: list[NDArray[np.int64]], *, steps: int, seed: int) -> float:
    """Accuracy of the same head after `steps` on each part in turn, all classes alike, without any memory.

    One part with everything is joint training; one part a task is plain fine-tuning.
    """
    head = heads.create(
        "step",
        n_features=world.X.shape[1],
        n_classes=len(world.class_names),
        program=program(world),
        window=1,
    )
    for rows in parts:
        head.trained[:] = head.trained | np.isin(np.arange(head.n_classes), world.y[rows])
        X, y = world.X[rows], world.y[rows]
        for _ in head.rehearse(Exemplars.of(X, y, n_steps=steps, seed=seed)):
            pass
    answers = head.exam(world.test, world.test_classes, learned=False).argmax(axis=1)
    return float(np.mean(answers == world.test_classes))


def compare(world: World, seed: int) -> dict[str, Any]:
    """One seed of the class-incremental comparison."""
    tasks, steps = world.tasks(seed), STEPS[world.name]
    raw_bytes = 4 * world.X.shape[1] * len(world.X)
    asleep = device(world, "pq", raw_bytes // RAW_SHARE)
    course = stream(world, asleep, seed, steps=steps)
    return {
        "joint": trained_offline(world, [np.concatenate(tasks)], steps=steps * len(tasks), seed=seed),
        "sleep": course[-1],
        "after_each_task": course,
        "n_adopted": sum(report.adopted for report in asleep.reports),
        "no_sleep": stream(world, device(world, "pq", raw_bytes // RAW_SHARE), seed, steps=0)[-1],
        "fine_tuning": trained_offline(world, tasks, steps=steps, seed=seed),
        "memory_bytes": asleep.memory.nbytes,
        "n_exemplars": asleep.memory.n,
        "raw_bytes": raw_bytes,
    }


def remembered(
    world: World, codec: str | Codebook, seed: int, *, memory_bytes: int, n_exemplars: int | None = None
) -> tuple[float, float, int]:
    """Train on what a memory kept of everything, all classes alike, and test.

    Parameters
    ----------
    codec
        As :class:`ReplayMemory` takes it.
    memory_bytes
        Of the memory, its codebook counted in.
    n_exemplars
        Rehearse only so many of them.

    Returns
    -------
    Accuracy, accuracy when test features are answered as they would come back from memory, exemplars.
    """
    memory = ReplayMemory(
        capacity_bytes=memory_bytes, n_features=world.X.shape[1], codec=codec, held_back_every=0, seed=seed
    )
    for row in np.random.default_rng(seed).permutation(len(world.X)):
        memory.add(world.X[row], int(world.y[row]))
    kept = memory.rehearsed
    rows = np.random.default_rng(seed).permutation(kept.n)[:n_exemplars]
    head = heads.create(
        "step",
        n_features=world.X.shape[1],
        n_classes=len(world.class_names),
        program=program(world),
        window=1,
    )
    for _ in head.rehearse(Exemplars.of(kept.features(rows), kept.labels[rows], n_steps=PQ_STEPS, seed=seed)):
        pass
    answers = [
        head.exam(X, world.test_classes, learned=False).argmax(axis=1)
        for X in (world.test, memory.reconstruct(world.test))
    ]
    plain, rebuilt = (float(np.mean(answer == world.test_classes)) for answer in answers)
    return plain, rebuilt, len(rows)


def codecs(world: World, seed: int) -> dict[str, Any]:
    """Product quantisation against float32, at equal numbers of exemplars and at equal bytes."""
    codebook = codebook_of(world, *CODES[world.name])
    raw_row = 4 * world.X.shape[1]
    little = raw_row * EQUAL_BYTES_EXEMPLARS[world.name]
    exact, _, _ = remembered(world, "float32", seed, memory_bytes=ROOM_BYTES, n_exemplars=N_EQUAL)
    coded, rebuilt, n = remembered(world, codebook, seed, memory_bytes=ROOM_BYTES, n_exemplars=N_EQUAL)
    few, _, n_few = remembered(world, "float32", seed, memory_bytes=little)
    many, many_rebuilt, n_many = remembered(world, codebook, seed, memory_bytes=little)
    return {
        "compression": raw_row / codebook.centroids.shape[0],
        "equal_exemplars": {"n": n, "float32": exact, "pq": coded, "pq_answering_rebuilt": rebuilt},
        "equal_bytes": {
            "bytes": little,
            "float32": few,
            "n_float32": n_few,
            "pq": many,
            "n_pq": n_many,
            "pq_answering_rebuilt": many_rebuilt,
        },
    }
