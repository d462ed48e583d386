"""Which of many decisions a second are worth a message."""

from __future__ import annotations

from edge_cl.records import Decision

SHORTEST_S = 0.1
LONGEST_S = 5.0


class EventGate:
    """Passes a decision when its label differs from the last passed one, else one every 5 s.

    A label that flips with every reading still passes at most ten times a second.
    """

    def __init__(self) -> None:
        self._label: str | None = None
        self._passed_s = 0.0

    def passes(self, decision: Decision, now_s: float) -> bool:
        """True when `decision` is to be sent; `now_s` is monotonic time."""
        if self._label is not None:
            wait_s = LONGEST_S if decision.label == self._label else SHORTEST_S
            if now_s - self._passed_s < wait_s:
                return False
        self._label, self._passed_s = decision.label, now_s
        return True
