"""``slot.json``: which slot of a device is active, which one is gone back to, and what is under way.

Replaced as a whole, durably; its first line is the SHA-256 of the second.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from edge_cl.commands import Release
from edge_cl.errors import StateError, StateUnwritable
from edge_cl.state import sync_folder
from edge_cl.upgrade.comparison import Comparison, Probation

FILE = "slot.json"
FORMAT_VERSION = 1
HOME = ""
"""The slot of the bundle that the device was started with."""


class Coming(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An installation under way: command `id`; `file` is where a person gave it; `boots` as the pointer's."""

    release: Release
    slot: str
    id: str = ""
    file: str = ""
    fetched: bool = False
    boots: int = 0
    seen: Comparison = Comparison()


class Pointer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What ``slot.json`` says. A slot is the name of its folder, "" is home.

    Attributes
    ----------
    home_id, home_path
        The bundle that the device was started with; the slots are of no use to another one.
    active, previous, since_s
        Previous is where a rollback leads; `since_s` is by the wall clock.
    boots
        Starts of the active slot in a row of which none went well yet.
    encoders
        Hash of each slot's encoder: labels can be carried over where they are the same.
    installed
        Command id and release of the active slot, for reports.
    coming, probation
        What is under way.
    untold
        A report that was perhaps not given yet.
    """

    format_version: int = FORMAT_VERSION
    home_id: str = ""
    home_path: str = ""
    active: str = HOME
    previous: str = HOME
    since_s: float = 0.0
    boots: int = 0
    encoders: dict[str, str] = {}
    names: dict[str, str] = {}
    installed: tuple[str, str, str] = ("", "", "")
    coming: Coming | None = None
    probation: Probation | None = None
    untold: dict[str, Any] = {}


def describe_install(pointer: Pointer) -> str:
    """For a person: what was installed, and how far it is; "" when nothing ever was."""
    texts = []
    if pointer.active != HOME:
        since = time.strftime("%Y-%m-%d %H:%M", time.localtime(pointer.since_s))
        texts.append(
            f"{_name(pointer, pointer.active)} since {since}, before it {_name(pointer, pointer.previous)}"
        )
    if pointer.probation is not None:
        texts.append(f"on probation, {pointer.probation.n_trusted} trusted labels so far")
    if pointer.coming is not None:
        seen = pointer.coming.seen
        how_far = (
            f"in the shadow, {seen.n_trusted} trusted labels and {seen.n_readings:,} readings so far"
            if pointer.coming.fetched
            else "being fetched"
        )
        texts.append(f"{pointer.coming.release.name} ({pointer.coming.slot[:12]}) {how_far}")
    return "; ".join(texts)


def _name(pointer: Pointer, slot: str) -> str:
    if slot == HOME:
        return f"the one at home ({pointer.home_id[:12]})"
    return f"{pointer.names.get(slot, 'bundle')} ({slot[:12]})"


def read_pointer(root: Path) -> tuple[Pointer, str]:
    """The pointer of a state folder, and what was wrong with it; a damaged one says nothing but that."""
    path = root / FILE
    try:
        digest, _, body = path.read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            raise ValueError("its checksum does not fit")
        pointer = msgspec.json.decode(body, type=Pointer)
    except FileNotFoundError:
        return Pointer(), ""
    except (OSError, ValueError, msgspec.MsgspecError) as error:
        return Pointer(), f"{path}: damaged ({error}); the device goes on with its own bundle, install again"
    if pointer.format_version > FORMAT_VERSION:
        raise StateError(f"{path}: of a newer release (format {pointer.format_version}); upgrade edge-cl")
    return pointer, ""


def write_pointer(root: Path, pointer: Pointer) -> None:
    """Replace it, durably. Raises StateUnwritable."""
    body = msgspec.json.encode(pointer)
    path = root / FILE
    part = path.with_suffix(".part")
    try:
        with part.open("wb") as file:
            file.write(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(root)
    except OSError as error:
        raise StateUnwritable(
            f"{path}: cannot be written ({error.strerror}); free some disk space or check the card"
        ) from error
