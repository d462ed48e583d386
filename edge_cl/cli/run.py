"""``edge-cl run``: a device, live."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import click
import msgspec
from threadpoolctl import threadpool_limits

from edge_cl.bundle import Bundle
from edge_cl.cli import heap
from edge_cl.cli.around import attach
from edge_cl.cli.owner import kept_by_its_owner
from edge_cl.config import Settings, load_settings, settings_from
from edge_cl.device import Device
from edge_cl.errors import ConfigError
from edge_cl.heartbeat import Heartbeat
from edge_cl.manifest import Manifest
from edge_cl.records import Answer, Decision, Event, Sink, SleepReport, Status
from edge_cl.sensing.labelling import LabelSchedule
from edge_cl.sensing.opening import Stream, open_sensor
from edge_cl.sensing.stream import STDIN, open_stream, paced
from edge_cl.upgrade.slots import Slots


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "-i", "--input", "source", default="",
    help="A .jsonl or .csv recording; - is stdin, the default when the settings name no sensor.",
)  # fmt: skip
@click.option(
    "--state", type=click.Path(path_type=Path), default="edge-cl-state", show_default=True,
    envvar="EDGE_CL_STATE", callback=kept_by_its_owner,
    help="Folder of the learned state; made when absent.",
)  # fmt: skip
@click.option("--config", type=click.Path(path_type=Path), envvar="EDGE_CL_CONFIG", help="Settings (TOML).")
@click.option("--mqtt", "mqtt_url", default="", help="mqtt://host[:port]; overrides the settings.")
@click.option("--device", default="", help="Device name in MQTT topics; overrides the settings.")
@click.option(
    "--head", default="", metavar="NAME[,OPTION=VALUE...]",
    help="Which head learns, e.g. dual,lift=512,window=128; overrides the bundle and the settings.",
)  # fmt: skip
@click.option("--label-every", default=1, show_default=True, help="Use one in N labels of the recording.")
@click.option("--label-delay", default=0, show_default=True, help="Give its labels N readings late.")
@click.option("--realtime", is_flag=True, help="Play a recording at its own speed.")
@click.option("-q", "--quiet", is_flag=True, help="Write no decisions to standard output.")
def run(  # noqa: PLR0913  one parameter per option
    bundle: Path, source: str, state: Path, config: Path | None, mqtt_url: str, device: str, head: str,
    label_every: int, label_delay: int, realtime: bool, quiet: bool,
) -> None:  # fmt: skip
    """Stream readings through BUNDLE: predict, learn from every label, sleep, report.

    Decisions, receipts and sleep reports are written to standard output as JSON lines. Labels may be in
    the input, come over MQTT, or from `edge-cl label`. Input lines are samples ({"t": 1.31, "x": [...]}),
    windows ({"t": 1.3, "window": [[...], ...], "id": "r7"}) or labels ({"label": "run", "reading_id": "r7"}).
    """
    logging.basicConfig(level=logging.INFO, format="edge-cl: %(message)s", stream=sys.stderr)
    heap.return_freed_memory()
    settings = _settings(config, mqtt_url, device, head)
    threadpool_limits(1)  # small matrices: more threads only wait for each other, and heat the board
    labels = LabelSchedule(every=label_every, delay=label_delay)
    if not state.exists():
        Bundle.load(bundle)  # a mistyped name leaves no folder behind
    with contextlib.ExitStack() as stack:
        slots = stack.enter_context(Slots(state))
        place = slots.active(bundle)
        loaded = Bundle.load(place.bundle)
        stream = _stream(source, settings, loaded.manifest, labels)
        stack.callback(stream.close)
        running = stack.enter_context(Device(slots, loaded, place, settings))
        around = attach(stack, settings, state, running, stream)
        sinks: list[Sink] = [*around.sinks, _Report(stream, running, quiet=quiet)]
        logging.info("%s; %s", loaded.manifest.name, running.status().recovered)
        heartbeat = Heartbeat(around.checks, lambda: _in_short(running.status()))
        stack.callback(heartbeat.stopping)
        events = _UntilStopped(paced(stream) if realtime else stream, heartbeat.beat)
        running.run(events, around.sources, sinks, busy=lambda: events.stopped or stream.waiting())


def _settings(config: Path | None, mqtt_url: str, device: str, head: str) -> Settings:
    settings = load_settings(config) if config else Settings()
    if not (mqtt_url or device or head):
        return settings
    raw = msgspec.to_builtins(settings)
    raw["mqtt"]["url"] = mqtt_url or raw["mqtt"]["url"]
    raw["device"]["name"] = device or raw["device"]["name"]
    if head:
        raw["head"] = _head_from(head)
    return settings_from(raw, "command line")


def _head_from(text: str) -> dict[str, Any]:
    """``dual,lift=512`` as the settings have it; a value is a JSON number, else a word."""
    name, *pairs = text.split(",")
    options: dict[str, Any] = {}
    for pair in pairs:
        option, equals, value = pair.partition("=")
        if not (option and equals and value):
            raise ConfigError(f"--head is {text!r}; allowed: NAME or NAME,OPTION=VALUE,OPTION=VALUE")
        try:
            options[option] = msgspec.json.decode(value)
        except msgspec.DecodeError:
            options[option] = value
    return {"name": name, "options": options}


def _in_short(status: Status) -> str:
    """One line for ``systemctl status``."""
    lately = "" if status.accuracy_now is None else f", {status.accuracy_now:.0%} right lately"
    said = f"{status.n_readings:,} readings, {status.n_labels:,} labels{lately}"
    return f"{said}; {status.alarm}" if status.alarm else said


def _stream(source: str, settings: Settings, manifest: Manifest, labels: LabelSchedule) -> Stream:
    """What the command line names goes before the settings' sensor."""
    if source:
        return open_stream(source, manifest, labels=labels)
    if settings.sensor.name in ("", "stdin") and _is_null(STDIN):
        logging.warning(
            "standard input is empty, so there is nothing to do: set [sensor] name in the settings "
            "(docs/sensors.md), or name a recording by --input"
        )
    return open_sensor(settings.sensor, manifest, labels=labels)


def _is_null(number: int) -> bool:
    """As a service has it."""
    with contextlib.suppress(OSError):
        return os.fstat(number).st_rdev == Path(os.devnull).stat().st_rdev
    return False


class _Report:
    """Standard output: one JSON object a line."""

    def __init__(self, stream: Stream, device: Device, *, quiet: bool) -> None:
        self._stream, self._device, self._quiet = stream, device, quiet
        self._out = sys.stdout.buffer
        self._encoder = msgspec.json.Encoder()
        self._alarm = ""

    def __call__(self, answer: Answer) -> None:
        if isinstance(answer, Status):
            self._device.learner.n_bad_inputs = self._stream.n_bad
            if answer.alarm != self._alarm:
                self._alarm = answer.alarm
                logging.warning("%s", answer.alarm or "all is well again")
            return
        if isinstance(answer, SleepReport):
            heap.trim()
        if self._quiet and isinstance(answer, Decision):
            return
        self._out.write(self._encoder.encode(answer) + b"\n")
        self._out.flush()


class _UntilStopped:
    """The events until SIGTERM or SIGINT; the loop then ends between two events, never inside a lesson."""

    def __init__(self, events: Iterable[Event], turned: Callable[[], None]) -> None:
        self._events, self._turned = events, turned
        self.stopped = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: object) -> None:
        self.stopped = True

    def __iter__(self) -> Iterator[Event]:
        for event in self._events:
            if self.stopped:
                return
            self._turned()
            yield event
