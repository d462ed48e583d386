"""A whole device on a desktop: the real loop, beside a twin that never learns."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np

from edge_cl.bundle import Bundle
from edge_cl.config import Settings, SleepSettings
from edge_cl.learner import Learner
from edge_cl.records import Answer, Decision, FloatArray, Receipt, SleepReport, Status
from edge_cl.simulate.broker import LocalBroker
from edge_cl.simulate.scenario import Scenario
from edge_cl.sync.link import MqttLink

ROLLING = 200
N_SAMPLES = 160
CHUNK = 256
PAUSE_S = 0.6
DEMO_SETTINGS = Settings(sleep=SleepSettings(idle_s=0.2, min_labels=16))
"""Idle after 0.2 s instead of 5: the demo plays an hour's rest in little more than half a second."""

OnProgress = Callable[[int, float, float], None]
"""Called with windows done and the rolling accuracy of the learning and the frozen device."""


class ExamResult(msgspec.Struct, frozen=True):
    """Answers to one exam, given after the stream."""

    condition: str
    truth: list[str]
    learning: list[str]
    frozen: list[str]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """What one device said on one scenario, and what its frozen twin says.

    `held` samples bytes by holder along the stream; `sleeps` and `held` carry the index of the
    window they came after.
    """

    scenario: Scenario
    learning: list[str]
    frozen: list[str]
    receipts: list[Receipt]
    sleeps: list[tuple[int, SleepReport]]
    held: list[tuple[int, dict[str, int]]]
    exams: list[ExamResult]
    status: Status


class Witness:
    """A sink that notes what a device says, next to the truth."""

    def __init__(self, scenario: Scenario, frozen: list[str], on_progress: OnProgress) -> None:
        self.learning = [""] * len(scenario.truth)
        self.receipts: list[Receipt] = []
        self.sleeps: list[tuple[int, SleepReport]] = []
        self.held: list[tuple[int, dict[str, int]]] = []
        self.n_seen = 0
        self._truth, self._frozen = scenario.truth, frozen
        self._recent: deque[tuple[bool, bool]] = deque(maxlen=ROLLING)
        self._on_progress = on_progress

    def __call__(self, answer: Answer) -> None:
        """Take one answer of the device."""
        if isinstance(answer, Decision):
            self._decided(int(answer.reading_id), answer.label)
        elif isinstance(answer, Receipt):
            self.receipts.append(answer)
        elif isinstance(answer, SleepReport):
            self.sleeps.append((self.n_seen, answer))

    def _decided(self, k: int, label: str) -> None:
        self.learning[k] = label
        self.n_seen = k + 1
        self._recent.append((label == self._truth[k], self._frozen[k] == self._truth[k]))
        if k % 20 == 0 or self.n_seen == len(self._truth):
            learning, frozen = np.mean(self._recent, axis=0).tolist()
            self._on_progress(self.n_seen, learning, frozen)


@contextmanager
def connected(url: str, state_dir: Path | None) -> Iterator[MqttLink]:
    """A link to the broker at `url`; "" starts one inside this process."""
    if not url:
        with LocalBroker() as broker, connected(broker.url, state_dir) as link:
            yield link
        return
    link = MqttLink(
        url, device="simulated", site="desktop", state_dir=state_dir, confirm="broker", mqtt_5=False
    )
    link.start()
    try:
        yield link
    finally:
        link.stop(10.0)


def run(
    bundle: Bundle,
    scenario: Scenario,
    link: MqttLink,
    *,
    settings: Settings = DEMO_SETTINGS,
    state_dir: Path | None = None,
    on_progress: OnProgress = lambda done, learning, frozen: None,
) -> Run:
    """Play `scenario` to a fresh device; it predicts every window before any label for it."""
    with Learner.from_bundle(bundle, settings=settings) as twin:
        frozen = answers(twin, scenario.windows)
        frozen_exams = [answers(twin, exam.windows) for exam in scenario.exams]
    budget = settings.to_budget()
    with Learner.from_bundle(bundle, state_dir=state_dir, budget=budget, settings=settings) as device:
        witness = Witness(scenario, frozen, on_progress)
        step = max(1, len(frozen) // N_SAMPLES)

        def weigh(answer: Answer) -> None:
            if isinstance(answer, Decision) and witness.n_seen % step == 0:
                witness.held.append((witness.n_seen, device.status().held))

        device.run(scenario.events(pause_s=PAUSE_S), labels=[link], sinks=[witness, weigh, link.sink])
        exams = [
            ExamResult(exam.condition, exam.truth, answers(device, exam.windows), before)
            for exam, before in zip(scenario.exams, frozen_exams, strict=True)
        ]
        return Run(
            scenario=scenario,
            learning=witness.learning,
            frozen=frozen,
            receipts=witness.receipts,
            sleeps=witness.sleeps,
            held=witness.held,
            exams=exams,
            status=device.status(),
        )


def answers(device: Learner, windows: FloatArray) -> list[str]:
    """The best class of each window, by `Learner.predict`: nothing is learned, nothing waits."""
    names: Sequence[str] = device.class_names
    best: list[str] = []
    for start in range(0, len(windows), CHUNK):
        best += [names[k] for k in device.predict(windows[start : start + CHUNK]).argmax(axis=1)]
    return best
