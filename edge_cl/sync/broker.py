"""Where the broker is and how to talk to it: the URL, the secrets, paho's settings."""

from __future__ import annotations

import os
import ssl
from typing import NamedTuple
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

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


def create_client(
    client_id: str,
    broker: Broker,
    *,
    username: str = "",
    ca_file: str = "",
    cert_file: str = "",
    key_file: str = "",
    mqtt_5: bool = True,
    clean: bool = False,
) -> paho.Client:
    """A paho client that is not connected yet; raises `ConfigError` for unusable TLS settings.

    Its network thread may die of anything but an exception in a callback: those are logged and passed over.
    """
    protocol = paho.MQTTv5 if mqtt_5 else paho.MQTTv311
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=None if mqtt_5 else clean,
        protocol=protocol,
        manual_ack=True,
        reconnect_on_failure=False,
    )
    client.suppress_exceptions = True
    if username:
        client.username_pw_set(username, os.environ.get(PASSWORD_VARIABLE))
    if broker.tls:
        _use_tls(client, ca_file, cert_file, key_file)
    elif ca_file or cert_file or key_file:
        name = "ca_file" if ca_file else "cert_file" if cert_file else "key_file"
        raise ConfigError(f"mqtt.{name} is set but mqtt.url begins with mqtt://; write mqtts:// for TLS")
    return client


def _use_tls(client: paho.Client, ca_file: str, cert_file: str, key_file: str) -> None:
    if bool(cert_file) != bool(key_file):
        raise ConfigError("mqtt.cert_file and mqtt.key_file belong together; set both or none")
    found = f"mqtt.ca_file {ca_file!r}" + (f", mqtt.cert_file {cert_file!r}" if cert_file else "")
    try:
        client.tls_set(ca_certs=ca_file or None, certfile=cert_file or None, keyfile=key_file or None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{found} cannot be used ({error}); name files of PEM certificates") from error
