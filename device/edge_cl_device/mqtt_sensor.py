"""Samples that come over MQTT: JSON lines, as on standard input, in the messages of some topics.

Whoever may write those topics may send samples. Labels among them count as those of MQTT, by the source
``mqtt/…``; a class named beside samples is not heard.
"""

from __future__ import annotations

import time
import uuid
from collections import deque
from typing import Annotated, Any

import msgspec
import paho.mqtt.client as paho
from msgspec import Meta

from edge_cl.errors import BadReading, SensorUnavailable
from edge_cl.manifest import Manifest
from edge_cl.records import Label
from edge_cl.sensing.drivers import read_options
from edge_cl.sensing.lines import Item, JsonDecoder, Labelled, Samples
from edge_cl.sync.broker import Access, create_client, parse_url
from edge_cl_device.clocks import Clocks, Found
from edge_cl_device.per_channel import largest

WAIT_S = 0.1
MOST_BYTES = 1024 * 1024
MOST_MESSAGES = 1_000
GREETING_S = 10.0


class MqttOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where samples are published; the password is in ``EDGE_CL_MQTT_PASSWORD``, as that of ``[mqtt]``.

    `rate_hz` is that of samples without a time; 0: the bundle's. `full_scale`, one or each channel's, is the
    largest magnitude that the sensor can tell, in the bundle's units; 0: unknown, and nothing is called
    saturated.
    """

    url: str
    topics: Annotated[list[Annotated[str, Meta(min_length=1)]], Meta(min_length=1)]
    username: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    rate_hz: Annotated[float, Meta(ge=0)] = 0.0
    full_scale: float | list[float] = 0.0


class MqttSensor:
    """A `Sensor`; it has no thread of its own besides the one that reads it."""

    def __init__(self, manifest: Manifest, options: dict[str, Any]) -> None:
        asked = read_options("sensor mqtt", options, MqttOptions)
        self.rate_hz = asked.rate_hz
        self.full_scale = largest(asked.full_scale, manifest.n_channels, "sensor mqtt: option full_scale")
        self._topics = [(topic, 0) for topic in asked.topics]
        self._decoder = JsonDecoder(manifest, timed=False)
        self._clocks = Clocks(asked.rate_hz or manifest.rate_hz)
        self._payloads: deque[bytes] = deque(maxlen=MOST_MESSAGES)
        self._refused: str | None = None
        self._greeted = False
        self._url = asked.url
        access = Access(asked.username, asked.ca_file, asked.cert_file, asked.key_file, "sensor option ")
        broker = parse_url(asked.url)
        name = f"edgecl-sensor-{uuid.uuid4().hex[:12]}"
        self._client = create_client(name, broker, access, mqtt_5=False, clean=True)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = self._on_subscribe
        self._client.on_message = self._on_message
        try:
            self._client.connect(broker.host, broker.port, keepalive=20)
        except (OSError, ValueError) as error:
            raise SensorUnavailable(f"{asked.url} cannot be reached ({error})") from error
        self._greet()

    def read(self) -> Found:
        """What messages hold that have come."""
        self._turn()
        found: Found = []
        while self._payloads:
            payload = self._payloads.popleft()
            if len(payload) > MOST_BYTES:
                found.append(BadReading(f"a message of {len(payload):,} bytes; allowed: {MOST_BYTES:,}"))
                continue
            found += [item for item in map(self._decoded, payload.splitlines()) if item is not None]
        return self._clocks.place(found, time.monotonic())

    def close(self) -> None:
        """Say goodbye."""
        self._client.disconnect()
        self._client.loop(0)

    def _greet(self) -> None:
        until_s = time.monotonic() + GREETING_S
        while not self._greeted:
            self._turn()
            if time.monotonic() > until_s:
                raise SensorUnavailable(f"{self._url} does not answer within {GREETING_S:g} s")

    def _turn(self) -> None:
        said = self._client.loop(WAIT_S)
        if self._refused is not None:
            raise SensorUnavailable(f"{self._url} refused: {self._refused}")
        if said != paho.MQTT_ERR_SUCCESS:
            raise SensorUnavailable(f"{self._url} was lost ({paho.error_string(said)})")

    def _decoded(self, line: bytes) -> Item | BadReading | None:
        try:
            item = self._decoder.decode(line)
        except BadReading as problem:
            return problem
        if isinstance(item, Label):
            return msgspec.structs.replace(item, source=f"mqtt/{item.source}".replace("*", "_"))
        if isinstance(item, Labelled):
            return msgspec.structs.replace(item, label="")
        if isinstance(item, Samples):
            return msgspec.structs.replace(item, labels=[""] * len(item.labels))
        return None

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._refused = f"{reason}; check username and EDGE_CL_MQTT_PASSWORD"
        else:
            client.subscribe(self._topics)

    def _on_subscribe(self, client: Any, data: Any, mid: int, reasons: Any, properties: Any) -> None:
        refused = [
            topic for (topic, _), reason in zip(self._topics, reasons, strict=False) if reason.is_failure
        ]
        if refused:
            self._refused = f"{', '.join(refused)} may not be read by this user"
        self._greeted = True

    def _on_message(self, client: Any, data: Any, message: Any) -> None:
        self._payloads.append(message.payload)
