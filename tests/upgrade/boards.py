"""Bundles that may be installed one over the other, and a device in this process that does it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import msgspec

from edge_cl.bundle import Bundle, write_bundle
from edge_cl.config import Settings, settings_from
from edge_cl.device import Device
from edge_cl.manifest import EncoderSpec
from edge_cl.records import Answer, Decision, Event, Receipt
from edge_cl.release import release_of
from edge_cl.sync.messages import InstallReport
from edge_cl.upgrade.comparison import Least
from edge_cl.upgrade.slots import Slots
from tests.worlds import make_bundle

SETTINGS = settings_from({"sleep": {"after_labels": 0, "idle_s": 0}, "state": {"commit_ms": 0}})
CHUNK_BYTES = 4096
OTHER_ENCODER = EncoderSpec(kind="identity", output="another")
"""Gives the same features, but says that it is another one."""


def variant(bundle: Bundle, path: Path, *, members: dict[str, bytes] | None = None, **changes: Any) -> Bundle:
    """The bundle with another manifest or other members, hence another id."""
    kept = {name: bundle.member(name) for name in bundle.manifest.members}
    changes = {"provenance": {"file": path.name}, **changes}
    return write_bundle(path, msgspec.structs.replace(bundle.manifest, **changes), kept | (members or {}))


class Board:
    """A device that can be fed events, installed upon, stopped and started again."""

    def __init__(self, folder: Path, *, least: Least | None = None, settings: Settings = SETTINGS) -> None:
        self.folder, self.settings = folder, settings
        self.home = folder / "home.ecl"
        if not self.home.exists():
            make_bundle(self.home)
        self.least = least or Least(trusted=20, readings=200, probation=50)
        self.reports: list[InstallReport] = []
        self.answers: list[Answer] = []
        self.wanted: list[tuple[int, int]] = []

    def start(self) -> Self:
        """As `edge-cl run` begins."""
        self.slots = Slots(self.folder / "state")
        try:
            place = self.slots.active(self.home)
            self.device = Device(self.slots, Bundle.load(place.bundle), place, self.settings)
        except BaseException:
            self.slots.close()
            raise
        self.device.upgrade._least = self.least
        self.device.upgrade.report = self.reports.append
        self.device.upgrade.want = lambda _sha256, first, n: self.wanted.append((first, n))
        return self

    def run(self, events: Iterable[Event]) -> None:
        """Let them happen."""
        self.device.run(events, [], [self.answers.append], busy=bool)

    def install(self, path: Path, **about: Any) -> None:
        """A person installs a bundle file; it is copied and checked."""
        release = release_of(path, chunk_bytes=CHUNK_BYTES, **about)
        self.device.upgrade.install(release, id="c1", file=path)
        self.run([None] * 3 * (3 + release.size // CHUNK_BYTES))

    def stop(self) -> None:
        """An orderly end."""
        self.device.__exit__(None, None, None)
        self.slots.close()

    def cut(self) -> None:
        """A power cut, as far as one process can have one: nothing is saved any more."""
        upgrade = self.device.upgrade
        for learner in [upgrade.learner, *([upgrade._shadow.new] if upgrade._shadow else [])]:
            learner.__exit__(KeyboardInterrupt, None, None)
        self.slots.close()

    @property
    def phases(self) -> list[str]:
        """Of the reports so far."""
        return [report.phase for report in self.reports]

    @property
    def bundle_id(self) -> str:
        """Of the bundle that acts."""
        return self.device.learner.bundle.bundle_id

    def decisions(self) -> list[Decision]:
        """All that it said."""
        return [answer for answer in self.answers if isinstance(answer, Decision)]

    def learned(self) -> list[Receipt]:
        """Receipts of labels that were learned."""
        return [a for a in self.answers if isinstance(a, Receipt) and a.status == "learned"]
