"""Buttons on gpiozero's mock pins: short, long, bouncing, many."""

import itertools
import sys
from types import SimpleNamespace

import gpiozero
import pytest
from edge_cl_device.button import Buttons, Contact
from gpiozero.pins.mock import MockFactory
from hypothesis import given
from hypothesis import strategies as st

from edge_cl.errors import ConfigError, SensorUnavailable
from edge_cl.records import Decision


@pytest.fixture
def pins(monkeypatch):
    factory = MockFactory()
    monkeypatch.setattr(gpiozero.Device, "pin_factory", factory)
    yield factory.pin
    factory.reset()


@pytest.fixture
def now(monkeypatch):
    clock = SimpleNamespace(at_s=100.0)
    monkeypatch.setattr("edge_cl_device.button.time", SimpleNamespace(monotonic=lambda: clock.at_s))
    return clock


@pytest.fixture
def buttons(pins, now):
    opened = Buttons({"confirm": 17, "classes": {"walking": 22, "running": 23}})
    yield opened
    opened.close()


def decision(k, label="walking"):
    return Decision(reading_id=f"r{k}", t_s=float(k), label=label, confidence=0.9)


def press(pin, now, held_s):
    pin.drive_low()
    now.at_s += held_s
    pin.drive_high()
    now.at_s += 0.1


def said(labels):
    return [(label.label, label.kind, label.reading_id, label.source) for label in labels]


def test_short_is_right_and_long_is_wrong(buttons, pins, now):
    buttons.hear(decision(7))
    press(pins(17), now, 0.3)
    press(pins(17), now, 0.85)
    press(pins(23), now, 0.2)
    press(pins(22), now, 2.0)
    assert sorted(said(buttons.poll())) == sorted(
        [
            ("walking", "is", "r7", "button"),
            ("walking", "not", "r7", "button"),
            ("running", "is", "r7", "button"),
            ("walking", "not", "r7", "button"),
        ]
    )
    assert buttons.poll() == []


def test_a_label_is_about_what_was_shown_when_the_button_went_down(buttons, pins, now):
    buttons.hear(decision(1))
    pins(17).drive_low()
    buttons.hear(decision(2, "running"))
    assert buttons.poll() == [], "it is not released yet"
    now.at_s += 0.2
    pins(17).drive_high()
    buttons.hear(decision(3, "running"))
    now.at_s += 0.1
    assert said(buttons.poll()) == [("walking", "is", "r1", "button")]


def test_contacts_bounce(buttons, pins, now):
    buttons.hear(decision(1))
    pin = pins(22)
    for held_s, pause_s in [(0.002, 0.003), (0.001, 0.002), (0.4, 0.004), (0.002, 0.1)]:
        pin.drive_low()
        now.at_s += held_s
        pin.drive_high()
        now.at_s += pause_s
    assert said(buttons.poll()) == [("walking", "is", "r1", "button")]
    press(pin, now, 0.005)
    assert buttons.poll() == [], "a spark is no press"


def test_nothing_to_be_about_is_no_label(buttons, pins, now, caplog):
    press(pins(17), now, 0.2)
    buttons.hear(Decision(reading_id="r1", t_s=0.0, label="", confidence=0.0))
    press(pins(17), now, 0.2)
    assert buttons.poll() == [] and "no answer yet" in caplog.text
    press(pins(23), now, 0.2)
    assert said(buttons.poll()) == [("running", "is", "r1", "button")], "a class's own button needs no answer"


def test_a_button_to_three_volts(pins, now):
    opened = Buttons({"confirm": 5, "pull_up": False})
    opened.hear(decision(1))
    pins(5).drive_high()
    now.at_s += 0.2
    pins(5).drive_low()
    now.at_s += 0.1
    assert len(opened.poll()) == 1
    opened.close()


def test_pins_can_be_used_again_after_close(pins):
    for _ in range(4):
        Buttons({"confirm": 17}).close()


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, "no pin is named; set confirm = 17"),
        ({"confirm": 17, "classes": {"a": 17}}, "one pin for each class"),
        ({"classes": {"": 4}}, "each with a name"),
        ({"confirm": "GPIO17"}, "option confirm is 'GPIO17'; allowed: int"),
        ({"classes": {"a": -1}}, "option classes.* allowed: int >= 0"),
        ({"confrim": 17}, "unknown option confrim; did you mean confirm"),
        ({"confirm": 63}, "pin 63 cannot be used"),
    ],
)
def test_wrong_options_are_explained(pins, options, found):
    with pytest.raises(ConfigError, match=found):
        Buttons(options)


def test_no_gpio_and_no_library(monkeypatch):
    def no_factory(*_, **__):
        raise gpiozero.BadPinFactory("unable to load any default pin factory")

    with monkeypatch.context() as patch:
        patch.setattr(gpiozero, "Button", no_factory)
        with pytest.raises(SensorUnavailable, match="apt install python3-lgpio, sudo usermod -aG gpio"):
            Buttons({"confirm": 17})
    monkeypatch.setitem(sys.modules, "gpiozero", None)
    with pytest.raises(ConfigError, match="apt install python3-gpiozero"):
        Buttons({"confirm": 17})


@given(st.lists(st.floats(0.0001, 1.5), max_size=30), st.booleans())
def test_whenever_it_is_asked_the_presses_are_the_same(steps, often):
    contact, asked_often, at_s, found = Contact(0.03), Contact(0.03), 0.0, []
    for step, down in zip(steps, itertools.cycle([True, False]), strict=False):
        at_s += step
        contact.edge(at_s, down=down, about=None)
        asked_often.edge(at_s, down=down, about=None)
        if often:
            found += asked_often.presses(at_s + 0.00005)
    found += asked_often.presses(at_s + 1)
    assert found == contact.presses(at_s + 1)
    assert all(press.held_s >= 0.03 for press in found)
