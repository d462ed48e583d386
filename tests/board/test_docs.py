"""docs/boards.md says what the code does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import edge_cl_device.doctor
from edge_cl_device.board_files import REFERENCE, board_names, load_board

from edge_cl.config import settings_from

REPOSITORY = Path(__file__).parents[2]
PAGE = (REPOSITORY / "docs" / "boards.md").read_text(encoding="utf-8")
MADE = re.compile(r'\b(?:problem|warning|note)\(\s*f?"([a-z0-9{}-]+)"')


def test_every_finding_is_in_the_table() -> None:
    folder = Path(edge_cl_device.doctor.__file__).parent
    made = {name for path in folder.glob("*.py") for name in MADE.findall(path.read_text())}
    assert len(made) > 40
    told = set(re.findall(r"`([a-z0-9-]+)`", PAGE))
    assert {name for name in made if "{" not in name} - told == set()


def test_every_board_is_in_the_table_of_times() -> None:
    for name in board_names():
        if name != REFERENCE:
            ratio = load_board(name).figures["times_slower"].value
            assert re.search(rf"^\|.*\| {ratio:g} \|$", PAGE, re.MULTILINE), name


def test_options_of_the_installer_that_the_page_names_exist() -> None:
    usage = (REPOSITORY / "device" / "install.sh").read_text()
    commands = re.findall(r"install\.sh ([^`\n]*)", PAGE)
    named = {option for command in commands for option in re.findall(r"(?<!\w)--[a-z-]+", command)}
    assert len(named) >= 4
    assert {option for option in named if f"  {option} " not in usage} == set()


def test_the_example_settings_are_valid_and_so_is_what_is_commented_out() -> None:
    text = (REPOSITORY / "device" / "config" / "config.toml").read_text()
    settings = settings_from(tomllib.loads(text))
    assert settings.sensor.name == "" and settings.mqtt.url == ""
    lines = [re.sub(r"^# (?=[\[a-z_]+(\]| = ))", "", line) for line in text.splitlines()]
    whole = settings_from(tomllib.loads("\n".join(lines)))
    assert whole.sensor.name == "mpu6050" and whole.labels[0].options == {"confirm": 17}
    assert whole.mqtt.url == "mqtts://broker.example"
