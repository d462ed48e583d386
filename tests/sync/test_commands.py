"""Commands on their whole way into a device: a real broker, a real link, a real learner."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_cl.bundle import Bundle
from edge_cl.commands import Adjust, Command, CommandResult, Do, Report, SleepNow, Teach
from edge_cl.config import CommandSettings, KeySettings, Settings, settings_from
from edge_cl.device import Device as EdgeDevice
from edge_cl.learner import Learner
from edge_cl.records import Label, Receipt, SleepReport, SleepRequest
from edge_cl.remote import Remote
from edge_cl.revisions import Forget, Rollback
from edge_cl.sync import messages, signing
from edge_cl.sync.broker import parse_url
from edge_cl.sync.link import MqttLink, Pace
from edge_cl.upgrade.slots import Slots
from tests.mosquitto import Broker, wait_until
from tests.worlds import NAMES, World, make_bundle, reading

ROOT = "edgecl/1/lab/pi"
KEY = signing.make_key()
ALLOWED = ["label", "sleep", "set", "report", "forget", "rollback"]
pytestmark = pytest.mark.broker


class Server:
    """Signs commands, hears results and confirms them."""

    def __init__(self, url: str) -> None:
        self.heard: dict[str, Any] = {}
        self.boot_id, self.up_s = "", 0.0
        self.client = paho.Client(CallbackAPIVersion.VERSION2)
        self.client.on_message = self._on_message
        self.client.on_connect = lambda c, *_: c.subscribe("edgecl/1/+/+/+", qos=1)
        where = parse_url(url)
        self.client.connect(where.host, where.port)
        self.client.loop_start()

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        kind = message.topic.rpartition("/")[2]
        found = messages.decode(kind, message.payload)
        if kind == "status" and found.online:
            self.boot_id = found.boot_id
        if isinstance(found, messages.Message):
            self.up_s = found.up_s
            self.heard[found.id] = found.data
            self.client.publish(f"{ROOT}/cmd/ack", messages.encode(messages.Ack(ids=[found.id], fleet=3)))

    def send(self, do: Do, *, command_id: str = "", valid_s: float = 60.0, times: int = 1) -> str:
        """A signed command for the device's present life."""
        command_id = command_id or uuid.uuid4().hex
        until_s = self.up_s + valid_s
        command = Command(id=command_id, to="lab/pi", boot_id=self.boot_id, until_s=until_s, do=do)
        text = messages.encode(command).decode()
        signed = messages.Signed(by="boss", command=text, signature=signing.sign(KEY, signing.COMMAND, text))
        for _ in range(times):
            self.client.publish(f"{ROOT}/cmd/do", messages.encode(signed), qos=1)
        return command_id

    def results(self, command_id: str = "") -> list[CommandResult]:
        """What devices answered."""
        found = [data for data in self.heard.values() if isinstance(data, CommandResult)]
        return [result for result in found if command_id in ("", result.id)]


class Device:
    """A learner with its link, whose loop is turned by the test."""

    def __init__(
        self,
        url: str,
        folder: Path,
        *,
        disk_bytes: int = 2**23,
        settings: Settings = Settings(),  # noqa: B008  immutable
        **commands: Any,
    ) -> None:
        keys = {"boss": KeySettings(public=signing.public_of(KEY), allow=ALLOWED)}
        make_bundle(folder / "b.ecl")
        self._slots = Slots(folder / "state")
        place = self._slots.active(folder / "b.ecl")
        self.device = EdgeDevice(self._slots, Bundle.load(place.bundle), place, settings)
        self.learner = self.device.learner
        self.asked: list[SleepRequest] = []
        self.link = MqttLink(
            url,
            device="pi",
            site="lab",
            state_dir=folder / "state",
            disk_bytes=disk_bytes,
            commands=CommandSettings(keys=keys, **commands),
            pace=Pace(backoff_s=(0.05, 0.2)),
        )
        self.link.obey_with(Remote(self.device, keys, self.asked.append))
        self.link.follow(self.learner)
        self.link.start()
        wait_until(lambda: self.link.counts["delivered"], "the birth is acknowledged")

    def turn(self) -> bool:
        """One turn of the loop; True, so that it can stand in a condition."""
        for label in self.link.poll():
            if not isinstance(label, SleepRequest):
                self.link.sink(self.learner.teach(label))
        return True

    def live(self, n: int) -> None:
        """See n readings and learn each."""
        X, y = World(seed=2).draw(n)
        for i in range(n):
            self.learner.observe(reading(X[i], f"r{i}"))
            self.link.sink(self.learner.teach(label_of(y[i], i)))

    def close(self) -> None:
        self.link.stop(10)
        self.device.__exit__(None, None, None)
        self._slots.close()


def label_of(y: int, i: int) -> Label:
    return Label(label=NAMES[y], reading_id=f"r{i}", source="test")


@pytest.fixture
def server(broker: Broker) -> Iterator[Server]:
    found = Server(broker.url)
    yield found
    found.client.disconnect()
    found.client.loop_stop()


@contextlib.contextmanager
def running(broker: Broker, folder: Path, **commands: Any) -> Iterator[Device]:
    device = Device(broker.url, folder, **commands)
    try:
        yield device
    finally:
        device.close()


def result_of(server: Server, device: Device, command_id: str) -> CommandResult:
    wait_until(lambda: device.turn() and server.results(command_id), f"a result of {command_id}")
    return server.results(command_id)[-1]


def test_each_command_is_carried_out_and_answered(broker: Broker, tmp_path: Path, server: Server) -> None:
    with running(broker, tmp_path) as device:
        device.live(30)
        wait_until(lambda: device.link.counts["queued"] == 0, "all is confirmed")
        at_20 = device.learner.status().journal_seq - 10
        taught = result_of(server, device, server.send(Teach(label="climb", reading_id="r3")))
        assert (taught.status, taught.data["status"], taught.data["source"]) == (
            "done", "learned", "fleet/boss",
        )  # fmt: skip
        assert "climb" in device.learner.class_names
        forgot = result_of(server, device, server.send(Forget(reading="r3")))
        assert forgot.status == "done" and forgot.data["n_labels"] == 2
        back = result_of(server, device, server.send(Rollback(to=at_20)))
        assert back.status == "done"
        wait_until(lambda: _rebuilt(device), "the past is learned anew")
        assert device.learner.status().n_labels == 19  # r3 stays forgotten
        assert result_of(server, device, server.send(SleepNow())).status == "done" and device.asked
        adjusted = result_of(server, device, server.send(Adjust(min_confidence=0.9)))
        assert adjusted.data["min_confidence"] == 0.9 and device.learner.settings.trust.min_confidence == 0.9
        report = result_of(server, device, server.send(Report(what="status")))
        assert report.data["bundle_name"] == "test"
        assert device.link.alarm == ""


def _rebuilt(device: Device) -> bool:
    device.learner.run([None])
    return not device.learner._durable.rebuilding


def test_a_command_that_cannot_be_done_says_why(broker: Broker, tmp_path: Path, server: Server) -> None:
    with running(broker, tmp_path) as device:
        failed = result_of(server, device, server.send(Forget(source="nobody")))
        assert failed.status == "failed" and "nobody" in failed.message
        absurd = result_of(server, device, server.send(Adjust(min_confidence=7.0)))
        assert absurd.status == "failed" and "0 to 1" in absurd.message
        assert device.learner.settings.trust.min_confidence == 0.5


def test_a_command_that_comes_again_is_carried_out_once(
    broker: Broker, tmp_path: Path, server: Server
) -> None:
    with running(broker, tmp_path) as device:
        command_id = server.send(SleepNow(), times=3)
        result_of(server, device, command_id)
        server.send(SleepNow(), command_id=command_id, times=3)
        marker = server.send(Report())
        result_of(server, device, marker)
        assert len(device.asked) == 1


def test_settings_from_afar_outlive_a_restart(broker: Broker, tmp_path: Path, server: Server) -> None:
    with running(broker, tmp_path) as device:
        result_of(server, device, server.send(Adjust(min_confidence=0.8, night="22:00-06:00")))
    with running(broker, tmp_path) as device:
        assert device.learner.settings.trust.min_confidence == 0.8
        assert device.learner.settings.sleep.night == "22:00-06:00"


def test_settings_that_nobody_set_from_afar_are_those_of_the_file(
    broker: Broker, tmp_path: Path, server: Server
) -> None:
    with running(broker, tmp_path) as device:
        sent = [server.send(Adjust(min_confidence=0.8)), server.send(Adjust(after_labels=7))]
        for command_id in sent:
            result_of(server, device, command_id)
    edited = settings_from({"sleep": {"night": "01:00-05:00", "after_labels": 99}}, "test")
    with running(broker, tmp_path, settings=edited) as device:
        s = device.learner.settings
        assert (s.trust.min_confidence, s.sleep.after_labels) == (0.8, 7)
        assert s.sleep.night == "01:00-05:00", "a person wrote it into the file since"


def test_a_restart_before_a_command_is_carried_out(broker: Broker, tmp_path: Path, server: Server) -> None:
    with running(broker, tmp_path) as device:
        command_id = server.send(SleepNow())
        # accepted on disk, then the loop never turns again
        wait_until(lambda: device.link._pump.commands._orders, "the command is there")
    with running(broker, tmp_path) as device:
        assert result_of(server, device, command_id).status == "interrupted"
        assert device.asked == []
        again = server.send(SleepNow(), command_id=command_id)
        wait_until(lambda: device.turn() and device.asked, "signed anew, it is carried out")
        wait_until(lambda: server.results(again)[-1].status == "done", "its result")


def test_a_restart_between_the_deed_and_its_result(broker: Broker, tmp_path: Path, server: Server) -> None:
    with running(broker, tmp_path) as device:
        device.live(10)
        command_id = server.send(Forget(reading="r3"))
        wait_until(lambda: device.link._pump.commands._orders, "the command is there")
        (order,) = device.link._pump.commands.take()
        assert order.do is not None and device.link._obeys is not None
        device.link._obeys.obey(order.id, order.do, order.source)

    with running(broker, tmp_path) as device:
        found = result_of(server, device, command_id)
        assert found.status == "done" and "before the device restarted" in found.message
        assert device.learner.status().n_labels == 9


def test_a_recording_of_an_earlier_life_is_void(broker: Broker, tmp_path: Path, server: Server) -> None:
    with running(broker, tmp_path):
        wait_until(lambda: server.boot_id, "the server knows the device")
        old_life = server.boot_id
    with running(broker, tmp_path) as device:
        wait_until(lambda: server.boot_id != old_life, "the server knows the next life")
        new_life, server.boot_id = server.boot_id, old_life
        recording = server.send(SleepNow())
        server.boot_id = new_life
        result_of(server, device, server.send(Report()))
        assert device.asked == [] and server.results(recording) == []


def test_labels_and_buttons_need_no_signature(broker: Broker, tmp_path: Path, server: Server) -> None:
    with running(broker, tmp_path) as device:
        device.learner.observe(reading(World(seed=2).draw(1)[0][0], "r0"))
        server.client.publish(f"{ROOT}/cmd/label", b'{"label": "run", "source": "kitchen"}', qos=1)
        wait_until(lambda: device.turn() and _receipts(server), "a receipt")
        wait_until(lambda: device.learner.status().n_labels == 1, "one label")
        wait_until(lambda: device.link._inbox.last_learned, "the link knows of it")
        server.client.publish(f"{ROOT}/cmd/undo", b"", qos=1)
        wait_until(lambda: device.turn() and server.results(), "an answer")
        assert server.results()[-1].status == "done"
        wait_until(lambda: _rebuilt(device), "the past is learned anew")
        assert device.learner.status().n_labels == 0
        server.client.publish(f"{ROOT}/cmd/undo", b"", qos=1)
        wait_until(lambda: device.turn() and len(server.results()) == 2, "a second answer")
        assert server.results()[-1].status == "failed" and "no label" in server.results()[-1].message
        server.client.publish(f"{ROOT}/cmd/sleep", b"", qos=1)
        wait_until(lambda: device.turn() and device.asked, "it is asked to sleep")


def _receipts(server: Server) -> list[Receipt]:
    return [data for data in server.heard.values() if isinstance(data, Receipt)]


def test_buttons_can_be_forbidden(broker: Broker, tmp_path: Path, server: Server) -> None:
    with running(broker, tmp_path, unsigned=()) as device:
        server.client.publish(f"{ROOT}/cmd/sleep", b"", qos=1)
        wait_until(lambda: device.turn() and server.results(), "an answer")
        assert server.results()[-1].status == "refused" and not device.asked
        server.client.publish(f"{ROOT}/cmd/label", b'{"label": "run", "reading_id": "r"}', qos=1)
        wait_until(lambda: device.turn() and _receipts(server), "an answer")
        assert _receipts(server)[-1].status == "refused"


# -- receipts that got lost on their way into the outbox ----------------------------------------------


def test_receipts_that_a_power_cut_took_are_made_again(
    broker: Broker, tmp_path: Path, server: Server
) -> None:
    with running(broker, tmp_path) as device:
        device.live(5)
        wait_until(lambda: len(_receipts(server)) == 5, "five receipts")
        X, y = World(seed=8).draw(3)
        for i in range(3):  # learned and on disk; the program ends before the link hears of it
            device.learner.observe(reading(X[i], f"late{i}"))
            device.learner.teach(Label(label=NAMES[y[i]], reading_id=f"late{i}"))
    with running(broker, tmp_path) as device:
        wait_until(lambda: device.turn() and len(_receipts(server)) == 8, "the others")
        device.live(1)
        wait_until(lambda: device.turn() and len(_receipts(server)) == 9, "and one more")
    assert [receipt.seq for receipt in _receipts(server)] == list(range(1, 10))
    assert "from the journal" in _receipts(server)[6].message


def test_receipts_that_found_no_room_come_when_there_is_room(
    broker: Broker, tmp_path: Path, server: Server
) -> None:
    broker.stop(kill=True)
    server.client.disconnect()
    broker.start()
    with running(broker, tmp_path, disk_bytes=60_000) as device:  # nobody confirms: it fills up
        device.live(120)
        wait_until(lambda: device.link._pump.receipts.behind and not device.link._pump.n_tasks, "it is full")
        assert device.link.counts["dropped"] > 0
        again = Server(broker.url)
        wait_until(lambda: device.turn() and len(_receipts(again)) == 120, "every receipt", 60)
        assert sorted(receipt.seq for receipt in _receipts(again)) == list(range(1, 121))
        wait_until(lambda: device.turn() and device.link.counts["queued"] == 0, "all is confirmed")
        assert not device.link._pump.receipts.behind
        again.client.disconnect()
        again.client.loop_stop()


def test_a_history_from_before_the_link_is_not_told(broker: Broker, tmp_path: Path, server: Server) -> None:
    with Learner.from_bundle(make_bundle(tmp_path / "b.ecl"), state_dir=tmp_path / "state") as learner:
        X, y = World(seed=8).draw(3)
        for i in range(3):
            learner.observe(reading(X[i], f"r{i}"))
            learner.teach(label_of(y[i], i))
    with running(broker, tmp_path) as device:
        device.live(1)
        wait_until(lambda: device.turn() and _receipts(server), "a receipt")
    assert [receipt.seq for receipt in _receipts(server)] == [4]


def test_the_report_of_a_sleep_before_a_power_cut_is_told(
    broker: Broker, tmp_path: Path, server: Server
) -> None:
    with running(broker, tmp_path) as device:
        device.live(20)
        for _ in device.learner.sleep():
            pass  # and nobody tells the link
    with running(broker, tmp_path) as device:
        wait_until(lambda: device.turn() and _sleeps(server) == [1], "the report")
    with running(broker, tmp_path):
        pass
    assert _sleeps(server) == [1]


def _sleeps(server: Server) -> list[int]:
    return [data.n_sleep for data in server.heard.values() if isinstance(data, SleepReport)]
