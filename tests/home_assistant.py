"""What Home Assistant does with MQTT discovery, written anew from its documented rules.

Stricter than the original: keys that it would ignore are errors here, since they are mistakes.
"""

from __future__ import annotations

import json
import re
import threading
from typing import Any

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion

from edge_cl.sync.broker import parse_url

jinja2 = pytest.importorskip("jinja2")
sandbox = pytest.importorskip("jinja2.sandbox")

CONFIG_TOPIC = re.compile(r"(\w+)/(?:([a-zA-Z0-9_-]+)/)?([a-zA-Z0-9_-]+)/config")
SHARED = {"availability_topic", "availability_template", "state_topic", "command_topic", "qos", "encoding"}
COMMON = {"platform", "name", "unique_id", "icon", "entity_category", "json_attributes_topic",
          "json_attributes_template"} | SHARED  # fmt: skip
KEYS = {
    "sensor": {
        "value_template",
        "expire_after",
        "unit_of_measurement",
        "state_class",
        "suggested_display_precision",
    },
    "binary_sensor": {"value_template", "expire_after"},
    "select": {"value_template", "options", "command_template"},
    "button": {"payload_press"},
    "update": {"value_template", "title", "payload_install"},
}
REQUIRED = {
    "sensor": {"state_topic"},
    "binary_sensor": {"state_topic"},
    "select": {"command_topic", "options"},
    "button": {"command_topic"},
    "update": set[str](),
}


class Entity:
    """One of a device's components, with its state as a person sees it."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.platform = config["platform"]
        self.state: str | None = None
        self.attributes: dict[str, Any] = {}
        self.versions: dict[str, Any] = {}


class HomeAssistant:
    """Knows the discovery prefix and nothing else."""

    def __init__(self, url: str, *, prefix: str = "homeassistant", name: str = "home") -> None:
        self.devices: dict[str, dict[str, Any]] = {}
        self.entities: dict[str, Entity] = {}
        """By unique id."""
        self.available: dict[str, bool] = {}
        """By availability topic."""
        self.mistakes: list[str] = []
        self.n_configs = 0
        self._prefix = prefix
        self._templates = sandbox.ImmutableSandboxedEnvironment()
        self._templates.filters["to_json"] = json.dumps
        self._subscribed = threading.Event()
        self.client = paho.Client(CallbackAPIVersion.VERSION2, client_id=name)
        self.client.on_connect = self._on_connect
        self.client.on_subscribe = lambda *_: self._subscribed.set()
        self.client.on_message = self._on_message
        where = parse_url(url)
        self.client.connect(where.host, where.port)
        self.client.loop_start()
        assert self._subscribed.wait(10)

    def of(self, component: str) -> Entity:
        """The entity of the one device."""
        (device,) = self.devices.values()
        return self.entities[f"{device['identifiers'][0]}_{component}"]

    def state(self, component: str) -> str | None:
        """As shown: "unavailable" while its device is away, None for unknown or not there."""
        try:
            entity = self.of(component)
        except (ValueError, KeyError):
            return None
        topic = entity.config.get("availability_topic")
        return entity.state if topic is None or self.available.get(topic) else "unavailable"

    def press(self, component: str) -> None:
        """A button."""
        config = self.of(component).config
        self._publish(config["command_topic"], config.get("payload_press", "PRESS"), config)

    def choose(self, component: str, option: str) -> None:
        """An option of a select."""
        entity = self.of(component)
        assert option in entity.config["options"]
        this = {"state": entity.state, "attributes": entity.attributes}
        payload = self._render(entity.config["command_template"], value=option, this=this)
        self._publish(entity.config["command_topic"], payload, entity.config)

    def say(self, state: str) -> None:
        """Its birth or end."""
        self.client.publish(f"{self._prefix}/status", state, qos=1).wait_for_publish(10)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def _publish(self, topic: str, payload: str, config: dict[str, Any]) -> None:
        self.client.publish(topic, payload, qos=config.get("qos", 0)).wait_for_publish(10)

    def _render(self, template: str, **variables: Any) -> str:
        return str(self._templates.from_string(template).render(**variables))

    def _value(self, template: str | None, payload: bytes) -> str:
        text = payload.decode()
        if template is None:
            return text
        return self._render(template, value=text, value_json=json.loads(text))

    def _on_connect(self, client: paho.Client, *_: object) -> None:
        client.subscribe([(f"{self._prefix}/+/+/config", 0), (f"{self._prefix}/+/+/+/config", 0)])

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        try:
            if message.topic.startswith(f"{self._prefix}/"):
                self._discover(message.topic, message.payload)
            else:
                self._update(message.topic, message.payload)
        except (AssertionError, LookupError, ValueError, TypeError, jinja2.TemplateError) as error:
            self.mistakes.append(f"{message.topic}: {error!r}")

    def _discover(self, topic: str, payload: bytes) -> None:
        self.n_configs += 1
        match = CONFIG_TOPIC.fullmatch(topic.removeprefix(f"{self._prefix}/"))
        assert match is not None and match[1] == "device", f"no discovery topic: {topic}"
        assert len(payload) < 128 * 1024
        old = self.devices.pop(topic, None)
        if not payload:
            for key in [key for key, entity in self.entities.items() if entity.config["from"] == topic]:
                del self.entities[key]
            return
        found = json.loads(payload)
        assert set(found) <= {"device", "origin", "components"} | SHARED, set(found)
        assert found["origin"]["name"] and found["device"]["identifiers"]
        assert set(found["device"]) <= {"identifiers", "name", "manufacturer", "model", "sw_version"}
        shared = {key: value for key, value in found.items() if key in SHARED}
        self.devices[topic] = found["device"]
        for component in found["components"].values():
            self._set_up(shared | component, topic, removed=set(component) == {"platform"})
        names = [c["unique_id"] for c in found["components"].values() if "unique_id" in c]
        assert len(names) == len(set(names))
        gone = (
            set()
            if old is None
            else {k for k, e in self.entities.items() if e.config["from"] == topic} - set(names)
        )
        for key in gone:
            del self.entities[key]

    def _set_up(self, config: dict[str, Any], topic: str, *, removed: bool) -> None:
        platform = config["platform"]
        assert platform in KEYS, platform
        if removed:
            return
        assert set(config) <= COMMON | KEYS[platform], set(config) - COMMON - KEYS[platform]
        assert set(config) >= REQUIRED[platform] | {"unique_id", "name"}, config
        assert re.fullmatch(r"[a-zA-Z0-9_-]+", config["unique_id"])
        old = self.entities.get(config["unique_id"])
        entity = Entity(config | {"from": topic})
        if old is not None:
            entity.state, entity.attributes, entity.versions = old.state, old.attributes, old.versions
        self.entities[config["unique_id"]] = entity
        for key in ("state_topic", "json_attributes_topic", "availability_topic"):
            if key in config:
                self.client.subscribe(config[key], 1)

    def _update(self, topic: str, payload: bytes) -> None:
        for entity in list(self.entities.values()):
            config = entity.config
            if config.get("availability_topic") == topic:
                shown = self._value(config.get("availability_template"), payload)
                assert shown in ("online", "offline"), shown
                self.available[topic] = shown == "online"
            if config.get("json_attributes_topic") == topic:
                attributes = json.loads(self._value(config.get("json_attributes_template"), payload))
                assert isinstance(attributes, dict)
                entity.attributes = attributes
            if config.get("state_topic") == topic:
                self._change(entity, self._value(config.get("value_template"), payload))

    def _change(self, entity: Entity, value: str) -> None:
        assert len(value) <= 255 or entity.platform == "update"
        if entity.platform == "update":
            entity.versions = json.loads(value)
            newer = entity.versions["latest_version"] != entity.versions["installed_version"]
            value = "on" if newer else "off"
        elif value == "None":
            entity.state = None
            return
        elif entity.platform == "binary_sensor":
            assert value in ("ON", "OFF"), value
        elif entity.platform == "select":
            assert value in entity.config["options"], f"invalid option {value}"
        elif "unit_of_measurement" in entity.config or "state_class" in entity.config:
            float(value)
        entity.state = value
