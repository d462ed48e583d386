"""What a person may ask of the past: requests, and what came of them. Pure records."""

from __future__ import annotations

from typing import TypeAlias

import msgspec


class Forget(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask", tag="forget", omit_defaults=True):
    """Take labels back: those that match everything that is given.

    `since_s` and `until_s` are wall clock, seconds since 1970, of when the label was learned; the second is
    not included.
    """

    reading: str = ""
    source: str = ""
    class_name: str = ""
    since_s: float | None = None
    until_s: float | None = None


class Rollback(
    msgspec.Struct, frozen=True, kw_only=True, tag_field="ask", tag="rollback", omit_defaults=True
):
    """Go back to what was known at journal entry `to`, or before the first entry written at `before_s`."""

    to: int | None = None
    before_s: float | None = None


class Rename(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask", tag="rename", omit_defaults=True):
    """Call class `old` `new` from now on; with `merge` both classes become one."""

    old: str
    new: str
    merge: bool = False


class Review(msgspec.Struct, frozen=True, kw_only=True, tag_field="ask", tag="review", omit_defaults=True):
    """Learn labels that wait for a review, by their journal numbers, or reject them."""

    seqs: list[int]
    accept: bool


Revision: TypeAlias = Forget | Rollback | Rename | Review


class Outcome(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a revision did: journal entry `seq`, how many labels it concerned, and in words."""

    seq: int
    n_labels: int
    message: str
    n_replayed: int = 0
    took_s: float = 0.0


class HeadRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One kept head, as ``edge-cl history`` lists it.

    `id` is the journal entry that it knows everything up to; `cause` is why it was kept; `accuracy` was
    prequential then. `stranded` heads lie on a way that was rolled back.
    """

    id: int
    at_s: float
    cause: str
    n_labels: int
    accuracy: float | None
    n_classes: int
    nbytes: int
    stranded: bool = False
    problem: str = ""


class HeldLabel(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A label that waits for a review: `seq` names it, `reason` says why it was not learned."""

    seq: int
    kind: str
    label: str
    reading_id: str
    source: str
    at_s: float
    reason: str


class AuditLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Something that changed what the device knows: who, when, what."""

    seq: int
    at_s: float
    who: str
    what: str
    n: int = 1
