"""Why to sleep: each cause at its threshold, and the settings that are refused."""

from __future__ import annotations

from typing import Any

import pytest

from edge_cl.config import SleepSettings, settings_from
from edge_cl.errors import ConfigError
from edge_cl.sleep import SleepNeed, sleep_cause

OFF = {"after_labels": 0, "idle_s": 0.0}


@pytest.mark.parametrize(
    ("given", "below", "at"),
    [
        ({"after_labels": 50}, SleepNeed(49, 100), SleepNeed(50, 100)),
        ({"after_labels": 50}, SleepNeed(124, 1000), SleepNeed(125, 1000)),
        ({"idle_s": 3.0}, SleepNeed(40, 100, idle_s=2.9), SleepNeed(40, 100, idle_s=3.0)),
        ({"memory_turnover": 0.25}, SleepNeed(40, 100, memory_turnover=0.2), SleepNeed(40, 100, 0.0, 0.25)),
        (
            {"drift_points": 5.0},
            SleepNeed(40, 100, accuracy_now=0.86, accuracy_best=0.9),
            SleepNeed(40, 100, accuracy_now=0.84, accuracy_best=0.9),
        ),
    ],
)
def test_a_cause_holds_from_its_threshold(given: dict[str, Any], below: SleepNeed, at: SleepNeed) -> None:
    settings = SleepSettings(**{**OFF, **given})
    assert sleep_cause(settings, below) == ""
    assert sleep_cause(settings, at)
    assert sleep_cause(SleepSettings(**OFF), at) == "", "a cause that is turned off"


def test_no_cause_makes_a_device_sleep_twice_on_the_same_labels() -> None:
    settings = SleepSettings(after_labels=1, idle_s=0.1, min_labels=0, memory_turnover=0.1, drift_points=1.0)
    assert sleep_cause(settings, SleepNeed(0, 0, 1e9, 1.0, 0.0, 1.0)) == ""


def test_drift_is_not_claimed_from_too_few_labels() -> None:
    settings = SleepSettings(**OFF, drift_points=1.0)
    assert sleep_cause(settings, SleepNeed(40, 100, accuracy_now=None, accuracy_best=0.9)) == ""


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("memory_turnover", 1.5, "sleep.memory_turnover is 1.5; allowed: a share, 0 to 1"),
        ("drift_points", -1.0, "sleep.drift_points is -1.0; allowed: 0 to 100"),
        ("night", "22-6", "sleep.night is '22-6'; allowed: two different times"),
        ("night", "22:00-22:00", "allowed: two different times"),
        ("night", "24:00-06:00", "allowed: two different times"),
        ("max_celsius", 4.0, r"sleep.max_celsius is 4.0; allowed: 0 for any, or above 20"),
        ("max_celsius", float("nan"), "sleep.max_celsius"),
        ("hysteresis_celsius", -1.0, "sleep.hysteresis_celsius is -1.0; allowed: 0 or more"),
        ("steps", 0, "sleep.steps is 0; allowed: above 0"),
        ("cpu_s", -1.0, "sleep.cpu_s is -1.0; allowed: 0 or more"),
        ("sampler", "loud", "sleep.sampler is 'loud'; allowed: balanced, recent, hard-first"),
        ("class_margin", 2.0, "sleep.class_margin is 2.0; allowed: a share, 0 to 1"),
    ],
)
def test_a_setting_out_of_bounds_is_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_from({"sleep": {key: value}})


def test_a_full_table_is_accepted() -> None:
    table = {"night": "22:00-06:00", "on_mains": True, "max_celsius": 70.0, "sampler": "spaced", "cpu_s": 3.0}
    assert settings_from({"sleep": table}).sleep == SleepSettings(**table)  # type: ignore[arg-type]
