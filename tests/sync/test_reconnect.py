"""Waits between attempts: at random, so that a fleet does not come back at once."""

from __future__ import annotations

from collections import Counter

from edge_cl.sync.reconnect import HOLD_OFF_S, Backoff


def test_one_device_is_back_within_seconds() -> None:
    waits = [Backoff().after_loss() for _ in range(200)]
    assert min(waits) >= 0.5 and max(waits) <= 4.5


def test_a_thousand_devices_spread_over_enough_seconds() -> None:
    waits = []
    for _ in range(1000):
        backoff = Backoff()
        backoff.n_devices = 1000
        waits.append(backoff.after_loss())
    peak = max(Counter(int(wait) for wait in waits).values())
    assert max(waits) <= 300 and peak <= 50


def test_failures_are_spread_wider_up_to_the_longest() -> None:
    backoff = Backoff(1.0, 60.0)
    backoff.after_loss()
    waits = [backoff.after_failure() for _ in range(200)]
    assert max(waits[:2]) <= 10.0 and max(waits) <= 60.0 and max(waits[10:]) > 40.0


def test_a_second_board_of_the_same_name_is_given_way_to_for_a_minute() -> None:
    assert all(HOLD_OFF_S <= Backoff().hold_off() <= 2 * HOLD_OFF_S for _ in range(50))
