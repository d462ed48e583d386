"""What one bad source costs. ``python -m bench.poison --data DATA [--only NAME,…] [--json FILE]``.

A stream is cut into days. Every day someone at the device labels `--trusted` readings, an honest source over
MQTT (``anna``) `--checked` others, and from the second day an attacker (``mallory``) gives 100 labels aimed
at one class T: readings of T called something else (``from``), other readings called T (``to``), or readings
of T called by a new name (``new``). A device learns them all as it does, replay memory and sleeps included,
without the defence and with it; then it answers the next day's held-out readings.

``recall_loss`` and ``accuracy_loss`` are points against the same device without the attacker;
``…_undefended`` the same without the defence. ``mixed50`` and ``mixed75``: an attacker of whose 100 labels so
many are honest.
``--trials`` adds what is taken back when accuracy on trusted labels falls (:mod:`edge_cl.trial`), and counts
those trials: ``trials``, ``trials_taken_back``; ``--alone`` leaves out all other checks. With ``--honest N``
nobody attacks, in N draws of each stream.
``honest_lost`` is the share (%) of anna's labels that were held, refused or taken back, ``…_attacked`` while
mallory is there; ``defence_cost`` what the defence costs in points of accuracy when nobody attacks.
The constants of :mod:`edge_cl.trust` were chosen on `DEVELOPMENT` alone; `REPORTED` are not among them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from bench.gate_streams import DEVELOPMENT, Device
from edge_cl.datasets.streams import Stream, find_streams
from edge_cl.heads import Head
from edge_cl.naming import ClassNames
from edge_cl.state import Entry
from edge_cl.trial import Arm, groups_of
from edge_cl.trust import Said, Teachers, TrustedAnswers, try_without
from edge_cl.trust.teachers import CHECKED, TRUSTED

REPORTED = ("fsdd_8x16", "gas_drift_zscored10", "uci_har_feat265")
ATTACKS = ("from", "to", "new")
HONEST_SHARES = {"": 0.0, "mixed50": 0.5, "mixed75": 0.75}
"""Of mallory's labels; all but the first only with ``--adaptive``."""
FLIPS_A_DAY = 100
MOST_DAYS, LEAST_READINGS = 5, 1000
WORST = ("recall_loss", "accuracy_loss", "honest_lost")
"""Figures of which the worst single attack is told, too."""
DAY_S = 86_400.0
HEAD_EVERY = 250
"""Labels between two copies of the head that a trial may start from."""


class Told(NamedTuple):
    """A label that somebody gives: the row of its reading, the class said, who, and when."""

    row: int
    y: int
    source: str
    at_s: float


class Attack(NamedTuple):
    """What mallory does to class `target`; `honest` is the share of labels that hide it."""

    kind: str
    target: int
    honest: float = 0.0


class Plan(NamedTuple):
    """How many labels a day come from whom, the draw of all of it, whether falls are tried, and only they."""

    trusted: int
    checked: int
    seed: int
    trials: bool = False
    alone: bool = False


def days_of(stream: Stream) -> list[np.ndarray]:
    """Rows of each day, at most `MOST_DAYS`, of `LEAST_READINGS` where there are so many."""
    n = len(stream.y)
    return np.array_split(np.arange(n), min(max(n // LEAST_READINGS, 3), MOST_DAYS))


def told(stream: Stream, plan: Plan, attack: Attack | None) -> Iterator[list[Told]]:
    """Everybody's labels, day by day; those of the honest are the same with and without an attack."""
    n_classes = int(stream.y.max()) + 1
    for day, rows in enumerate(days_of(stream)):
        rng = np.random.default_rng((plan.seed, day))
        rows = rng.permutation(rows[~stream.held_out[rows]])
        share = min(1.0, 0.6 * len(rows) / (plan.trusted + plan.checked))  # leave mallory something
        n_trusted, n_checked = int(share * plan.trusted), int(share * plan.checked)
        said = [(row, int(stream.y[row]), "local") for row in rows[:n_trusted]]
        said += [(row, int(stream.y[row]), "mqtt/anna") for row in rows[n_trusted:][:n_checked]]
        if attack is not None and day:
            said += _flips(stream, rows[n_trusted + n_checked :], attack, n_classes, rng)
        said.sort()
        yield [
            Told(row, y, who, day * DAY_S + k * DAY_S / (len(said) + 1))
            for k, (row, y, who) in enumerate(said)
        ]


def _flips(
    stream: Stream, rows: np.ndarray, attack: Attack, n_classes: int, rng: np.random.Generator
) -> list[tuple[int, int, str]]:
    """Mallory's labels of a day, of readings that nobody else labels."""
    of_target = stream.y[rows] == attack.target
    n_honest = int(attack.honest * FLIPS_A_DAY)
    bad = rows[~of_target if attack.kind == "to" else of_target][: FLIPS_A_DAY - n_honest]
    honest = np.setdiff1d(rows, bad)
    honest = rng.permutation(honest)[:n_honest]
    if attack.kind == "to":
        lies = np.full(len(bad), attack.target)
    elif attack.kind == "new":
        lies = np.full(len(bad), n_classes)
    else:
        lies = (attack.target + rng.integers(1, n_classes, size=len(bad))) % n_classes
    pairs = [*zip(bad, lies, strict=True), *zip(honest, stream.y[honest], strict=True)]
    return [(int(row), int(y), "mqtt/mallory") for row, y in pairs]


class Home:
    """A device that is taught, with or without the defence; what is taken back is taken back by replay."""

    def __init__(self, stream: Stream, head: str, plan: Plan, *, defended: bool) -> None:
        self._new = lambda: Device(stream, head, "gate")
        self._stream = stream
        self._teachers = Teachers(stream.X.shape[1]) if defended and not plan.alone else None
        self._trusts = {"local"} if defended else set()
        self._names = [str(c) for c in range(int(stream.y.max()) + 2)]
        self._taught: dict[int, Told] = {}
        self.device = self._new()
        self.lost: dict[str, int] = {}
        self.given: dict[str, int] = {}
        self._trials = plan.trials and defended
        self._answers, self._tried, self._promising = TrustedAnswers(), 0, False
        self._heads: dict[int, Head] = {}
        self.n_trials = self.n_taken_back = 0

    def tell(self, told: Told, seq: int) -> None:
        """One label, as a device takes it."""
        self.given[told.source] = self.given.get(told.source, 0) + 1
        if self._teachers is None:
            self._teach(told, seq)
            self._taught[seq] = told
        else:
            self._check(self._teachers, told, seq)
        again = self._promising and self._answers.new(self._tried)
        if self._trials and (again or self._answers.fell(after_seq=self._tried)):
            self._try()

    def _check(self, teachers: Teachers, told: Told, seq: int) -> None:
        y = told.y if told.y < self.device.head.n_classes else -1
        trust = TRUSTED if told.source == "local" else CHECKED
        said = Said(self._stream.X[told.row], y, told.source, trust, told.at_s)
        verdict = teachers.judge(said, self._names)
        if verdict.action == "refuse":
            self._lose(told)
            return
        if verdict.action == "learn":
            self._teach(told, seq)
            self._taught[seq] = told
            said = said._replace(y=told.y)
        else:
            self._lose(told)
        if back := teachers.note(said, seq, learned=verdict.action == "learn"):
            self._take_back(back)

    def _try(self) -> None:
        """As :mod:`edge_cl.trial` does, from a copy of the head."""
        since, self._tried = self._answers.since_seq, self._answers.newest_seq
        checked = {
            seq: told.source for seq, told in self._taught.items() if seq > since and told.source != "local"
        }
        if not checked:
            return
        self.n_trials += 1
        right, groups = np.array(self._arm(since, set())), groups_of(checked)
        found = [
            (try_without(right, np.array(self._arm(since, set(group))), n_tried=len(groups)), group)
            for group in groups
        ]
        trial, group = max(found, key=lambda one: (one[0].take_back, one[0].gain))
        self._promising = any(one.promising for one, _ in found)
        if trial.take_back:
            self.n_taken_back += 1
            self._take_back(sorted(group))

    def _arm(self, since: int, without: set[int]) -> list[bool]:
        base = max((seq for seq in self._heads if seq < since), default=0)
        head = self._heads[base].copy() if base else self._new().head
        arm = Arm(head, ClassNames(self._names[: head.n_classes]))
        for seq, told in self._taught.items():
            if seq > base and seq not in without:
                entry = Entry(seq=seq, kind="label", label=str(told.y), feature=self._stream.X[told.row])
                arm.take(entry, exam=told.source == "local" and seq >= since)
        return arm.right

    def _lose(self, told: Told) -> None:
        self.lost[told.source] = self.lost.get(told.source, 0) + 1

    def _take_back(self, seqs: list[int]) -> None:
        for seq in self._taught.keys() & set(seqs):
            self._lose(self._taught.pop(seq))
        self.device, self._answers = self._new(), TrustedAnswers()
        self._heads = {}
        for seq, told in self._taught.items():
            self._teach(told, seq)

    def _teach(self, told: Told, seq: int) -> None:
        if self._trials and told.source == "local":
            scores = self.device.head.predict_one(self._stream.X[told.row])
            self._answers.note(seq, right=bool(scores.any() and scores.argmax() == told.y))
        if told.y == self.device.head.n_classes:
            self.device.head.add_class()
        self.device.live(self._stream.X[told.row], told.y, trusted=told.source in self._trusts)
        if self._trials and seq % HEAD_EVERY == 0:
            self._heads[seq] = self.device.head.copy()

    def answers(self, rows: np.ndarray) -> np.ndarray:
        """The class it gives each reading, (n,)."""
        parts = np.array_split(rows, len(rows) // 500 + 1)
        return np.concatenate(
            [self.device.head.predict_many(self._stream.X[p]).argmax(axis=1) for p in parts]
        )


class Outcome(NamedTuple):
    """Whether each tested row was answered right, its class, and percent lost by anna and by mallory."""

    right: np.ndarray
    y: np.ndarray
    honest_lost: float
    attacker_lost: float
    n_trials: int
    n_taken_back: int

    def accuracy(self) -> float:
        """Percent right."""
        return 100 * float(self.right.mean())

    def recall(self, c: int) -> float:
        """Percent right of class c."""
        return 100 * float(self.right[self.y == c].mean())


def live(stream: Stream, head: str, plan: Plan, attack: Attack | None, *, defended: bool) -> Outcome:
    """All days; tested on each next day from the second on, on the last one itself at the end."""
    home = Home(stream, head, plan, defended=defended)
    days = days_of(stream)
    right, tested, seq = [], [], 0
    for day, labels in enumerate(told(stream, plan, attack)):
        for label in labels:
            seq += 1
            home.tell(label, seq)
        if day:
            rows = days[min(day + 1, len(days) - 1)]
            rows = rows[stream.held_out[rows]]
            right.append(home.answers(rows) == stream.y[rows])
            tested.append(stream.y[rows])
    lost = [
        100 * home.lost.get(who, 0) / max(home.given.get(who, 0), 1) for who in ("mqtt/anna", "mqtt/mallory")
    ]
    return Outcome(np.concatenate(right), np.concatenate(tested), *lost, home.n_trials, home.n_taken_back)


def targets_of(stream: Stream, n: int) -> list[int]:
    """The commonest class, and others evenly spread by how common they are."""
    by_count = np.argsort(-np.bincount(stream.y), kind="stable")
    return [int(by_count[k]) for k in np.unique(np.linspace(0, len(by_count) - 1, n).astype(int))]


def attacks(stream: Stream, n_targets: int, *, adaptive: bool) -> Iterator[tuple[str, Attack]]:
    """Every attack, with the beginning of its figures' names."""
    for kind in ATTACKS:
        for name, honest in HONEST_SHARES.items():
            if not name or (adaptive and kind != "new"):
                parts = ["new" * (kind == "new"), name]
                for target in targets_of(stream, n_targets):
                    yield "".join(f"{part}_" for part in parts if part), Attack(kind, target, honest)


def measure_stream(
    stream: Stream, head: str, plan: Plan, n_targets: int, *, adaptive: bool
) -> dict[str, float]:
    """Means over targets, and over the attacks ``from`` and ``to``; ``new`` apart."""
    clean = {defended: live(stream, head, plan, None, defended=defended) for defended in (False, True)}
    found: dict[str, list[float]] = {
        "honest_lost": [clean[True].honest_lost],
        "defence_cost": [clean[False].accuracy() - clean[True].accuracy()],
    }
    for name, attack in attacks(stream, n_targets, adaptive=adaptive):
        for defended in (True, False):
            attacked = live(stream, head, plan, attack, defended=defended)
            end = "" if defended else "_undefended"
            recall, was = attacked.recall(attack.target), clean[defended]
            found.setdefault(f"{name}recall_loss{end}", []).append(was.recall(attack.target) - recall)
            found.setdefault(f"{name}accuracy_loss{end}", []).append(was.accuracy() - attacked.accuracy())
            if defended:
                found.setdefault(f"{name}honest_lost_attacked", []).append(attacked.honest_lost)
                found.setdefault(f"{name}flips_lost", []).append(attacked.attacker_lost)
                found.setdefault(f"{name}trials", []).append(attacked.n_trials)
                found.setdefault(f"{name}trials_taken_back", []).append(attacked.n_taken_back)
    worst = {f"{key}_worst": max(found[key]) for key in found if key.startswith(WORST)}
    return {key: float(np.mean(values)) for key, values in found.items()} | worst


def measure_honest(stream: Stream, head: str, plan: Plan, n: int) -> dict[str, float]:
    """How often something is tried, and taken back, where nobody attacks: sums over n draws."""
    lives = [live(stream, head, plan._replace(seed=plan.seed + k), None, defended=True) for k in range(n)]
    return {
        "draws": n,
        "trials": sum(one.n_trials for one in lives),
        "trials_taken_back": sum(one.n_taken_back for one in lives),
        "honest_lost": float(np.mean([one.honest_lost for one in lives])),
    }


def over_all(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of what `measure_stream` gave, and the worst of the worst."""
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return {
        key: max(values) if key.endswith("_worst") else float(np.mean(values))
        for key, values in columns.items()
    }


def measure(streams: Iterable[Stream], n_targets: int, n_seeds: int) -> dict[str, Any]:
    """What `dual` loses with default settings: means over streams, seeds and attacks, of which the worst,
    and every stream's own."""
    by_stream = {
        stream.name: over_all(
            [
                measure_stream(stream, "dual", Plan(100, 100, seed), n_targets, adaptive=False)
                for seed in range(n_seeds)
            ]
        )
        for stream in streams
    }
    found = over_all([*by_stream.values()])
    return {"poison_recall_loss_points": found["recall_loss"], **found, "streams": by_stream}


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--only", default=",".join(DEVELOPMENT))
    parser.add_argument("--heads", default="dual")
    parser.add_argument("--trusted", type=int, default=100, help="trusted labels a day")
    parser.add_argument("--checked", type=int, default=100, help="labels a day of the honest checked source")
    parser.add_argument("--targets", type=int, default=2)
    parser.add_argument("--adaptive", action="store_true", help="attackers who hide among honest labels, too")
    parser.add_argument("--trials", action="store_true", help="try falls of accuracy on trusted labels")
    parser.add_argument("--alone", action="store_true", help="the trials alone, no check of labels")
    parser.add_argument("--honest", type=int, default=0, metavar="N", help="nobody attacks, in N draws")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="seeds 0 to N - 1")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    plans = [
        Plan(given.trusted, given.checked, seed, given.trials, given.alone) for seed in range(given.seeds)
    ]
    runs: dict[str, dict[str, float]] = {}
    for stream in find_streams(given.data, only=given.only.split(",")):
        for head in given.heads.split(","):
            if given.honest:
                row = measure_honest(stream, head, plans[0], given.honest)
            else:
                row = over_all(
                    [
                        measure_stream(stream, head, plan, given.targets, adaptive=given.adaptive)
                        for plan in plans
                    ]
                )
            runs[f"{stream.name}/{head}"] = row
            print(f"{stream.name}/{head}")
            for key, value in row.items():
                print(f"    {key:40}{value:7.2f}", flush=True)
    if given.json:
        given.json.write_bytes(msgspec.json.format(msgspec.json.encode(runs), indent=1))


if __name__ == "__main__":
    main()
