"""Scenarios from real recordings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_cl.datasets import recordings, scenarios
from edge_cl.datasets.encoded import check_channels
from edge_cl.datasets.recordings import Recording
from edge_cl.datasets.windows import Windows, windows
from edge_cl.manifest import Manifest
from edge_cl.simulate.scenario import Due, Exam, Mark, Scenario, labels_every

LABEL_EVERY = 5
LABEL_DELAY = 50
LABELS_PER_CLASS = 4
MAX_EXAM_WINDOWS = 800


def load_scenarios(
    path: str | Path,
    name: str,
    manifest: Manifest,
    *,
    labels_per_class: int = LABELS_PER_CLASS,
    labels_per_recording: int = 1,
) -> list[Scenario]:
    """The streams of a named scenario: one device each.

    Where every person gets a fresh device, they label `labels_per_class` windows of each class in all,
    at most `labels_per_recording` in each of its first recordings.

    Raises
    ------
    DataError
        When the file cannot be used, the scenario is unknown, or the bundle is for another sensor.
    """
    dataset, plan = recordings.load(path), scenarios.get(name)
    check_channels(path, dataset, manifest)
    parts = scenarios.split(dataset, plan)
    cut = _Cutter(
        manifest, dataset.class_names, per_class=labels_per_class, per_recording=labels_per_recording
    )
    if plan.stream_device:
        others = scenarios.select(dataset, plan.validation_people, plan.stream_device)
        exams = [
            cut.exam(f"{plan.train_device} of people who checked the export", parts.validation),
            cut.exam(f"{plan.stream_device} of people never streamed", others),
        ]
        return [cut.one_device(name, parts.stream, exams)]
    exams = [cut.exam("people who checked the export", parts.validation)]
    return cut.one_device_per_person(name, parts.stream, exams)


class _Cutter:
    """Cuts recordings into streams and exams as the bundle's manifest asks."""

    def __init__(
        self, manifest: Manifest, class_names: Sequence[str], *, per_class: int, per_recording: int
    ) -> None:
        self._manifest = manifest
        self._per_class, self._per_recording = per_class, per_recording
        self._class_names = class_names

    def one_device(self, name: str, stream: Sequence[Recording], exams: list[Exam]) -> Scenario:
        """Everybody's recordings through one device: 1 label in 5, 50 windows late."""
        cut = self._cut(stream)
        n = len(cut.X)
        starts = np.flatnonzero(np.diff(cut.person, prepend=-1))
        marks = [Mark(int(k), f"person {cut.person[k]}") for k in starts]
        labels = labels_every(n, every=LABEL_EVERY, delay=LABEL_DELAY)
        return self._scenario(name, cut, labels=labels, marks=marks, exams=exams)

    def one_device_per_person(
        self, name: str, stream: Sequence[Recording], exams: list[Exam]
    ) -> list[Scenario]:
        """A fresh device for each person, who labels a few windows of each class."""
        people = dict.fromkeys(recording.person for recording in stream)
        return [
            self._person(f"{name}, person {who}", [r for r in stream if r.person == who], exams)
            for who in people
        ]

    def _person(self, name: str, stream: Sequence[Recording], exams: list[Exam]) -> Scenario:
        cut = self._cut(stream)
        labels = few_of_each_class(cut, per_class=self._per_class, per_recording=self._per_recording)
        return self._scenario(name, cut, labels=labels, marks=[], exams=exams)

    def exam(self, condition: str, held_out: Sequence[Recording]) -> Exam:
        """Windows spread over these recordings."""
        cut = self._cut(held_out)
        some = np.linspace(0, len(cut.X) - 1, min(len(cut.X), MAX_EXAM_WINDOWS)).astype(int)
        return Exam(condition, cut.X[some], [self._class_names[k] for k in cut.y[some]])

    def _cut(self, found: Sequence[Recording]) -> Windows:
        return windows(
            found,
            rate_hz=self._manifest.rate_hz,
            window_samples=self._manifest.window_samples,
            hop_samples=self._manifest.hop_samples,
        )

    def _scenario(
        self, name: str, cut: Windows, *, labels: list[Due], marks: list[Mark], exams: list[Exam]
    ) -> Scenario:
        starts = np.flatnonzero(np.diff(cut.recording, prepend=-1))
        one_class_each = all(len(set(part)) == 1 for part in np.split(cut.y, starts[1:]))
        # Each recording's clock begins at 0; in the stream they follow each other a second apart.
        lengths_s = cut.t_s[starts[1:] - 1] + 1.0
        begin_s = np.concatenate([[0.0], np.cumsum(lengths_s)])
        which = np.searchsorted(starts, np.arange(len(cut.X)), side="right") - 1
        return Scenario(
            name=name,
            windows=cut.X,
            t_s=begin_s[which] + cut.t_s,
            truth=[self._class_names[k] for k in cut.y],
            labels=labels,
            marks=marks,
            exams=exams,
            recording=cut.recording.tolist() if one_class_each else [],
        )


def few_of_each_class(
    cut: Windows, *, per_class: int = LABELS_PER_CLASS, per_recording: int = 1
) -> list[Due]:
    """Labels for a few windows of each class, `per_class` in all, at most `per_recording` in one recording.

    They lie evenly inside the recording (one: its middle), and come once the whole of it was answered.
    """
    given: dict[int, int] = defaultdict(int)
    labels = []
    for recording in dict.fromkeys(cut.recording.tolist()):
        rows = np.flatnonzero(cut.recording == recording)
        y = int(cut.y[rows[0]])
        n = min(per_recording, per_class - given[y], len(rows))
        given[y] += n
        places = (len(rows) * (np.arange(n) + 0.5) / max(n, 1)).astype(int)
        labels += [Due(int(rows[-1]), int(k)) for k in rows[places]]
    return sorted(labels)
