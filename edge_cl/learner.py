"""THE LOOP. Everything a device does is one of four calls: observe, teach, sleep, run.

::

    reading ─▶ encoder ─▶ head ─▶ trust ─▶ Decision
                 │
              pending (the feature waits for a label)
                 │
    label ────▶ teach: journal ─▶ head learns ─▶ memory remembers ─▶ commit ─▶ Receipt
                                                    │
              sleep: rehearse from memory ─▶ candidate ─▶ gate ─▶ swap or keep ─▶ snapshot
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from edge_cl import encoders, receipts
from edge_cl.budget import MIB, Budget, Ledger
from edge_cl.bundle import Bundle
from edge_cl.config import Settings
from edge_cl.durable import DurableKnowledge
from edge_cl.encoders.choice import Choice
from edge_cl.errors import BadReading, BudgetExceeded, StateUnwritable
from edge_cl.knowledge import Knowledge
from edge_cl.records import (
    Answer,
    Decision,
    Event,
    FloatArray,
    Label,
    LabelSource,
    Reading,
    Receipt,
    Sink,
    SleepProgress,
    SleepReport,
    SleepRequest,
    Status,
)
from edge_cl.rest import Rest
from edge_cl.revisions import HeadRecord, HeldLabel, Outcome, Revision
from edge_cl.shares import exemplars_file, make_pending
from edge_cl.state import Entry, Journal, StateStore, Wear
from edge_cl.teaching import Teaching
from edge_cl.trust import PrequentialAccuracy

log = logging.getLogger(__name__)

N_SCORES = 5
CHECKED_AT_ONCE = 64
"""Journal entries whose hashes are checked when nothing else is to be done."""


class Learner:
    """Connects the stages. Make one with :meth:`from_bundle`.

    Predicting always comes before learning, so the accuracy it reports is prequential.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        settings: Settings,
        budget: Budget,
        state_dir: str | Path | None,
        beside: Callable[[], int] = int,
        choice: Choice | None = None,
    ) -> None:
        self.bundle = bundle
        self.settings = settings
        self.choice = choice
        """Which encoder was measured to be the fastest on this board."""
        self.encoder = encoders.create(bundle, settings.encoder, choice)
        self.ledger = Ledger(budget.ram_bytes)
        self.pending = make_pending(self.ledger, bundle.manifest.feature_size)
        self.accuracy = PrequentialAccuracy()
        self.n_readings = self.n_bad_readings = 0
        self.n_bad_inputs = 0
        """Lines and samples that the source dropped before they were readings; set by whoever knows."""
        self._shape = (bundle.manifest.window_samples, bundle.manifest.n_channels)
        self.other_alarm: Callable[[], str] = str
        """What somebody outside (the MQTT link, say) wants the status to say, or ""."""
        self.installed: Callable[[], str] = str
        """What the status is to say of bundles that were installed, or ""."""
        self._folder = None if state_dir is None else Path(state_dir)
        store = None
        if state_dir is not None:
            history_bytes = int(settings.state.history_mb * MIB)
            store = StateStore(
                state_dir, bundle.bundle_id, budget.disk_bytes, history_bytes=history_bytes, beside=beside
            )
        try:
            self._durable = DurableKnowledge(
                self._make_knowledge,
                store,
                snapshot_labels=settings.state.snapshot_labels,
                describe=self.status,
                wear=Wear(settings.state.daily_write_mb * 1e6),
            )
            self._rest = Rest(self._durable, settings.sleep, self.accuracy)
            self._teaching = Teaching(self._durable, self._rest, self.pending, self.accuracy, settings)
            self._durable.recover()
        except BaseException:
            if store is not None:
                store.close()
            raise

    @classmethod
    def from_bundle(
        cls,
        bundle: Bundle,
        *,
        state_dir: str | Path | None = None,
        budget: Budget | None = None,
        settings: Settings | None = None,
        beside: Callable[[], int] = int,
        choice: Choice | None = None,
    ) -> Self:
        """A device for this bundle, as it was when it last stopped.

        Parameters
        ----------
        bundle
            A verified bundle.
        state_dir
            Where learned state lives; made when absent, locked while open. None keeps it in memory.
        budget
            Hard byte limits; by default the settings'.
        settings
            By default all defaults.
        beside
            Bytes that other bundles of this device hold of the disk budget.
        choice
            Which encoder `edge-cl verify --bench` found to be the fastest here.

        Raises
        ------
        BudgetExceeded, BundleError, StateError
            Each says what was found and what to do.
        """
        settings = settings or Settings()
        budget = budget or settings.to_budget()
        return cls(
            bundle, settings=settings, budget=budget, state_dir=state_dir, beside=beside, choice=choice
        )

    @property
    def knowledge(self) -> Knowledge:
        """Everything learned: head, memory, class names, calibration."""
        return self._durable.knowledge

    @property
    def class_names(self) -> list[str]:
        """The classes by index; grows when a label brings a new name."""
        return self.knowledge.class_names

    # ------------------------------------------------------------------ the four calls

    def observe(self, reading: Reading) -> Decision:
        """Answer one reading; never learns. Raises BadReading for a window that cannot be used."""
        feature = encoders.encode(self.encoder, reading, self._shape)
        scores = self.knowledge.predict_one(feature)
        best = np.argsort(scores)[::-1][:N_SCORES]
        answer = int(best[0]) if scores.any() else -1
        confidence = float(scores[answer]) if answer >= 0 else 0.0
        # an answer by half of what is known is not counted when its label comes
        self.pending.add(reading.id, feature, -1 if self._durable.rebuilding else answer)
        self.n_readings += 1
        return Decision(
            reading_id=reading.id,
            t_s=reading.t_s,
            label=self.class_names[answer] if answer >= 0 else "",
            confidence=confidence,
            abstained=confidence < self.settings.trust.min_confidence,
            scores={self.class_names[c]: round(float(scores[c]), 4) for c in best},
        )

    def teach(self, label: Label) -> Receipt:
        """Learn one label; when the receipt says ``learned``, the label is safe on disk."""
        return self._teaching.teach(label)

    def sleep(self, cause: str = "asked") -> Iterator[SleepProgress]:
        """Rehearse, judge, swap or keep, snapshot: in slices, so that predicting goes on between.

        Labels taught between slices are kept whichever head wakes. `status().last_sleep` then says what
        came of it. A sleep that a stop had cut off is taken up again instead.

        Raises StateUnwritable when the disk takes nothing; what is known is then what the disk holds.
        """
        self._teaching.rebuilt()
        try:
            yield from self._rest.sleep(cause)
        except StateUnwritable as error:
            self._teaching.owe_after(error)
            raise
        self._teaching.refresh()

    def revise(self, asked: Revision, *, source: str = "local", wait: bool = True) -> Outcome:
        """Take labels back, go back in time, rename or merge classes, review labels that wait.

        What counts afterwards is learned anew from the journal, so the head is bit for bit the one that never
        saw what was taken back. Costs the replay of what came after the newest head that knows nothing of it.

        Parameters
        ----------
        source
            Who asks, for the audit.
        wait
            Return when all is learned anew; else `run` does it in slices, between readings, and labels wait
            until it is done.

        Raises StateError, and changes nothing, when it cannot be done.
        """
        return self._teaching.revise(asked, source=source, wait=wait)

    def revised_by(self, source: str) -> int:
        """Journal number of the newest revision by a source that ends in this, or 0 when there is none."""
        return self._durable.past.revised_by(source)

    @property
    def history_id(self) -> str:
        """Tells this device's history from every other, and from its own after a restore."""
        return self._durable.past.history_id

    @property
    def committed_seq(self) -> int:
        """The newest journal entry that is on disk."""
        return self._durable.committed_seq

    def receipts_after(self, seq: int, limit: int) -> list[Receipt]:
        """Receipts of the oldest `limit` labels on disk after journal entry `seq`, made from the journal."""
        return [receipts.late(said) for said in self._durable.past.said_after(seq, limit)]

    def adjust(self, settings: Settings) -> None:
        """Go on with other thresholds: `trust.min_confidence` and `sleep` are used from now on, no more."""
        self.settings = settings
        self._rest.adjust(settings.sleep)

    def run(
        self,
        events: Iterable[Event],
        labels: Sequence[LabelSource] = (),
        sinks: Sequence[Sink] = (),
        *,
        busy: Callable[[], bool] = bool,
    ) -> None:
        """Live: answer every reading, learn every label, sleep when it is time.

        Parameters
        ----------
        events
            Readings, labels, and None for "nothing yet", in order.
        labels
            More sources of labels, polled once per event.
        sinks
            Called with every Decision, Receipt, SleepReport and Status, in this thread. A receipt is
            given only after its label is on disk.
        busy
            Says that something waits, a reading or the order to stop: a slice of sleep then ends sooner,
            and after the last event the rest of a sleep is left to the next start.
        """
        status_due = 0.0
        self._doze(sinks, busy)  # a sleep that a power cut prevented comes before any new label
        for event in events:
            if time.monotonic() >= status_due:
                status_due = time.monotonic() + self.settings.mqtt.status_s
                _emit(sinks, [self.status()])
            for source in labels:
                for asked in source.poll():
                    self._handle(asked, sinks)
            self.turn(event, sinks, busy=busy)
        while self._rest.asleep and not self._rest.waits and not busy():
            self._doze(sinks, busy)
        if self._teaching.anything_waits:
            self._teaching.rebuilt()
            _emit(sinks, self._teaching.hear_waiting())
        _emit(sinks, [*self._teaching.commit(), self.status()])

    def turn(self, event: Event, sinks: Sequence[Sink] = (), *, busy: Callable[[], bool] = bool) -> None:
        """One turn of `run`: answer a reading or learn a label, commit what is due, a slice of sleep."""
        self._handle(event, sinks)
        if event is None and not self._rest.asleep and not self._durable.rebuilding:
            self._durable.check_history(CHECKED_AT_ONCE)
        if self._teaching.commit_due:
            _emit(sinks, self._teaching.commit())
        self._doze(sinks, busy)

    def carry(self, entries: Iterable[Entry]) -> int:
        """Learn labels of another journal of this device, durably; how many classes' there was no room for.

        Raises StateUnwritable.
        """
        n_refused = 0
        self._teaching.rebuilt()
        for entry in entries:
            try:
                self._durable.carry(entry)
            except BudgetExceeded:
                n_refused += 1
        return n_refused

    def note_carried(self) -> None:
        """Know again which of the last readings have a label, after `carry`."""
        self.pending.set_taught(self._durable.past.taught_lately())

    def commit(self) -> list[Receipt]:
        """Make everything learned durable now; receipts that may be given."""
        return self._teaching.commit()

    def settle(self) -> None:
        """Make everything learned durable now; receipts are given with the next ones."""
        self._teaching.settle()

    @property
    def journal(self) -> Journal | None:
        """What was taught, None when nothing is kept on disk."""
        return self._durable.journal

    @property
    def disk_bytes(self) -> int:
        """What the state folder needs at least."""
        return self._durable.disk_bytes

    def _handle(self, event: Event, sinks: Sequence[Sink]) -> None:
        if isinstance(event, Reading):
            self._rest.note_reading(urgent=event.urgent)
            _emit(sinks, self._answer(event))
            if event.urgent:
                self._rested(lambda: self._rest.stop("an urgent reading came"), sinks)
        elif isinstance(event, Label):
            _emit(sinks, self._teaching.hear(event))
        elif isinstance(event, SleepRequest):
            self._rest.request()

    # ------------------------------------------------------------------ around them

    def status(self) -> Status:
        """How the device is doing now."""
        held = self.ledger.held()
        board = self._rest.look_around()
        weak = board.under_voltage and "under-voltage: the board's power supply or its cable is too weak"
        alarms = [self._teaching.refusing, *self._durable.alarms, weak or "", self.other_alarm()]
        return Status(
            bundle_name=self.bundle.manifest.name,
            bundle_id=self.bundle.bundle_id,
            head=self.knowledge.head.name,
            class_names=list(self.class_names),
            n_readings=self.n_readings,
            n_labels=self.knowledge.n_labels,
            journal_seq=self._durable.seq,
            n_pending=len(self.pending),
            n_bad_readings=self.n_bad_readings + self.n_bad_inputs,
            accuracy_now=self.accuracy.value,
            held=held,
            held_bytes=sum(held.values()),
            budget_bytes=self.ledger.capacity_bytes,
            n_sleeps=self.knowledge.n_sleeps,
            last_sleep=self.knowledge.last_sleep,
            sleep_state=self._durable.rebuilding or self._rest.describe(),
            recovered=self._durable.recovered,
            written_bytes=self._durable.wear.written_bytes,
            n_held=self._durable.n_held,
            state_hash=self._durable.past.state_hash,
            drift_points=self._rest.drift_points,
            installed=self.installed(),
            celsius=board.celsius,
            power=board.power,
            alarm="; ".join(filter(None, alarms)),
        )

    def heads(self) -> list[HeadRecord]:
        """The heads that are kept, oldest first."""
        return self._durable.past.heads()

    def held_labels(self) -> list[HeldLabel]:
        """Labels that wait for a review, oldest first."""
        return self._durable.past.held_labels()

    def sleep_reports(self) -> list[SleepReport]:
        """What the last sleeps did, oldest first."""
        return self.knowledge.reports

    def predict(self, windows: FloatArray) -> FloatArray:
        """Class probabilities of many windows (n, n_samples, n_channels); changes nothing."""
        return self.knowledge.predict(self.encoder.encode_many(windows))

    def close(self) -> None:
        """Commit, snapshot and let the state folder go. Also done by leaving a ``with`` block."""
        self._durable.close(save=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an exception knowledge may be half-changed: the disk is right, so nothing is saved over it.
        self._durable.close(save=kind is None)

    def _make_knowledge(self) -> Knowledge:
        s = self.settings
        return Knowledge(
            self.bundle,
            self.ledger,
            head_name=s.head.name,
            head_options=s.head.options,
            memory=s.memory,
            trust=s.trust,
            file=exemplars_file(s.memory, self.bundle, self._folder, s.state.snapshot_labels),
            begin=False,
        )

    def _answer(self, reading: Reading) -> list[Decision]:
        try:
            return [self.observe(reading)]
        except BadReading as error:
            self.n_bad_readings += 1
            log.warning("%s", error)
            return []

    # ------------------------------------------------------------------ sleep

    def _doze(self, sinks: Sequence[Sink], busy: Callable[[], bool]) -> None:
        """One slice of learning anew, of a trial, or of sleep, when asleep or when it is time to be."""
        slice_s = self.settings.sleep.slice_ms / 1000
        if not self._teaching.rebuilt(slice_s, busy):
            return
        _emit(sinks, self._teaching.hear_waiting())
        if not self._teaching.refusing and not self._durable.try_without(slice_s, busy):
            self._rested(lambda: self._rest.doze(busy), sinks)

    def _rested(self, do: Callable[[], SleepReport | None], sinks: Sequence[Sink]) -> None:
        """Do something about a sleep that may end it; a disk that takes nothing stops only the learning."""
        try:
            if report := do():
                self._teaching.refresh()
                _emit(sinks, [report])
        except StateUnwritable as error:
            _emit(sinks, self._teaching.predict_only(error))


def _emit(sinks: Sequence[Sink], answers: Sequence[Answer]) -> None:
    for answer in answers:
        for sink in sinks:
            sink(answer)
