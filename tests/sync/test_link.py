"""The MQTT link against real brokers that go away, come back, and lose what they can."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

import edge_cl.sync.pump as pump_module
from edge_cl.errors import ConfigError
from edge_cl.records import Decision, Receipt, SleepReport, Status
from edge_cl.sync import messages
from edge_cl.sync.broker import Access, parse_url
from edge_cl.sync.broker import Broker as BrokerAddress
from edge_cl.sync.connection import MAX_ARRIVALS
from edge_cl.sync.link import MqttLink, Pace
from edge_cl.sync.pump import Pump
from tests.mosquitto import Broker, free_port, wait_until

NOT_WAITED_S = 8.0
"""Less than the 10 s that `linked` lets a stop take, and much more than a busy machine does."""

ROOT = "edgecl/1/lab/pi"
STATUS = Status(
    bundle_name="wrist",
    bundle_id="b1",
    head="dual",
    class_names=["walk"],
    n_readings=1,
    n_labels=0,
    journal_seq=0,
    n_pending=0,
    n_bad_readings=0,
    accuracy_now=None,
    held={},
    held_bytes=0,
    budget_bytes=1,
    n_sleeps=0,
    last_sleep=None,
    recovered="",
    alarm="",
)
REPORT = SleepReport(
    n_sleep=1,
    cause="asked",
    n_exemplars=9,
    n_held_back=3,
    accuracy_before=0.5,
    accuracy_after=0.75,
    adopted=True,
    reason="",
    cpu_s=0.1,
)


def receipt(n: int, **fields: Any) -> Receipt:
    values = {"reading_id": f"r{n}", "label": "walk", "status": "learned", "seq": n} | fields
    return Receipt(**values)


class Watcher:
    """Another MQTT client; keeps its subscription over a restart of the broker.

    With QoS 0 it sends nothing back, so a killed broker leaves it everything that was on the wire
    (unread acknowledgements would make the kernel reset the connection and drop it).
    """

    def __init__(self, url: str, topic: str = f"{ROOT}/#", *, name: str = "watcher", qos: int = 1) -> None:
        self.messages: list[tuple[str, bytes, bool]] = []
        self.subscribed = threading.Event()
        client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name, clean_session=False)
        client.on_connect = lambda c, *_: c.subscribe(topic, qos=qos)
        client.on_subscribe = lambda *_: self.subscribed.set()
        client.on_message = lambda _c, _u, m: self.messages.append((m.topic, m.payload, m.retain))
        client.reconnect_delay_set(0.05, 0.1)  # type: ignore[arg-type]
        broker = parse_url(url)
        client.connect(broker.host, broker.port)
        client.loop_start()
        assert self.subscribed.wait(10)
        self.client = client

    def of(self, kind: messages.Kind) -> list[Any]:
        return [
            messages.decode(kind, payload)
            for topic, payload, _ in list(self.messages)
            if topic == f"{ROOT}/{kind}"
        ]

    def receipts(self) -> list[int]:
        return [message.data.seq for message in self.of("receipt")]

    def send_label(self, payload: bytes, **options: Any) -> None:
        self.client.publish(f"{ROOT}/cmd/label", payload, qos=1, **options).wait_for_publish(10)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def watch() -> Iterator[Callable[..., Watcher]]:
    watchers: list[Watcher] = []

    def start(*arguments: Any, **options: Any) -> Watcher:
        watchers.append(Watcher(*arguments, **options))
        return watchers[-1]

    yield start
    for watcher in watchers:
        watcher.close()


@contextmanager
def linked(url: str, state_dir: Path | None, **options: Any) -> Iterator[MqttLink]:
    options = {"confirm": "broker", "pace": Pace(backoff_s=(0.05, 0.2))} | options
    link = MqttLink(url, device="pi", site="lab", state_dir=state_dir, **options)
    link.start()
    try:
        yield link
    finally:
        link.stop(10)


def delivered(link: MqttLink) -> bool:
    counts = link.counts
    return counts["queued"] == 0 and counts["sent"] == counts["delivered"]


# -- settings ------------------------------------------------------------------------------


def test_urls() -> None:
    assert parse_url("mqtt://pi.local") == BrokerAddress("pi.local", 1883, False)
    assert parse_url("mqtts://pi.local") == BrokerAddress("pi.local", 8883, True)
    assert parse_url("mqtt://[::1]:99/") == BrokerAddress("::1", 99, False)


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("", "mqtt.url is ''"),
        ("localhost:1883", "mqtt.url is 'localhost:1883'"),
        ("http://localhost", "mqtt.url is 'http://localhost'"),
        ("mqtt://", "mqtt.url is 'mqtt://'"),
        ("mqtt://host:99999", "out of range"),
        ("mqtt://host:0", "mqtt.url is"),
        ("mqtt://host:abc", "abc"),
        ("mqtt://host/topic", "nothing may follow the port"),
        ("mqtt://host?tls=1", "nothing may follow the port"),
        ("mqtt://[::1", "not a URL"),
    ],
)
def test_a_nonsense_url_says_what_to_write(url: str, found: str) -> None:
    with pytest.raises(ConfigError, match="write mqtt://host:port") as refusal:
        MqttLink(url, device="pi", site="lab", state_dir=None)
    assert found in str(refusal.value)


def test_a_password_in_the_url_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="EDGE_CL_MQTT_PASSWORD") as refusal:
        parse_url("mqtt://me:secret@host")
    assert "secret" not in str(refusal.value)


def test_certificates_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nonsense")
    for ca_file in (tmp_path / "ca.pem", tmp_path / "absent.pem"):
        with pytest.raises(ConfigError, match=r"mqtt.ca_file .* cannot be used"):
            MqttLink(
                "mqtts://host", device="pi", site="lab", state_dir=None, access=Access(ca_file=str(ca_file))
            )
    with pytest.raises(ConfigError, match="write mqtts://"):
        MqttLink("mqtt://host", device="pi", site="lab", state_dir=None, access=Access(ca_file="ca.pem"))


def test_a_device_name_with_a_wildcard() -> None:
    with pytest.raises(ConfigError, match=r"device.name is '#'"):
        MqttLink("mqtt://host", device="#", site="lab", state_dir=None)


# -- out -----------------------------------------------------------------------------------


@pytest.mark.broker
def test_every_kind_of_answer_arrives(broker: Broker, tmp_path: Path, watch: Callable[..., Watcher]) -> None:
    watcher = watch(broker.url)
    with linked(broker.url, tmp_path) as link:
        wait_until(lambda: link.connected, "connected")
        link.sink(STATUS)
        link.sink(Decision(reading_id="r1", t_s=0.0, label="walk", confidence=1.0))
        link.sink(Decision(reading_id="r2", t_s=0.0, label="walk", confidence=1.0))
        link.sink(receipt(1))
        link.sink(REPORT)
        wait_until(lambda: watcher.of("sleep"), "the sleep report arrives")
        wait_until(lambda: delivered(link), "all acknowledged")
        assert link.alarm == ""
    assert [state.status for state in watcher.of("state")] == [STATUS]
    assert [event.reading_id for event in watcher.of("event")] == ["r1"]
    (first,), (second,) = watcher.of("receipt"), watcher.of("sleep")
    assert (first.seq, first.data, second.seq, second.data) == (2, receipt(1), 3, REPORT)
    assert first.id != second.id
    births = [presence for presence in watcher.of("status") if presence.online]
    assert (births[-1].bundle_id, births[-1].head) == ("b1", "dual")
    counts = link.counts
    assert counts["sent"] == counts["delivered"] and counts["dropped"] == 0 and counts["events"] == 1
    late = watch(broker.url, name="late")
    wait_until(lambda: late.of("state") and late.of("status"), "the retained messages arrive")
    assert all(retained for _, _, retained in late.messages)
    assert (late.of("status")[0].online, late.of("status")[0].reason) == (False, "stopped")


@pytest.mark.broker
def test_a_broker_that_is_absent_at_start(
    stopped_broker: Broker, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    began_s = time.monotonic()
    with linked(stopped_broker.url, tmp_path) as link:
        for n in range(49):
            link.sink(receipt(n))
        link.sink(STATUS)
        assert time.monotonic() - began_s < NOT_WAITED_S
        wait_until(lambda: "cannot be reached ([Errno 111]" in link.alarm, "an alarm")
        wait_until(lambda: link.counts["queued"] == 50, "all queued")
        assert link.counts["sent"] == 0 and not link.connected
        stopped_broker.start()
        watcher = watch(stopped_broker.url)
        wait_until(lambda: delivered(link), "all delivered")
        assert link.alarm == "" and link.connected
        wait_until(lambda: watcher.of("state"), "the state arrives")


@pytest.mark.broker
def test_stop_does_not_wait_for_an_absent_broker(stopped_broker: Broker, tmp_path: Path) -> None:
    with linked(stopped_broker.url, tmp_path) as link:
        link.sink(receipt(1))
        wait_until(lambda: link.alarm, "the attempt failed")
        began_s = time.monotonic()
    assert time.monotonic() - began_s < NOT_WAITED_S
    assert queued_on_disk(tmp_path) == 1


@pytest.mark.broker
def test_a_broker_killed_twice_mid_stream(
    broker: Broker, tmp_path: Path, watch: Callable[..., Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pump_module, "COMMIT_S", 0.005)
    watcher = watch(broker.url, qos=0)
    broker.save()  # so that the watcher's subscription is there the moment the broker is back
    total = 900
    with linked(broker.url, tmp_path) as link:
        for n in range(total):
            link.sink(receipt(n))
            if n % 300 == 150:
                goal = n // 2
                wait_until(lambda goal=goal: link.counts["delivered"] > goal, "some delivered")
                broker.stop(kill=True)
                link.sink(receipt(n))
                broker.start()
        wait_until(lambda: link.counts["queued"] == 0, "the outbox is empty")
        wait_until(lambda: set(watcher.receipts()) == set(range(total)), "every receipt arrives")
        assert link.counts["dropped"] == 0
    seqs = [message.seq for message in watcher.of("receipt")]
    first_seen = list(dict.fromkeys(seqs))
    assert first_seen == sorted(first_seen)
    bodies = {message.id: message.data for message in watcher.of("receipt")}
    assert len(bodies) == total + 3  # three were said twice on purpose; a repeat keeps its id


DEVICE = """
import sys, time, pathlib
from edge_cl.records import Receipt
from edge_cl.sync.broker import Access
from edge_cl.sync.link import MqttLink, Pace
from edge_cl.sync.pump import Pump
from tests.mosquitto import Broker, free_port, wait_until
link = MqttLink(sys.argv[1], device="pi", site="lab", state_dir=pathlib.Path(sys.argv[2]), confirm="broker")
link.start()
for n in range(int(sys.argv[3])):
    link.sink(Receipt(reading_id=f"r{n}", label="walk", status="learned", seq=n))
print("up", flush=True)
time.sleep(60)
"""


@contextmanager
def device_process(url: str, state_dir: Path, n_receipts: int) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", DEVICE, url, str(state_dir), str(n_receipts)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    try:
        yield process
    finally:
        process.kill()
        process.wait(timeout=10)
        process.stdout.close()


def queued_on_disk(state_dir: Path) -> int:
    with sqlite3.connect(state_dir / "outbox.db") as db:
        found = db.execute("SELECT COUNT(*) FROM outbox").fetchone()[0]
    db.close()
    return int(found)


@pytest.mark.broker
def test_kill_9_with_queued_messages(
    stopped_broker: Broker, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    with device_process(stopped_broker.url, tmp_path, 200) as process:
        wait_until(lambda: queued_on_disk(tmp_path) == 200, "all are on disk")
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=10)
    stopped_broker.start()
    watcher = watch(stopped_broker.url)
    with linked(stopped_broker.url, tmp_path) as link:
        link.sink(receipt(200))
        wait_until(lambda: set(watcher.receipts()) == set(range(201)), "every receipt arrives")
        wait_until(lambda: delivered(link), "all acknowledged")
    assert queued_on_disk(tmp_path) == 0
    assert [message.seq for message in watcher.of("receipt")] == list(range(1, 202))


@pytest.mark.broker
def test_birth_and_last_will_of_a_killed_device(
    broker: Broker, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    watcher = watch(broker.url)
    with device_process(broker.url, tmp_path, 0) as process:
        wait_until(lambda: watcher.of("status"), "the birth arrives")
        process.send_signal(signal.SIGKILL)
        wait_until(lambda: len(watcher.of("status")) == 2, "the last will arrives")
    birth, will = watcher.of("status")
    assert (birth.online, will.online, will.reason) == (True, False, "lost")
    assert (will.boot_id, will.session) == (birth.boot_id, birth.session)
    late = watch(broker.url, name="late")
    wait_until(lambda: late.of("status") == [will], "the will is retained")
    with linked(broker.url, tmp_path):
        wait_until(lambda: len(watcher.of("status")) == 3, "the next birth arrives")
    rebirth = watcher.of("status")[2]
    assert rebirth.online and will.is_stale_against(rebirth)
    assert rebirth.session > will.session


@pytest.mark.broker
def test_a_decision_that_comes_while_it_connects_does_not_overtake_the_birth(
    broker: Broker, watch: Callable[..., Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = Pump.connected

    def at_once(pump: Pump, connection: Any) -> None:
        connected(pump, connection)
        pump.put(lambda: pump.publish_event(Decision(reading_id="r0", t_s=0.0, label="walk", confidence=0.5)))

    monkeypatch.setattr(Pump, "connected", at_once)
    watcher = watch(broker.url)
    with linked(broker.url, None):
        wait_until(lambda: len(watcher.messages) >= 2, "both arrive")
    assert [topic.removeprefix(f"{ROOT}/") for topic, _, _ in watcher.messages[:2]] == ["status", "event"]


@pytest.mark.broker
def test_a_stopped_device_is_not_reported_lost(
    broker: Broker, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    watcher = watch(broker.url)
    code = DEVICE.split("print(")[0] + "link.stop(10); import os; os._exit(0)"
    subprocess.run([sys.executable, "-c", code, broker.url, str(tmp_path), "3"], check=True, timeout=30)
    wait_until(lambda: len(watcher.of("status")) == 2, "birth and farewell arrive")
    assert [presence.reason for presence in watcher.of("status")] == ["", "stopped"]
    assert sorted(watcher.receipts()) == [0, 1, 2]


@pytest.mark.broker
def test_an_outbox_in_memory(broker: Broker, watch: Callable[..., Watcher]) -> None:
    watcher = watch(broker.url)
    with linked(broker.url, None) as link:
        link.sink(receipt(1))
    assert delivered(link)
    wait_until(lambda: watcher.receipts() == [1], "the receipt arrives")


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A self-signed certificate for 127.0.0.1; its key lies beside it."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed; it makes the certificate of this test")
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=127.0.0.1"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([openssl, *request.split(), *files], cwd=tmp_path, check=True, capture_output=True)
    return tmp_path / "cert.pem"


@pytest.mark.broker
@pytest.mark.usefixtures("stopped_broker")  # skips without Mosquitto
def test_tls_with_a_private_authority(certificate: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    key = certificate.with_name("key.pem")
    broker = Broker(tmp_path_factory.mktemp("tls"), f"certfile {certificate}", f"keyfile {key}")
    broker.start()
    try:
        url = broker.url.replace("mqtt://", "mqtts://")
        with linked(url, None, access=Access(ca_file=str(certificate))) as link:
            link.sink(receipt(1))
            wait_until(lambda: link.counts["delivered"] >= 2, "birth and receipt are delivered")
        with linked(url, None) as link:
            wait_until(lambda: "certificate verify failed" in link.alarm, "an alarm")
            assert not link.connected
    finally:
        broker.stop(kill=True)


# -- in ------------------------------------------------------------------------------------


def poll_for(link: MqttLink, n: int) -> list[Any]:
    labels: list[Any] = []
    wait_until(lambda: labels.extend(link.poll()) or len(labels) >= n, f"{n} labels arrive")
    return labels


@pytest.mark.broker
def test_bad_labels_are_counted_and_answered_and_good_ones_pass(
    broker: Broker, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    watcher = watch(broker.url, f"{ROOT}/receipt")
    with linked(broker.url, tmp_path) as link:
        wait_until(lambda: link.connected, "connected")
        wait_until(lambda: link.counts["delivered"], "the birth is acknowledged")
        watcher.send_label(b"\xff not json")
        watcher.send_label(b'{"label": "' + b"x" * 80_000 + b'"}')
        watcher.send_label(b"")
        watcher.send_label(b'{"label": "walk", "reading_id": "r7", "source": "anna"}')
        (label,) = poll_for(link, 1)
        assert (label.label, label.reading_id, label.source) == ("walk", "r7", "mqtt/anna")
        wait_until(lambda: len(watcher.of("receipt")) == 3, "three refusals arrive")
        assert link.counts["bad_inbound"] == 3
    assert [message.data.status for message in watcher.of("receipt")] == ["refused"] * 3
    assert "not json" in watcher.of("receipt")[0].data.message
    assert "65,536 bytes" in watcher.of("receipt")[1].data.message


@pytest.mark.broker
def test_a_label_is_delivered_again_until_its_receipt_is_safe(
    broker: Broker, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    watcher = watch(broker.url, f"{ROOT}/receipt")
    with linked(broker.url, tmp_path) as link:
        wait_until(lambda: link.connected, "connected")
        wait_until(lambda: link.counts["delivered"], "the birth is acknowledged")
        watcher.send_label(b'{"label": "walk", "reading_id": "r1"}')
        (first,) = poll_for(link, 1)
    with linked(broker.url, tmp_path) as link:
        (again,) = poll_for(link, 1)
        assert again == first
        link.sink(receipt(1, source="mqtt", status="duplicate"))
        wait_until(lambda: watcher.receipts() == [1], "the receipt arrives")
    with linked(broker.url, tmp_path) as link:
        watcher.send_label(b'{"label": "next", "reading_id": "r2"}')
        assert [label.label for label in poll_for(link, 1)] == ["next"]


@pytest.mark.broker
def test_labels_sent_while_the_device_is_off_wait_for_it(
    broker: Broker, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    with linked(broker.url, tmp_path) as link:
        wait_until(lambda: link.counts["delivered"], "the birth is acknowledged")
    watcher = watch(broker.url, f"{ROOT}/receipt")
    for n in range(40):
        watcher.send_label(b'{"label": "walk", "reading_id": "r%d"}' % n)
    with linked(broker.url, tmp_path) as link:
        assert [label.reading_id for label in poll_for(link, 40)] == [f"r{n}" for n in range(40)]


# -- faults --------------------------------------------------------------------------------


@pytest.mark.broker
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_dead_network_thread_is_started_again(
    broker: Broker, watch: Callable[..., Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = watch(broker.url)
    with linked(broker.url, None) as link:
        wait_until(lambda: link.counts["delivered"], "the birth is acknowledged")

        def die(*_: object) -> None:
            raise SystemExit

        assert link._pump.dialler.connection is not None
        link._pump.dialler.connection.client.on_message = die
        watcher.send_label(b'{"label": "walk", "reading_id": "r1"}')
        link.sink(receipt(1))
        assert [label.reading_id for label in poll_for(link, 1)] == ["r1"]
        wait_until(lambda: watcher.receipts() and delivered(link), "acknowledgements are read again")
        assert link.counts["connections"] == 2


@pytest.mark.broker
def test_a_flood_fills_no_memory(broker: Broker, watch: Callable[..., Watcher]) -> None:
    watcher = watch(broker.url)
    with linked(broker.url, None) as link:
        wait_until(lambda: link.counts["delivered"], "the birth is acknowledged")
        goes_on = threading.Event()
        link._pump.put(lambda: goes_on.wait(30) and None)
        for _ in range(20):
            for _ in range(MAX_ARRIVALS):
                sent = watcher.client.publish(f"{ROOT}/cmd/ack", b"nonsense", qos=0)
            sent.wait_for_publish(10)
        watcher.send_label(b"nonsense")
        wait_until(lambda: link._pump.n_tasks > MAX_ARRIVALS, "the label of QoS 1 waits behind them")
        assert link._pump.n_tasks < MAX_ARRIVALS + 10
        goes_on.set()
        wait_until(lambda: link.counts["bad_inbound"] == 1, "the label")
        link.sink(receipt(1))
        wait_until(lambda: 1 in watcher.receipts(), "a receipt")


@pytest.mark.broker
def test_tasks_that_never_end_keep_nothing_from_being_sent(
    broker: Broker, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    watcher = watch(broker.url)
    with linked(broker.url, tmp_path) as link:
        busy = True

        def again() -> None:
            if busy:
                link._pump.put(again)

        link._pump.put(again)
        link.sink(receipt(1))
        try:
            wait_until(lambda: watcher.receipts() == [1], "the receipt")
        finally:
            busy = False


@pytest.mark.broker
def test_a_request_for_absurd_numbers_does_not_end_the_pump(
    broker: Broker, tmp_path: Path, watch: Callable[..., Watcher]
) -> None:
    watcher = watch(broker.url)
    with linked(broker.url, tmp_path) as link:
        link.sink(receipt(1))
        wait_until(lambda: watcher.receipts() == [1], "the first receipt")
        seqs = [(-(2**70), -(2**70) + 5), (-(2**70), 2**70)]
        asked = messages.Resend(epoch=watcher.of("receipt")[0].epoch, seqs=seqs)
        watcher.client.publish(f"{ROOT}/cmd/resend", messages.encode(asked), qos=1).wait_for_publish(10)
        link.sink(receipt(2))
        wait_until(lambda: 2 in watcher.receipts(), "the second")
        assert link._pump.is_alive


@pytest.mark.broker
def test_an_unexpected_error_is_an_alarm_and_not_the_end(
    broker: Broker, watch: Callable[..., Watcher], monkeypatch: pytest.MonkeyPatch
) -> None:
    watcher = watch(broker.url)
    with linked(broker.url, None) as link:
        wait_until(lambda: link.counts["delivered"], "the birth is acknowledged")
        with monkeypatch.context() as patch:
            patch.setattr(link._pump.dialler.connection.client, "publish", lambda *_, **__: int("nonsense"))
            link.sink(STATUS)
            wait_until(lambda: "unexpected error" in link.alarm, "an alarm")
        link.sink(receipt(1))
        wait_until(lambda: watcher.receipts() == [1], "the receipt arrives all the same")


class SilentBroker:
    """Accepts connections and messages and acknowledges no message; counts them."""

    def __init__(self, connack: bytes = b"\x20\x02\x00\x00") -> None:
        self._connack = connack
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"mqtt://127.0.0.1:{self._listener.getsockname()[1]}"
        self.connects: list[bytes] = []
        self.unacknowledged: list[int] = []
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def hang_up(self) -> None:
        self._connections[-1].shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        for connection in self._connections:
            connection.close()

    def _serve(self) -> None:
        try:
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self.unacknowledged.append(0)
                self._talk(connection)
        except OSError:
            return

    def _talk(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        while head := stream.read(1):
            length = shift = 0
            while True:
                (byte,) = stream.read(1) or b"\0"
                length |= (byte & 127) << shift
                shift += 7
                if byte < 128:
                    break
            body = stream.read(length)
            if head[0] == 0x10:
                self.connects.append(body)
                connection.sendall(self._connack)
            elif head[0] & 0xF0 == 0x30 and head[0] & 6:
                self.unacknowledged[-1] += 1
            elif head[0] & 0xF0 == 0x80:
                connection.sendall(b"\x90\x03" + body[:2] + b"\x80")
            elif head[0] == 0xE0:
                return


@contextmanager
def silent(**options: Any) -> Iterator[SilentBroker]:
    broker = SilentBroker(**options)
    try:
        yield broker
    finally:
        broker.close()


def test_never_more_than_the_window_is_in_flight() -> None:
    with silent() as broker:
        link = MqttLink(
            broker.url,
            device="pi",
            site="lab",
            state_dir=None,
            pace=Pace(backoff_s=(0.01, 0.02)),
            mqtt_5=False,
        )
        link.start()
        for n in range(200):
            link.sink(receipt(n))
        for connection in range(3):
            wait_until(lambda c=connection: len(broker.unacknowledged) > c, "connected")
            wait_until(lambda c=connection: broker.unacknowledged[c] >= 16, "a full window")
            link.sink(STATUS)
            wait_until(lambda: link.counts["queued"] >= 200, "all are queued")
            broker.hang_up()
        link.stop(0.1)
        assert max(broker.unacknowledged) == 16
        for n, connect in enumerate(broker.connects, start=1):
            assert b'"online":false' in connect and b'"session":%d' % n in connect


def test_a_broker_that_refuses_is_an_alarm() -> None:
    with silent(connack=b"\x20\x02\x00\x05") as broker, linked(broker.url, None) as link:
        wait_until(lambda: "refused the connection (Not authorized)" in link.alarm, "an alarm")
        assert "EDGE_CL_MQTT_PASSWORD" in link.alarm and not link.connected


def test_the_password_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGE_CL_MQTT_PASSWORD", "s3cret")
    with silent() as broker:
        link = MqttLink(broker.url, device="pi", site="lab", state_dir=None, access=Access("pi-7"))
        link.start()
        wait_until(lambda: broker.connects, "connected")
        link.stop(0.1)
        assert b"pi-7" in broker.connects[0] and b"s3cret" in broker.connects[0]
        assert b"edgecl-lab-pi" in broker.connects[0]


def test_a_broker_that_forbids_labels_is_an_alarm() -> None:
    with silent() as broker:
        link = MqttLink(broker.url, device="pi", site="lab", state_dir=None)
        link.start()
        wait_until(lambda: "does not let this device read" in link.alarm, "an alarm")
        link.stop(0.1)


def test_a_state_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    url = f"mqtt://127.0.0.1:{free_port()}"
    with linked(url, tmp_path / "file") as link:
        link.sink(receipt(1))
        wait_until(lambda: link.counts["queued"] == 1, "queued")
        assert "outbox" in link.alarm and "cannot be used" in link.alarm
        assert link.counts["disk_errors"] >= 1


# -- another broker ------------------------------------------------------------------------


@contextmanager
def amqtt_broker() -> Iterator[str]:
    """amqtt in a thread of this process."""
    module = pytest.importorskip("amqtt.broker")
    url = f"127.0.0.1:{free_port()}"
    config = {
        "listeners": {"default": {"type": "tcp", "bind": url}},
        "plugins": {"amqtt.plugins.authentication.AnonymousAuthPlugin": {"allow_anonymous": True}},
    }
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def make() -> Any:
        broker = module.Broker(config)
        await broker.start()
        return broker

    broker = asyncio.run_coroutine_threadsafe(make(), loop).result(10)
    try:
        yield f"mqtt://{url}"
    finally:
        asyncio.run_coroutine_threadsafe(broker.shutdown(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def test_the_broker_of_the_demo(tmp_path: Path) -> None:
    with amqtt_broker() as url:
        watcher = Watcher(url)
        with linked(url, tmp_path, mqtt_5=False) as link:
            wait_until(lambda: link.counts["delivered"], "the birth is acknowledged")
            watcher.send_label(b'{"label": "walk", "reading_id": "r1"}')
            (label,) = poll_for(link, 1)
            assert label.reading_id == "r1"
            for n in range(100):
                link.sink(receipt(n))
            link.sink(STATUS)
        assert delivered(link)
        wait_until(lambda: watcher.receipts() == list(range(100)), "every receipt arrives")
        wait_until(lambda: not watcher.of("status")[-1].online, "the farewell arrives")
        watcher.close()
    assert queued_on_disk(tmp_path) == 0
