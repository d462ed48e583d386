"""Whether a new bundle may take over from the old one, and whether it may stay: pure functions of counts."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

SHADOW_TRUSTED = 20
"""Trusted labels after which the two can be compared."""
SHADOW_READINGS = 500
"""Readings after which a bundle may take over that nobody labels anything for."""
MARGIN = 0.05
"""So much less accurate the new one may be found: with 20 labels that is one label."""
CLEARLY = 0.1
LEAST_AGREED = 0.6
"""Share of the readings both are sure of that they answer alike, where no labels tell. Two that are right in
4 of 5 such readings agree in 3 of 5 at least; with less, one of them is worse, and nobody can say which."""
LEAST_SURE = 100
"""Readings that both are sure of, for `LEAST_AGREED` to mean something."""
PATIENCE = 4
"""So many times `SHADOW_READINGS` a new bundle that disagrees may wait for labels."""
PROBATION_TRUSTED = 50
PROBATION_LEAST = 20
"""Trusted labels before which a bundle on probation is not judged."""
FALL = 0.15
MOST_ANSWERS = 4096
"""Readings whose answers are remembered until their label comes."""


class Least(NamedTuple):
    """What must be seen: trusted labels or readings in the shadow, trusted labels on probation."""

    trusted: int = SHADOW_TRUSTED
    readings: int = SHADOW_READINGS
    probation: int = PROBATION_TRUSTED


class Comparison(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Counts of readings that both answered, and of trusted labels for such readings.

    `n_sure` of `n_readings` both were sure of (neither abstained); `n_agreed` of these they answered alike.
    """

    n_readings: int = 0
    n_sure: int = 0
    n_agreed: int = 0
    n_trusted: int = 0
    right_old: int = 0
    right_new: int = 0

    @property
    def accuracy_old(self) -> float | None:
        """Of the old one, on trusted labels; None before the first."""
        return self.right_old / self.n_trusted if self.n_trusted else None

    @property
    def accuracy_new(self) -> float | None:
        """Of the new one."""
        return self.right_new / self.n_trusted if self.n_trusted else None


class Probation(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Trusted labels since a bundle took over, and how accurate the one before was (None: nobody knows)."""

    accuracy_then: float | None = None
    n_trusted: int = 0
    right: int = 0


class Answers:
    """What was answered to the last readings, until their labels come."""

    def __init__(self) -> None:
        self._answers: dict[str, tuple[str, str | None]] = {}

    def add(self, reading_id: str, old: str, new: str | None = None) -> None:
        """Remember the class names that the old and the new one gave."""
        self._answers.pop(reading_id, None)
        self._answers[reading_id] = old, new
        if len(self._answers) > MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]

    def take(self, reading_id: str) -> tuple[str, str | None] | None:
        """Both answers, once."""
        return self._answers.pop(reading_id, None)


class Verdict(NamedTuple):
    """What to do, and why, for a person."""

    action: Literal["wait", "commit", "roll back"]
    reason: str = ""


USUAL = Least()


def judge(seen: Comparison, least: Least = USUAL) -> Verdict:
    """Whether the new one takes over.

    >>> judge(Comparison(n_trusted=20, right_old=15, right_new=14)).action
    'commit'
    >>> judge(Comparison(n_trusted=20, right_old=15, right_new=12)).action
    'roll back'
    >>> judge(Comparison(n_readings=500, n_sure=400, n_agreed=300)).action
    'commit'
    """
    trusted, readings, _ = least
    if seen.n_trusted >= trusted:
        return _by_labels(seen, trusted)
    if seen.n_readings < readings or seen.right_new < seen.right_old - 1:
        return Verdict("wait")
    agreed = seen.n_agreed / seen.n_sure if seen.n_sure else 0.0
    if seen.n_sure >= LEAST_SURE * readings // SHADOW_READINGS and agreed >= LEAST_AGREED:
        return Verdict("commit", f"they agree on {agreed:.0%} of the readings both are sure of")
    if seen.n_readings >= PATIENCE * readings:
        return Verdict(
            "roll back",
            f"of {seen.n_readings:,} readings both were sure of {seen.n_sure:,} and agreed on {agreed:.0%}, "
            f"and {seen.n_trusted} trusted labels cannot tell who is right; label some, then install again",
        )
    return Verdict("wait")


def _by_labels(seen: Comparison, trusted: int) -> Verdict:
    lost = (seen.right_old - seen.right_new) / seen.n_trusted
    said = f"{seen.accuracy_old:.2f} → {seen.accuracy_new:.2f} on {seen.n_trusted} trusted labels"
    if lost <= MARGIN:
        return Verdict("commit", said)
    if lost > CLEARLY or seen.n_trusted >= 2 * trusted:
        return Verdict("roll back", said)
    return Verdict("wait")


def judge_probation(seen: Probation, trusted: int = PROBATION_TRUSTED) -> Verdict:
    """Whether a bundle that took over stays ("commit"), goes ("roll back"), or is watched on."""
    least = min(PROBATION_LEAST, trusted)
    if seen.accuracy_then is None or seen.n_trusted < least:
        return Verdict("wait" if seen.n_trusted < trusted else "commit")
    now = seen.right / seen.n_trusted
    if now < seen.accuracy_then - FALL:
        said = f"{now:.2f} on {seen.n_trusted} trusted labels, the bundle before had {seen.accuracy_then:.2f}"
        return Verdict("roll back", said)
    return Verdict("commit" if seen.n_trusted >= trusted else "wait")
