"""The other side of whatever is under test: an MQTT client that hears everything, and processes to test."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from edge_cl.commands import Command, Do
from edge_cl.sync import messages, signing
from edge_cl.sync.broker import parse_url
from tests.mosquitto import wait_until

SITE, DEVICE = "lab", "pi-7"
ROOT = f"edgecl/1/{SITE}/{DEVICE}"
OWN_DEVICE = f"{sys.executable} -m tests.conformance.device {{url}} {{site}} {{device}} {{state}} {{key}}"
OWN_SERVER = f"{sys.executable} -m edge_cl fleet serve --mqtt {{url}} --store sqlite:///{{state}}/fleet.db"
TIMEOUT_S = 30.0


class Heard(NamedTuple):
    """One PUBLISH."""

    topic: str
    payload: bytes
    retained: bool
    qos: int

    @property
    def kind(self) -> str:
        """What follows the device's topic."""
        return self.topic.removeprefix(f"{ROOT}/")


class Ear:
    """Hears everything below ``edgecl/``, and speaks."""

    def __init__(self, url: str, *, confirms: bool = False) -> None:
        self.confirms = confirms
        self.heard: list[Heard] = []
        self._ready = threading.Event()
        self._client = paho.Client(CallbackAPIVersion.VERSION2)
        self._client.on_message = self._on_message
        self._client.on_connect = lambda client, *_: client.subscribe("edgecl/#", qos=1)
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.max_queued_messages_set(0)
        where = parse_url(url)
        self._client.connect(where.host, where.port)
        self._client.loop_start()
        assert self._ready.wait(10)

    def say(self, topic: str, payload: bytes, *, retain: bool = False, qos: int = 1) -> None:
        """Publish below the device's topic, or on a whole one."""
        whole = topic if topic.startswith("edgecl/") else f"{ROOT}/{topic}"
        self._client.publish(whole, payload, qos=qos, retain=retain).wait_for_publish(10)

    def of(self, kind: str, *, since: int = 0) -> list[Any]:
        """What came of a kind, read."""
        found = [heard for heard in self.heard[since:] if heard.kind == kind and heard.payload]
        return [messages.decode(kind.removeprefix("cmd/"), heard.payload) for heard in found]

    def durable(self, *, since: int = 0) -> list[messages.Message[Any]]:
        """Messages that must be confirmed, in order."""
        kinds = messages.DURABLE
        found = [heard for heard in self.heard[since:] if heard.kind in kinds]
        return [messages.decode(heard.kind, heard.payload) for heard in found]

    def wait_for(self, kind: str, n: int = 1, *, since: int = 0, timeout_s: float = TIMEOUT_S) -> list[Any]:
        """At least `n` of a kind."""
        wait_until(lambda: len(self.of(kind, since=since)) >= n, f"{n} of {kind}", timeout_s)
        return self.of(kind, since=since)

    def confirm(self, ids: list[str]) -> None:
        """As a server that has stored them."""
        self.say("cmd/ack", messages.encode(messages.Ack(ids=ids)), qos=0)

    def close(self) -> None:
        """End."""
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, _client: Any, _data: Any, message: paho.MQTTMessage) -> None:
        self.heard.append(Heard(message.topic, bytes(message.payload), message.retain, message.qos))
        kind = self.heard[-1].kind
        if self.confirms and kind in messages.DURABLE:
            found = messages.decode(kind, message.payload)
            self._client.publish(f"{ROOT}/cmd/ack", messages.encode(messages.Ack(ids=[found.id])))


class Subject:
    """The process under test."""

    def __init__(self, command: str, url: str, folder: Path, key: str = "") -> None:
        self._argv = shlex.split(command.format(url=url, site=SITE, device=DEVICE, state=folder, key=key))
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, again or for the first time."""
        log = (self._folder / "subject.log").open("ab")
        self._process = subprocess.Popen(self._argv, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        """SIGKILL, it and what it started."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=20)
        self._process = None

    def _end(self, number: int) -> None:
        if self._process is not None:
            os.killpg(self._process.pid, number)
            self._process.wait(timeout=20)
        self._process = None


class Boss:
    """Signs commands for the device under test."""

    def __init__(self, ear: Ear) -> None:
        self.key = signing.make_key()
        self.public = signing.public_of(self.key)
        self._ear = ear

    def command(self, do: Do, **changes: Any) -> Command:
        """One that has to be obeyed, but for `changes`."""
        state = self._ear.of("state")[-1]
        fields = {
            "id": uuid.uuid4().hex,
            "to": f"{SITE}/{DEVICE}",
            "boot_id": state.boot_id,
            "until_s": state.up_s + 600.0,
        }
        return Command(do=do, **(fields | changes))

    def signed(self, command: Command, *, by: str = "conformance", key: str = "") -> bytes:
        """In its envelope."""
        text = messages.encode(command).decode()
        signature = signing.sign(key or self.key, signing.COMMAND, text)
        return messages.encode(messages.Signed(by=by, signature=signature, command=text))

    def send(self, do: Do, **changes: Any) -> str:
        """Sign and publish; its id."""
        command = self.command(do, **changes)
        self._ear.say("cmd/do", self.signed(command))
        return command.id


def result_of(ear: Ear, command_id: str, *, timeout_s: float = TIMEOUT_S) -> Any:
    """The answer to a command."""

    def found() -> list[Any]:
        return [message.data for message in ear.of("result") if message.data.id == command_id]

    wait_until(found, f"a result of {command_id}", timeout_s)
    return found()[-1]


def quiet(ear: Ear, what: Callable[[], Any], after: Callable[[], Any]) -> Any:
    """What `what()` gives once `after()` is true: something that is sent later has arrived."""
    wait_until(after, "what comes later")
    return what()
