"""Everything a device has learned, as one value: a pure function of its bundle and its journal.

Replaying the same journal gives the same knowledge, bit for bit; that is what recovery rests on. No
clock, no file and no network here.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_cl import heads, shares
from edge_cl.budget import Ledger
from edge_cl.bundle import Bundle
from edge_cl.config import MemorySettings, TrustSettings
from edge_cl.errors import BudgetExceeded, ConfigError, NumericalError, StateError
from edge_cl.heads import Head, HeadState
from edge_cl.manifest import Merged
from edge_cl.memory import Exemplars, RowFile
from edge_cl.naming import ClassNames
from edge_cl.nap import Nap
from edge_cl.records import FloatArray, SleepPlan, SleepProgress, SleepReport, distinct, under
from edge_cl.trust import TRUSTED, Calibrator, Origin, Said, Stability, Verdict

if TYPE_CHECKING:
    from edge_cl.heads.program import StepProgram

PRIOR_STRENGTH = 10.0
"""Labels per class that the bundle's prior counts for: a start, not a verdict. 20 keeps the source a point
better, and learns new people and sensors 0.3 worse."""
N_KNOWN = 256
"""At most so many exemplars say how far a refusal reaches, and as many in which units."""
EVALUATE_EVERY = 128
"""Labels between two looks at how well the head awake still answers held-back exemplars, for the reports."""
N_EVALUATED = 32
THE_DEVICE = Origin()
"""What a label comes from when nobody says."""
N_REPORTS = 64
"""Reports of sleeps that are kept."""


class Lesson(NamedTuple):
    """What one label changed: class index, new or not, its probability before and after."""

    class_index: int
    new_class: bool
    before: float
    after: float


class Knowledge:
    """Head, replay memory, class names, calibration and refusals.

    Parameters
    ----------
    bundle
        Gives the classes, the head's name and the prior to start from.
    ledger
        Every holder registers here; the memory is sized to what is left.
    head_name, head_options
        Instead of the bundle's choice when the name is given; options alone add to the bundle's.
    memory
        How exemplars are kept.
    file
        Where exemplars are kept instead of RAM.
    begin
        Start from the bundle's prior at once; else call `begin` or `restore`.
    trust
        Who may teach what.
    """

    _unlooked: FloatArray | None = None

    def __init__(
        self,
        bundle: Bundle,
        ledger: Ledger,
        *,
        head_name: str = "",
        head_options: dict[str, Any] | None = None,
        memory: MemorySettings | None = None,
        file: RowFile | None = None,
        begin: bool = True,
        trust: TrustSettings | None = None,
    ) -> None:
        memory = memory or MemorySettings()
        spec, name = bundle.manifest.head, head_name or bundle.manifest.head.name
        asked = {**({} if head_name else spec.options), **(head_options or {})}
        self._asked_options = heads.device_options(name, asked)
        self.bundle_classes = list(bundle.manifest.class_names)
        self.naming = ClassNames(self.bundle_classes)
        self.calibrate = Calibrator()
        self.n_labels = self.n_sleeps = self.labels_since_sleep = self._offered_at_sleep = 0
        self.reports: list[SleepReport] = []
        """Of the last sleeps, oldest first."""
        self._ledger = ledger
        shares.release(ledger)  # what this one replaces, after a rollback
        self._memory_settings, self._prior = memory, bundle.prior()
        self.stability = Stability()
        """Of the head awake, on held-back exemplars."""
        self._nap: Nap | None = None
        self._program = _program(bundle) if name == "step" else None
        self._n_features = n_features = bundle.manifest.feature_size
        self.guard, self.refusals = shares.make_guards(ledger, n_features, trust)
        """Against bad labels: who may teach, and the exam that every sleep must pass; and what readings are
        not, applied to the answers of whichever head is awake."""
        self.memory = shares.smallest_memory(memory, bundle, file)
        self._head_name, self._most_head_bytes = name, shares.head_share(ledger.free_bytes, n_features)
        self.head = self._new_head()
        self._prior_strength = _prior_strength(bundle.manifest.merged, self.head)
        self._share_out(memory)
        if begin:
            self.begin()

    def _new_head(self) -> Head:
        try:
            return heads.create(
                self._head_name,
                n_features=self._n_features,
                n_classes=len(self.bundle_classes),
                max_bytes=self._most_head_bytes,
                program=self._program,
                **self._asked_options,
            )
        except BudgetExceeded as error:
            raise BudgetExceeded(
                f"{error}. The budget's free {self._ledger.free_bytes:,} bytes also hold its copy in a sleep "
                "and the smallest memory; raise budget.ram_mb, or choose a smaller head: "
                "`edge-cl heads --budget-mb N` shows which fit"
            ) from error
        except ValueError as error:
            raise ConfigError(
                f"{error}; see [head] in the settings, --head, or the bundle's manifest"
            ) from error

    def _share_out(self, settings: MemorySettings) -> None:
        """The head and its sleeping copy take what they need of the budget, the memory what is left."""
        ledger = self._ledger
        ledger.require("head", self.head.nbytes)
        ledger.register("head", lambda: self.head.nbytes)
        ledger.require("sleep", self._sleep_bytes())
        ledger.register("sleep", self._sleep_bytes)
        ledger.require("the smallest memory", self.memory.nbytes)
        beside = self.head.nbytes + self.head.rehearse_bytes + shares.beside_rows_bytes(self.head.n_features)
        free = ledger.free_bytes + self._sleep_bytes() - beside
        self.memory.resize(shares.most_memory_bytes(settings, free, self.head, self.memory))
        ledger.register("memory", lambda: self.memory.nbytes, shrink=lambda n: self.memory.shrink(n))

    def _sleep_bytes(self) -> int:
        return shares.sleep_bytes(self.head, self.memory)

    def begin(self) -> None:
        """Start from the bundle's prior, if it has one."""
        prior = self._prior
        if prior is None:
            return
        self.head.warm_start(prior, strength=self._prior_strength)
        remembered = np.zeros(len(self.naming.inner), dtype=int)
        for x, y in zip(prior.exemplars, prior.exemplar_labels, strict=True):
            if remembered[y] < PRIOR_STRENGTH:  # so that sleep, too, weighs the source as a start
                remembered[y] += 1
                self.memory.add(x.astype(np.float32), int(y))

    def first_head(self) -> Head:
        """One more head, as that of a new device is."""
        head = self._new_head()
        if self._prior is not None:
            head.warm_start(self._prior, strength=self._prior_strength)
        return head

    def head_of(self, meta: dict[str, Any], arrays: dict[str, Any]) -> Head:
        """The head of a knowledge that gave this state, as one more; of `arrays` only the head's are used."""
        head = heads.from_state(
            msgspec.convert(meta["head"] | {"arrays": under(arrays, "head.")}, HeadState), self._program
        )
        head.prior = None if self._prior is None else (self._prior, self._prior_strength)
        return head

    @property
    def class_names(self) -> list[str]:
        """What answers are called, by index; grows when a label brings a new name."""
        return self.naming.names

    def predict(self, X: FloatArray) -> FloatArray:
        """Calibrated class probabilities: (n, D) → (n, C); zeros where every class was refused."""
        return self._answered(X, self.head.predict_many(X))

    def predict_one(self, x: FloatArray) -> FloatArray:
        """Calibrated class probabilities: (D,) → (C,); zeros where every class was refused."""
        return self._answered(x, self.head.predict_one(x))

    def _answered(self, X: FloatArray, scores: FloatArray) -> FloatArray:
        return self.naming.gathered(self.refusals(X, self.calibrate(scores)))

    def answers(self, X: FloatArray) -> NDArray[np.int64]:
        """The best class of each of X (n, D), -1 where there is none: (n,)."""
        scores = self.predict(X)
        return np.where(scores.any(axis=1), scores.argmax(axis=1), -1)

    def judge(self, x: FloatArray, label: str, origin: Origin, *, refused: bool) -> Verdict:
        """Whether to learn that x (D,) is of class `label`, or `refused`, is not; changes nothing."""
        judge = self.guard.teachers.judge_not if refused else self.guard.teachers.judge
        return judge(Said(x, self._class_of(label), *origin[1:]), self.naming.of_inner())

    def hold(self, x: FloatArray, label: str, origin: Origin, *, refused: bool) -> None:
        """Note a label that is not learned but waits for a review."""
        if refused:
            self.guard.note_not(origin)
        else:
            self.guard.note(x, self._class_of(label), origin, right=None)

    def _class_of(self, label: str) -> int:
        """One of the head's classes for each name that answers have, -1 for a new one."""
        name = self.naming.resolve(label)
        return self.naming.of_head(name)[0] if name in self.class_names else -1

    def learn(self, x: FloatArray, label: str, *, look: bool = True, origin: Origin = THE_DEVICE) -> Lesson:
        """Learn feature x (D,) as class `label`, a new class when the name is new.

        Without `look` the answer afterwards is not asked for, and is 0; call `look` after the last.
        """
        label = self.naming.resolve(label)
        new_class = label not in self.class_names
        if new_class:
            self._make_room(label)
            self.naming.add(label)
        k = self._taught_class(x, label)
        before, right = self._teach(self.head, self.calibrate, x, k)
        self.guard.note(x, self._class_of(label), origin, right=right)
        for behind in self.naming.of_head(label):
            self.refusals.learn(x, behind)
        self.n_labels += 1
        self.labels_since_sleep += 1
        if self.n_labels % EVALUATE_EVERY == 0:
            self._evaluate()
        if self._nap is None:
            self._remember(x, k, origin.trust >= TRUSTED)
        else:  # a sleep reads the memory as it was when it began
            self._nap.learned.append((x, k, origin.trust >= TRUSTED))
        y = self.class_names.index(label)
        self._unlooked = None if look else x
        return Lesson(y, new_class, before, float(self.predict_one(x)[y]) if look else 0.0)

    def _remember(self, x: FloatArray, y: int, trusted: bool) -> None:
        if self.memory.add(x, y) and trusted:
            self.guard.pinned.add(x, y)

    def look(self) -> None:
        """Ask for the answer to what was learned last, if nobody did: heads may put work off until then."""
        if self._unlooked is not None:
            self.head.predict_one(self._unlooked)
            self._unlooked = None

    def _taught_class(self, x: FloatArray, label: str) -> int:
        """Which of the head's classes is taught: of merged ones that which x is like."""
        candidates = self.naming.of_head(label)
        if len(candidates) == 1:
            return candidates[0]
        scores = self.head.predict_one(x)
        return max(candidates, key=lambda k: float(scores[k]))

    def rename(self, old: str, new: str) -> None:
        """Call class `old` `new`; when `new` is known both become one."""
        self.naming.rename(old, new)
        self.guard.teachers.reference.relabel(
            [self.naming.of_head(name)[0] for name in self.naming.of_inner()]
        )

    def learn_not(self, x: FloatArray, label: str, *, origin: Origin = THE_DEVICE) -> Lesson:
        """Learn that feature x (D,) is not of class `label`; of a class nobody knows, nothing.

        Head and calibration learn nothing from it, no sleep rehearses it, and it is not counted as a label.
        """
        self.guard.note_not(origin)
        label = self.naming.resolve(label)
        if label not in self.class_names:
            return Lesson(-1, False, 0.0, 0.0)
        y = self.class_names.index(label)
        before = float(self.predict_one(x)[y])
        labels = self.memory.rehearsed.labels
        typical = self._exemplars_among(np.arange(len(labels)))
        for k in self.naming.of_head(label):
            self.refusals.add(x, k, self._exemplars_among(np.flatnonzero(labels == k)), typical)
        return Lesson(y, False, before, float(self.predict_one(x)[y]))

    def refuses(self, x: FloatArray, label: str) -> bool:
        """Whether exactly this feature (D,) was learned not to be of class `label`."""
        return label in self.class_names and all(
            self.refusals.holds(x, k) for k in self.naming.of_head(label)
        )

    def _exemplars_among(self, rows: NDArray[np.int64]) -> FloatArray:
        """Features of at most `N_KNOWN` of the given exemplars, spread over them."""
        if len(rows) > N_KNOWN:
            rows = rows[np.linspace(0, len(rows) - 1, N_KNOWN).astype(np.int64)]
        return self.memory.rehearsed.features(rows)

    def _teach(self, head: Head, calibrate: Calibrator, x: FloatArray, y: int) -> tuple[float, bool]:
        """Calibrate on the head's answer, then let the head learn; y may be the next new class.

        Returns the probability that the answer gave class y, and whether it was right.
        """
        scores = head.predict_one(x)
        before = float(self.refusals(x, calibrate(scores))[y]) if y < len(scores) else 0.0
        if y < head.n_classes and head.class_counts[y]:
            calibrate.update(scores, y)
        if y == head.n_classes:
            head.add_class()
        try:
            head.learn_one(x, y)
        except NumericalError:
            for _ in head.rehearse(Exemplars.of(*self.memory.rehearsed.exemplars())):
                pass
            head.learn_one(x, y)
        return before, bool(scores.any() and scores.argmax() == y)

    # ------------------------------------------------------------------ sleep

    @property
    def last_sleep(self) -> SleepReport | None:
        """The newest report."""
        return self.reports[-1] if self.reports else None

    def memory_turnover(self) -> float:
        """Exemplars that came into the memory since the last sleep, as a share of those it holds."""
        born = self.memory.rehearsed.born
        return float((born > self._offered_at_sleep).mean()) if len(born) else 0.0

    @property
    def asleep(self) -> bool:
        """True between `begin_sleep` and `wake`."""
        return self._nap is not None

    def must_wake(self, label: str) -> bool:
        """Whether the sleep has to end before `label` is learned: no room for it beside the sleep."""
        if self._nap is None:
            return False
        new_class = self.naming.resolve(label) not in self.class_names
        return self._nap.full or (new_class and self._memory_bytes_beside(label) < self.memory.nbytes)

    def begin_sleep(self, plan: SleepPlan) -> None:
        """Start a sleep; what is known now, the plan and the number of steps decide its outcome."""
        self.look()
        self.n_sleeps += 1
        self.memory.refresh()
        self._nap = Nap(
            self.head,
            self.memory,
            plan,
            n_sleep=self.n_sleeps,
            log_temperature=self.calibrate.log_temperature,
            labels_before=self.labels_since_sleep,
            pinned=self.guard.pinned.exam(),
        )
        self.labels_since_sleep = 0

    def sleep_pieces(self, n_steps: int | None = None) -> Iterator[SleepProgress]:
        """The next pieces of the sleep that was begun, until it may be ended by `wake`; see `Nap.pieces`."""
        yield from self._asleep().pieces(self._teach, n_steps)

    def enough(self) -> bool:
        """Let the rehearsal end after the present piece, where the head can; whether it can."""
        return self._asleep().rehearsal.enough()

    def steps_done(self) -> tuple[int, bool]:
        """Pieces of rehearsal done, and whether it was ended early."""
        rehearsal = self._asleep().rehearsal
        return rehearsal.n_steps, rehearsal.ended_early

    def wake(self, *, drop: str = "", tried: bool = False, cpu_s: float = 0.0) -> SleepReport:
        """End the sleep: swap heads if the new one was found better, else keep the old one, bit for bit.

        `drop` says why not to wait for the verdict; then, unless `tried`, the labels before the sleep count
        as not slept on.
        The memory takes in what was learned meanwhile.
        """
        nap = self._asleep()
        self.look()
        for _ in self.sleep_pieces() if not drop else ():
            pass
        self._evaluate()
        if drop and not tried:
            self.labels_since_sleep += nap.labels_before
        else:
            self._offered_at_sleep = self.memory.rehearsed.n_offered
        if nap.adopted and not drop:
            self.head, self.calibrate = nap.rehearsal.candidate, nap.calibrate
            self._evaluate()
        self._nap = None
        if not drop:  # the repetition of a dropped sleep asks nothing
            nap.note_recall(self.memory)
        for x, y, trusted in nap.learned:
            self._remember(x, y, trusted)
        report = nap.report(
            self.naming.inner, self.stability, drop=drop, cpu_s=cpu_s, held_bytes=self._ledger.held_bytes
        )
        self.reports = [*self.reports[1 - N_REPORTS :], report]
        self.stability.mark()
        return report

    def _asleep(self) -> Nap:
        if self._nap is None:
            raise ValueError("no sleep was begun")
        return self._nap

    def _evaluate(self) -> None:
        """How well the head awake answers some held-back exemplars, spread over all that are held."""
        held_back = self.memory.held_back
        if not held_back.n:
            return
        rows = distinct(np.linspace(0, held_back.n - 1, N_EVALUATED).astype(np.int64))
        y = held_back.labels[rows]
        right = self.head.predict_many(held_back.features(rows)).argmax(axis=1) == y
        self.stability.update({int(c): float(right[y == c].mean()) for c in distinct(y)})

    def check_room(self, label: str) -> None:
        """Raise BudgetExceeded when `label` is a new class that fits in no way; changes nothing."""
        if self.naming.resolve(label) not in self.class_names:
            self._memory_bytes_beside(label)

    def _make_room(self, label: str) -> None:
        """Before the head grows by a class: take the bytes from the memory, when they are not free."""
        left = self._memory_bytes_beside(label)
        if left < self.memory.nbytes:
            self.memory.resize(left)

    def _memory_bytes_beside(self, label: str) -> int:
        return shares.memory_bytes_beside_one_more_class(self._ledger, self.head, self.memory, label)

    def digest(self) -> str:
        """SHA-256 (hex) of everything that decides a prediction or what is learned next."""
        meta, arrays = self.state(whole=True)
        del meta["reports"], meta["stability"]
        del meta["guard_by_entry"]  # knows entries by number and time
        digest = hashlib.sha256(msgspec.json.encode(meta, order="deterministic"))
        for name in sorted(arrays):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(arrays[name]).tobytes())
        return digest.hexdigest()

    def state(self, *, whole: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
        """JSON values and arrays that `restore` takes back; only while awake.

        `whole`: with the exemplars that are kept in a file, too.
        """
        head = self.head.state()
        memory_arrays, memory_meta = self.memory.state(whole=whole)
        guard_arrays, guard_meta, by_entry = self.guard.state()
        meta = {
            "head": msgspec.to_builtins(msgspec.structs.replace(head, arrays={})),
            "memory": memory_meta,
            **self.naming.state(),
            "log_temperature": self.calibrate.log_temperature,
            "n_labels": self.n_labels,
            "n_sleeps": self.n_sleeps,
            "labels_since_sleep": self.labels_since_sleep,
            "offered_at_sleep": self._offered_at_sleep,
            "guard": guard_meta,
            "guard_by_entry": by_entry,
            "stability": self.stability.state(),
            "reports": msgspec.to_builtins(self.reports),
        }
        arrays = {f"head.{key}": value for key, value in head.arrays.items()}
        arrays |= {f"guard.{key}": value for key, value in guard_arrays.items()}
        arrays |= {f"refusals.{key}": value for key, value in self.refusals.state().items()}
        return meta, arrays | {f"memory.{key}": value for key, value in memory_arrays.items()}

    def restore(self, meta: dict[str, Any], arrays: dict[str, Any]) -> None:
        """Take back what `state` gave, bit for bit."""
        state = msgspec.convert(meta["head"] | {"arrays": {}}, HeadState)
        if state.head != self.head.name:
            raise StateError(
                f"this state was learned with head {state.head!r}, asked for is {self.head.name!r}; "
                "choose another --state folder, or go on with the old head"
            )
        for option, asked in self._asked_options.items():
            known = state.options.get(option)
            if known != asked:
                raise StateError(
                    f"this state was learned with {state.head}'s {option} = {known!r}, asked for is {asked!r}"
                    "; choose another --state folder, or ask for the old value"
                )
        self.memory.restore(under(arrays, "memory."), meta["memory"])
        self.head = self.head_of(meta, arrays)
        self.naming.restore(meta)
        self.calibrate.log_temperature = meta["log_temperature"]
        self.refusals.restore(under(arrays, "refusals."))
        self.n_labels, self.n_sleeps = meta["n_labels"], meta["n_sleeps"]
        self.labels_since_sleep = meta["labels_since_sleep"]
        self._offered_at_sleep = meta["offered_at_sleep"]
        self.reports = msgspec.convert(meta["reports"], list[SleepReport])
        self.stability.restore(meta["stability"])
        if "guard" in meta:  # earlier releases trusted everybody
            self.guard.restore(under(arrays, "guard."), meta["guard"], meta["guard_by_entry"])
        shares.fit_settings(self._memory_settings, self.head, self.memory)
        shares.fit_budget(self._ledger, self.head, self.memory)


def _program(bundle: Bundle) -> StepProgram | None:
    from edge_cl.heads.program import StepProgram  # one head of many needs it

    return StepProgram.load(bundle)


def _prior_strength(merged: Merged | None, head: Head) -> float:
    """Labels a class that the prior counts for: in a head that merges exactly, those it was merged from."""
    if merged is None or not head.can_merge:
        return PRIOR_STRENGTH
    return math.inf if merged.weight is None else merged.weight
