"""When to try the broker again, so that a fleet does not come back in one instant. Pure but for its random
numbers.
"""

from __future__ import annotations

import random

CONNECTS_PER_S = 25.0
"""What a fleet's devices aim at together after a broker's restart."""
LEAST_SPREAD_S = 4.0
LONGEST_SPREAD_S = 300.0
HOLD_OFF_S = 60.0


class Backoff:
    """Waits between attempts to connect, all drawn at random.

    Parameters
    ----------
    shortest_s, longest_s
        Of a wait, before what the size of the fleet asks for.
    """

    def __init__(self, shortest_s: float = 0.5, longest_s: float = 30.0) -> None:
        self._shortest_s, self._longest_s = shortest_s, longest_s
        self._ceiling_s = 0.0
        self.n_devices = 0
        """In the fleet, as far as the server has said."""

    def after_loss(self) -> float:
        """The connection was lost; perhaps everybody's at once."""
        spread_s = max(LEAST_SPREAD_S, min(LONGEST_SPREAD_S, self.n_devices / CONNECTS_PER_S))
        self._ceiling_s = min(self._longest_s, self._shortest_s + spread_s)
        if self.n_devices / CONNECTS_PER_S > self._longest_s:
            self._ceiling_s = spread_s
        return random.uniform(self._shortest_s, max(self._shortest_s, self._ceiling_s))

    def after_failure(self) -> float:
        """The broker could not be reached: at first soon, then up to twice as late each time."""
        wait_s = random.uniform(self._shortest_s, max(self._shortest_s, self._ceiling_s))
        self._ceiling_s = min(
            max(self._longest_s, self._ceiling_s), 2 * max(self._ceiling_s, self._shortest_s)
        )
        return wait_s

    def hold_off(self) -> float:
        """Another device uses this name: give way to it for a while."""
        return random.uniform(HOLD_OFF_S, 2 * HOLD_OFF_S)
