"""``edge-cl run --mqtt`` with a real Mosquitto that comes and goes."""

import threading
from collections.abc import Iterator

import msgspec
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_cl.sync import messages
from edge_cl.sync.broker import parse_url
from edge_cl.sync.outbox import Outbox
from tests.devices import Device, edge_cl, windows
from tests.mosquitto import Broker, wait_until
from tests.worlds import make_bundle

ROOT = "edgecl/1/home/pi"
pytestmark = pytest.mark.broker


class Fleet:
    """Somebody who reads everything that the device says over MQTT."""

    def __init__(self, url: str, name: str = "fleet") -> None:
        self.heard: list[tuple[str, bytes, bool]] = []
        subscribed = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
        self.client.on_connect = lambda c, *_: c.subscribe(f"{ROOT}/#", qos=1)
        self.client.on_subscribe = lambda *_: subscribed.set()
        self.client.on_message = lambda _c, _u, m: self.heard.append(
            (m.topic.removeprefix(f"{ROOT}/"), m.payload, m.retain)
        )
        self.client.reconnect_delay_set(0.05, 0.1)  # type: ignore[arg-type]
        broker = parse_url(url)
        self.client.connect(broker.host, broker.port)
        self.client.loop_start()
        assert subscribed.wait(10)

    def of(self, kind: messages.Kind) -> list:
        return [messages.decode(kind, body) for topic, body, _ in list(self.heard) if topic == kind]

    def receipts(self) -> set[str]:
        return {message.data.reading_id for message in self.of("receipt")}

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def fleet(broker: Broker) -> Iterator[Fleet]:
    fleet = Fleet(broker.url)
    yield fleet
    fleet.close()


@pytest.fixture
def bundle(tmp_path):
    make_bundle(tmp_path / "b.ecl")
    return tmp_path / "b.ecl"


def test_birth_state_and_a_label_from_afar(tmp_path, bundle, broker, fleet):
    with Device(bundle, tmp_path / "s", "--mqtt", broker.url, "--device", "pi") as device:
        device.send(*windows(3))
        device.wait_for("decision", reading_id="r2")
        wait_until(lambda: fleet.of("status") and fleet.of("state"), "birth and state arrive")
        latecomer = Fleet(broker.url, "latecomer")
        wait_until(lambda: latecomer.of("status") and latecomer.of("state"), "both are retained")
        latecomer.close()
        first = {topic: retained for topic, _, retained in reversed(latecomer.heard)}
        assert first["status"] and first["state"]
        assert latecomer.of("status")[0].online and latecomer.of("state")[0].status.bundle_name == "test"

        label = {"label": "jump", "reading_id": "r1", "source": "fleet"}
        fleet.client.publish(f"{ROOT}/cmd/label", msgspec.json.encode(label), qos=1).wait_for_publish(10)
        printed = device.wait_for("receipt", reading_id="r1")
        assert printed["status"] == "learned" and printed["new_class"]
        wait_until(lambda: "r1" in fleet.receipts(), "the receipt arrives")
        assert fleet.of("receipt")[0].data.seq == printed["seq"]
        assert device.stop() == 0
        wait_until(lambda: not fleet.of("status")[-1].online, "the farewell")
        assert fleet.of("status")[-1].reason == "stopped"


def test_a_broker_absent_at_start_gets_everything_later(tmp_path, bundle, stopped_broker):
    state = tmp_path / "s"
    with Device(bundle, state, "--mqtt", stopped_broker.url, "--device", "pi") as device:
        device.send(*windows(10, labelled=True))
        device.wait_for("receipt", reading_id="r9")
        assert device.finish() == 0, "an absent broker never stops a device"
    stopped_broker.start()
    fleet = Fleet(stopped_broker.url)
    try:
        with Device(bundle, state, "--mqtt", stopped_broker.url, "--device", "pi") as device:
            wait_until(lambda: len(fleet.receipts()) == 10, "the receipts of the first run arrive")
            assert device.stop() == 0
    finally:
        fleet.close()


def test_a_broker_that_goes_away_costs_no_receipt(tmp_path, bundle, broker, fleet):
    state = tmp_path / "s"
    with Device(bundle, state, "--mqtt", broker.url, "--device", "pi") as device:
        device.send(*windows(5, labelled=True))
        wait_until(lambda: len(fleet.receipts()) == 5, "the first receipts arrive")
        broker.stop()
        device.send(*windows(5, start=5, labelled=True))
        device.wait_for("receipt", reading_id="r9")
        broker.start()
        assert device.finish() == 0
    outbox = Outbox(state / "outbox.db", capacity_bytes=1 << 20)
    waiting = outbox.n_queued
    outbox.close()
    with Device(bundle, state, "--mqtt", broker.url, "--device", "pi") as device:
        wait_until(lambda: len(fleet.receipts()) == 10, f"all receipts arrive ({waiting} had to wait)")
        assert device.stop() == 0


@pytest.mark.parametrize("url", ["localhost:1883", "http://localhost", "mqtt://me:secret@localhost"])
def test_a_wrong_broker_url_is_explained(tmp_path, bundle, url):
    done = edge_cl("run", bundle, "--state", tmp_path / "s", "--mqtt", url)
    assert done.returncode == 1 and "mqtt.url" in done.stderr
    assert "Traceback" not in done.stderr and "secret" not in done.stderr
