"""Where the broker is and how to talk to it: the URL, the secrets, paho's settings."""

from __future__ import annotations

import os
import ssl
from typing import NamedTuple
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.properties import Properties

from edge_cl.errors import ConfigError

PASSWORD_VARIABLE = "EDGE_CL_MQTT_PASSWORD"


class Broker(NamedTuple):
    """Where the broker is."""

    host: str
    port: int
    tls: bool


def parse_url(url: str) -> Broker:
    """Host and port of ``mqtt://host[:port]`` or ``mqtts://host[:port]``.

    Raises
    ------
    ConfigError
        For anything else; a password in the URL is refused because URLs end up in logs.
    """
    allowed = "write mqtt://host:port, or mqtts://host:port for TLS"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ConfigError(f"mqtt.url is not a URL ({error}); {allowed}") from error
    if "@" in parts.netloc:
        raise ConfigError(
            "mqtt.url holds a user or a password; "
            f"set mqtt.username and the environment variable {PASSWORD_VARIABLE} instead"
        )
    if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == 0:
        raise ConfigError(f"mqtt.url is {url!r}; {allowed}")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(f"mqtt.url is {url!r}; nothing may follow the port; {allowed}")
    tls = parts.scheme == "mqtts"
    return Broker(parts.hostname, port or (8883 if tls else 1883), tls)


class Access(NamedTuple):
    """How to be let in: a user, whose password the environment variable ``EDGE_CL_MQTT_PASSWORD`` holds;
    files of PEM certificates that say whom to believe and who this is. "" for none, and the system's
    authorities. `section` is what these settings' names begin with, for messages.
    """

    username: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    section: str = "mqtt."


def create_client(
    client_id: str, broker: Broker, access: Access, *, mqtt_5: bool = True, clean: bool = False
) -> paho.Client:
    """A paho client that is not connected yet; raises `ConfigError` for unusable TLS settings.

    It connects once, leaves acknowledging to its owner, and passes over exceptions in callbacks.
    """
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if mqtt_5 else clean,
        protocol=paho.MQTTv5 if mqtt_5 else paho.MQTTv311,
        manual_ack=True,
        reconnect_on_failure=False,
    )
    client.suppress_exceptions = True
    if access.username:
        client.username_pw_set(access.username, os.environ.get(PASSWORD_VARIABLE))
    files = {name: getattr(access, name) for name in ("ca_file", "cert_file", "key_file")}
    named = ", ".join(f"{access.section}{name} {path!r}" for name, path in files.items() if path)
    if named and not broker.tls:
        raise ConfigError(f"the broker's URL begins with mqtt://, but {named}; write mqtts:// for TLS")
    if bool(access.cert_file) != bool(access.key_file):
        both = f"{access.section}cert_file and {access.section}key_file"
        raise ConfigError(f"{both} belong together, found {named}; set both or none")
    if broker.tls:
        try:
            client.tls_set(access.ca_file or None, access.cert_file or None, access.key_file or None)
        except (OSError, ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"{named or 'TLS'} cannot be used ({error}); name files of PEM certificates"
            ) from error
    return client


def properties(packet: int, **values: int) -> Properties:
    """MQTT 5 properties of a kind of packet (`paho.mqtt.packettypes.PacketTypes`), by their names."""
    found = Properties(packet)  # type: ignore[no-untyped-call]
    for name, value in values.items():
        setattr(found, name, value)
    return found
