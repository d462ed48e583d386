"""Whether to sleep now: trees of files as real boards give them, clocks that jump."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.config import SleepSettings
from edge_cl.sleep import Surroundings, may_sleep

NOON = datetime(2026, 5, 1, 12, 0)


def tree(root: Path, zones: dict[str, str] | None = None, **supplies: dict[str, str]) -> Path:
    """A folder with sys/class as a kernel gives it: zones {type: temp}, supplies {name: {file: text}}."""
    for i, (kind, temp) in enumerate((zones or {}).items()):
        folder = root / f"sys/class/thermal/thermal_zone{i}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "type").write_text(f"{kind}\n")
        (folder / "temp").write_text(f"{temp}\n")
    for name, files in supplies.items():
        folder = root / "sys/class/power_supply" / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(f"{text}\n")
    return root


def looked(root: Path) -> Surroundings:
    surroundings = Surroundings(root)
    surroundings.look(NOON)
    return surroundings


def test_a_pi_4_tells_its_temperature_and_nothing_of_power(tmp_path: Path) -> None:
    pi = looked(tree(tmp_path, {"cpu-thermal": "48686"}))
    assert (pi.celsius, pi.on_mains) == (48.686, None)
    settings = SleepSettings(on_mains=True, max_celsius=70.0)
    assert may_sleep(settings, pi, NOON) == ""
    assert pi.unknown(settings) == "power supply unknown"


def test_a_jetson_on_its_barrel_jack_is_not_on_battery(tmp_path: Path) -> None:
    zones = {"CPU-therm": "41500", "PMIC-Die": "100000", "GPU-therm": "40000", "CV0-therm": "-256000"}
    usb = {"type": "USB", "online": "0", "scope": "System"}
    jetson = looked(tree(tmp_path, zones, **{"ucsi-source-psy-1-0008": usb}))
    assert (jetson.celsius, jetson.on_mains) == (41.5, None)


@pytest.mark.parametrize(
    ("status", "online", "expected"),
    [
        ("Discharging", "0", False),
        ("Discharging", "1", True),  # under load a laptop takes from both
        ("Charging", "1", True),
        ("Full", "1", True),
        ("Not charging", "0", True),
        ("Unknown", "0", None),
    ],
)
def test_a_laptop(tmp_path: Path, status: str, online: str, expected: bool | None) -> None:
    laptop = looked(
        tree(
            tmp_path,
            {"acpitz": "27800", "x86_pkg_temp": "61000", "iwlwifi_1": ""},
            AC={"type": "Mains", "online": online},
            BAT0={"type": "Battery", "status": status},
            hidpp={"type": "Battery", "status": "Discharging", "scope": "Device"},  # a mouse
        )
    )
    assert (laptop.celsius, laptop.on_mains) == (61.0, expected)
    reason = may_sleep(SleepSettings(on_mains=True), laptop, NOON)
    assert reason == ("on battery, waiting for mains power" if expected is False else "")
    assert may_sleep(SleepSettings(), laptop, NOON) == ""


def test_a_board_that_tells_nothing_sleeps_and_says_what_is_unknown(tmp_path: Path) -> None:
    surroundings = looked(tmp_path)
    settings = SleepSettings(on_mains=True, max_celsius=60.0)
    assert may_sleep(settings, surroundings, NOON) == ""
    assert surroundings.unknown(settings) == "power supply unknown, temperature unknown"
    assert surroundings.unknown(SleepSettings()) == ""


def test_heat_pauses_a_sleep_until_it_is_cooler_by_the_hysteresis(tmp_path: Path) -> None:
    surroundings, settings = Surroundings(tmp_path), SleepSettings(max_celsius=75.0, hysteresis_celsius=5.0)
    now, answers = NOON, []
    for millidegrees in (74_900, 75_000, 82_000, 74_000, 70_000, 69_900, 74_000):
        tree(tmp_path, {"cpu-thermal": str(millidegrees)})
        now += timedelta(seconds=1)
        answers.append(may_sleep(settings, surroundings, now, asleep=True))
    assert answers == [
        "",
        "75 °C, waiting for 70 °C",
        "82 °C, waiting for 70 °C",
        "74 °C, waiting for 70 °C",
        "70 °C, waiting for 70 °C",
        "",
        "",
    ]


def test_a_sensor_that_goes_away_while_hot_does_not_block_for_ever(tmp_path: Path) -> None:
    surroundings, settings = Surroundings(tree(tmp_path, {"cpu": "90000"})), SleepSettings(max_celsius=75.0)
    assert may_sleep(settings, surroundings, NOON)
    tree(tmp_path, {"cpu": ""})
    assert may_sleep(settings, surroundings, NOON) != "", "files are read once a second at most"
    assert may_sleep(settings, surroundings, NOON - timedelta(days=9)) == "", (
        "also when the clock is set back"
    )
    assert surroundings.unknown(settings) == "temperature unknown"


@pytest.mark.parametrize("kernel", ["of a Pi 4", "of a Pi 5", "with hwmon only"])
def test_a_pi_on_a_weak_supply_does_not_sleep(tmp_path: Path, kernel: str) -> None:
    surroundings, settings, now, answers = Surroundings(tmp_path), SleepSettings(), NOON, []
    soc = "soc@107c000000" if kernel == "of a Pi 5" else "soc"
    throttled = tmp_path / f"sys/devices/platform/{soc}/{soc}:firmware/get_throttled"
    hwmon = tmp_path / "sys/class/hwmon/hwmon1"
    for folder in (throttled.parent, hwmon):
        folder.mkdir(parents=True)
    (hwmon / "name").write_text("rpi_volt\n")
    for bits in (0x50005, 0x50000, 0x4):  # now; was, since it started; capped by heat
        if kernel != "with hwmon only":
            throttled.write_text(f"{bits:x}\n")
        else:
            (hwmon / "in0_lcrit_alarm").write_text(f"{bits & 1}\n")
        now += timedelta(seconds=1)
        answers.append((may_sleep(settings, surroundings, now, asleep=True), surroundings.power))
    assert answers == [
        ("under-voltage, waiting for a stronger power supply", "under-voltage"),
        ("", ""),
        ("", ""),
    ]
    assert may_sleep(settings, looked(tmp_path / "elsewhere"), NOON) == ""


@pytest.mark.parametrize(
    ("night", "time", "inside"),
    [
        ("22:00-06:00", (22, 0), True),
        ("22:00-06:00", (0, 0), True),
        ("22:00-06:00", (5, 59), True),
        ("22:00-06:00", (6, 0), False),
        ("22:00-06:00", (21, 59), False),
        ("01:30-04:00", (1, 29), False),
        ("01:30-04:00", (3, 59), True),
        ("01:30-04:00", (4, 0), False),
        ("", (12, 0), True),
    ],
)
def test_the_night_window(tmp_path: Path, night: str, time: tuple[int, int], inside: bool) -> None:
    reason = may_sleep(
        SleepSettings(night=night), Surroundings(tmp_path), NOON.replace(hour=time[0], minute=time[1])
    )
    assert reason == ("" if inside else f"waiting for the night window {night}")


def test_a_clock_that_was_never_set_is_not_night(tmp_path: Path) -> None:
    surroundings, settings = Surroundings(tmp_path), SleepSettings(night="22:00-06:00")
    assert "the clock shows 1970 and was never set" in may_sleep(
        settings, surroundings, datetime(1970, 1, 1, 1)
    )
    assert may_sleep(SleepSettings(), surroundings, datetime(1970, 1, 1, 1)) == ""
    assert may_sleep(settings, surroundings, datetime(2026, 5, 1, 1)) == "", "set at last"


@given(clock=st.lists(st.datetimes(datetime(1970, 1, 1), datetime(2100, 1, 1)), min_size=1, max_size=8))
def test_a_clock_may_jump_as_it_likes(clock: list[datetime]) -> None:
    """What was shown before changes no answer, so a jump can neither block for ever nor start a second sleep
    (for that every cause needs new labels); a sleep that has begun goes on whatever the clock shows."""
    settings = SleepSettings(night="22:00-06:00", on_mains=True, max_celsius=60.0)
    jumped = Surroundings(Path("/nowhere"))
    answers = [may_sleep(settings, jumped, now) for now in clock]
    assert answers == [may_sleep(settings, Surroundings(Path("/nowhere")), now) for now in clock]
    assert all(may_sleep(settings, jumped, now, asleep=True) == "" for now in clock)
