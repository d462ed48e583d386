"""Brokers and servers that are wrong in every way: the device says what it is, and goes on."""

from __future__ import annotations

import datetime
import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import edge_cl.sync.alarms as alarms_module
import edge_cl.sync.connection as connection_module
import edge_cl.sync.pump as pump_module
from bench.proxy import SlowLink
from edge_cl.commands import SleepNow
from edge_cl.learner import Learner
from edge_cl.records import Label
from edge_cl.sync.broker import Access
from edge_cl.sync.link import MqttLink, Pace
from tests.certificates import Authority
from tests.mosquitto import Broker, wait_until
from tests.sync.test_commands import Device, Server, result_of
from tests.sync.test_link import ROOT, STATUS, Watcher, linked, receipt
from tests.worlds import NAMES, World, make_bundle, reading

DECADE = 3652


@contextmanager
def broker_with(folder: Path, *lines: str) -> Iterator[Broker]:
    """Mosquitto 2.0 hangs up after a forbidden message when it may queue any number: here it may not."""
    folder.mkdir(exist_ok=True)
    broker = Broker(folder, "max_queued_messages 1000", *lines)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop(kill=True)


def goes_on(link: MqttLink, folder: Path) -> str:
    """A real device with this link predicts and learns; what its status says."""
    with Learner.from_bundle(make_bundle(folder / "b.ecl"), state_dir=folder / "learned") as learner:
        learner.other_alarm = lambda: link.alarm
        X, y = World(seed=2).draw(4)
        for n in range(4):
            link.sink(learner.observe(reading(X[n], f"r{n}")))
            found = learner.teach(Label(label=NAMES[y[n]], reading_id=f"r{n}", source="test"))
            assert found.status == "learned"
            link.sink(found)
        wait_until(lambda: link.counts["queued"] >= 4, "the receipts wait")
        return learner.status().alarm


# -- certificates --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def tls(authority: Authority, **certificate: Any) -> tuple[str, str]:
    cert_file, key_file = authority.issue("broker", f"b{time.monotonic_ns()}", **certificate)
    return f"certfile {cert_file}", f"keyfile {key_file}"


def secure(broker: Broker) -> str:
    return broker.url.replace("mqtt://", "mqtts://")


CLOCK = "by this device's clock, which reads {now:%Y-%m-%d}"
CERTIFICATES = {
    "another authority": ({}, "is mqtt.ca_file the broker's authority?"),
    "the clock is ten years late": (
        {"from_days": DECADE - 1, "days": DECADE + 9},
        "is not valid yet: if the",
    ),
    "the clock is ten years early": (
        {"from_days": -DECADE - 9, "days": -DECADE},
        "has expired: if the clock",
    ),
    "another name": ({"host": "10.1.2.3"}, "the certificate is not for 127.0.0.1: write the name in it"),
}


@pytest.mark.broker
@pytest.mark.usefixtures("stopped_broker")  # skips without Mosquitto
@pytest.mark.parametrize("case", CERTIFICATES)
def test_a_broker_that_is_not_believed(case: str, authority: Authority, tmp_path: Path) -> None:
    certificate, words = CERTIFICATES[case]
    believed = Authority(tmp_path / "other", "other") if case == "another authority" else authority
    access = Access(ca_file=str(believed.ca_file))
    with (
        broker_with(tmp_path / "broker", *tls(authority, **certificate)) as broker,
        linked(secure(broker), tmp_path, access=access) as link,
    ):
        wait_until(lambda: words in link.alarm, "an alarm")
        alarm = goes_on(link, tmp_path)
        assert words in alarm and "messages wait in the outbox" in alarm and not link.connected
        if "clock" in case:
            assert CLOCK.format(now=datetime.datetime.now(datetime.UTC)) in alarm


@pytest.mark.broker
@pytest.mark.usefixtures("stopped_broker")
@pytest.mark.parametrize("mqtt_5", [True, False])
def test_a_device_that_is_not_believed(authority: Authority, tmp_path: Path, mqtt_5: bool) -> None:
    stranger = Authority(tmp_path / "stranger", "stranger")
    ours = {
        "the broker asks for a certificate": ("", ""),
        "CERTIFICATE_EXPIRED; the broker does not accept": authority.issue("lab/pi", "expired", days=-1),
        "UNKNOWN_CA; the broker does not accept": stranger.issue("lab/pi", "stranger"),
    }
    lines = (*tls(authority), f"cafile {authority.ca_file}", "require_certificate true")
    with broker_with(tmp_path / "broker", *lines) as broker:
        for words, (cert_file, key_file) in ours.items():
            access = Access("", str(authority.ca_file), str(cert_file), str(key_file))
            with linked(secure(broker), None, access=access, mqtt_5=mqtt_5) as link:
                wait_until(lambda words=words, link=link: words in link.alarm, words)  # type: ignore[misc]


@pytest.mark.broker
@pytest.mark.usefixtures("stopped_broker")
def test_tls_on_one_side_only(authority: Authority, tmp_path: Path) -> None:
    access = Access(ca_file=str(authority.ca_file))
    with broker_with(tmp_path / "plain") as broker, linked(secure(broker), None, access=access) as link:
        wait_until(lambda: "is there TLS on this port?" in link.alarm, "an alarm")
    with broker_with(tmp_path / "tls", *tls(authority)) as broker, linked(broker.url, None) as link:
        wait_until(lambda: "if this port is for TLS, write mqtts://" in link.alarm, "an alarm")


# -- rights --------------------------------------------------------------------------------


@contextmanager
def rights(folder: Path, text: str) -> Iterator[Broker]:
    folder.mkdir()
    (folder / "acl").write_text(text)
    with broker_with(folder, f"acl_file {folder / 'acl'}") as broker:
        yield broker


def allow(broker: Broker, folder: Path) -> None:
    (folder / "acl").write_text("topic readwrite #\n")
    broker.stop()
    broker.start()


@pytest.mark.broker
@pytest.mark.usefixtures("stopped_broker")
@pytest.mark.parametrize("mqtt_5", [True, False])
def test_a_broker_that_forbids_writing(tmp_path: Path, mqtt_5: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alarms_module, "UNSEEN_S", 0.1)
    monkeypatch.setattr(pump_module, "SUPERVISE_S", 0.1)
    with (
        rights(tmp_path / "broker", "topic read #\n") as broker,
        linked(broker.url, tmp_path, mqtt_5=mqtt_5, confirm="server") as link,
    ):
        words = "does not let this device write below edgecl/1/lab/pi (Not authorized)"
        if not mqtt_5:
            words = "took this device's birth and did not give it back"
        wait_until(lambda: words in link.alarm, "an alarm")
        assert words in goes_on(link, tmp_path)
        assert link.connected and link.counts["connections"] == 1
        watcher = Watcher(broker.url)
        allow(broker, tmp_path / "broker")
        wait_until(lambda: not link.alarm, "all is well", timeout_s=30)
        wait_until(lambda: len(set(watcher.receipts())) == 4, "what waited arrives")
        watcher.close()


@pytest.mark.broker
@pytest.mark.usefixtures("stopped_broker")
@pytest.mark.parametrize("mqtt_5", [True, False])
def test_a_broker_that_forbids_reading(tmp_path: Path, mqtt_5: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mosquitto grants the subscription and then sends nothing."""
    monkeypatch.setattr(alarms_module, "UNSEEN_S", 0.1)
    monkeypatch.setattr(pump_module, "SUPERVISE_S", 0.1)
    with (
        rights(tmp_path / "broker", "topic write #\n") as broker,
        linked(broker.url, tmp_path, mqtt_5=mqtt_5) as link,
    ):
        wait_until(lambda: "read edgecl/1/lab/pi/status" in link.alarm, "an alarm")
        assert "edgecl/1/lab/pi/cmd/#" in link.alarm
        assert ("MQTT 3.1.1 does not say which" in link.alarm) == (not mqtt_5)
        link.sink(receipt(1))
        wait_until(lambda: link.counts["delivered"] == 2 and not link.counts["queued"], "it is heard")
        allow(broker, tmp_path / "broker")
        wait_until(lambda: not link.alarm, "all is well", timeout_s=30)


# -- servers -------------------------------------------------------------------------------


@pytest.mark.broker
@pytest.mark.parametrize(
    "ack",
    [
        '{"v":0,"ids":["%s"]}',
        '{"v":2,"ids":["%s"]}',
        '{"id":"%s"}',
        '{"v":1,"ids":"%s"}',
        "%s",
        '["%s"]',
        "{",
    ],
)
def test_a_server_of_another_version(broker: Broker, tmp_path: Path, ack: str) -> None:
    """It confirms nothing, and the word stays until one of this version does."""
    watcher = Watcher(broker.url)
    with linked(broker.url, tmp_path, confirm="server") as link:
        link.sink(receipt(1))
        wait_until(lambda: watcher.of("receipt"), "the receipt arrives")
        row_id = watcher.of("receipt")[0].id
        watcher.client.publish(f"{ROOT}/cmd/ack", ack.replace("%s", row_id))
        wait_until(lambda: "another version of the protocol than this device's 1" in link.alarm, "an alarm")
        link._pump.put(link._pump._supervise)
        link.sink(STATUS)
        wait_until(lambda: watcher.of("state"), "time passes")
        assert "upgrade the older one" in link.alarm and not link.counts["confirmed"]
        wait_until(lambda: watcher.of("health"), "the first health report arrives")
        ids = f'["{row_id}", "gone", "{watcher.of("health")[0].id}"]'
        good = '{"v":1,"fleet":3,"since":"later","more":{"x":[1]},"ids":' + ids + "}"
        watcher.client.publish(f"{ROOT}/cmd/ack", good)
        wait_until(lambda: link.counts["queued"] == 0 and not link.alarm, "unknown fields are passed over")
    watcher.close()


# -- clocks --------------------------------------------------------------------------------


@pytest.mark.broker
@pytest.mark.parametrize("days", [-DECADE, DECADE])
def test_a_clock_ten_years_off(
    broker: Broker, tmp_path: Path, days: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands expire, messages age and duplicates are known by uptime, which no clock can change."""
    right = time.time
    server = Server(broker.url)
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: right() + days * 86400.0)
        device = Device(broker.url, tmp_path)
        device.live(3)
        done = server.send(SleepNow(), times=2)
        assert result_of(server, device, done).status == "done"
        late = server.send(SleepNow(), valid_s=-1.0)
        assert result_of(server, device, late).status == "expired"
        watcher = Watcher(broker.url)
        device.learner.observe(reading(World().means[1].astype("float32"), "r9"))
        device.link.sink(device.learner.teach(Label(label="walk", reading_id="r9", source="test")))
        wait_until(lambda: watcher.of("receipt"), "the receipt arrives")
        (message,) = watcher.of("receipt")
        assert message.age_s is not None and 0.0 <= message.age_s < 10.0
        assert abs(message.at_s - (right() + days * 86400.0)) < 10.0
        patch.undo()  # the clock is set meanwhile
        again = server.send(SleepNow())
        assert result_of(server, device, again).status == "done"
        assert len(device.asked) == 2 and device.link.alarm == ""
        watcher.close()
        device.close()
    server.client.disconnect()
    server.client.loop_stop()


# -- room ----------------------------------------------------------------------------------


@pytest.mark.broker
def test_a_full_outbox(stopped_broker: Broker, tmp_path: Path) -> None:
    """Receipts are never dropped for newer ones; what does not fit is counted and told."""
    with linked(stopped_broker.url, tmp_path, disk_bytes=64 * 1024) as link:
        for n in range(400):
            link.sink(receipt(n))
        wait_until(lambda: "the outbox is full" in link.alarm, "an alarm")
        wait_until(lambda: link.counts["queued"] + link.counts["dropped"] == 400, "all are counted")
        n_kept = link.counts["queued"]
        assert "raise the disk budget" in link.alarm and n_kept > 50
        stopped_broker.start()
        watcher = Watcher(stopped_broker.url)
        wait_until(lambda: link.counts["queued"] == 0, "the outbox is empty")
        wait_until(lambda: set(watcher.receipts()) == set(range(n_kept)), "the oldest arrive")
        link.sink(receipt(1000))
        wait_until(lambda: 1000 in watcher.receipts() and not link.alarm, "there is room again")
        watcher.close()


# -- brokers that are none -----------------------------------------------------------------


class Oddity:
    """Accepts connections, says `greeting` to the first packet, then hangs up or, `holds`, says no more."""

    def __init__(self, greeting: bytes = b"", *, holds: bool = False, resets: bool = False) -> None:
        self._greeting, self._holds, self._resets = greeting, holds, resets
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        self.levels: list[int] = []
        """Of MQTT, as each connection asked for: 4 or 5."""
        self._held: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        for connection in self._held:
            connection.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                packet = connection.recv(4096)
                self.levels.append(packet[packet.index(b"MQTT") + 4])
                connection.sendall(self._greeting)
                if self._holds:
                    self._held.append(connection)
                    continue
                if self._resets:
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()


@contextmanager
def odd(*arguments: Any, **options: Any) -> Iterator[Oddity]:
    broker = Oddity(*arguments, **options)
    try:
        yield broker
    finally:
        broker.close()


def test_a_broker_that_accepts_and_never_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection_module, "ANSWER_S", 0.05)
    monkeypatch.setattr(pump_module, "SUPERVISE_S", 0.05)
    with odd(holds=True) as broker, linked(broker.url, tmp_path) as link:
        wait_until(lambda: "the broker does not answer" in link.alarm, "an alarm")
        assert "the broker does not answer" in goes_on(link, tmp_path)
        wait_until(lambda: {4, 5} <= set(broker.levels), "both versions are tried")
        assert not link.connected


@pytest.mark.broker
def test_a_broker_that_is_slow_to_answer(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection_module, "ANSWER_S", 0.1)
    monkeypatch.setattr(pump_module, "SUPERVISE_S", 0.02)
    far = SlowLink(broker.port, delay_s=0.2, bytes_per_s=1e6)
    with linked(f"mqtt://127.0.0.1:{far.port}", tmp_path) as link:
        wait_until(lambda: link.connected, "it is waited for")
    far.close()


@pytest.mark.parametrize("resets", [False, True])
def test_a_broker_that_hangs_up_at_once(tmp_path: Path, resets: bool) -> None:
    with odd(resets=resets) as broker, linked(broker.url, tmp_path) as link:
        wait_until(lambda: "cannot be reached" in link.alarm, "an alarm")
        words = "Connection reset by peer" if resets else "it hung up without a word"
        assert words in goes_on(link, tmp_path)
        wait_until(lambda: {4, 5} <= set(broker.levels), "both versions are tried")


@pytest.mark.parametrize("mqtt_5", [True, False])
def test_a_broker_that_ends_every_connection_after_its_greeting(
    tmp_path: Path, mqtt_5: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits_s: list[float] = []

    def longest(_low: float, high: float) -> float:
        waits_s.append(high)
        return high

    monkeypatch.setattr(random, "uniform", longest)
    monkeypatch.setattr("edge_cl.sync.reconnect.LEAST_SPREAD_S", 0.02)
    greeting = b"\x20\x03\x00\x00\x00" if mqtt_5 else b"\x20\x02\x00\x00"
    acknowledges = b"\x40\x02\x00\x02"  # the birth, as a 3.1.1 broker does that forbids it
    pace = Pace(backoff_s=(0.01, 0.3))
    with (
        odd(greeting if mqtt_5 else greeting + acknowledges) as broker,
        linked(broker.url, tmp_path, pace=pace, mqtt_5=mqtt_5) as link,
    ):
        wait_until(lambda: "takes the connection and ends it at once" in link.alarm, "an alarm")
        assert "ends it at once" in goes_on(link, tmp_path)
        wait_until(lambda: len(waits_s) >= 6, "it goes on trying")
        assert waits_s == sorted(waits_s) and waits_s[5] == 0.3
        wait_until(lambda: "times so far" in link.alarm, "it counts them")
