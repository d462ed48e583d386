"""What may hang around a device, and is then told to systemd by silence."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_cl.bundle import Bundle
from edge_cl.cli.around import STUCK_S, attach
from edge_cl.config import settings_from
from edge_cl.device import Device
from edge_cl.sensing.live import LiveStream
from edge_cl.upgrade.slots import Slots
from tests.mosquitto import Broker, wait_until
from tests.worlds import make_bundle


class Hanging:
    """A driver whose bus never answers, until the test is over."""

    full_scale = None
    rate_hz = 0.0

    def __init__(self, over: threading.Event) -> None:
        self._over = over

    def read(self) -> list[object]:
        self._over.wait()
        return []

    def close(self) -> None: ...


@pytest.fixture
def over() -> Iterator[threading.Event]:
    event = threading.Event()
    yield event
    event.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is ended on purpose
def test_a_driver_that_hangs_and_an_mqtt_thread_that_ended_are_named(
    broker: Broker, tmp_path: Path, over: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_bundle(tmp_path / "b.ecl")
    settings = settings_from({"mqtt": {"url": broker.url}})
    with contextlib.ExitStack() as stack:
        slots = stack.enter_context(Slots(tmp_path / "state"))
        place = slots.active(tmp_path / "b.ecl")
        bundle = Bundle.load(place.bundle)
        stream = LiveStream(lambda: Hanging(over), bundle.manifest)  # type: ignore[arg-type,return-value]
        stack.callback(stream.close)
        stack.callback(over.set)
        device = stack.enter_context(Device(slots, bundle, place, settings))
        around = attach(stack, settings, tmp_path / "state", device, stream)
        assert next(iter(stream)) is None
        assert [check() for check in around.checks] == ["", ""]
        wait_until(lambda: stream.stuck_s() > 0, "the driver is being read")
        now_s = stream.stuck_s()
        monkeypatch.setattr(LiveStream, "stuck_s", lambda self: now_s + STUCK_S)
        (link,) = (source for source in around.sources if type(source).__name__ == "MqttLink")
        link._pump.put(sys.exit)  # type: ignore[attr-defined]
        wait_until(lambda: not link.is_alive, "its thread ends")  # type: ignore[attr-defined]
        assert [check() for check in around.checks] == [
            f"the sensor's driver has not come back for {STUCK_S:.0f} s",
            "the thread that serves MQTT has ended",
        ]
