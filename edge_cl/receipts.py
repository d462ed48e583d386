"""What a label is answered with: pure functions from a label, and what it did, to a receipt."""

from __future__ import annotations

import msgspec

from edge_cl.knowledge import Lesson
from edge_cl.records import Label, Receipt, ReceiptStatus


def learned(
    label: Label, reading_id: str, seq: int, lesson: Lesson, changed: dict[str, str], n_compared: int
) -> Receipt:
    """The receipt of a label that was learned as journal entry `seq`; to be given after the commit."""
    new = "a new class; " if lesson.new_class else ""
    return Receipt(
        reading_id=reading_id,
        label=label.label,
        status="learned",
        source=label.source,
        seq=seq,
        confidence_before=round(lesson.before, 4),
        confidence_after=round(lesson.after, 4),
        new_class=lesson.new_class,
        changed=changed,
        n_compared=n_compared,
        message=f"learned: {new}before {lesson.before:.2f}, now {lesson.after:.2f}; "
        f"{len(changed)} of the last {n_compared} answers changed",
    )


def refusal(label: Label, reading_id: str, status: ReceiptStatus, message: str) -> Receipt:
    """The receipt of a label that taught nothing."""
    return Receipt(
        reading_id=reading_id, label=label.label, source=label.source, status=status, message=message
    )


def held(label: Label, reading_id: str, seq: int, reason: str) -> Receipt:
    """The receipt of a label that waits for a review as journal entry `seq`; given after the commit."""
    receipt = refusal(label, reading_id, "held", f"not learned, it waits for a review: {reason}")
    return msgspec.structs.replace(receipt, seq=seq)


def taken_back(receipt: Receipt, message: str) -> Receipt:
    """A receipt that could not be given: its label was learned but never became durable."""
    return msgspec.structs.replace(
        receipt, status="refused", seq=0, confidence_after=0.0, new_class=False, changed={}, message=message
    )


def unusable(label: Label) -> str:
    """What is wrong with the label itself, "" when nothing is."""
    if not label.label.strip():
        return "the label is empty; name a class"
    try:
        f"{label.label}{label.reading_id}{label.source}".encode()
    except UnicodeEncodeError:
        return "the label holds characters that are not valid text; send UTF-8"
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
