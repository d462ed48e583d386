"""The decisions of about a minute as one record: what a server keeps of many answers a second."""

from __future__ import annotations

from collections import Counter

from edge_cl.records import Decision, Summary

MAX_LABELS = 64


class Summariser:
    """Counts decisions until `take`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._confidence = 0.0
        self._n = self._n_abstained = 0
        self._from_s = self._to_s = 0.0

    def add(self, decision: Decision) -> None:
        """One more."""
        if not self._n:
            self._from_s = decision.t_s
        self._to_s = decision.t_s
        self._n += 1
        self._n_abstained += decision.abstained
        self._confidence += decision.confidence
        self._counts[decision.label] += 1

    def take(self) -> Summary | None:
        """The summary since the last call, or None when there was no decision."""
        if not self._n:
            return None
        summary = Summary(
            from_s=self._from_s,
            to_s=self._to_s,
            n=self._n,
            n_abstained=self._n_abstained,
            confidence=round(self._confidence / self._n, 4),
            n_by_label=dict(self._counts.most_common(MAX_LABELS)),
        )
        self.__init__()  # type: ignore[misc]
        return summary
