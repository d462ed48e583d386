"""What a check found."""

from __future__ import annotations

from typing import Literal

import msgspec

Level = Literal["ok", "note", "warning", "problem"]
LEVELS: tuple[Level, ...] = ("ok", "note", "warning", "problem")


class Finding(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that was looked at.

    Attributes
    ----------
    id
        Stays the same over releases: for scripts.
    level
        ``problem``: the device does not work, or will lose what it learned; ``warning``: it works worse, or
        will stop working; ``note``: worth knowing; ``ok``: looked at, and well.
    found, means, mend
        What was found, what follows from it, and the command that mends it ("" where there is none).
    """

    id: str
    level: Level
    found: str
    means: str = ""
    mend: str = ""


def ok(name: str, found: str) -> Finding:
    """Looked at, and well."""
    return Finding(id=name, level="ok", found=found)


def note(name: str, found: str, means: str, mend: str = "") -> Finding:
    """Worth knowing."""
    return Finding(id=name, level="note", found=found, means=means, mend=mend)


def warning(name: str, found: str, means: str, mend: str) -> Finding:
    """It works worse than it could, or will stop working."""
    return Finding(id=name, level="warning", found=found, means=means, mend=mend)


def problem(name: str, found: str, means: str, mend: str) -> Finding:
    """It does not work, or loses what it learned."""
    return Finding(id=name, level="problem", found=found, means=means, mend=mend)
