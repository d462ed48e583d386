"""What a running device is connected with: the control socket, sources of labels, MQTT."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from edge_cl.config import Settings
from edge_cl.device import Device
from edge_cl.heartbeat import Check
from edge_cl.records import LabelSource, Sink, SleepRequest
from edge_cl.sensing.opening import LabelSources, Stream
from edge_cl.sync.control import SOCKET_NAME, ControlServer

if TYPE_CHECKING:
    from edge_cl.sync.link import MqttLink

OUTBOX_SHARE = 4
"""The outbox may take one part in this many of the disk budget."""
STUCK_S = 20.0
"""A driver that has not come back for so long will not come back: its bus hangs."""


class Around(NamedTuple):
    """Who gives labels, who hears answers, and what may hang without the run loop noticing."""

    sources: list[LabelSource]
    sinks: list[Sink]
    checks: list[Check]


def attach(
    stack: contextlib.ExitStack, settings: Settings, state: Path, device: Device, stream: Stream
) -> Around:
    """Connect the device; the stack lets go. Its alarm then says what is wrong with any of them."""
    control = stack.enter_context(ControlServer(state / SOCKET_NAME, device))
    given = LabelSources(settings.labels)
    stack.callback(given.close)
    around = Around([control, given], [control.sink, given.hear], [lambda: _stuck(stream)])
    alarms: list[Callable[[], str]] = [lambda: stream.alarm, lambda: given.alarm]
    device.other_alarm = lambda: "; ".join(filter(None, (alarm() for alarm in alarms)))
    if settings.mqtt.url:
        link = _connect(stack, settings, state, device, around)
        alarms.append(lambda: link.alarm)
    return around


def _stuck(stream: Stream) -> str:
    stuck_s = stream.stuck_s()
    return f"the sensor's driver has not come back for {stuck_s:.0f} s" if stuck_s >= STUCK_S else ""


def _connect(
    stack: contextlib.ExitStack, settings: Settings, state: Path, device: Device, around: Around
) -> MqttLink:
    from edge_cl.remote import Remote  # what only a fleet asks for

    link = _link(settings, state)
    requests = _Requests()
    link.obey_with(Remote(device, settings.commands.keys, requests.append))
    link.on_chunk = lambda chunk: device.upgrade.chunk(chunk.sha256, chunk.number, chunk.body)
    device.upgrade.report, device.upgrade.want = link.tell, link.want
    device.followed_by(link.follow)
    link.start()
    stack.callback(link.stop)
    around.sources.extend([link, requests])
    around.sinks.append(link.sink)
    around.checks.append(lambda: "" if link.is_alive else "the thread that serves MQTT has ended")
    return link


def _link(settings: Settings, state: Path) -> MqttLink:
    from edge_cl.sync.broker import Access
    from edge_cl.sync.link import MqttLink, Pace  # 8 MB that a device without MQTT need not hold

    mqtt = settings.mqtt
    return MqttLink(
        mqtt.url,
        device=settings.device.name,
        site=settings.device.site,
        state_dir=state,
        disk_bytes=settings.to_budget().disk_bytes // OUTBOX_SHARE,
        confirm=mqtt.confirm,
        access=Access(mqtt.username, mqtt.ca_file, mqtt.cert_file, mqtt.key_file),
        commands=settings.commands,
        pace=Pace(mqtt.summary_s, mqtt.health_s),
        discovery=mqtt.discovery,
    )


class _Requests(list[SleepRequest]):
    """Requests to sleep that came as commands."""

    def poll(self) -> list[SleepRequest]:
        """Those since the last call."""
        found = list(self)
        self.clear()
        return found
