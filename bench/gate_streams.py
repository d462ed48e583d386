"""What the gate costs and what sleep brings on real streams: see :mod:`bench.gate`.

Every head learns a stream with its replay memory as a device does, and sleeps when the settings say so:
never (``awake``), with the gate, whatever the judges say (``always``), and by the plain rule that balanced
accuracy must not fall by more than its standard error (``plain``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from edge_cl import heads, shares
from edge_cl.budget import MIB
from edge_cl.config import MemorySettings, Settings, SleepSettings
from edge_cl.datasets.streams import Stream
from edge_cl.heads import Head
from edge_cl.memory import ReplayMemory
from edge_cl.records import FloatArray, SleepPlan
from edge_cl.sleep import Rehearsal, SleepNeed, Verdict, sleep_cause
from edge_cl.trust import Calibrator, Pinned

HEADS = ("dual", "kalman", "prototype", "logistic", "slda")
DEVELOPMENT = ("insects_gradual_balanced", "outdoor_objects", "elec2")
RULES = ("awake", "gate", "always", "plain")
GAP_LABELS, GAP_EVERY = 50, 10
"""After an adoption accuracy is looked at so long, so often."""
N_TEST = 1000


LOG_TEMPERATURES = np.linspace(-2, 2, 41)


class Always(Rehearsal[Head]):
    """Adopted whatever the judges say."""

    def _judge(self) -> Verdict:
        return super()._judge()._replace(adopted=True)


class Plain(Rehearsal[Head]):
    """Adopted unless balanced accuracy falls by more than one standard error, or a class by the margin."""

    def _judge(self) -> Verdict:
        found = super()._judge()
        y = self._judge_y
        gain = (self.after[:, 0] > self.after[:, 1]) * 1.0 - (self.before[:, 0] > self.before[:, 1])
        by_class = [gain[y == c] for c in np.unique(y)]
        change = float(np.mean([g.mean() for g in by_class] or [0.0]))
        error = float(np.sqrt(sum(g.var() / len(g) for g in by_class))) / max(len(by_class), 1)
        worst = min((g.mean() for g in by_class if len(g) >= 8), default=0.0)
        adopted = len(y) >= 8 and change >= -error and worst >= -self._plan.class_margin
        return found._replace(adopted=adopted)


SLEEPS = {"gate": Rehearsal[Head], "always": Always, "plain": Plain}


class Device:
    """Head, memory and calibration of one stream; a knowledge without journal or bundle."""

    def __init__(self, stream: Stream, head_name: str, rule: str) -> None:
        n_features, n_classes = stream.X.shape[1], int(stream.y.max()) + 1
        options = heads.device_options(head_name, {})
        self.head = heads.create(head_name, n_features=n_features, n_classes=n_classes, **options)
        self.memory = ReplayMemory(n_features=n_features)
        free = int(Settings().budget.ram_mb * MIB) - 2 * self.head.nbytes - self.head.rehearse_bytes
        self.memory.resize(shares.most_memory_bytes(MemorySettings(), free, self.head, self.memory))
        self.settings = SleepSettings(idle_s=0.0)
        self.rule = rule
        self.n_labels = self.labels_since = self.n_sleeps = self.n_adopted = self.n_right = 0
        self.test = stream.X[stream.held_out], stream.y[stream.held_out]
        self.rehearsal: Rehearsal[Head] | None = None
        """Of the sleep just done."""
        self.calibrators = Calibrator(), Calibrator()
        """As they are on a device, and fitted afresh on what is held back at every adoption."""
        self.log_losses = np.zeros(2)
        self.pinned = Pinned(n_features)
        """Empty unless somebody is trusted."""

    def live(self, x: FloatArray, y: int, *, trusted: bool = False) -> bool:
        """Answer, learn, sleep when it is time; whether a new head was adopted."""
        scores = self.head.predict_one(x)
        self.n_right += int(scores.any() and scores.argmax() == y)
        if self.head.class_counts[y]:
            for k, calibrate in enumerate(self.calibrators):
                self.log_losses[k] -= np.log(max(float(calibrate(scores)[y]), 1e-7))
                calibrate.update(scores, y)
        self.head.learn_one(x, y)
        if self.memory.add(x, y) and trusted:
            self.pinned.add(x, y)
        self.n_labels += 1
        self.labels_since += 1
        return self.rule != "awake" and self._sleep()

    def _sleep(self) -> bool:
        need = SleepNeed(self.labels_since, self.n_labels)
        if not sleep_cause(self.settings, need):
            return False
        self.labels_since = 0
        self.n_sleeps += 1
        self.rehearsal = SLEEPS[self.rule](
            self.head, self.memory, SleepPlan(), seed=self.n_sleeps, pinned=self.pinned.exam()
        )
        fitted = None
        for piece in self.rehearsal.pieces():
            if piece.phase == "judge" and self.rehearsal.n_steps and fitted is None:
                fitted = self._fitted(self.rehearsal.candidate)  # has not settled yet
        verdict = self.rehearsal.verdict
        if verdict is None or not verdict.adopted:
            return False
        self.n_adopted += 1
        self.head = self.rehearsal.candidate
        if fitted is not None:
            self.calibrators[1].log_temperature = fitted
        return True

    def _fitted(self, head: Head) -> float:
        """The log temperature of least log-loss on what is held back."""
        X, y = self.memory.held_back.exemplars()
        scores = np.concatenate([head.predict_many(part) for part in np.array_split(X, len(X) // 256 + 1)])
        losses = [
            -np.log(np.maximum(Calibrator(t)(scores)[np.arange(len(y)), y], 1e-7)).mean()
            for t in LOG_TEMPERATURES.tolist()
        ]
        return float(LOG_TEMPERATURES[np.argmin(losses)])

    def ever(self, *, most: int | None = None) -> float:
        """Balanced accuracy on what was held out of the stream, in [0, 1]; on at most so many samples."""
        X, y = self.test
        rows = np.unique(np.linspace(0, len(y) - 1, min(most or len(y), len(y))).astype(np.int64))
        rows = rows[self.head.class_counts[y[rows]] > 0]
        found = [self.head.predict_many(X[part]).argmax(axis=1) for part in np.array_split(rows, 9)]
        right = np.concatenate(found) == y[rows]
        return float(np.mean([right[y[rows] == c].mean() for c in np.unique(y[rows])]))


def run(stream: Stream, head_name: str, rule: str) -> dict[str, Any]:
    """Percent ever and now, sleeps, adopted ones, and the points lost at and after each adoption."""
    device = Device(stream, head_name, rule)
    gaps: list[tuple[float, float]] = []
    before, at_once, until, worst = 0.0, 0.0, -1, 0.0
    learned = ~stream.held_out
    for i, (x, y) in enumerate(zip(stream.X[learned], stream.y[learned].tolist(), strict=True)):
        known = device.head
        adopted = device.live(x, y)
        if rule == "gate" and adopted:
            before, at_once = (_accuracy(device, head) for head in (known, device.head))
            until, worst = i + GAP_LABELS, at_once
        if i <= until and (until - i) % GAP_EVERY == 0:
            worst = min(worst, device.ever(most=N_TEST))
        if i == until:
            gaps.append((100 * (before - worst), 100 * (before - at_once)))
    return {
        "ever": 100 * device.ever(),
        "now": 100 * device.n_right / int(learned.sum()),
        "sleeps": device.n_sleeps,
        "adopted": device.n_adopted,
        "log_loss": float(device.log_losses[0]) / device.n_labels,
        "log_loss_recalibrated": float(device.log_losses[1]) / device.n_labels,
        "gaps": gaps,
    }


def _accuracy(device: Device, head: Head) -> float:
    """`Device.ever` of this head."""
    mine, device.head = device.head, head
    found = device.ever(most=N_TEST)
    device.head = mine
    return found


def measure(streams: Iterator[Stream], names: tuple[str, ...] = HEADS) -> dict[str, Any]:
    """``runs``: per stream, head and rule (keys ``stream/head/rule``) what `run` gives; `stability_gap`."""
    runs: dict[str, dict[str, Any]] = {}
    for stream in streams:
        for name in names:
            for rule in RULES:
                runs[f"{stream.name}/{name}/{rule}"] = row = run(stream, name, rule)
                print(
                    f"{stream.name:26}{name:11}{rule:8}{row['ever']:7.2f} ever{row['now']:7.2f} now "
                    f"{row['adopted']:3} of {row['sleeps']:2} adopted  log-loss {row['log_loss']:.3f}, "
                    f"recalibrated {row['log_loss_recalibrated']:.3f}",
                    flush=True,
                )
    found = {"runs": runs} | stability_gap(runs)
    print({name: value for name, value in found.items() if name != "runs"})
    return found


def stability_gap(runs: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Points of accuracy lost from before an adoption to the worst of it and the next 50 labels; of which
    at the adoption itself. Medians and 99th percentiles over all adoptions of the gate."""
    gaps = np.array([gap for row in runs.values() for gap in row["gaps"]]).reshape(-1, 2)
    if not len(gaps):
        return {"adoptions": 0}
    (gap, at_once), (gap_p99, at_once_p99) = np.quantile(gaps, (0.5, 0.99), axis=0).tolist()
    return {
        "adoptions": len(gaps),
        "stability_gap_points": gap,
        "stability_gap_p99_points": gap_p99,
        "loss_at_adoption_points": at_once,
        "loss_at_adoption_p99_points": at_once_p99,
    }
