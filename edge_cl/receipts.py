"""What a label is answered with: pure functions from a label, and what it did, to a receipt."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from edge_cl.knowledge import Lesson
from edge_cl.records import Label, Receipt, ReceiptStatus
from edge_cl.revisions import HeldLabel

N_NAMED = 8


def learned(
    label: Label, reading_id: str, seq: int, lesson: Lesson, changed: dict[str, str], n_compared: int
) -> Receipt:
    """The receipt of a label that was learned as journal entry `seq`; to be given after the commit."""
    what = f"not {label.label!r}; " if label.kind == "not" else "a new class; " if lesson.new_class else ""
    return Receipt(
        reading_id=reading_id,
        label=label.label,
        kind=label.kind,
        status="learned",
        source=label.source,
        seq=seq,
        confidence_before=round(lesson.before, 4),
        confidence_after=round(lesson.after, 4),
        new_class=lesson.new_class,
        changed=changed,
        n_compared=n_compared,
        message=f"learned: {what}before {lesson.before:.2f}, now {lesson.after:.2f}; "
        f"{len(changed)} of the last {n_compared} answers changed",
    )


def refusal(label: Label, reading_id: str, status: ReceiptStatus, message: str) -> Receipt:
    """The receipt of a label that taught nothing."""
    return Receipt(
        reading_id=reading_id,
        label=label.label,
        kind=label.kind,
        source=label.source,
        status=status,
        message=message,
    )


def held(label: Label, reading_id: str, seq: int, reason: str) -> Receipt:
    """The receipt of a label that waits for a review as journal entry `seq`; given after the commit."""
    receipt = refusal(label, reading_id, "held", f"not learned, it waits for a review: {reason}")
    return msgspec.structs.replace(receipt, seq=seq)


def late(said: HeldLabel) -> Receipt:
    """The receipt of a label in the journal, whose first one got lost in a restart or found no room."""
    return Receipt(
        reading_id=said.reading_id,
        label=said.label,
        kind="not" if said.kind == "not" else "is",
        status="held" if said.reason else "learned",
        source=said.source,
        seq=said.seq,
        message="the first receipt was lost; this one was made from the journal",
    )


def duplicate(label: Label, reading_id: str) -> Receipt:
    """The receipt of what was said of this reading before."""
    said = "this reading already has this label"
    if label.kind == "not":
        said = f"this reading is already known not to be {label.label!r}"
    return refusal(label, reading_id, "duplicate", said)


def taken_back(receipt: Receipt, message: str) -> Receipt:
    """A receipt that could not be given: its label was learned but never became durable."""
    return msgspec.structs.replace(
        receipt, status="refused", seq=0, confidence_after=0.0, new_class=False, changed={}, message=message
    )


def unusable(label: Label, meant: str, class_names: Sequence[str]) -> str:
    """What is wrong with the label itself where these classes are known and its name means the class `meant`
    now, "" when nothing is."""
    if not label.label.strip():
        return "the label is empty; name a class"
    try:
        f"{label.label}{label.reading_id}{label.source}".encode()
    except UnicodeEncodeError:
        return "the label holds characters that are not valid text; send UTF-8"
    if label.kind == "not" and meant not in class_names:
        known = ", ".join(class_names[:N_NAMED]) + (", …" if len(class_names) > N_NAMED else "")
        return f"no class {label.label!r} is known, so no answer can be it; known: {known or 'none yet'}"
    return ""


def not_remembered(label: Label, reading_id: str, capacity: int) -> Receipt:
    """The receipt of a label whose reading cannot be found."""
    message = "no reading was seen yet; label after the first one"
    if reading_id:
        message = (
            f"reading {reading_id!r} is not among the last {capacity} readings since the device started; "
            "label newer readings, or label sooner"
        )
    return refusal(label, reading_id, "unknown-reading", message)
