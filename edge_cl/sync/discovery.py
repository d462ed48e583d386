"""What Home Assistant is told of a device so that it appears there by itself: one retained message.

The topic is ``<prefix>/device/<site>/<device>/config``: with the site as its node id a broker can let each
device write its own and no other's. Values come from the device's ordinary topics, by templates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from edge_cl.records import Status
from edge_cl.sync.messages import MAX_MESSAGE_BYTES, SHOWN

NOTE = "discovery"
"""Name of the outbox's note that holds the topic where something may be retained."""
EXPIRE_S = 300
"""A decision without a newer one is no longer the state; while readings come there is one every 5 s."""
MAX_STATE_CHARS = 255
_EVENT, _STATE, _STATUS = "event", "state", "status"


class Announced(NamedTuple):
    """What the message depends on."""

    bundle_name: str
    bundle_id: str
    head: str
    class_names: tuple[str, ...]

    @classmethod
    def of(cls, status: Status) -> Announced:
        """That of a status."""
        return cls(status.bundle_name, status.bundle_id, status.head, tuple(status.class_names))


class Discovery:
    """Knows what to publish where, and when it is time. The pump's thread calls it.

    Parameters
    ----------
    prefix
        Home Assistant's discovery prefix; "" to be discovered no more.
    name
        ``site/device``.
    root
        The topic that the device's topics begin with.
    unsigned
        What may be asked for without a signature; nothing else gets a button.
    noted
        Topic of an earlier life of the program, from the outbox's notes.
    """

    def __init__(
        self, prefix: str, name: str, *, root: str, unsigned: tuple[str, ...], noted: str = ""
    ) -> None:
        self.topic = f"{prefix}/device/{name}/config" if prefix else ""
        self.birth_topic = f"{prefix}/status" if prefix else ""
        """Where Home Assistant says that it started; "" when it is of no interest."""
        self.problem = ""
        """Why Home Assistant does not learn of the device, or ""."""
        self._name, self._root, self._unsigned = name, root, unsigned
        self._old = noted if noted != self.topic else ""
        self._announced: Announced | None = None
        self._due: list[str] = []
        self._mids: dict[int, str] = {}

    @property
    def note(self) -> str:
        """For the outbox's notes: where something is retained that has to be removed some day."""
        return self._old or self.topic

    def again(self) -> None:
        """The connection is new, or Home Assistant started: say everything again."""
        self._due = [topic for topic in (self._old, self.topic) if topic]
        self._mids.clear()

    def note_status(self, status: Status) -> None:
        """How the device is doing now."""
        found = Announced.of(status)
        if found != self._announced and self.topic and self.topic not in self._due:
            self._due.append(self.topic)
        self._announced = found

    def take(self) -> tuple[str, bytes] | None:
        """Topic and retained body of what is to be published now, if anything."""
        if self._old in self._due:
            self._due.remove(self._old)
            return self._old, b""
        if not self._due or self._announced is None:
            return None
        self._due.clear()
        return self.topic, encode_config(self._announced, self._name, self._root, self._unsigned)

    def sent(self, topic: str, mid: int) -> None:
        """It was handed to the network under this number."""
        self._mids[mid] = topic

    def acknowledged(self, mid: int, problem: str) -> bool:
        """The broker's word on a message; False if it was none of these."""
        topic = self._mids.pop(mid, "")
        if not topic:
            return False
        self.problem = ""
        if problem:
            self.problem = f"the broker does not let this device write {topic} ({problem}); allow it there"
        elif topic == self._old:
            self._old = ""
        return True


def encode_config(of: Announced, name: str, root: str, unsigned: tuple[str, ...]) -> bytes:
    """The discovery message; without the select if its options would make it too large for a broker."""
    config = _config(of, name, root, unsigned)
    body = msgspec.json.encode(config)
    if len(body) > MAX_MESSAGE_BYTES - 1024:
        config["components"]["correct"] = {"platform": "select"}
        body = msgspec.json.encode(config)
    return body


def _config(of: Announced, name: str, root: str, unsigned: tuple[str, ...]) -> dict[str, Any]:
    device_id = "edgecl_" + name.replace("/", "_")
    components = {
        **_sensors(root),
        **_diagnostics(root),
        **_controls(root, of.class_names, unsigned),
        **_update(root, of),
    }
    for key, component in components.items():
        if len(component) > 1:  # a platform alone removes what was there
            component["unique_id"] = f"{device_id}_{key}"
    return {
        "device": {
            "identifiers": [device_id],
            "name": name.partition("/")[2],
            "manufacturer": "edge-cl",
            "model": f"{of.bundle_name} ({of.head})"[:MAX_STATE_CHARS],
            "sw_version": _version(),
        },
        "origin": {"name": "edge-cl", "sw_version": _version()},
        "availability_topic": f"{root}/{_STATUS}",
        "availability_template": "{{ 'online' if value_json.online else 'offline' }}",
        "qos": 1,
        "components": components,
    }


def _version() -> str:
    from importlib import metadata  # only for who wants to be discovered

    try:
        return metadata.version("edge-cl")
    except metadata.PackageNotFoundError:
        return "unknown"


def _sensors(root: str) -> dict[str, dict[str, Any]]:
    event = {"state_topic": f"{root}/{_EVENT}", "expire_after": EXPIRE_S}
    state = {"state_topic": f"{root}/{_STATE}"}
    percent = {"unit_of_measurement": "%", "state_class": "measurement", "suggested_display_precision": 1}
    return {
        "label": {
            "platform": "sensor",
            "name": "Label",
            "icon": "mdi:tag",
            "value_template": "{{ value_json.label or 'None' }}",
            **event,
        },
        "confidence": {
            "platform": "sensor",
            "name": "Confidence",
            "icon": "mdi:gauge",
            "value_template": "{{ (100 * value_json.confidence) | round(1) }}",
            **percent,
            **event,
        },
        "unknown": {
            "platform": "binary_sensor",
            "name": "Unknown",
            "icon": "mdi:help-circle",
            "value_template": "{{ 'ON' if value_json.abstained else 'OFF' }}",
            **event,
        },
        "accuracy": {
            "platform": "sensor",
            "name": "Accuracy",
            "icon": "mdi:bullseye-arrow",
            "value_template": _number("accuracy_now", "(100 * value_json.status.accuracy_now) | round(1)"),
            **percent,
            **state,
        },
        "drift": {
            "platform": "sensor",
            "name": "Drift",
            "icon": "mdi:trending-down",
            "value_template": _number("drift_points", "value_json.status.drift_points | round(1)"),
            "unit_of_measurement": "points",
            "state_class": "measurement",
            **state,
        },
        "review": {
            "platform": "sensor",
            "name": "Labels to review",
            "icon": "mdi:clipboard-text-clock",
            "value_template": "{{ value_json.status.n_held }}",
            "state_class": "measurement",
            **state,
        },
    }


def _diagnostics(root: str) -> dict[str, dict[str, Any]]:
    found = {
        "alarm": ("Alarm", "mdi:alert", f"(value_json.status.alarm or 'none')[:{MAX_STATE_CHARS}]"),
        "sleep_state": ("Sleep state", "mdi:sleep", f"value_json.status.sleep_state[:{MAX_STATE_CHARS}]"),
    }
    diagnostics = {
        key: {
            "platform": "sensor",
            "name": name,
            "icon": icon,
            "entity_category": "diagnostic",
            "state_topic": f"{root}/{_STATE}",
            "value_template": "{{ " + template + " }}",
        }
        for key, (name, icon, template) in found.items()
    }
    last = "value_json.status.last_sleep"
    reason = f"('woke with the new head' if {last}.adopted else 'kept the old head: ' ~ {last}.reason)"
    last_sleep = diagnostics["alarm"] | {
        "name": "Last sleep",
        "icon": "mdi:bed",
        "value_template": _number("last_sleep", f"{reason}[:{MAX_STATE_CHARS}]"),
    }
    return {**diagnostics, "last_sleep": last_sleep}


def _controls(
    root: str, class_names: tuple[str, ...], unsigned: tuple[str, ...]
) -> dict[str, dict[str, Any]]:
    event = f"{root}/{_EVENT}"
    reading = f"this.attributes.reading_id | default('{SHOWN}', true)"
    named = f"{{'label': value, 'reading_id': {reading}, 'source': 'home-assistant'}}"
    select = {
        "platform": "select",
        "name": "Correct the label",
        "icon": "mdi:tag-edit",
        "options": list(class_names),
        "state_topic": event,
        "value_template": "{{ value_json.label or 'None' }}",
        # what Home Assistant shows is what the person corrects, so its own copy names the reading
        "json_attributes_topic": event,
        "json_attributes_template": "{{ {'reading_id': value_json.reading_id} | to_json }}",
        "command_topic": f"{root}/cmd/label",
        "command_template": "{{ " + named + " | to_json }}",
    }
    buttons = {
        key: {"platform": "button", "name": name, "icon": icon, "command_topic": f"{root}/cmd/{key}"}
        for key, name, icon in (
            ("sleep", "Sleep now", "mdi:power-sleep"),
            ("undo", "Undo the last label", "mdi:undo"),
        )
    }
    return {
        "correct": select if "label" in unsigned and class_names else {"platform": "select"},
        **{key: button if key in unsigned else {"platform": "button"} for key, button in buttons.items()},
    }


def _update(root: str, of: Announced) -> dict[str, dict[str, Any]]:
    """There is nothing to press: a bundle is installed by a signed command of the fleet server."""
    installed = "value_json.status.bundle_id[:12]"
    latest = f"(value_json.installing[:12] or {installed})"
    progress = "value_json.installing != ''"
    versions = f"'installed_version': {installed}, 'latest_version': {latest}, 'in_progress': {progress}"
    return {
        "bundle": {
            "platform": "update",
            "name": "Bundle",
            "title": of.bundle_name[:MAX_STATE_CHARS],
            "entity_category": "diagnostic",
            "state_topic": f"{root}/{_STATE}",
            "value_template": "{{ {" + versions + "} | to_json }}",
        }
    }


def _number(field: str, otherwise: str) -> str:
    return "{{ 'None' if value_json.status." + field + " is none else " + otherwise + " }}"
