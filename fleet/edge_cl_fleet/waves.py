"""Which device belongs to which wave of a rollout, and when one is to be aborted. Pure."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import msgspec

from edge_cl.errors import ConfigError

MOST_BEFORE_JUDGED = 20
"""So many settled devices of a wave say enough of it, unless a person wants more."""
ENOUGH_TRUSTED = 20
"""Trusted labels from which on a device's comparison of old and new counts."""
MOST_LOST = 0.05
"""Accuracy that the mean device may lose."""
BAD = ("failed", "rolled-back")
UNDER_WAY = ("sent", "fetched", "shadow")


class Wave(msgspec.Struct, frozen=True, kw_only=True):
    """The devices of one wave: how many are in which state; `n_silent` of those under way said nothing of
    it for too long.
    """

    states: dict[str, int]
    n_silent: int = 0

    @property
    def n(self) -> int:
        """All of them."""
        return sum(self.states.values())

    @property
    def n_committed(self) -> int:
        """Run it now."""
        return self.states.get("committed", 0)

    @property
    def n_bad(self) -> int:
        """Did not take it, or went back from it."""
        return sum(self.states.get(state, 0) for state in BAD)

    @property
    def n_judged(self) -> int:
        """Of whom it is known how it went."""
        return self.n_committed + self.n_bad

    @property
    def is_settled(self) -> bool:
        """Whether nothing more is waited for."""
        return self.n_judged + self.n_silent >= self.n


class Compared(msgspec.Struct, frozen=True, kw_only=True):
    """Mean accuracies of old and new over `n_devices` that had `ENOUGH_TRUSTED` labels, `n_labels` in all."""

    n_devices: int = 0
    n_labels: int = 0
    accuracy_old: float = 0.0
    accuracy_new: float = 0.0

    @property
    def gained(self) -> float:
        """By the new one."""
        return self.accuracy_new - self.accuracy_old


def check_steps(steps: Sequence[float]) -> None:
    """Raise ConfigError unless these are rising shares that end with all."""
    rising = all(a < b for a, b in zip([0.0, *steps], steps, strict=False))
    if not steps or not rising or steps[-1] != 1.0:
        found = ", ".join(f"{step:.4g}" for step in steps) or "none"
        raise ConfigError(
            f"the steps are {found}; write rising shares that end with 100%, as in 1%,5%,25%,100%"
        )


def deal(rollout_id: str, devices: Sequence[str], steps: Sequence[float]) -> list[list[str]]:
    """Devices (``site/device``) by wave: the same for the same rollout, another order for each.

    Every wave has a device at least, as long as there are any.

    >>> [len(wave) for wave in deal("a", [f"home/d{i}" for i in range(10)], [0.01, 0.25, 1.0])]
    [1, 2, 7]
    """
    order = sorted(devices, key=lambda name: hashlib.sha256(f"{rollout_id} {name}".encode()).digest())
    dealt: list[list[str]] = []
    first = 0
    for n_after, step in zip(reversed(range(len(steps))), steps, strict=True):
        share = math.ceil(step * len(order) - 1e-9)
        last = max(first + 1, min(share, len(order) - n_after))
        dealt.append(order[first:last])
        first = last
    return [wave for wave in dealt if wave]


def reason_to_abort(
    waves: Sequence[Wave], compared: Compared, *, abort_share: float, abort_after: int
) -> str:
    """Why the rollout whose waves so far these are must not go on, for a person; "" when it may.

    Each wave is judged by itself: a bad one is not hidden by good ones before it.
    """
    for number, wave in enumerate(waves, start=1):
        is_judged = wave.is_settled or wave.n_judged >= (abort_after or min(wave.n, MOST_BEFORE_JUDGED))
        if is_judged and wave.n_bad and wave.n_bad >= abort_share * wave.n_judged:
            return f"{wave.n_bad} of {wave.n_judged} devices of wave {number} failed or went back"
        if wave.is_settled and not wave.n_judged:
            return f"none of the {wave.n} devices of wave {number} said how it went"
    needed = max(1, min(abort_after or MOST_BEFORE_JUDGED, max((wave.n for wave in waves), default=0)))
    if compared.n_devices >= needed and compared.gained < -MOST_LOST - 1e-9:
        return (
            f"accuracy fell from {compared.accuracy_old:.2f} to {compared.accuracy_new:.2f}, the mean of "
            f"{compared.n_devices} devices with at least {ENOUGH_TRUSTED} trusted labels"
        )
    return ""
