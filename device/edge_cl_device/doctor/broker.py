"""The MQTT broker, step by step: name, port, TLS, login."""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
import ssl
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from edge_cl.errors import ConfigError
from edge_cl_device.doctor.findings import Finding, note, ok, problem, warning
from edge_cl_device.doctor.scene import SECRETS, Scene

TIMEOUT_S = 5.0
EXPIRES_DAYS = 30.0
_DIGITS = 4


def check(scene: Scene) -> Iterator[Finding]:
    """Whether the broker of the settings can be reached, believes us, and is to be believed."""
    from edge_cl.sync.broker import parse_url

    url = scene.settings.mqtt.url
    if not url:
        yield note("broker", "no broker is set", "the device works alone")
        return
    try:
        broker = parse_url(url)
    except ConfigError as error:
        yield problem("broker", str(error), "the device cannot start", "set mqtt.url")
        return
    if not broker.tls:
        yield _plain(broker.host)
    if not scene.online:
        return
    try:
        addresses = socket.getaddrinfo(broker.host, broker.port, type=socket.SOCK_STREAM)
    except OSError as error:
        yield problem(
            "broker-name",
            f"the name {broker.host} is not known ({error.strerror or error})",
            "messages wait in the outbox until it is",
            f"getent hosts {broker.host}; is the network up, and mqtt.url right?",
        )
        return
    yield ok("broker-name", f"{broker.host} is {addresses[0][4][0]}")
    yield from _port(scene, broker)


def _plain(host: str) -> Finding:
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if local:
        return ok("broker-tls", "no TLS, on this very machine")
    return warning(
        "broker-tls",
        f"mqtt:// to {host}: no TLS",
        "whoever is on the way reads passwords and everything sent, and may teach the device",
        "use mqtts://, with mqtt.ca_file if the broker has an authority of its own (docs/security.md)",
    )


def _port(scene: Scene, broker: Any) -> Iterator[Finding]:
    try:
        with socket.create_connection((broker.host, broker.port), TIMEOUT_S) as line:
            yield ok("broker-port", f"{broker.host}:{broker.port} answers")
            shaken = list(_handshake(scene, broker, line)) if broker.tls else []
            yield from shaken
            if any(finding.level == "problem" for finding in shaken):
                return
    except OSError as error:
        yield problem(
            "broker-port",
            f"nothing answers at {broker.host}:{broker.port} ({error.strerror or error})",
            "messages wait in the outbox until it does",
            f"is the broker running, and its port open? nc -vz {broker.host} {broker.port}",
        )
        return
    yield _login(scene, broker)


def _handshake(scene: Scene, broker: Any, line: socket.socket) -> Iterator[Finding]:
    from edge_cl.sync.certificates import explain

    mqtt = scene.settings.mqtt
    try:
        context = ssl.create_default_context(cafile=mqtt.ca_file or None)
        if mqtt.cert_file:
            context.load_cert_chain(mqtt.cert_file, mqtt.key_file)
        with context.wrap_socket(line, server_hostname=broker.host) as secure:
            certificate = secure.getpeercert() or {}
    except (OSError, ValueError) as error:
        yield problem(
            "broker-tls",
            f"no TLS with {broker.host}:{broker.port}: {explain(error, broker)}",
            "the device does not send to a broker that it cannot believe",
            f"openssl s_client -connect {broker.host}:{broker.port} -CAfile {mqtt.ca_file or 'FILE'}",
        )
        return
    until = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    days = (until - datetime.now(UTC)).total_seconds() / 86400
    if days < EXPIRES_DAYS:
        yield warning(
            "broker-certificate",
            f"the broker's certificate ends in {days:.0f} days ({until:%Y-%m-%d})",
            "afterwards no device can connect",
            "renew it on the broker",
        )
    else:
        yield ok("broker-tls", f"TLS, certificate valid until {until:%Y-%m-%d}")


def _kept_password(scene: Scene, variable: str) -> str | None:
    """What the service gets from its file of secrets; only root can read it."""
    for line in scene.text(SECRETS).splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip() == variable:
            return value.strip().strip("\"'")
    return None


def _login(scene: Scene, broker: Any) -> Finding:
    """CONNECT under a name of its own, so that the running device's session is left alone."""
    from edge_cl.sync.broker import PASSWORD_VARIABLE, Access, create_client

    mqtt = scene.settings.mqtt
    answered, said = threading.Event(), [""]

    def connected(client: object, data: object, flags: object, reason: Any, properties: object) -> None:
        said[0] = str(reason) if reason.is_failure else ""
        answered.set()

    try:
        access = Access(mqtt.username, mqtt.ca_file, mqtt.cert_file, mqtt.key_file)
        client = create_client(f"edge-cl-doctor-{secrets.token_hex(_DIGITS)}", broker, access)
        client.on_connect = connected
        if mqtt.username and PASSWORD_VARIABLE not in os.environ:
            client.username_pw_set(mqtt.username, _kept_password(scene, PASSWORD_VARIABLE))
        client.connect(broker.host, broker.port)
        client.loop_start()
        there = answered.wait(TIMEOUT_S)
        client.disconnect()
        client.loop_stop()
    except (OSError, ConfigError) as error:
        there, said[0] = True, str(error)
    if not there:
        means = "something else than a broker may listen there"
        return problem("broker-login", "no answer to CONNECT", means, "mosquitto_sub -d -t test")
    if said[0]:
        return problem(
            "broker-login",
            f"the broker refuses the device: {said[0]}",
            "messages wait in the outbox",
            f"check mqtt.username, and {PASSWORD_VARIABLE} in /{SECRETS}; run doctor as root to have it read",
        )
    return ok("broker-login", "the broker lets the device in")
