"""What a checked source has had of its quotas, and how suspicious it is."""

from __future__ import annotations

import math
from typing import Any, Self

DAY_S, MINUTE_S = 86_400.0, 60.0
SUSPECT = 12.0
"""An honest source becomes suspect once in e¹² = 160,000 labels at most, on average, if it labels as the
trusted ones do; drift makes it oftener."""
MOST_SUSPICION = 36.0
"""A suspect is one no more after some four times as many labels with nothing against it at most, so that an
hour in which trusted labels cannot tell clears no liar."""
PROVEN = 64
"""Labels in a row of an unsuspected source after which it is no newcomer any more."""
MAX_EXCURSION = 512
"""Learned labels of an excursion that are named; the oldest are left out."""


class Bucket:
    """A token bucket: at most `size` at once, and `size` per `period_s` in the long run.

    Time that goes back counts as no time, so a clock that jumps back starves nobody; one that jumps ahead
    fills the bucket once.
    """

    def __init__(self, size: float, period_s: float) -> None:
        self.size, self.period_s = size, period_s
        self.level, self.at_s = size, -math.inf

    def level_at(self, now_s: float) -> float:
        """Labels that may be learned at `now_s` seconds."""
        passed_s = max(now_s - self.at_s, 0.0)
        return min(self.size, self.level + self.size * passed_s / self.period_s)

    def take(self, now_s: float) -> None:
        """One label came at `now_s` seconds; below 0 it never goes, for settings may have been lowered."""
        self.level, self.at_s = max(self.level_at(now_s) - 1, 0.0), now_s


class Account:
    """One source: two quotas, and a sequential test of what trusted labels say against its labels.

    The test is a CUSUM of the evidence, bets on p-values: its mean time to a false alarm is at least
    exp(`SUSPECT`) labels for any overlap of classes, as long as labels are exchangeable with the last trusted
    ones (e-detectors; Shin, Ramdas, Rinaldo 2022). A suspect source is one no more when all that speaks
    against it, up to `MOST_SUSPICION`, is outweighed again.

    Parameters
    ----------
    per_day, per_minute
        Labels that it may teach.
    shared
        Whether several have it: it is cleared sooner and loses less, for some of them are honest.
    """

    def __init__(self, per_day: float, per_minute: float, *, shared: bool = False) -> None:
        self.shared = shared
        self.buckets = {"day": Bucket(per_day, DAY_S), "minute": Bucket(per_minute, MINUTE_S)}
        self.suspicion = 0.0
        self.suspect = False
        self.n_unsuspected = 0
        self.learned: list[tuple[int, str]] = []
        """Journal number and source of what was learned since suspicion rose from 0; all of a newcomer's."""

    @property
    def proven(self) -> bool:
        """Whether it is known for long enough."""
        return self.n_unsuspected >= PROVEN

    def spent(self, now_s: float) -> str:
        """The quota that is used up, "" for none."""
        return next((name for name, b in self.buckets.items() if b.level_at(now_s) < 1), "")

    def take(self, now_s: float) -> None:
        """A label was learned or held."""
        for bucket in self.buckets.values():
            bucket.take(now_s)

    def suspicion_after(self, evidence: float) -> float:
        """What suspicion would be after a label with this evidence against it, in [0, MOST_SUSPICION]."""
        return min(max(self.suspicion + evidence, 0.0), SUSPECT if self.shared else MOST_SUSPICION)

    def remember(self, seq: int, source: str) -> None:
        """Label `seq` was learned; while nothing speaks for the source, it may have to be taken back."""
        if not self.suspect and (self.suspicion > 0 or not (self.proven or self.shared)):
            self.learned = [*self.learned[1 - MAX_EXCURSION :], (seq, source)]

    def judge(self, evidence: float, seq: int, source: str, *, learned: bool) -> list[tuple[int, str]]:
        """Count a label, journal entry `seq`; returns learned ones to take back when it makes suspect."""
        self.suspicion = self.suspicion_after(evidence)
        if self.suspicion == 0:
            self.suspect = False
            self.learned = [] if self.proven or self.shared else self.learned
        if learned:
            self.remember(seq, source)
        if self.suspicion < SUSPECT or self.suspect:
            self.n_unsuspected += not self.suspect
            return []
        self.suspect, self.n_unsuspected = True, 0
        back, self.learned = self.learned, []
        return back

    def state(self) -> dict[str, Any]:
        """JSON values that `restored` takes back."""
        return {
            "suspicion": self.suspicion,
            "suspect": self.suspect,
            "n_unsuspected": self.n_unsuspected,
            "learned": [list(pair) for pair in self.learned],
            "buckets": {name: [b.size, b.level, b.at_s] for name, b in self.buckets.items()},
        }

    @classmethod
    def restored(cls, state: dict[str, Any], *, shared: bool = False) -> Self:
        """The account that gave this state."""
        account = cls(state["buckets"]["day"][0], state["buckets"]["minute"][0], shared=shared)
        account.suspicion, account.suspect = state["suspicion"], state["suspect"]
        account.n_unsuspected = state["n_unsuspected"]
        account.learned = [(int(seq), str(source)) for seq, source in state["learned"]]
        for name, (_, level, at_s) in state["buckets"].items():
            account.buckets[name].level, account.buckets[name].at_s = level, at_s
        return account
