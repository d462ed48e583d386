"""docs/sensors.md: its examples are right, and it names every option."""

import importlib
import re
import tomllib
from pathlib import Path

import msgspec
import numpy as np
import pytest
from edge_cl_device.frames import encode_frame

from edge_cl.config import settings_from
from edge_cl.records import Reading
from edge_cl.sensing.drivers import LABEL_SOURCES, SENSORS, read_options
from edge_cl.sensing.live import LiveStream, Waits
from edge_cl.sensing.opening import FileOptions
from tests.device.registered import ROOT, entry_points
from tests.mosquitto import wait_until
from tests.sensing.sensors import manifest_of

PAGE = (ROOT / "docs" / "sensors.md").read_text()
EXAMPLES = [text for text in re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL) if "[project" not in text]


def options_of(group, name):
    """The driver's own record of options: the one that its module defines."""
    if name == "file":
        return FileOptions
    module = importlib.import_module(entry_points()[group][name].partition(":")[0])
    own = [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, msgspec.Struct)
        and kind.__module__ == module.__name__
        and kind.__name__.endswith("Options")
    ]
    assert len(own) == 1
    return own[0]


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_are_settings_with_known_options(text):
    settings = settings_from(tomllib.loads(text))
    named = [(SENSORS, settings.sensor)] if settings.sensor.name else []
    named += [(LABEL_SOURCES, labels) for labels in settings.labels]
    assert named
    for group, driver in named:
        read_options(driver.name, driver.options, options_of(group, driver.name))


@pytest.mark.parametrize(
    ("group", "name"), [(group, name) for group, named in entry_points().items() for name in named]
)
def test_every_driver_and_every_option_is_on_the_page(group, name):
    assert f"| `{name}` |" in PAGE
    for field in msgspec.structs.fields(options_of(group, name)):
        assert re.search(rf"\b{field.encode_name}\b", PAGE), f"{name}'s option {field.encode_name}"


def test_the_frame_on_the_page_is_one():
    assert encode_frame(7, np.array([[1, -1]], "<i2")).hex(" ") in PAGE


def test_the_driver_on_the_page_works(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(code.splitlines()) <= 36
    space = {"__name__": "my_package"}
    exec(compile(code, "docs/sensors.md", "exec"), space)
    path = tmp_path / "temp"
    manifest = manifest_of(1, rate_hz=100.0, window_samples=2, hop_samples=1)
    options = {"path": str(path)}
    live = LiveStream(lambda: space["Thermometer"](manifest, options), manifest, waits=Waits(0.0, 0.01))
    events = iter(live)
    wait_until(lambda: [next(events)] and "there is no" in live.alarm, "it is not there yet")
    write(path, "48312\n")
    found = []
    wait_until(lambda: [found.append(e) for e in [next(events)] if isinstance(e, Reading)], "a reading")
    assert found[0].window[0, 0] == pytest.approx(48.312)
    write(path, "hot\n")
    wait_until(lambda: [next(events)] and live.n_bad, "what cannot be used is counted")
    path.unlink()
    wait_until(lambda: [next(events)] and live.n_unplugged == 1, "it is gone")
    live.close()


def write(path: Path, text: str) -> None:
    """At once, as a file of the kernel's is."""
    part = path.with_suffix(".part")
    part.write_text(text)
    part.replace(path)
