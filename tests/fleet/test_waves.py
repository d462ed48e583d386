"""Who belongs to which wave, and when a rollout must end: pure functions."""

from __future__ import annotations

import pytest
from edge_cl_fleet.waves import Compared, Wave, check_steps, deal, reason_to_abort
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.errors import ConfigError


def of(silent: int = 0, **states: int) -> Wave:
    return Wave(states={name.replace("_", "-"): n for name, n in states.items()}, n_silent=silent)


def why(*waves: Wave, share: float = 0.1, after: int = 0, compared: Compared = Compared()) -> str:  # noqa: B008
    return reason_to_abort(waves, compared, abort_share=share, abort_after=after)


@settings(max_examples=60)
@given(st.integers(1, 300), st.lists(st.floats(0.001, 0.999), max_size=5, unique=True), st.text(max_size=3))
def test_every_device_is_in_one_wave_and_every_wave_has_one(n: int, shares: list[float], name: str) -> None:
    steps = [*sorted(shares), 1.0]
    devices = [f"home/d{i}" for i in range(n)]
    waves = deal(name, devices, steps)
    assert sorted(device for wave in waves for device in wave) == sorted(devices)
    assert all(waves) and len(waves) == min(n, len(steps))
    assert waves == deal(name, devices[::-1], steps), "whatever the order in which they are listed"
    dealt = 0
    for number, (step, wave) in enumerate(zip(steps, waves, strict=False), start=1):
        dealt += len(wave)
        assert dealt <= step * n + number, "no more are tried on than was said"


def test_another_rollout_begins_with_other_devices() -> None:
    devices = [f"home/d{i}" for i in range(100)]
    assert len({deal(f"rollout {i}", devices, [0.01, 1.0])[0][0] for i in range(20)}) > 5


@pytest.mark.parametrize("steps", [[], [0.5], [0.5, 0.2, 1.0], [0.0, 1.0], [0.5, 0.5, 1.0], [0.5, 1.5]])
def test_steps_that_mean_nothing_are_refused(steps: list[float]) -> None:
    with pytest.raises(ConfigError, match="rising shares"):
        check_steps(steps)


def test_a_wave_is_judged_when_enough_of_it_is_settled() -> None:
    assert "1 of 1" in why(of(failed=1))
    assert not why(of(failed=1, sent=4)), "too early to say"
    assert not why(of(failed=1, committed=18, sent=80)), "19 of 20"
    assert "2 of 20 devices of wave 1" in why(of(failed=1, rolled_back=1, committed=18, sent=80))
    assert not why(of(failed=1, committed=19, sent=80)), "5 %"
    assert "3 of 30" in why(of(failed=3, committed=27, sent=70), after=30)
    assert not why(of(failed=3, committed=26, sent=71), after=30)


def test_a_bad_wave_is_not_hidden_by_good_ones_before_it() -> None:
    assert "wave 2" in why(of(committed=500), of(failed=5, committed=15, sent=80))


def test_silent_devices_are_no_failures_but_no_proof_either() -> None:
    assert not why(of(sent=3, committed=1, silent=3))
    assert "1 of 2" in why(of(sent=8, committed=1, failed=1, silent=8)), "settled: nothing more will come"
    assert "none of the 4 devices" in why(of(sent=4, silent=4))
    assert not why(of(sent=4, silent=3))


def test_accuracy_that_falls_ends_it_before_many_do() -> None:
    lost = Compared(n_devices=20, n_labels=400, accuracy_old=0.9, accuracy_new=0.84)
    assert "fell from 0.90 to 0.84" in why(of(committed=20, sent=80), compared=lost)
    assert not why(of(committed=20, sent=80), compared=Compared(n_devices=19, accuracy_old=1, n_labels=380))
    little = Compared(n_devices=20, n_labels=400, accuracy_old=0.9, accuracy_new=0.85)
    assert not why(of(committed=20, sent=80), compared=little), "exactly five points"
