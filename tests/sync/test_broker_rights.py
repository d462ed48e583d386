"""The Mosquitto settings that come with edge-cl, in a real Mosquitto: who gets in, and who may do what."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_cl.sync.messages import UP
from tests.certificates import Authority
from tests.mosquitto import MOSQUITTO, free_port, wait_until

CONFIG = Path(__file__).parents[2] / "device" / "config"
HOME = "/etc/mosquitto/edge-cl"
NOT_AUTHORIZED = 135

pytestmark = pytest.mark.skipif(
    MOSQUITTO is None, reason="mosquitto is not installed; on Debian: apt-get install mosquitto"
)


@dataclass
class Served:
    """A Mosquitto with the settings as they come, but for folder and ports."""

    folder: Path
    authority: Authority
    stolen: tuple[Path, Path]
    devices_port: int
    servers_port: int

    def connect(self, common_name: str, *, port: int = 0, authority: Authority | None = None) -> Client:
        """A client with a certificate of that name; by default where devices belong."""
        certificate = (authority or self.authority).issue(common_name, f"client-{time.monotonic_ns()}")
        return Client(port or self.devices_port, self.authority.ca_file, certificate)

    def server(self, common_name: str) -> Client:
        """A client where servers belong."""
        return self.connect(common_name, port=self.servers_port)


class Client:
    """A client over TLS that notes what it hears."""

    def __init__(self, port: int, ca_file: Path, certificate: tuple[Path, Path] | None) -> None:
        self.heard: list[str] = []
        self.granted: list[int] = []
        self.reason: int | None = None
        self.lost = 0
        self.paho = paho.Client(
            CallbackAPIVersion.VERSION2,
            protocol=paho.MQTTv5,
            client_id=f"c{time.monotonic_ns()}",
            reconnect_on_failure=False,
        )
        cert_file, key_file = certificate or (None, None)
        self.paho.tls_set(str(ca_file), cert_file and str(cert_file), key_file and str(key_file))
        self.paho.on_connect = lambda _c, _u, _f, reason, _p: setattr(self, "reason", reason.value)
        self.paho.on_disconnect = lambda *_: setattr(self, "lost", self.lost + 1)
        self.paho.on_message = lambda _c, _u, message: self.heard.append(message.topic)
        self.paho.on_subscribe = lambda _c, _u, _m, reasons, _p: self.granted.extend(
            reason.value for reason in reasons
        )
        self.paho.on_publish = lambda _c, _u, mid, reason, _p: self._published.__setitem__(mid, reason.value)
        self._published: dict[int, int] = {}
        self.paho.connect("127.0.0.1", port, keepalive=20)
        self.paho.loop_start()

    def ready(self) -> Client:
        wait_until(lambda: self.reason == 0, "the broker lets it in")
        return self

    def listens(self, *topics: str) -> Client:
        self.ready().paho.subscribe([(topic, 1) for topic in topics])
        wait_until(lambda: len(self.granted) == len(topics), "it has subscribed")
        return self

    def may_write(self, topic: str, *, retain: bool = False) -> bool:
        mid = self.ready().paho.publish(topic, b"{}", qos=1, retain=retain).mid
        wait_until(lambda: mid in self._published, "the broker answers the publish")
        return self._published[mid] < 128

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("broker")
    authority = Authority(folder)
    authority.issue("broker", "broker")
    stolen = authority.issue("home/stolen", "stolen")
    authority.revoke(stolen[0])
    found = Served(folder, authority, stolen, free_port(), free_port())
    text = (CONFIG / "mosquitto.conf").read_text()
    for old, new in (
        (HOME, str(folder)),
        ("#crlfile", "crlfile"),
        ("/var/lib/mosquitto/", f"{folder}/"),
        ("listener 8883", f"listener {found.devices_port} 127.0.0.1"),
        ("listener 8884", f"listener {found.servers_port} 127.0.0.1"),
    ):
        assert old in text
        text = text.replace(old, new)
    if os.geteuid() == 0:
        text += "user root\n"  # else it drops to a user who may not read here
    (folder / "mosquitto.conf").write_text(text)
    (folder / "acl").write_text((CONFIG / "acl").read_text())
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(MOSQUITTO), "-c", str(folder / "mosquitto.conf")], stderr=log)
    try:
        for port in (found.devices_port, found.servers_port):
            wait_until(lambda port=port: _accepts(port), (folder / "log").read_text() or "it listens")  # type: ignore[misc]
        yield found
    finally:
        process.terminate()
        process.wait(10)


def _accepts(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_a_device_writes_its_own_messages_and_nothing_else(served: Served) -> None:
    device = served.connect("home/wrist")
    for kind in UP:
        assert device.may_write(f"edgecl/1/home/wrist/{kind}"), kind
    for topic in (
        "edgecl/1/home/other/receipt",
        "edgecl/1/shed/wrist/receipt",
        "edgecl/1/home/wrist/label",
        "edgecl/1/home/wrist/cmd/ack",
        "edgecl/1/home/wrist/cmd/do",
        "edgecl/1/home/other/cmd/label",
        "edgecl/1/fleet/hello",
        "homeassistant/device/x/config",
        "anything",
    ):
        assert not device.may_write(topic), topic
    device.close()


def test_a_device_reads_its_own_orders_and_nothing_else(served: Served) -> None:
    device = served.connect("home/wrist").listens("#")
    server = served.server("fleet.server")
    other = served.connect("home/other")
    for topic in (
        "edgecl/1/home/other/cmd/do",
        "edgecl/1/home/other/cmd/chunk/0123456789abcdef/0",
        "edgecl/1/shed/wrist/cmd/do",
        "edgecl/1/home/wrist/cmd/ack",
        "edgecl/1/home/wrist/cmd/chunk/0123456789abcdef/0",
        "edgecl/1/fleet/hello",
    ):
        assert server.may_write(topic), topic
    assert other.may_write("edgecl/1/home/other/receipt")
    assert other.may_write("edgecl/1/home/other/status")
    assert server.may_write("edgecl/1/home/wrist/cmd/do")
    wait_until(lambda: "edgecl/1/home/wrist/cmd/do" in device.heard, "its order arrives")
    assert device.heard == [
        "edgecl/1/home/wrist/cmd/ack",
        "edgecl/1/home/wrist/cmd/chunk/0123456789abcdef/0",
        "edgecl/1/fleet/hello",
        "edgecl/1/home/wrist/cmd/do",
    ]
    for client in (device, server, other):
        client.close()


def test_the_server_hears_all_devices_and_speaks_for_none(served: Served) -> None:
    server = served.server("fleet.server").listens("$share/fleet/edgecl/1/+/+/+")
    device = served.connect("shed/door")
    assert device.may_write("edgecl/1/shed/door/receipt")
    wait_until(lambda: server.heard == ["edgecl/1/shed/door/receipt"], "the server hears it")
    assert not server.may_write("edgecl/1/shed/door/receipt")
    assert not server.may_write("edgecl/1/shed/door/status")
    for client in (server, device):
        client.close()


def test_home_assistant_may_ask_for_what_needs_no_signature(served: Served) -> None:
    home = served.server("home.assistant")
    for name in ("label", "sleep", "undo"):
        assert home.may_write(f"edgecl/1/home/wrist/cmd/{name}")
    assert home.may_write("homeassistant/status")
    for name in ("do", "ack", "resend", "chunk/0123456789abcdef/0"):
        assert not home.may_write(f"edgecl/1/home/wrist/cmd/{name}")
    home.close()


@pytest.mark.parametrize("name", ["+/+", "#", "home/+", "+", "home/wrist/cmd", "home", "fleet"])
def test_a_name_that_is_no_devices_gives_no_rights(served: Served, name: str) -> None:
    client = served.connect(name)
    for rest in ("receipt", "status", "cmd/do", "cmd/ack", "cmd/label", "cmd/chunk/0123456789abcdef/0"):
        assert not client.may_write(f"edgecl/1/home/wrist/{rest}"), rest
    assert not client.may_write("edgecl/1/fleet/hello")
    client.close()


def test_many_workers_share_the_servers_name_and_two_boards_cannot_share_one(served: Served) -> None:
    workers = [served.server("fleet.server").ready() for _ in range(3)]
    first = served.connect("home/twin").ready()
    second = served.connect("home/twin").ready()
    wait_until(lambda: first.lost, "the first board of that name is taken over")
    for worker in workers:
        assert worker.lost == 0
    for client in (*workers, first, second):
        client.close()


def test_a_device_cannot_end_the_connection_of_another(served: Served) -> None:
    """It would, if the broker believed the client id that it sends."""
    victim = served.connect("home/victim").ready()
    certificate = served.authority.issue("home/thief", "thief")
    thief = paho.Client(CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311, client_id="home/victim")
    thief.tls_set(str(served.authority.ca_file), str(certificate[0]), str(certificate[1]))
    thief.connect("127.0.0.1", served.devices_port)
    thief.loop_start()
    wait_until(thief.is_connected, "the thief is connected")
    assert victim.may_write("edgecl/1/home/victim/state")
    assert victim.lost == 0
    thief.disconnect()
    thief.loop_stop()
    victim.close()


def test_who_has_no_certificate_of_ours_does_not_get_in(served: Served, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "another authority")
    expired = served.authority.issue("home/wrist", "expired", days=-1)
    for certificate in (None, stranger.issue("home/wrist", "stranger"), expired, served.stolen):
        try:
            client = Client(served.devices_port, served.authority.ca_file, certificate)
        except (ssl.SSLError, ConnectionError):
            continue
        wait_until(lambda client=client: client.lost, "the broker ends it")  # type: ignore[misc]
        assert client.reason is None
        client.paho.loop_stop()


def test_a_broker_of_another_authority_is_not_believed(served: Served, tmp_path: Path) -> None:
    stranger = Authority(tmp_path, "another authority")
    with pytest.raises(ssl.SSLCertVerificationError):
        Client(served.devices_port, stranger.ca_file, served.authority.issue("home/wrist", "wrist"))


def test_a_message_that_is_too_large_goes_nowhere(served: Served) -> None:
    server = served.server("fleet.server").listens("edgecl/1/+/+/+")
    device = served.connect("home/large").ready()
    device.paho.publish("edgecl/1/home/large/part", b"x" * 200_000, qos=0)
    device.paho.publish("edgecl/1/home/large/part", b"x" * 120_000, qos=0)
    wait_until(lambda: server.heard, "the smaller one arrives")
    assert len(server.heard) == 1
    for client in (server, device):
        client.close()


def test_a_device_announces_itself_to_home_assistant_and_nobody_else(served: Served) -> None:
    device = served.connect("home/wrist").listens("homeassistant/status")
    home = served.server("home.assistant").listens("homeassistant/#")
    assert device.may_write("homeassistant/device/home/wrist/config", retain=True)
    for topic in ("device/home/other/config", "device/wrist/config", "sensor/home/wrist/config", "status"):
        assert not device.may_write(f"homeassistant/{topic}"), topic
    assert home.may_write("homeassistant/status")
    wait_until(lambda: device.heard == ["homeassistant/status"], "the device hears that it started")
    device.may_write("homeassistant/device/home/wrist/config", retain=True)
    for client in (device, home):
        client.close()
