"""A device in Home Assistant: found by a client that knows the discovery topic and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_cl.bundle import Bundle
from edge_cl.config import CommandSettings, Settings
from edge_cl.device import Device as EdgeDevice
from edge_cl.records import Label, Receipt, SleepRequest
from edge_cl.remote import Remote
from edge_cl.sync import messages
from edge_cl.sync.discovery import Announced, Discovery, encode_config
from edge_cl.sync.link import MqttLink, Pace
from edge_cl.upgrade.slots import Slots
from tests.home_assistant import HomeAssistant
from tests.mosquitto import Broker, wait_until
from tests.sync.test_link import STATUS, Watcher
from tests.worlds import NAMES, World, make_bundle, reading

ROOT = "edgecl/1/lab/pi"
TOPIC = "homeassistant/device/lab/pi/config"


class Device:
    """A real learner and its link, whose loop is turned by the test."""

    def __init__(self, url: str, folder: Path, discovery: str = "homeassistant", **options: Any) -> None:
        make_bundle(folder / "b.ecl")
        self._slots = Slots(folder / "state")
        place = self._slots.active(folder / "b.ecl")
        self._device = EdgeDevice(self._slots, Bundle.load(place.bundle), place, Settings())
        self.learner = self._device.learner
        self.asked: list[SleepRequest] = []
        self.receipts: list[Receipt] = []
        self.link = MqttLink(
            url,
            device="pi",
            site="lab",
            state_dir=folder / "state",
            confirm="broker",
            discovery=discovery,
            pace=Pace(backoff_s=(0.05, 0.2)),
            **options,
        )
        self.link.obey_with(Remote(self._device, {}, self.asked.append))
        self.link.start()
        wait_until(lambda: self.link.counts["delivered"], "the birth is acknowledged")
        self.link.sink(self.learner.status())

    def see(self, k: int, reading_id: str) -> str:
        """A reading of class `k`; what it was taken for."""
        decision = self.learner.observe(reading(World().means[k].astype("float32"), reading_id))
        self.link.sink(decision)
        return decision.label

    def turn(self) -> bool:
        """One turn of the loop; True, so that it can stand in a condition."""
        for label in self.link.poll():
            if isinstance(label, Label):
                self.receipts.append(self.learner.teach(label))
                self.link.sink(self.receipts[-1])
                self.link.sink(self.learner.status())
        return True

    def close(self) -> None:
        self.link.stop(10)
        self._device.__exit__(None, None, None)
        self._slots.close()


@pytest.fixture
def home(broker: Broker) -> Iterator[HomeAssistant]:
    found = HomeAssistant(broker.url)
    yield found
    found.close()
    assert found.mistakes == []


@pytest.fixture
def start(broker: Broker, tmp_path: Path) -> Iterator[Callable[..., Device]]:
    devices: list[Device] = []

    def begin(*arguments: Any, **options: Any) -> Device:
        devices.append(Device(broker.url, tmp_path, *arguments, **options))
        return devices[-1]

    yield begin
    for device in devices:
        device.close()


@pytest.mark.broker
def test_the_device_appears_by_itself(home: HomeAssistant, start: Callable[..., Device]) -> None:
    device = start()
    wait_until(lambda: home.state("accuracy") is None and home.state("review") == "0", "its state is shown")
    assert list(home.devices) == [TOPIC]
    assert home.devices[TOPIC]["name"] == "pi"
    assert sorted(entity.config["name"] for entity in home.entities.values()) == [
        "Accuracy", "Alarm", "Bundle", "Confidence", "Correct the label", "Drift", "Label",
        "Labels to review", "Last sleep", "Sleep now", "Sleep state", "Undo the last label", "Unknown",
    ]  # fmt: skip
    assert home.of("correct").config["options"] == list(NAMES[:3])
    wait_until(lambda: device.see(1, "r1") == "walk" and home.state("label") == "walk", "the label is shown")
    assert float(home.state("confidence") or 0) > 50 and home.state("unknown") == "OFF"
    assert (home.state("alarm"), home.state("drift"), home.state("last_sleep")) == ("none", None, None)
    assert home.of("bundle").versions["installed_version"] == device.learner.bundle.bundle_id[:12]
    assert home.state("bundle") == "off"
    device.close()
    wait_until(lambda: home.state("label") == "unavailable", "it is away")


@pytest.mark.broker
def test_the_select_corrects_the_reading_that_is_shown(
    home: HomeAssistant, start: Callable[..., Device]
) -> None:
    """The newest reading is another one when the person chooses."""
    device = start()
    wait_until(lambda: home.state("alarm"), "it is found")
    wait_until(lambda: device.see(1, "shown-1") and home.state("correct") == "walk", "it is shown")
    device.see(1, "newer")  # the same label less than 5 s later: not published
    home.choose("correct", "run")
    wait_until(lambda: device.turn() and device.receipts, "the label arrives")
    (receipt,) = device.receipts
    assert (receipt.reading_id, receipt.label, receipt.source) == ("shown-1", "run", "mqtt/home-assistant")
    assert receipt.status == "learned"
    wait_until(lambda: home.state("accuracy") == "0.0", "the accuracy that follows from it is shown")


@pytest.mark.broker
def test_buttons(home: HomeAssistant, start: Callable[..., Device], broker: Broker) -> None:
    device = start()
    watcher = Watcher(broker.url, f"{ROOT}/#")
    wait_until(lambda: home.state("alarm"), "it is found")
    home.press("sleep")
    wait_until(lambda: device.turn() and device.asked, "it is asked to sleep")
    wait_until(lambda: device.see(0, "r1") and home.of("correct").attributes, "a decision is shown")
    home.choose("correct", "walk")
    wait_until(lambda: device.turn() and device.receipts, "the label arrives")
    n_labels = device.learner.knowledge.n_labels
    wait_until(lambda: watcher.of("receipt"), "its receipt is sent")
    home.press("undo")
    wait_until(lambda: device.turn() and len(watcher.of("result")) == 2, "both are answered")
    assert [message.data.status for message in watcher.of("result")] == ["done", "done"]
    while device.learner._durable.rebuilding:
        device.learner._teaching.rebuilt()
    assert device.learner.knowledge.n_labels == n_labels - 1
    watcher.close()


@pytest.mark.broker
def test_it_is_said_again_when_home_assistant_starts_and_when_a_class_is_new(
    home: HomeAssistant, start: Callable[..., Device]
) -> None:
    device = start()
    wait_until(lambda: home.n_configs == 1 and home.state("alarm"), "it is found")
    device.link.sink(device.learner.status())
    home.say("offline")
    home.say("online")
    wait_until(lambda: home.n_configs == 2, "it is said again")
    device.see(3, "r1")
    device.receipts.append(device.learner.teach(Label(label="climb", reading_id="r1", source="test")))
    device.link.sink(device.learner.status())
    wait_until(lambda: home.of("correct").config["options"] == list(NAMES), "the new class can be chosen")
    assert home.n_configs == 3


@pytest.mark.broker
def test_turned_off_it_is_forgotten_there(home: HomeAssistant, start: Callable[..., Device]) -> None:
    device = start()
    wait_until(lambda: home.devices, "it is found")
    device.close()
    device = start("")
    wait_until(lambda: not home.devices and not home.entities, "it is gone")
    wait_until(lambda: device.link._outbox.notes["discovery"] == "", "that is noted")
    device.close()
    n_configs = home.n_configs
    device = start("other")
    device.close()
    assert home.n_configs == n_configs


@pytest.mark.broker
def test_another_prefix(home: HomeAssistant, start: Callable[..., Device], broker: Broker) -> None:
    start().close()
    wait_until(lambda: home.devices, "it is found")
    other = HomeAssistant(broker.url, prefix="other/ha", name="other")
    device = start("other/ha")
    wait_until(lambda: other.devices and not home.devices, "it moves")
    device.close()
    other.close()
    assert other.mistakes == []


@pytest.mark.broker
def test_what_needs_a_signature_has_no_button(home: HomeAssistant, start: Callable[..., Device]) -> None:
    start().close()
    wait_until(lambda: len(home.entities) == 13, "it is found")
    start(commands=CommandSettings(unsigned=("sleep",)))
    wait_until(lambda: len(home.entities) == 11, "two are gone")
    assert {entity.platform for entity in home.entities.values()} >= {"button", "sensor"}
    assert not any(entity.platform == "select" for entity in home.entities.values())


@pytest.mark.broker
def test_an_installation_is_shown_while_it_goes_on(home: HomeAssistant, start: Callable[..., Device]) -> None:
    device = start()
    wait_until(lambda: home.state("bundle") == "off", "nothing is to be installed")
    report = messages.InstallReport(id="1", sha256="2", bundle_id="feedbeef" * 8, phase="shadow")
    device.link.tell(report)
    wait_until(lambda: home.state("bundle") == "on", "a bundle is tried")
    assert home.of("bundle").versions == {
        "installed_version": device.learner.bundle.bundle_id[:12],
        "latest_version": "feedbeeffeed",
        "in_progress": True,
    }
    device.link.tell(msgspec.structs.replace(report, phase="rolled-back"))
    wait_until(lambda: home.state("bundle") == "off", "it was not taken")


@pytest.mark.broker
def test_shown_is_the_last_published_decision(broker: Broker, start: Callable[..., Device]) -> None:
    device = start()
    watcher = Watcher(broker.url, f"{ROOT}/#")
    watcher.send_label(b'{"label": "run", "reading_id": "shown"}')
    wait_until(lambda: watcher.of("receipt"), "a refusal: nothing was published")
    assert "no decision was published" in watcher.of("receipt")[0].data.message
    device.see(1, "published")
    device.see(1, "newer")
    wait_until(lambda: watcher.of("event"), "the first is published")
    watcher.send_label(b'{"label": "run", "reading_id": "shown"}')
    wait_until(lambda: device.turn() and device.receipts, "the label arrives")
    assert [receipt.reading_id for receipt in device.receipts] == ["published"]
    watcher.close()


@pytest.mark.broker
def test_a_broker_that_forbids_discovery(tmp_path: Path, stopped_broker: Broker) -> None:
    (tmp_path / "acl").write_text(f"topic readwrite {ROOT}/#\n")
    broker = Broker(tmp_path, f"acl_file {tmp_path / 'acl'}")
    broker.start()
    device = Device(broker.url, tmp_path)
    try:
        wait_until(lambda: f"write {TOPIC} (Not authorized)" in device.link.alarm, "an alarm")
        wait_until(lambda: device.link.counts["queued"] == 0, "everything else passes")
    finally:
        device.close()
        broker.stop(kill=True)


names = st.lists(st.text(min_size=1, max_size=200), max_size=400, unique=True)


@given(names=names, unsigned=st.lists(st.sampled_from(["label", "sleep", "undo"]), unique=True))
@settings(max_examples=25)
def test_it_always_fits_into_a_message(names: list[str], unsigned: list[str]) -> None:
    body = encode_config(Announced("b", "1", "dual", tuple(names)), "lab/pi", ROOT, tuple(unsigned))
    assert len(body) < messages.MAX_MESSAGE_BYTES
    select = msgspec.json.decode(body)["components"]["correct"]
    assert select.get("options", names) == names
    assert ("options" in select) <= ("label" in unsigned)


def test_too_many_classes_cost_the_select_and_nothing_else() -> None:
    names = tuple(f"{n:0200}" for n in range(700))
    body = encode_config(Announced("b", "1", "dual", names), "lab/pi", ROOT, ("label", "sleep", "undo"))
    found = msgspec.json.decode(body)["components"]
    assert len(body) < 16_000 and found["correct"] == {"platform": "select"}
    assert "command_topic" in found["sleep"]


def test_a_refused_removal_is_tried_at_the_next_connection_and_not_before() -> None:
    discovery = Discovery("", "lab/pi", root=ROOT, unsigned=(), noted="ha/device/x/config")
    for problem, note in (("Not authorized", "ha/device/x/config"), ("", "")):
        discovery.again()
        assert discovery.take() == ("ha/device/x/config", b"")
        assert discovery.take() is None
        discovery.sent("ha/device/x/config", 7)
        assert not discovery.acknowledged(8, "")
        assert discovery.acknowledged(7, problem)
        assert discovery.note == note and bool(discovery.problem) == bool(problem)
        assert discovery.take() is None
    discovery.again()
    discovery.note_status(STATUS)
    assert discovery.take() is None
