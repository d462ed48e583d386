"""Does a sleeping device answer as soon as one that is awake? ``python -m bench.latency [--json FILE]``.

============================  ======================================================================
``awake_ms``, ``asleep_ms``   arrival to decision: p50, p99, max, and over how many readings; asleep are those
                              that came, or were answered, between the beginning of a sleep and its snapshot
``ratio``                     p99 asleep / p99 awake
``pieces_ms``                 the longest calls of a sleep, by phase: median and maximum
``p99_ratio_asleep``          the larger ratio of the two heads
============================  ======================================================================

The real loop with a state folder: a thread writes windows as JSON lines into a pipe, 50 a second at uneven
intervals, one in four labelled; `Learner.run` reads the pipe as `edge-cl run` does. A sleep is asked for
every other second. Arrival is the moment before a line is written, so reading, parsing and the threads'
common interpreter lock count, too.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from bench import pipeline
from edge_cl.bundle import Bundle, write_bundle
from edge_cl.config import Settings, SleepSettings
from edge_cl.learner import Learner
from edge_cl.manifest import HeadSpec, Manifest
from edge_cl.records import Answer, Decision, Event, Label, Reading, SleepRequest
from edge_cl.sensing.stream import PipeStream
from edge_cl.simulate import wrist

RATE_HZ = 50.0
LABEL_EVERY = 4
N_BEFORE = 1500
"""Labelled windows learned before anything is timed."""
ASK_EVERY_S = 2.0
TARGETS: dict[str, tuple[str, Callable[[float], bool]]] = {"p99_ratio_asleep": ("≤ 2", lambda x: x <= 2)}


class Watch:
    """Notes when readings arrive and are answered, and how long every call of a sleep takes."""

    def __init__(self, learner: Learner) -> None:
        self.arrived_s: dict[str, float] = {}
        self.answered_s: dict[str, float] = {}
        self.sleeps_s: list[tuple[float, float]] = []
        self.pieces_ms: dict[str, list[float]] = {}
        self._learner = learner
        self._doze = learner._doze
        learner._doze = self.doze  # type: ignore[method-assign]

    def sink(self, answer: Answer) -> None:
        """Of the loop."""
        if isinstance(answer, Decision):
            self.answered_s[answer.reading_id] = time.perf_counter()

    def doze(self, *arguments: Any) -> None:
        """A slice of sleep, timed."""
        rest = self._learner._rest
        was_asleep, phase = rest.asleep, rest.describe().split(";")[0]
        began_s = time.perf_counter()
        self._doze(*arguments)
        ended_s = time.perf_counter()
        if not (was_asleep or rest.asleep):
            return
        name = phase.removeprefix("asleep: ").rstrip("0123456789, of") if " of " in phase else "begin"
        self.pieces_ms.setdefault(name, []).append(1000 * (ended_s - began_s))
        if not was_asleep:
            self.sleeps_s.append((began_s, ended_s))
        self.sleeps_s[-1] = self.sleeps_s[-1][0], ended_s

    def split_ms(self) -> tuple[np.ndarray, np.ndarray]:
        """Latencies awake, latencies asleep."""
        came = np.array([self.arrived_s[name] for name in self.answered_s])
        went = np.array(list(self.answered_s.values()))
        asleep = np.zeros(len(came), dtype=bool)
        for began_s, ended_s in self.sleeps_s:
            asleep |= (came < ended_s) & (went > began_s)
        return 1000 * (went - came)[~asleep], 1000 * (went - came)[asleep]


class Asking:
    """A source of labels that has none, but asks for a sleep again and again."""

    def __init__(self) -> None:
        self._due_s = time.monotonic() + ASK_EVERY_S

    def poll(self) -> list[Event]:
        """A request when it is due."""
        if time.monotonic() < self._due_s:
            return []
        self._due_s = time.monotonic() + ASK_EVERY_S
        return [SleepRequest()]


def measure(bundles: dict[str, str], folder: Path, *, seconds: float, seed: int = 0) -> dict[str, Any]:
    """Each head's figures from `seconds` of live readings."""
    heads = {name: _head(bundle, folder / f"state-{name}", seconds, seed) for name, bundle in bundles.items()}
    return {"seed": seed, "heads": heads, "p99_ratio_asleep": max(row["ratio"] for row in heads.values())}


def _head(bundle: str, state: Path, seconds: float, seed: int) -> dict[str, Any]:
    loaded = Bundle.load(bundle)
    rng = np.random.default_rng(seed)
    windows, names = _windows(loaded.manifest, rng)
    settings = Settings(sleep=SleepSettings(after_labels=0, idle_s=0.0))
    with Learner.from_bundle(loaded, state_dir=state, settings=settings) as learner:
        learner.run(_lessons(windows, names))
        watch = Watch(learner)
        lines = _lines(windows, names, int(seconds * RATE_HZ))
        reading_end, writing_end = os.pipe()
        with os.fdopen(reading_end, "rb") as file:
            stream = PipeStream(loaded.manifest, file=file)
            producer = threading.Thread(target=_produce, args=(writing_end, lines, watch, rng), daemon=True)
            producer.start()
            learner.run(stream, [Asking()], [watch.sink], busy=stream.waiting)  # type: ignore[list-item]
            producer.join()
        awake, asleep = watch.split_ms()
    return {
        "awake_ms": _summary(awake),
        "asleep_ms": _summary(asleep),
        "ratio": round(float(np.percentile(asleep, 99) / np.percentile(awake, 99)), 2),
        "sleeps": len(watch.sleeps_s),
        "pieces_ms": {
            name: {"n": len(ms), "p50": round(float(np.median(ms)), 2), "max": round(max(ms), 2)}
            for name, ms in sorted(watch.pieces_ms.items())
        },
    }


def _summary(ms: np.ndarray) -> dict[str, float]:
    values = {"p50": np.median(ms), "p99": np.percentile(ms, 99), "max": ms.max()}
    return {"n": len(ms)} | {name: round(float(value), 2) for name, value in values.items()}


def _windows(manifest: Manifest, rng: np.random.Generator) -> tuple[list[np.ndarray], list[str]]:
    """Windows of simulated people, and what they do."""
    windows, names = [], []
    size, hop = manifest.window_samples, manifest.hop_samples
    while len(windows) < N_BEFORE:
        who = wrist.person(rng)
        for name in wrist.SOURCE_ACTIVITIES:
            felt = wrist.signal(who, name, size + 15 * hop, rng).astype(np.float32)
            windows += [felt[k * hop : k * hop + size] for k in range(16)]
            names += [name] * 16
    return windows, names


def _lessons(windows: list[np.ndarray], names: list[str]) -> Iterator[Event]:
    for k, (window, name) in enumerate(zip(windows, names, strict=True)):
        yield Reading(id=f"before-{k}", t_s=float(k), window=window)
        yield Label(reading_id=f"before-{k}", label=name, source="bench")


def _lines(windows: list[np.ndarray], names: list[str], n: int) -> list[tuple[str, bytes]]:
    encoded = []
    for k in range(n):
        name = f"live-{k}"
        row = {"t": k / RATE_HZ, "window": windows[k % len(windows)].round(4).tolist(), "id": name}
        line = msgspec.json.encode(row) + b"\n"
        if k % LABEL_EVERY == 0:
            line += msgspec.json.encode({"label": names[k % len(names)], "reading_id": name}) + b"\n"
        encoded.append((name, line))
    return encoded


def _produce(end: int, lines: list[tuple[str, bytes]], watch: Watch, rng: np.random.Generator) -> None:
    with os.fdopen(end, "wb", buffering=0) as pipe:
        due_s = time.perf_counter()
        for (name, line), pause in zip(lines, rng.uniform(0.5, 1.5, len(lines)), strict=True):
            due_s += pause / RATE_HZ
            time.sleep(max(due_s - time.perf_counter(), 0))
            watch.arrived_s[name] = time.perf_counter()
            pipe.write(line)


def step_bundle(source: str, path: Path) -> str:
    """The same bundle with head step: a compiled MLP on the encoder's features."""
    from edge_cl_export.plastic import Mlp
    from edge_cl_export.step_graph import compile_program
    from edge_cl_export.warm import members

    loaded = Bundle.load(source)
    manifest = loaded.manifest
    program = compile_program(Mlp, (manifest.feature_size,), len(manifest.class_names))
    kept = {name: loaded.member(name) for name in manifest.members}
    manifest = msgspec.structs.replace(manifest, head=HeadSpec(name="step"), plastic=program.spec)
    write_bundle(path, manifest, kept | members(program))
    return str(path)


def show(figures: dict[str, Any]) -> None:
    """The table."""
    for name, row in figures["heads"].items():
        for state in ("awake_ms", "asleep_ms"):
            told = ", ".join(f"{key} {value:g}" for key, value in row[state].items())
            print(f"{name:6s} {state:10s} {told}")
        print(f"{name:6s} p99 ratio {row['ratio']:.2f} over {row['sleeps']} sleeps; longest calls (ms):")
        for phase, took in row["pieces_ms"].items():
            print(f"       {phase:12s} n {took['n']}, p50 {took['p50']:g}, max {took['max']:g}")
    value = figures["p99_ratio_asleep"]
    target, met = TARGETS["p99_ratio_asleep"]
    print(f"{'p99_ratio_asleep':30s} {value:>10}   target {target}{'' if met(value) else '  MISSED'}")


def main() -> None:
    """Measure, show, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="20 seconds a head instead of 60")
    parser.add_argument("--bundle", default=pipeline.DEFAULT_BUNDLE)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures to a file")
    parser.add_argument("--folder", default=".", help="where state folders are made for the time being")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder, prefix="bench-") as folder:
        bundles = {
            "dual": arguments.bundle,
            "step": step_bundle(arguments.bundle, Path(folder) / "step.ecl"),
        }
        seconds = 20.0 if arguments.quick else 60.0
        figures = measure(bundles, Path(folder), seconds=seconds, seed=arguments.seed)
    figures["versions"] = pipeline.versions()
    show(figures)
    if arguments.json:
        arguments.json.write_bytes(msgspec.json.format(msgspec.json.encode(figures), indent=2) + b"\n")


if __name__ == "__main__":
    main()
