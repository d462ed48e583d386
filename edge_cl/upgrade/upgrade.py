"""Installing a bundle on a device that goes on answering: fetch, check, try in the shadow, take over or not.

::

    install ─▶ fetching ─▶ checked ─▶ shadow ─▶ take over ─▶ probation ─▶ stays
                  │           │          │                       │
                  └───────────┴──────────┴─▶ failed, as before   └─▶ rolled back

All is driven from the run loop: :meth:`Upgrade.watch` passes its events on and does a little after each. What
must survive a stop is in the slots' pointer; :meth:`Upgrade.resume` goes on from there.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_cl import encoders
from edge_cl.bundle import Bundle
from edge_cl.commands import Release
from edge_cl.config import Settings
from edge_cl.errors import BundleError, EdgeCLError, StateError, StateUnwritable
from edge_cl.learner import Learner
from edge_cl.records import Answer, Decision, Event, Reading, Receipt
from edge_cl.release import check_release, encoder_hash
from edge_cl.sync.messages import InstallReport
from edge_cl.trust import trust_in
from edge_cl.trust.teachers import TRUSTED
from edge_cl.upgrade import comparison
from edge_cl.upgrade.comparison import Least
from edge_cl.upgrade.pointer import HOME, describe_install
from edge_cl.upgrade.probation import Watch, go_back
from edge_cl.upgrade.slots import MOST_BOOTS, Slots

if TYPE_CHECKING:  # imported when a bundle comes
    from edge_cl.upgrade.delivery import Delivery, Phase
    from edge_cl.upgrade.shadow import Shadow

log = logging.getLogger(__name__)

WELL_AFTER_S = 60.0
"""A start that lasted so long without a reading went well, too."""
NOTE_EVERY = 100
"""Readings between two notes of how far the shadow is; a trusted label is noted at once."""


class Upgrade:
    """The installations of one device.

    Parameters
    ----------
    slots
        Open; :meth:`Slots.active` was asked.
    learner
        Of the active slot.
    settings
        Of the device; a new bundle's learner has the same.
    report
        Hears how far an installation is; called on the run loop's thread, perhaps twice after a power cut.
    want
        Asks the fleet server for chunks of a file: SHA-256, first, how many.
    least
        What must be seen before it is judged.
    """

    def __init__(
        self,
        slots: Slots,
        learner: Learner,
        *,
        settings: Settings,
        report: Callable[[InstallReport], None] = lambda _: None,
        want: Callable[[str, int, int], None] = lambda *_: None,
        least: Least = comparison.USUAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.learner = learner
        """The one that acts."""
        self.report, self.want = report, want
        self._slots, self._settings, self._clock = slots, settings, clock
        self._least = least
        self._slice_s = settings.sleep.slice_ms / 1000
        self._delivery: Delivery | None = None
        self._shadow: Shadow | None = None
        self._watch = Watch(slots, least.probation)
        self._decision: Decision | None = None
        self._swap: Callable[[], None] | None = None
        self._began_s = clock()
        self._noted = 0
        self._resumed = False
        self._acts(learner)

    # ------------------------------------------------------------------ what may be asked

    def adjust(self, settings: Settings) -> None:
        """Go on with other thresholds, this learner and those to come."""
        self._settings = settings
        self.learner.adjust(settings)

    def install(self, release: Release, *, id: str = "", file: Path | None = None) -> str:
        """Begin: fetch the bundle (or copy it from `file`), and go on by itself from there.

        Raises EdgeCLError, having changed nothing, when it cannot begin; what comes of it goes to `report`.
        """
        check_release(release)
        if release.bundle_id == self.learner.bundle.bundle_id:
            self._give_up(f"bundle {release.name}, which is in use, is to be kept")
            self.report(self._report_of("committed", release, id, "this bundle is in use already"))
            return f"bundle {release.name} is in use already"
        coming = self._slots.pointer.coming
        if coming is not None and coming.release.sha256 == release.sha256:
            self._slots.change_coming(id=id or coming.id)
            if self._shadow is not None:  # told under the new id, too
                self._tell_coming("shadow")
            return f"bundle {release.name} is being installed already"
        self._slots.require_room(release, self.learner.disk_bytes, self._settings.to_budget().disk_bytes)
        if coming is not None:
            self._give_up(f"bundle {release.name} is to be installed instead")
        self._slots.stage(release, id=id, file=str(file.resolve()) if file else "")
        self._begin_fetching()
        return f"bundle {release.name} is being fetched; `edge-cl status` shows how far it is"

    def install_at_once(self, release: Release, file: Path) -> int:
        """For a stopped device: all but the shadow, whose place the probation takes; labels known then.

        Raises EdgeCLError when the bundle cannot be used, having changed nothing that counts.
        """
        told: list[InstallReport] = []
        self.report = told.append
        self.install(release, file=file)
        while self._delivery is not None:
            self._go_on_fetching(self._delivery)
        self._commit("a person installed it while the device was stopped")
        if self.learner.bundle.bundle_id != release.bundle_id:
            raise BundleError(f"not installed: {told[-1].reason}")
        return self.learner.knowledge.n_labels

    def undo(self) -> str:
        """End what is being installed, else go back to the bundle before; StateError when there is none."""
        if self._slots.pointer.coming is not None:
            name = self._slots.pointer.coming.release.name
            self._give_up("a person ended it")
            return f"bundle {name} is not installed"
        if self._slots.pointer.active == HOME:
            raise StateError("no bundle was installed over the one that the device was started with")
        self._go_back("a person asked for it")
        return "going back to the bundle before"

    def chunk(self, begins: str, index: int, body: bytes) -> None:
        """A chunk of the file whose SHA-256 `begins` so came; from any thread."""
        if (delivery := self._delivery) is not None:
            delivery.chunk(begins, index, body)

    # ------------------------------------------------------------------ in the run loop

    @property
    def swapping(self) -> bool:
        """Whether the loop is to end, so that :meth:`take_over` can change the learner."""
        return self._swap is not None

    def watch(self, events: Iterable[Event], busy: Callable[[], bool] = bool) -> Iterator[Event]:
        """The events, for `Learner.run`, with a little of what is to be done after each; ends to swap.

        `events` must be an iterator that goes on where it stopped.
        """
        self.resume()
        for event in events:
            self._decision = None
            yield event
            if isinstance(event, Reading) and self._decision is not None:
                self._answered(event, self._decision, busy)
            self._step(busy)
            if self._swap is not None:
                return

    def sink(self, answer: Answer) -> None:
        """Hears the active learner's answers."""
        if isinstance(answer, Decision):
            self._decision = answer
            self._slots.came_up()
        elif isinstance(answer, Receipt):
            self._heard(answer)

    def take_over(self) -> bool:
        """After the loop has ended: change the learner, if that is why; whether the loop is to go on."""
        if self._swap is None:
            self._slots.came_up()
            return False
        swap, self._swap = self._swap, None
        swap()
        self._acts(self.learner)
        self._watch = Watch(self._slots, self._least.probation)
        return True

    def resume(self) -> None:
        """Go on with what a stop cut off. Done by itself when the loop begins."""
        if self._resumed:
            return
        self._resumed = True
        if untold := self._slots.pointer.untold:
            self.report(msgspec.convert(untold, InstallReport))
            self._slots.note(untold={})
        coming = self._slots.pointer.coming
        if coming is None:
            return
        if coming.boots >= MOST_BOOTS:
            self._give_up(f"the device stopped {MOST_BOOTS} times in a row while it was tried")
        elif coming.fetched:
            self._try()
        else:
            self._begin_fetching()

    def close(self) -> None:
        """Stop; what is under way goes on at the next start."""
        if self._delivery is not None:
            self._delivery.fetch.close()
        if self._shadow is not None:
            self._note_seen()
            self._shadow.close()
            self._shadow = None

    def describe(self) -> str:
        """For a person: what was installed, and how far a new bundle is."""
        if self._shadow is not None and self._slots.pointer.coming is not None:
            coming = msgspec.structs.replace(self._slots.pointer.coming, seen=self._shadow.seen)
            return describe_install(msgspec.structs.replace(self._slots.pointer, coming=coming))
        text = describe_install(self._slots.pointer)
        return f"{text}, {self._delivery.describe()}" if self._delivery else text

    # ------------------------------------------------------------------ step by step

    def _acts(self, learner: Learner) -> None:
        learner.installed = self.describe
        encoders.let_go(learner.bundle)  # its runtime has it

    def _step(self, busy: Callable[[], bool]) -> None:
        if self._began_s and self._clock() >= self._began_s + WELL_AFTER_S:
            self._began_s = 0.0
            self._slots.came_up()
        if self._delivery is not None:
            self._go_on_fetching(self._delivery)
        elif self._shadow is not None:
            shadow = self._shadow
            self._guarded(lambda: shadow.step(self._slice_s, busy))
            self._judge()

    def _begin_fetching(self) -> None:
        from edge_cl.upgrade.delivery import Delivery

        coming = self._slots.pointer.coming
        assert coming is not None
        self._delivery = Delivery(
            coming.release,
            self._slots.part,
            file=Path(coming.file) if coming.file else None,
            want=self.want,
            clock=self._clock,
        )

    def _go_on_fetching(self, delivery: Delivery) -> None:
        delivery.step(self._slice_s)
        if delivery.fetch.state == "failed":
            self._give_up(delivery.fetch.reason)
        elif delivery.fetch.state == "done":
            self._delivery = None
            self._guarded(self._arrived)

    def _arrived(self) -> None:
        self._slots.fetched()
        self._tell_coming("fetched")
        self._try()

    def _try(self) -> None:
        """Check the bundle and let it run in the shadow."""
        from edge_cl.upgrade.shadow import Shadow, check_bundle

        coming, me = self._slots.pointer.coming, self._settings.device
        assert coming is not None

        def begin() -> None:
            self._slots.change_coming(boots=coming.boots + 1)
            bundle = Bundle.load(self._slots.fetched())
            if bundle.bundle_id != coming.release.bundle_id:
                raise BundleError(f"the file holds bundle {bundle.bundle_id[:12]}…, not the one released")
            check_bundle(bundle, self.learner)
            self._shadow = Shadow(
                self.learner,
                bundle,
                self._slots.coming_folder,
                settings=self._settings,
                beside=self._slots.beside(coming.slot),
                known_to=coming.release.includes.get(f"{me.site}/{me.name}", 0),
                seen=coming.seen,
            )
            self._noted = coming.seen.n_readings
            self._tell_coming("shadow")

        self._guarded(begin)

    def _answered(self, reading: Reading, decision: Decision, busy: Callable[[], bool]) -> None:
        if self._shadow is None:
            self._watch.answered(decision)
            return
        shadow = self._shadow
        self._guarded(lambda: shadow.answer(reading, decision, busy))
        coming = self._slots.pointer.coming
        if self._shadow is None or coming is None:
            return
        if coming.boots or shadow.seen.n_readings - self._noted >= NOTE_EVERY:
            self._note_seen()

    def _heard(self, receipt: Receipt) -> None:
        trusted = trust_in(self._settings.trust, receipt.source) >= TRUSTED
        if self._shadow is not None:
            shadow, before = self._shadow, self._shadow.seen.n_trusted
            self._guarded(lambda: shadow.hear(receipt, trusted=trusted))
            if self._shadow is not None and shadow.seen.n_trusted > before:
                self._note_seen()
        elif trusted and (receipt.status, receipt.kind) == ("learned", "is") and self._swap is None:
            verdict = self._watch.hear(receipt, self.learner.knowledge.naming.resolve)
            if verdict.action == "roll back":
                self._go_back(verdict.reason)

    def _note_seen(self) -> None:
        assert self._shadow is not None
        self._noted = self._shadow.seen.n_readings
        coming = self._slots.pointer.coming
        if coming is not None:
            self._slots.note(coming=msgspec.structs.replace(coming, seen=self._shadow.seen, boots=0))

    # ------------------------------------------------------------------ verdicts

    def _judge(self) -> None:
        if self._shadow is None or not self._shadow.in_step or self._swap is not None:
            return
        verdict = comparison.judge(self._shadow.seen, self._least)
        if verdict.action == "roll back":
            self._give_up(verdict.reason, phase="rolled-back")
        elif verdict.action == "commit":
            log.info("bundle %s takes over: %s", self._shadow.new.bundle.manifest.name, verdict.reason)
            self._swap = lambda: self._commit(verdict.reason)

    def _commit(self, reason: str) -> None:
        shadow, coming, old = self._shadow, self._slots.pointer.coming, self.learner
        if shadow is None or coming is None:  # it was ended since
            return
        seen = shadow.seen
        then = seen.accuracy_old if seen.n_trusted else old.accuracy.value
        hashes = encoder_hash(old.bundle), encoder_hash(shadow.new.bundle)
        report = self._report_of("committed", coming.release, coming.id, reason)

        def commit() -> None:
            shadow.finish()
            self._slots.commit(hashes, then, msgspec.to_builtins(report))

        if not self._guarded(commit):
            return
        self.learner, self._shadow = shadow.new, None
        self._quietly(lambda _: old.close(), None)
        self._told(report)

    def _go_back(self, reason: str) -> None:
        log.warning("going back to the bundle before: %s", reason)
        self._swap = lambda: self._roll_back(reason)

    def _roll_back(self, reason: str) -> None:
        self.learner, report = go_back(self._slots, self.learner, self._settings, reason)
        self._told(report)

    def _give_up(self, reason: str, phase: Phase = "failed") -> None:
        """What is coming comes no more; the active bundle never noticed."""
        coming = self._slots.pointer.coming
        if coming is None:
            return
        log.warning("bundle %s is not installed: %s", coming.release.name, reason)
        report = self._report_of(phase, coming.release, coming.id, reason)
        if self._delivery is not None:
            self._delivery.fetch.close()
        shadow, self._delivery, self._shadow, self._swap = self._shadow, None, None, None
        if shadow is not None:
            shadow.drop()
        self._quietly(self._slots.drop, msgspec.to_builtins(report))
        self._told(report)

    # ------------------------------------------------------------------ within

    def _guarded(self, do: Callable[[], None]) -> bool:
        """Do something with a new bundle: whatever it raises ends the installation, never the device."""
        try:
            do()
        except Exception as error:  # an encoder's runtime has kinds of its own
            log.debug("the new bundle failed", exc_info=True)
            text = str(error) if isinstance(error, EdgeCLError) else repr(error)
            self._give_up(text, phase="rolled-back" if self._shadow is not None else "failed")
            return False
        return True

    def _quietly(self, note: Callable[[Any], object], value: object) -> None:
        """A disk that takes no note only makes more be repeated after a stop."""
        try:
            note(value)
        except StateUnwritable as error:
            log.error("%s", error)

    def _report_of(self, phase: Phase, release: Release, id: str, reason: str = "") -> InstallReport:
        from edge_cl.upgrade.delivery import report_of

        seen = self._shadow.seen if self._shadow is not None else comparison.Comparison()
        return report_of(phase, release, id, reason, seen)

    def _tell_coming(self, phase: Phase) -> None:
        coming = self._slots.pointer.coming
        assert coming is not None
        self.report(self._report_of(phase, coming.release, coming.id))

    def _told(self, report: InstallReport) -> None:
        self.report(report)
        self._slots.note(untold={})
