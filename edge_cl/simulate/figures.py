"""From runs to figures: pure arithmetic, the same for the table, the JSON and the report."""

from __future__ import annotations

import platform
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_cl.records import FloatArray
from edge_cl.simulate.desktop import ROLLING, ExamResult, Run
from edge_cl.simulate.scenario import Scenario, majority

Pair = dict[str, float]


def figures(
    runs: Sequence[Run], *, counts: dict[str, int], budget_bytes: int, **about: Any
) -> dict[str, Any]:
    """Everything the end table shows, as nested dictionaries of plain numbers.

    With several devices (one per person) accuracies are means over devices, bytes the largest
    device's, counts sums.
    """
    held = max(runs, key=lambda run: run.status.held_bytes).status
    learned = [r for run in runs for r in run.receipts if r.status == "learned"]
    sleeps = [report for run in runs for _, report in run.sleeps]
    return {
        **about,
        "devices": len(runs),
        "windows": sum(len(run.frozen) for run in runs),
        "accuracy": {
            "now": _pair(runs, lambda hits: hits),
            "ever": _ever(runs),
            "last_half": _pair(runs, lambda hits: hits[len(hits) // 2 :]),
            "quarters": [_pair(runs, lambda hits, q=q: np.array_split(hits, 4)[q]) for q in range(4)],  # type: ignore[misc]
            "by_recording": _by_recording(runs),
            "phases": _phases(runs[0]) if len(runs) == 1 else [],
            "exams": _exams(runs),
        },
        "labels_given": sum(len(run.scenario.labels) for run in runs),
        "labels_used": len(learned),
        "memory": {"held_bytes": held.held_bytes, "budget_bytes": budget_bytes, "by_holder": held.held},
        "messages": counts,
        "sleeps": len(sleeps),
        "sleeps_adopted": sum(report.adopted for report in sleeps),
        "versions": _versions(),
    }


def hits(truth: Sequence[str], said: Sequence[str]) -> NDArray[np.float64]:
    """(n,) 1 where the answer was right."""
    return np.array([a == b for a, b in zip(truth, said, strict=True)], dtype=np.float64)


def rolling(right: FloatArray, width: int = ROLLING) -> NDArray[np.float64]:
    """(n,) mean of the last `width` values, of fewer at the beginning.

    >>> rolling(np.array([1.0, 0.0, 0.0, 1.0]), 2)
    array([1. , 0.5, 0. , 0.5])
    """
    total = np.concatenate([[0.0], np.cumsum(right)])
    end = np.arange(1, len(total))
    start = np.maximum(end - width, 0)
    return np.asarray((total[end] - total[start]) / (end - start))


def balanced(truth: Sequence[str], said: Sequence[str]) -> float:
    """Mean over classes of the share answered rightly.

    >>> balanced(["a", "a", "a", "b"], ["a", "a", "a", "a"])
    0.5
    """
    right, names = hits(truth, said), np.array(truth)
    return float(np.mean([right[names == name].mean() for name in sorted(set(truth))]))


def confusion(exams: Sequence[ExamResult]) -> tuple[list[str], NDArray[np.int64]]:
    """Class names and (true, said) counts of the learning device over all exams."""
    truth = [name for exam in exams for name in exam.truth]
    said = [name for exam in exams for name in exam.learning]
    names = list(dict.fromkeys([*truth, *said]))
    table = np.zeros((len(names), len(names)), np.int64)
    for a, b in zip(truth, said, strict=True):
        table[names.index(a), names.index(b)] += 1
    return names, table


def _pair(runs: Sequence[Run], part: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Pair:
    learning = [part(hits(run.scenario.truth, run.learning)).mean() for run in runs]
    frozen = [part(hits(run.scenario.truth, run.frozen)).mean() for run in runs]
    return _rounded(float(np.mean(learning)), float(np.mean(frozen)))


def _ever(runs: Sequence[Run]) -> Pair | None:
    """Class-balanced accuracy on held-out windows after the stream, mean over conditions."""
    exams = [exam for run in runs for exam in run.exams]
    if not exams:
        return None
    return _rounded(
        float(np.mean([balanced(exam.truth, exam.learning) for exam in exams])),
        float(np.mean([balanced(exam.truth, exam.frozen) for exam in exams])),
    )


def _exams(runs: Sequence[Run]) -> list[dict[str, Any]]:
    by_condition: dict[str, list[ExamResult]] = {}
    for exam in (exam for run in runs for exam in run.exams):
        by_condition.setdefault(exam.condition, []).append(exam)
    return [
        {
            "condition": condition,
            "windows": sum(len(exam.truth) for exam in exams),
            **_rounded(
                float(np.mean([balanced(exam.truth, exam.learning) for exam in exams])),
                float(np.mean([balanced(exam.truth, exam.frozen) for exam in exams])),
            ),
        }
        for condition, exams in by_condition.items()
    ]


def _phases(run: Run) -> list[dict[str, Any]]:
    starts = [mark.index for mark in run.scenario.marks]
    ends = [*starts[1:], len(run.frozen)]
    learning, frozen = hits(run.scenario.truth, run.learning), hits(run.scenario.truth, run.frozen)
    return [
        {"phase": mark.text, **_rounded(float(learning[a:b].mean()), float(frozen[a:b].mean()))}
        for mark, a, b in zip(run.scenario.marks, starts, ends, strict=True)
    ]


def _by_recording(runs: Sequence[Run]) -> dict[str, Any] | None:
    """One answer per recording, the majority of its windows'; `last_third` is of each stream."""
    if not all(run.scenario.recording for run in runs):
        return None
    learning = [_recordings(run.scenario, run.learning) for run in runs]
    frozen = [_recordings(run.scenario, run.frozen) for run in runs]

    def mean(right: list[NDArray[np.float64]], start: float) -> float:
        return float(np.mean([part[int(len(part) * start) :].mean() for part in right]))

    return {
        **_rounded(mean(learning, 0), mean(frozen, 0)),
        "last_third": _rounded(mean(learning, 2 / 3), mean(frozen, 2 / 3)),
    }


def _recordings(scenario: Scenario, said: Sequence[str]) -> NDArray[np.float64]:
    members: dict[int, list[int]] = {}
    for k, recording in enumerate(scenario.recording):
        members.setdefault(recording, []).append(k)
    truth = [majority([scenario.truth[k] for k in part]) for part in members.values()]
    return hits(truth, [majority([said[k] for k in part]) for part in members.values()])


def _rounded(learning: float, frozen: float) -> Pair:
    return {"learning": round(learning, 4), "frozen": round(frozen, 4)}


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("edge-cl", "numpy", "onnxruntime", "paho-mqtt", "amqtt"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
