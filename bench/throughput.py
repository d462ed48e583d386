"""Windows per second through the real path, on one core."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from bench import recording, stages
from edge_cl.bundle import Bundle
from edge_cl.learner import Learner
from edge_cl.records import Answer, Decision, Receipt, SleepReport
from edge_cl.sensing.stream import open_stream


class Output:
    """Encodes every answer and writes it as `edge-cl run` does, and counts what was answered."""

    def __init__(self, path: str) -> None:
        self.file = Path(path).open("wb")  # noqa: SIM115  open as long as the run
        self.n: dict[type, int] = {Decision: 0, Receipt: 0, SleepReport: 0}
        self._encoder = msgspec.json.Encoder()

    def __call__(self, answer: Answer) -> None:
        """One JSON line, flushed."""
        self.file.write(self._encoder.encode(answer) + b"\n")
        self.file.flush()
        if type(answer) in self.n:
            self.n[type(answer)] += 1


def throughput(
    bundle: str, folder: str, *, n_windows: int, labelled: bool, seed: int, split: bool = False
) -> dict[str, Any]:
    """Run a recording of `n_windows` through a device whose state is kept in `folder`.

    Unless `labelled`, no window has a label. With `split` also each stage's own time per window, which
    costs a few per cent. The first tenth of the windows is not timed: it fills caches and loads libraries.
    """
    loaded = Bundle.load(bundle)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "recording.jsonl"
        recording.write(path, loaded.manifest, n_windows, seed=seed, labelled=labelled)
        out = Output(os.devnull)
        with (
            stages.instrumented() if split else contextlib.nullcontext() as watch,
            Learner.from_bundle(loaded, state_dir=Path(place) / "state") as learner,
        ):
            stream = iter(open_stream(path, loaded.manifest))
            events = watch.events(stream) if watch else stream
            sink = watch.wrapped("encode", out) if watch else out
            mark = n_windows // 10
            began: list[float] = []

            def timed(answer: Answer) -> None:
                sink(answer)
                if not began and out.n[Decision] >= mark:
                    began.append(time.perf_counter())
                    if watch:
                        watch.seconds.clear()

            learner.run(events, sinks=[timed])
            took_s = time.perf_counter() - began[0]
        out.file.close()
    n = out.n[Decision] - mark
    figures: dict[str, Any] = {
        "windows": out.n[Decision],
        "windows_per_s": round(n / took_s, 1),
        "receipts": out.n[Receipt],
        "sleeps": out.n[SleepReport],
    }
    if watch:
        split_us = {name: round(s / n * 1e6, 1) for name, s in sorted(watch.seconds.items())}
        split_us["loop"] = round(took_s / n * 1e6 - sum(split_us.values()), 1)
        figures["us_per_window"] = split_us
    return figures


def pinned(function_cpu: int, *arguments: Any, **options: Any) -> dict[str, Any]:
    """`throughput` on one core only: for a process of its own."""
    os.sched_setaffinity(0, {function_cpu})
    return throughput(*arguments, **options)
