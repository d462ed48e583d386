"""What flows between the stages. Records are immutable; a stage never changes one it was given.

Answers (Decision, Receipt, SleepReport, Status) are JSON objects outside, told apart by ``type``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.floating[Any]]
_Integer = TypeVar("_Integer", bound=np.integer[Any])


def under(arrays: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The entries whose names begin with `prefix`, by the rest of their names."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def distinct(numbers: NDArray[_Integer]) -> NDArray[_Integer]:
    """What occurs among integers, in order. `np.unique` does it too, with 1 MB of `numpy.ma`."""
    ordered = np.sort(numbers)
    return ordered[np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """One window of sensor samples, in the bundle's channels, units and rate.

    Attributes
    ----------
    id
        Unique per device; a late label names the reading by it.
    t_s
        Time of the window's last sample, in the source's own clock (seconds).
    window
        (n_samples, n_channels) float32, physical units.
    urgent
        Ends a sleep at once: its new head is dropped, and it is tried again later.
    """

    id: str
    t_s: float
    window: FloatArray
    urgent: bool = False


LabelKind: TypeAlias = Literal["is", "not"]


class Label(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What somebody says a reading was, or (`kind` "not") was not: now, late, or never.

    `source` names who said it. `reading_id` may be empty: then the label is meant for the
    newest reading.
    """

    label: str
    kind: LabelKind = "is"
    reading_id: str = ""
    source: str = "cli"
    t_s: float = 0.0


class Decision(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="decision"):
    """The answer to one reading.

    `label` is the best class ("" while no class is known), `confidence` its calibrated
    probability in [0, 1], `abstained` whether that is below the set threshold, and
    `scores` the probabilities of at most five best classes, best first.
    """

    reading_id: str
    t_s: float
    label: str
    confidence: float
    abstained: bool = False
    scores: dict[str, float] = {}


ReceiptStatus: TypeAlias = Literal["learned", "held", "duplicate", "unknown-reading", "refused"]


class Receipt(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="receipt"):
    """What a label did. Given only after the label is safe on disk.

    Attributes
    ----------
    kind
        As the label's: ``is``, or ``not`` when it said what the reading was not.
    status
        ``learned``; ``held`` (not learned, it waits for a review); ``duplicate`` (this reading already
        has this label, or this refusal); ``unknown-reading`` (never seen, or seen so long ago that its
        feature is gone); ``refused``.
    seq
        The label's number in the journal, 0 when it was neither learned nor held.
    confidence_before, confidence_after
        Probability of the given label for this reading, before and after learning it.
    new_class
        True when the label's name was not known before.
    changed
        Of the last remembered readings, those whose answer changed: ``{id: "old → new"}``.
    n_compared
        How many remembered readings were looked at for `changed`.
    message
        For a person: what happened and, if nothing was learned, what to do.
    """

    reading_id: str
    label: str
    kind: LabelKind = "is"
    status: ReceiptStatus
    source: str = ""
    seq: int = 0
    confidence_before: float = 0.0
    confidence_after: float = 0.0
    new_class: bool = False
    changed: dict[str, str] = {}
    n_compared: int = 0
    message: str = ""


class SleepPlan(msgspec.Struct, frozen=True, kw_only=True):
    """What a sleep is asked to do: everything besides head and memory that its outcome may depend on.

    `cause` is why it began; the others are as in the settings, :class:`edge_cl.config.SleepSettings`.
    """

    cause: str = "asked"
    sampler: str = "balanced"
    steps: int = 1000
    class_margin: float = 0.2
    began_s: float = 0.0
    """Wall clock, seconds since 1970; for the reader of the history only."""


class SleepProgress(msgspec.Struct, frozen=True, kw_only=True):
    """A piece of sleep is done: `done` of about `total` pieces in `phase`."""

    phase: Literal["judge", "rehearse", "catch up", "snapshot"]
    done: int
    total: int


class SleepReport(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="sleep"):
    """What one sleep did, and whether the device woke with the new head.

    Accuracies are class-balanced, on held-back exemplars that are never rehearsed.

    Attributes
    ----------
    n_sleep
        Number of the sleep, from 1.
    cause, sampler, began_s
        As in :class:`SleepPlan`.
    n_exemplars, n_held_back, n_steps
        Exemplars in memory to rehearse, exemplars that judged, pieces of rehearsal done.
    by_class
        Class name to accuracy before and after.
    adopted, reason
        Whether the new head is used now, and why or why not.
    min_acc, wc_acc
        Of the head awake, ever, on held-back exemplars: mean over classes of each one's lowest accuracy, and
        the same with classes too new to have fallen counted as they are.
    stability_gap, gap_asleep
        Most that mean accuracy was below its level after the last sleep, until this one had ended; below the
        level at the beginning, of the candidate while it rehearsed (heads that learn by steps).
    cpu_s, held_bytes
        Time used, and what the device held at the end.
    """

    n_sleep: int
    cause: str
    sampler: str = ""
    began_s: float = 0.0
    n_exemplars: int
    n_held_back: int
    n_steps: int = 0
    accuracy_before: float
    accuracy_after: float
    by_class: dict[str, tuple[float, float]] = {}
    adopted: bool
    reason: str
    min_acc: float = 0.0
    wc_acc: float = 0.0
    stability_gap: float = 0.0
    gap_asleep: float = 0.0
    cpu_s: float
    held_bytes: int = 0


class Status(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="status"):
    """How a device is doing: what `edge-cl status` shows and what goes out over MQTT.

    `accuracy_now` is prequential (predicted before learned) over the last 200 labels, or None before the
    first label. `held` is bytes by holder; `held_bytes` their sum; `written_bytes` what was written to disk
    since this state began; `n_held` labels wait for a review; `state_hash` is the end of the journal's chain
    of hashes, by which equal histories, and so equal heads, are known. `drift_points` is how far accuracy
    is below its best since the last sleep, None while there are not 200 labels to tell. `sleep_state` says
    how far a sleep is, what it waits for, or how many labels it would have. `installed` says what bundles
    were installed over the first one, and how far a new one is. `celsius` is the hottest part of the board
    and `power` ``mains``, ``battery`` or ``under-voltage``; None and "" where the board cannot tell.
    """

    bundle_name: str
    bundle_id: str
    head: str
    class_names: list[str]
    n_readings: int
    n_labels: int
    journal_seq: int
    n_pending: int
    n_bad_readings: int
    accuracy_now: float | None
    held: dict[str, int]
    held_bytes: int
    budget_bytes: int
    n_sleeps: int
    last_sleep: SleepReport | None
    sleep_state: str = ""
    recovered: str
    written_bytes: int = 0
    n_held: int = 0
    state_hash: str = ""
    drift_points: float | None = None
    installed: str = ""
    celsius: float | None = None
    power: str = ""
    alarm: str


class Summary(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="summary"):
    """The decisions of about a minute: how many, of what, how sure.

    `from_s` and `to_s` are of the first and last reading, in the source's own clock; `n_by_label` counts
    answers, `confidence` is their mean, `n_abstained` were less sure than the threshold.
    """

    from_s: float
    to_s: float
    n: int
    n_abstained: int
    confidence: float
    n_by_label: dict[str, int]


class SleepRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody asks the device to sleep now, whatever the settings say."""


Event: TypeAlias = Reading | Label | SleepRequest | None
"""What a stream yields: a reading, a label, a request, or None for "nothing yet" (a tick)."""

Answer: TypeAlias = Decision | Receipt | SleepReport | Status
"""What a device says."""

Sink: TypeAlias = Callable[[Answer], None]
"""Where answers go: standard output, MQTT, a list in a test."""


class LabelSource(Protocol):
    """Where labels and requests come from besides the stream itself: MQTT, the command line, a button."""

    def poll(self) -> Sequence[Label | SleepRequest]:
        """What arrived since the last call; never blocks."""
        ...


class LabelDriver(LabelSource, Protocol):
    """A button, a web page, a topic: gives labels, hears answers, is let go in the end."""

    @property
    def alarm(self) -> str:
        """What is wrong with it, "" when nothing is."""
        ...

    def hear(self, answer: Answer) -> None:
        """Every Decision, Receipt, SleepReport and Status, in the run loop's thread; never blocks."""
        ...

    def close(self) -> None:
        """Let go of pins, ports and threads."""
        ...
