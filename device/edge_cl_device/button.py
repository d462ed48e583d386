"""Push buttons on GPIO pins that give labels.

``confirm``: a short press says that the answer is right, a long one that it is wrong. One pin of ``classes``
for each class: a short press says that it is this class, a long one that it is not. A label is about the
reading that was answered last when the button went down.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from functools import partial
from typing import Annotated, Any, NamedTuple, TypeAlias

import msgspec
from msgspec import Meta

from edge_cl.errors import ConfigError, SensorUnavailable
from edge_cl.records import Answer, Decision, Label
from edge_cl.sensing.drivers import read_options
from edge_cl_device.permission import join

SOURCE = "button"
Pin: TypeAlias = Annotated[int, Meta(ge=0, le=63)]
_log = logging.getLogger(__name__)


class ButtonOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Pins by their BCM numbers.

    Attributes
    ----------
    pull_up
        The button connects its pin to ground; false: to 3.3 V.
    long_s, debounce_s
        From when on a press is long; what is shorter than the other is no press, and no release.
    """

    confirm: Pin | None = None
    classes: dict[str, Pin] = {}
    pull_up: bool = True
    long_s: Annotated[float, Meta(gt=0, le=10)] = 0.8
    debounce_s: Annotated[float, Meta(ge=0, le=0.5)] = 0.03


class Press(NamedTuple):
    """How long a button was down, and the answer that was shown when it went down."""

    held_s: float
    about: Decision | None


class Contact:
    """Presses of one button from the edges of its pin, without those that its contacts bounced."""

    def __init__(self, debounce_s: float) -> None:
        self._debounce_s = debounce_s
        self._down_s: float | None = None
        self._up_s: float | None = None
        self._about: Decision | None = None
        self._presses: list[Press] = []

    def edge(self, at_s: float, *, down: bool, about: Decision | None) -> None:
        """The pin changed at `at_s`."""
        self._settle(at_s)
        if not down:
            self._up_s = at_s if self._down_s is not None else None
        elif self._down_s is None:
            self._down_s, self._about = at_s, about
        else:
            self._up_s = None  # it bounced: still the same press

    def presses(self, now_s: float) -> list[Press]:
        """Those that have ended since the last call."""
        self._settle(now_s)
        found, self._presses = self._presses, []
        return found

    def _settle(self, now_s: float) -> None:
        if self._down_s is None or self._up_s is None or now_s - self._up_s < self._debounce_s:
            return
        held_s = self._up_s - self._down_s
        if held_s >= self._debounce_s:
            self._presses.append(Press(held_s, self._about))
        self._down_s = self._up_s = None


class _Edge(NamedTuple):
    pin: int
    at_s: float
    down: bool
    about: Decision | None


class Buttons:
    """A `LabelDriver`; the library's thread only notes edges, all else is done in `poll`."""

    alarm = ""

    def __init__(self, options: dict[str, Any]) -> None:
        asked = read_options("labels button", options, ButtonOptions)
        self._long_s = asked.long_s
        self._names = _by_pin(asked)
        self._contacts = {pin: Contact(asked.debounce_s) for pin in self._names}
        self._edges: deque[_Edge] = deque(maxlen=1_000)
        self._shown: Decision | None = None
        self._buttons: list[Any] = []
        try:
            self._open(asked.pull_up)
        except BaseException:
            self.close()
            raise

    def hear(self, answer: Answer) -> None:
        """Remember what is shown."""
        if isinstance(answer, Decision):
            self._shown = answer

    def poll(self) -> list[Label]:
        """The labels of presses that have ended."""
        while self._edges:
            edge = self._edges.popleft()
            self._contacts[edge.pin].edge(edge.at_s, down=edge.down, about=edge.about)
        now_s = time.monotonic()
        found = []
        for pin, contact in self._contacts.items():
            for press in contact.presses(now_s):
                found += self._label(self._names[pin], press)
        return found

    def close(self) -> None:
        """Let go of the pins."""
        for button in self._buttons:
            button.close()
        self._buttons = []

    def _label(self, name: str, press: Press) -> list[Label]:
        about = press.about
        label = name or (about.label if about is not None else "")
        if about is None or not label:
            _log.warning("a button was pressed, but there was no answer yet that it could be about")
            return []
        is_long = press.held_s >= self._long_s
        return [
            Label(label=label, kind="not" if is_long else "is", reading_id=about.reading_id, source=SOURCE)
        ]

    def _note(self, pin: int, down: bool) -> None:
        self._edges.append(_Edge(pin, time.monotonic(), down, self._shown))

    def _open(self, pull_up: bool) -> None:
        try:
            import gpiozero
        except ImportError as error:
            raise ConfigError(
                "labels button needs gpiozero: sudo apt install python3-gpiozero python3-lgpio (and a venv "
                "with --system-site-packages), or pip install 'edge-cl[gpio]' lgpio"
            ) from error
        for pin in self._names:
            try:
                button = gpiozero.Button(pin, pull_up=pull_up)
            except gpiozero.BadPinFactory as error:
                raise SensorUnavailable(
                    f"GPIO cannot be used ({error}): sudo apt install python3-lgpio, {join('gpio')}"
                ) from error
            except gpiozero.GPIOZeroError as error:
                raise ConfigError(f"labels button: pin {pin} cannot be used: {error}") from error
            self._buttons.append(button)
            button.when_pressed = partial(self._note, pin, True)
            button.when_released = partial(self._note, pin, False)


def _by_pin(asked: ButtonOptions) -> dict[int, str]:
    """Class names by pin; "" for the one that confirms."""
    pins = [(pin, name) for name, pin in asked.classes.items()]
    pins += [] if asked.confirm is None else [(asked.confirm, "")]
    if not pins:
        raise ConfigError("labels button: no pin is named; set confirm = 17, or classes = { walking = 22 }")
    if "" in asked.classes or len(dict(pins)) != len(pins):
        raise ConfigError(
            f"labels button: pins are {pins}; allowed: one pin for each class, each with a name"
        )
    return dict(pins)
