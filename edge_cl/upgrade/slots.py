"""Which bundle a device runs: the one it was started with ("home"), or one that was installed since.

Home's learned state lies in the state folder S itself, an installed bundle's, and its file, in ``S/slots/…``.
The pointer ``S/slot.json`` says which is active and which one is gone back to; it is replaced as a whole, so
a power cut leaves the old or the new one. Damaged or lost, the device runs home, which nothing here removes.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Self

import msgspec

from edge_cl.commands import Release
from edge_cl.errors import BudgetExceeded, EdgeCLError, NothingMatches, StateError, StateUnwritable
from edge_cl.release import bundle_id_of
from edge_cl.revisions import Forget, Rename, Revision
from edge_cl.state import JOURNAL, StateStore, carry_back, class_names_now, locked, revise, sync_folder
from edge_cl.upgrade.comparison import Probation
from edge_cl.upgrade.pointer import HOME, Coming, read_pointer, write_pointer

log = logging.getLogger(__name__)

FOLDER, BUNDLE = "slots", "bundle.ecl"
MOST_BOOTS = 3
"""Starts in a row that may fail before the slot is given up."""
_DIGITS = 16


class Place(NamedTuple):
    """A bundle file, the folder of what is learned with it, and what a person should know."""

    bundle: Path
    folder: Path
    note: str = ""


class Slots:
    """The slots of one device; locked while open.

    Raises StateError when another process has them open, StateUnwritable when the folder cannot be made.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise StateUnwritable(f"{self.root}: cannot make the state folder ({error.strerror})") from error
        self._lock: int | None = locked(self.root, "slots.lock")
        self.pointer, self.said = read_pointer(self.root)
        if self.said:
            log.error("%s", self.said)
        self.home = Path(self.pointer.home_path)

    # ------------------------------------------------------------------ which one runs

    def active(self, home: str | Path) -> Place:
        """Where to start, for a device whose own bundle is `home`; counts the start.

        A slot that did not come up `MOST_BOOTS` times in a row, or lacks its bundle, is rolled back.
        """
        self._be_home(Path(home))
        while (slot := self.pointer.active) != HOME:
            if self.pointer.boots >= MOST_BOOTS:
                self.roll_back(f"it did not come up {MOST_BOOTS} times in a row")
            elif not (self.folder(slot) / BUNDLE).exists():
                self.roll_back(f"{self.folder(slot) / BUNDLE} is missing")
            else:
                self.note(boots=self.pointer.boots + 1)
                break
        self.tidy()
        return self.place(self.pointer.active)

    def came_up(self) -> None:
        """The active slot answers: the next start is counted anew."""
        if self.pointer.boots:
            self.note(boots=0)

    def place(self, slot: str) -> Place:
        """A slot's bundle and folder."""
        bundle = self.home if slot == HOME else self.folder(slot) / BUNDLE
        return Place(bundle, self.folder(slot), self.said)

    def folder(self, slot: str) -> Path:
        """Where a slot's learned state lies."""
        return folder_of(self.root, slot)

    def beside(self, slot: str) -> Callable[[], int]:
        """Counts what all but this slot hold of the disk budget that they share."""
        mine = self.folder(slot)

        def count() -> int:
            others = {self.root, *self._slot_folders()} - {mine}
            return sum(_files_bytes(folder) for folder in others)

        return count

    # ------------------------------------------------------------------ a bundle comes

    def require_room(self, release: Release, state_bytes: int, capacity_bytes: int) -> None:
        """Raise BudgetExceeded unless a bundle, and what it learns, fit the disk beside the others."""
        kept = {self.root, *map(self.folder, (self.pointer.active, self.pointer.previous))}
        held = sum(_files_bytes(folder) for folder in kept)
        needed = release.size + state_bytes
        if held + needed > capacity_bytes:
            raise BudgetExceeded(
                f"bundle {release.name} needs {needed:,} bytes of disk ({release.size:,} itself, the rest "
                f"for what it learns), but {max(capacity_bytes - held, 0):,} of the budget's "
                f"{capacity_bytes:,} are free; raise budget.disk_mb, or lower state.history_mb"
            )
        free = shutil.disk_usage(self.root).free
        if needed > free:
            raise BudgetExceeded(
                f"bundle {release.name} needs {needed:,} bytes of disk, {free:,} are free; free some"
            )

    def stage(self, release: Release, *, id: str, file: str) -> None:
        """Note that a bundle is coming; its file is to be written at `part`."""
        slot = release.bundle_id[:_DIGITS]
        if slot in (self.pointer.active, self.pointer.previous):
            slot += "-2"
        shutil.rmtree(self.folder(slot), ignore_errors=True)
        try:
            self.folder(slot).mkdir(parents=True, mode=0o700)
        except OSError as error:
            raise StateUnwritable(f"{self.folder(slot)}: cannot be made ({error.strerror})") from error
        self.change(coming=Coming(release=release, slot=slot, id=id, file=file))
        self.tidy()

    @property
    def coming_folder(self) -> Path:
        """Of the bundle that is coming."""
        assert self.pointer.coming is not None
        return self.folder(self.pointer.coming.slot)

    @property
    def part(self) -> Path:
        """The file that is being fetched."""
        return self.coming_folder / (BUNDLE + ".part")

    def fetched(self) -> Path:
        """The file is whole: give it its name. Doing it again is of no consequence."""
        assert self.pointer.coming is not None
        bundle = self.coming_folder / BUNDLE
        if self.part.exists():
            self.part.replace(bundle)
            sync_folder(self.coming_folder)
        if not self.pointer.coming.fetched:
            self.change_coming(fetched=True)
        return bundle

    def commit(self, encoder: tuple[str, str], accuracy_then: float | None, untold: dict[str, Any]) -> None:
        """What was coming is active from now on, on probation.

        `encoder` has the hashes of the old one's and of its own; `untold` is the report to be given.
        """
        coming, old = self.pointer.coming, self.pointer.active
        assert coming is not None
        release = coming.release
        self.change(
            active=coming.slot,
            previous=old,
            since_s=round(time.time(), 3),
            boots=0,
            coming=None,
            probation=Probation(accuracy_then=accuracy_then),
            encoders=self.pointer.encoders | {old: encoder[0], coming.slot: encoder[1]},
            names=self.pointer.names | {coming.slot: release.name},
            installed=(coming.id, release.sha256, release.bundle_id),
            untold=untold,
        )
        self.tidy()

    def drop(self, untold: dict[str, Any]) -> None:
        """What was coming comes no more; `untold` is the report to be given."""
        self.change(coming=None, untold=untold)
        self.tidy()

    # ------------------------------------------------------------------ a bundle goes

    def roll_back(self, reason: str) -> Place:
        """Go back to the previous slot; both must be closed. Labels that were taught meanwhile go with it
        where the encoder is the same. Without any slot active, nothing happens."""
        slot, previous = self.pointer.active, self.pointer.previous
        if slot == HOME:
            return self.place(HOME)
        try:
            carried = self.carry_back()
        except (EdgeCLError, OSError) as error:  # whatever is wrong with it must not keep it
            carried = f"its labels are lost ({error})"
        self.point_back(f"went back from bundle {self.pointer.names.get(slot, slot)}: {reason}; {carried}")
        self.tidy()
        return self.place(previous)

    def carry_back(self) -> str:
        """Give the previous slot, which is closed, the labels of the active one; says what was done."""
        slot, previous = self.pointer.active, self.pointer.previous
        encoders = self.pointer.encoders
        if encoders.get(slot) != encoders.get(previous, HOME):
            return "its labels stay behind, its encoder is another one"
        n = carry_back(self.folder(previous), self.folder(slot), at_s=round(time.time(), 3))
        return f"{n:,} labels came along"

    def point_back(self, note: str) -> None:
        """The previous slot is active from now on; `tidy` once the other is closed."""
        self.said = note
        log.warning("%s", note)
        id, sha256, bundle_id = self.pointer.installed
        report = {"id": id, "sha256": sha256, "bundle_id": bundle_id, "phase": "rolled-back", "reason": note}
        self.change(
            active=self.pointer.previous,
            previous=HOME,
            since_s=round(time.time(), 3),
            boots=0,
            coming=None,
            probation=None,
            installed=("", "", ""),
            untold=report,
        )

    # ------------------------------------------------------------------ the pointer

    def change(self, **fields: Any) -> None:
        """Replace fields of the pointer, durably. Raises StateUnwritable, and nothing has changed then."""
        pointer = msgspec.structs.replace(self.pointer, **fields)
        write_pointer(self.root, pointer)
        self.pointer = pointer

    def change_coming(self, **fields: Any) -> None:
        """As `change`, of what is coming."""
        assert self.pointer.coming is not None
        self.change(coming=msgspec.structs.replace(self.pointer.coming, **fields))

    def close(self) -> None:
        """Let the slots go."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def note(self, **fields: Any) -> None:
        """As `change`; where the disk takes nothing, it is known until the next start."""
        try:
            self.change(**fields)
        except StateUnwritable as error:
            log.error("%s", error)
            self.pointer = msgspec.structs.replace(self.pointer, **fields)

    def _be_home(self, home: Path) -> None:
        self.home = home
        try:
            found = bundle_id_of(home)
        except EdgeCLError:
            if self.pointer.active == HOME:
                raise
            found = self.pointer.home_id  # an installed bundle runs without it
        slots = self.pointer.active != HOME or self.pointer.coming is not None
        if slots and found != self.pointer.home_id:
            raise StateError(
                f"{self.root}: other bundles were installed over bundle {self.pointer.home_id[:12]}… "
                f"({self.pointer.home_path}), and {home} is {found[:12]}…; start the device with that one, "
                "or choose another --state folder"
            )
        path = str(home.resolve())
        if (found, path) != (self.pointer.home_id, self.pointer.home_path):
            self.note(home_id=found, home_path=path)

    def _slot_folders(self) -> list[Path]:
        with contextlib.suppress(OSError):
            return [path for path in (self.root / FOLDER).iterdir() if path.is_dir()]
        return []

    def tidy(self) -> None:
        """Remove slots that nothing leads to."""
        coming = self.pointer.coming
        kept = {self.pointer.active, self.pointer.previous, coming.slot if coming else HOME}
        for folder in self._slot_folders():
            if folder.name not in kept:
                shutil.rmtree(folder, ignore_errors=True)  # what is left is removed next time


def folder_of(root: Path, slot: str) -> Path:
    """Where a slot's learned state lies."""
    return root if slot == HOME else root / FOLDER / slot


def active_state(root: Path) -> Path:
    """The folder of what the active bundle has learned: what the commands for a stopped device open."""
    return folder_of(root, read_pointer(root)[0].active)


def active_place(root: Path, home: Path) -> Place:
    """As `active_state`, with the bundle, for a device whose own one is `home`."""
    folder = active_state(root)
    return Place(home if folder == root else folder / BUNDLE, folder)


def revise_others(root: Path, asked: Revision, source: str) -> None:
    """What was forgotten or renamed in the active slot is so in the others, too, which are closed: going back
    must not bring it back. Other revisions name entries of the active slot alone.

    Raises StateError when it could not be done everywhere.
    """
    pointer, _ = read_pointer(root)
    if not isinstance(asked, Forget | Rename):
        return
    for slot in {HOME, pointer.previous} - {pointer.active}:
        folder = folder_of(root, slot)
        if not (folder / JOURNAL).exists():
            continue
        with StateStore(folder, "", 2**62) as store:
            names = class_names_now(store) if isinstance(asked, Rename) else []
            try:
                revise(store, asked, source=source, at_s=round(time.time(), 3), class_names=names)
            except NothingMatches:
                continue
            except StateError as error:
                raise StateError(
                    f"done for the bundle in use, but not in {folder}, which one may go back to: {error}"
                ) from error


def _files_bytes(folder: Path) -> int:
    total = 0
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat().st_size if entry.is_file() else 0
    return total
