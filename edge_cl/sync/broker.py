"""Where the broker is and how to talk to it: the URL, the secrets, paho's settings."""

from __future__ import annotations

import os
import random
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


def create_client(client_id: str, broker: Broker, *, username: str, ca_file: str) -> paho.Client:
    """A paho client that is not connected yet; raises `ConfigError` for unusable TLS settings."""
    client = paho.Client(
        CallbackAPIVersion.VERSION2,
        client_id=client_id,
        clean_session=False,
        protocol=paho.MQTTv311,
        manual_ack=True,
    )
    client.suppress_exceptions = True
    if username:
        client.username_pw_set(username, os.environ.get(PASSWORD_VARIABLE))
    if ca_file and not broker.tls:
        raise ConfigError("mqtt.ca_file is set but mqtt.url begins with mqtt://; write mqtts:// for TLS")
    if broker.tls:
        try:
            client.tls_set(ca_certs=ca_file or None)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(
                f"mqtt.ca_file {ca_file!r} cannot be used ({error}); name a file of PEM certificates"
            ) from error
    return client


def spread_reconnects(client: paho.Client, shortest_s: float, longest_s: float) -> None:
    """Give this device its own rhythm: else all come back in one instant after a broker's restart."""
    low = shortest_s * random.uniform(1.0, 3.0)
    high = max(low, longest_s * random.uniform(0.5, 1.0))
    client.reconnect_delay_set(low, high)  # type: ignore[arg-type]  # fractions work, too
