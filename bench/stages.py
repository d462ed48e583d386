"""Where the time goes: each stage's own time, without what it calls in other stages."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

from edge_cl.durable import DurableKnowledge
from edge_cl.encoders.identity import IdentityEncoder
from edge_cl.encoders.interpreter import InterpreterEncoder
from edge_cl.encoders.onnx import OnnxEncoder
from edge_cl.knowledge import Knowledge
from edge_cl.learner import Learner
from edge_cl.records import Event
from edge_cl.teaching import Teaching

STAGES: list[tuple[str, type, str]] = [
    ("encoder", IdentityEncoder, "encode"),
    ("encoder", OnnxEncoder, "encode"),
    ("encoder", InterpreterEncoder, "encode"),
    ("head_predict", Knowledge, "predict_one"),
    ("learn", Knowledge, "learn"),
    ("journal", DurableKnowledge, "_journal"),
    ("journal", DurableKnowledge, "commit"),
    ("compare_receipt", Teaching, "_compare"),
    ("sleep", Learner, "_doze"),
]


class Stopwatch:
    """Adds up seconds by stage; a stage that calls another stops counting meanwhile."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._running: list[str] = []
        self._since_s = 0.0

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Count the block's time for `name`."""
        self._turn()
        self._running.append(name)
        try:
            yield
        finally:
            self._turn()
            self._running.pop()

    def wrapped(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, counted for `name`."""

        def counted(*arguments: Any, **options: Any) -> Any:
            with self.stage(name):
                return function(*arguments, **options)

        return counted

    def events(self, events: Iterator[Event]) -> Iterator[Event]:
        """The events, counting the time that it takes to make them."""
        while True:
            with self.stage("windowing"):
                try:
                    event = next(events)
                except StopIteration:
                    return
            yield event

    def _turn(self) -> None:
        now_s = time.perf_counter()
        if self._running:
            running = self._running[-1]
            self.seconds[running] = self.seconds.get(running, 0.0) + now_s - self._since_s
        self._since_s = now_s


@contextlib.contextmanager
def instrumented() -> Iterator[Stopwatch]:
    """A stopwatch on every stage of every learner, taken off again at the end."""
    watch = Stopwatch()
    originals = [(owner, method, getattr(owner, method)) for _, owner, method in STAGES]
    for name, owner, method in STAGES:
        setattr(owner, method, watch.wrapped(name, getattr(owner, method)))
    try:
        yield watch
    finally:
        for owner, method, original in originals:
            setattr(owner, method, original)
