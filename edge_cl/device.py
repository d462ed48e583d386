"""A device that runs: the learner that acts now, whichever bundle that is, and what may be asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from edge_cl.bundle import Bundle
from edge_cl.config import Settings
from edge_cl.encoders.choice import read_choice
from edge_cl.learner import Learner
from edge_cl.records import Event, Label, LabelSource, Receipt, Sink, SleepReport, Status
from edge_cl.release import release_of
from edge_cl.revisions import HeldLabel, Outcome, Revision
from edge_cl.sync.messages import CHUNK_BYTES
from edge_cl.upgrade.slots import Place, Slots, revise_others
from edge_cl.upgrade.upgrade import Upgrade


class Device:
    """What the control socket and MQTT talk to, while the learner behind it may change.

    Parameters
    ----------
    slots
        Open.
    bundle, place
        What `slots.active` named, loaded, and where it is.
    settings
        Of the device.
    """

    def __init__(self, slots: Slots, bundle: Bundle, place: Place, settings: Settings) -> None:
        self._slots = slots
        beside = slots.beside(slots.pointer.active)
        learner = Learner.from_bundle(
            bundle,
            state_dir=place.folder,
            settings=settings,
            beside=beside,
            choice=read_choice(slots.root),
        )
        self.upgrade = Upgrade(slots, learner, settings=settings)
        """What installs bundles; whoever has a way to the fleet gives it `report` and `want`."""
        self.other_alarm: Callable[[], str] = str
        """As the learner's."""
        self.learner.other_alarm = self._alarm
        self._follow: Callable[[Learner], None] = _ignore
        self._sinks: list[Sink] = [self.upgrade.sink]

    @property
    def learner(self) -> Learner:
        """The one that acts now."""
        return self.upgrade.learner

    def run(
        self,
        events: Iterable[Event],
        labels: Sequence[LabelSource],
        sinks: Sequence[Sink],
        *,
        busy: Callable[[], bool],
    ) -> None:
        """As `Learner.run`, going on with another learner when a bundle takes over."""
        upgrade, rest = self.upgrade, iter(events)
        self._sinks = [*sinks, upgrade.sink]
        more = True
        while more:
            self.learner.other_alarm = self._alarm
            self.learner.run(
                upgrade.watch(rest, busy),
                labels,
                self._sinks,
                busy=lambda: upgrade.swapping or busy(),
            )
            more = upgrade.take_over()
            if more:
                self._follow(self.learner)

    def followed_by(self, follow: Callable[[Learner], None]) -> None:
        """Tell `follow` of the learner that acts: now, and when another takes over."""
        self._follow = follow
        follow(self.learner)

    def status(self) -> Status:
        """How it is doing now."""
        return self.learner.status()

    def sleep_reports(self) -> list[SleepReport]:
        """What its last sleeps did, oldest first."""
        return self.learner.sleep_reports()

    def held_labels(self) -> list[HeldLabel]:
        """Labels that wait for a review, oldest first."""
        return self.learner.held_labels()

    def teach(self, label: Label) -> Receipt:
        """As `Learner.teach`; whoever hears the receipts of other labels hears this one, too."""
        before = self.learner.commit()  # of labels that came earlier: receipts are given in their order
        receipt = self.learner.teach(label)
        for said in (*before, receipt):
            for sink in self._sinks:
                sink(said)
        return receipt

    def revise(self, asked: Revision, *, source: str, wait: bool) -> Outcome:
        """As `Learner.revise`; what is forgotten or renamed is so in the bundles to go back to, too."""
        outcome = self.learner.revise(asked, source=source, wait=wait)
        revise_others(self._slots.root, asked, source)
        return outcome

    def adjust(self, settings: Settings) -> None:
        """As `Learner.adjust`, also for bundles to come."""
        self.upgrade.adjust(settings)

    def install(self, file: str) -> str:
        """Begin to install the bundle in a file; what is done, for a person. Raises EdgeCLError."""
        path = Path(file)
        return self.upgrade.install(release_of(path, chunk_bytes=CHUNK_BYTES), file=path)

    def undo_install(self) -> str:
        """End an installation, or go back to the bundle before; as `install`."""
        return self.upgrade.undo()

    def _alarm(self) -> str:
        return "; ".join(filter(None, [self.other_alarm(), self._slots.said]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.upgrade.close()
        self.learner.__exit__(kind, error, trace)


def _ignore(learner: Learner) -> None:
    """Nobody follows."""
