"""From settings to streams and sources of labels."""

import importlib
from types import SimpleNamespace

import pytest

from edge_cl.config import DriverSettings, load_settings
from edge_cl.errors import ConfigError, SensorUnavailable
from edge_cl.records import Decision, Label
from edge_cl.sensing import opening
from edge_cl.sensing.drivers import LABEL_SOURCES, SENSORS, find_driver
from edge_cl.sensing.live import LiveStream
from edge_cl.sensing.opening import LabelSources, open_sensor
from edge_cl.sensing.stream import FileStream, PipeStream
from tests.device.registered import entry_points, install
from tests.sensing.sensors import manifest_of


@pytest.fixture(autouse=True)
def installed(tmp_path, monkeypatch):
    install(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


def named(name, **options):
    return DriverSettings(name=name, options=options)


@pytest.mark.parametrize("group", [SENSORS, LABEL_SOURCES])
def test_every_entry_point_names_a_class_that_loads_without_its_hardware(group):
    for name, value in entry_points()[group].items():
        module, _, attribute = value.partition(":")
        assert getattr(importlib.import_module(module), attribute) is find_driver(group, name)


def test_built_in_sensors(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"t": 0, "x": [1, 2]}\n')
    assert type(open_sensor(DriverSettings(), manifest_of())) is PipeStream
    assert type(open_sensor(named("stdin"), manifest_of())) is PipeStream
    stream = open_sensor(named("file", path=str(tmp_path / "a.jsonl"), realtime=True), manifest_of())
    assert type(stream) is FileStream and list(stream) == []
    assert (stream.alarm, stream.stuck_s(), stream.n_bad, stream.waiting()) == ("", 0.0, 0, False)


def test_an_installed_sensor_is_live():
    stream = open_sensor(named("mpu6050"), manifest_of())
    assert type(stream) is LiveStream and stream.alarm == ""
    stream.close()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            named("mpu6500"),
            "no sensor 'mpu6500' is installed; did you mean mpu6050.; installed: alsa",
        ),
        (named("stdin", path="x"), "sensor stdin: unknown option path"),
        (named("file"), "sensor file: the option path is missing"),
        (named("file", path=3), "sensor file: option path is 3; allowed: str"),
    ],
)
def test_what_cannot_be_opened_is_explained(settings, said):
    with pytest.raises(ConfigError, match=said):
        open_sensor(settings, manifest_of())


def test_wrong_options_end_the_stream_not_only_its_thread():
    stream = open_sensor(named("mpu6050", adress=0x69), manifest_of())
    with pytest.raises(ConfigError, match="sensor mpu6050: unknown option adress; did you mean address"):
        list(stream)
    stream.close()


def test_a_broken_installation_is_named(monkeypatch, tmp_path):
    (tmp_path / "more").mkdir()
    install(tmp_path / "more", broken="no_such_package.at_all:Thing")
    monkeypatch.syspath_prepend(tmp_path / "more")
    with pytest.raises(ConfigError, match=r"broken cannot be loaded .*no_such_package.*again"):
        open_sensor(named("broken"), manifest_of())


class Pad:
    """A source of labels that a test plays."""

    there = True

    def __init__(self, options):
        if not Pad.there:
            raise SensorUnavailable("it is not plugged in")
        self.alarm, self.heard, self.closed, self.given = options.get("alarm", ""), [], False, []
        Pad.last = self

    def poll(self):
        given, self.given = self.given, []
        return given

    def hear(self, answer):
        self.heard.append(answer)

    def close(self):
        self.closed = True


def test_sources_of_labels_are_one(monkeypatch, caplog):
    clock = SimpleNamespace(now_s=0.0)
    monkeypatch.setattr(opening, "find_driver", lambda group, name: Pad)
    monkeypatch.setattr(Pad, "there", False)
    sources = LabelSources([named("pad", alarm="low battery")], clock=lambda: clock.now_s)
    for _ in range(100):
        assert sources.poll() == []
    assert sources.alarm == "no labels by pad: it is not plugged in" and len(caplog.records) == 1
    monkeypatch.setattr(Pad, "there", True)
    assert sources.poll() == [] and sources.alarm.startswith("no labels"), "not asked for again at once"
    clock.now_s = opening.AGAIN_S
    sources.poll()
    decision, label = Decision(reading_id="r1", t_s=0.0, label="a", confidence=1.0), Label(label="a")
    sources.hear(decision)
    Pad.last.given = [label]
    assert (sources.poll(), sources.alarm, Pad.last.heard) == ([label], "low battery", [decision])
    sources.close()
    assert Pad.last.closed


def test_a_wrong_source_closes_those_before_it(monkeypatch):
    def find(group, name):
        def refuse(options):
            raise ConfigError("wrong")

        return Pad if name == "pad" else refuse

    monkeypatch.setattr(opening, "find_driver", find)
    with pytest.raises(ConfigError, match="wrong"):
        LabelSources([named("pad"), named("other")])
    assert Pad.last.closed
    with pytest.raises(ConfigError, match=r"the 1\. source has no name"):
        LabelSources([DriverSettings()])


def test_unknown_sources_are_told_what_is_there():
    with pytest.raises(ConfigError, match=r"no label source 'buton' is installed; did you mean button\?"):
        LabelSources([named("buton")])


def test_settings_of_a_wrong_shape(tmp_path):
    path = tmp_path / "config.toml"
    for text, said in [
        ("[sensor]\nnaem = 'x'", "unknown key sensor.naem; did you mean sensor.name"),
        ("[labels]\nname = 'x'", "labels"),
    ]:
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            load_settings(path)
