"""The built wheel with aarch64 wheels on an emulated Arm: what boards compute, and that they start at all.

``make test-arm64``. Speed and memory of an emulator say nothing; what is compared is results. Each core model
is enforced, so a wheel built for a newer one than the board's dies here as it would there.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import paho.mqtt.client as paho
import pytest

from bench import recording
from edge_cl.bundle import Bundle
from tests.arm64 import machine
from tests.arm64.machine import BUNDLE, FOLDER, N_WINDOWS, RUNTIMES, SLOW_S
from tests.arm64.root import CPUS, ArmRoot, Unavailable
from tests.devices import Device
from tests.mosquitto import Broker, wait_until

DISTRIBUTIONS = {"onnx": "onnxruntime", "litert": "ai-edge-litert", "tflite": "tflite-runtime"}

pytestmark = pytest.mark.arm64


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> ArmRoot:
    """Debian with the built wheel and what each runtime needs."""
    try:
        return machine.prepare(FOLDER, tmp_path_factory.mktemp("dist"))
    except Unavailable as reason:
        pytest.skip(f"no emulated Arm here: {reason}")


@pytest.mark.parametrize("cpu", CPUS)
@pytest.mark.parametrize("runtime", RUNTIMES)
def test_every_runtime_gives_the_exporters_features_on_every_core(
    root: ArmRoot, runtime: str, cpu: str
) -> None:
    said = machine.edge_cl(ArmRoot(root.folder, cpu), runtime, "verify", "/root/wrist.ecl", "--json")
    assert said["golden_error"] < 1e-4


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_float32_answers_are_those_of_x86(root: ArmRoot, runtime: str, tmp_path: Path) -> None:
    apart = machine.apart(runtime, root, tmp_path)
    sys.stdout.write(f"{runtime} float32, largest differences: {apart}\n")
    assert max(apart["features"], apart["before"]) < 1e-4
    assert apart["after"] < 1e-3  # ten labels later: float32 sums in another order


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_int8_answers_are_those_of_x86(root: ArmRoot, runtime: str, tmp_path: Path) -> None:
    assert machine.has(runtime, "int8"), "the default bundle lacks its int8 variant"
    agreement = machine.int8_agreement(runtime, root, tmp_path)
    sys.stdout.write(
        f"{runtime} int8: {agreement:.1%} of {N_WINDOWS} answers agree; VNNI: {machine.vnni()}\n"
    )
    assert agreement >= (0.99 if machine.vnni() else 0.95)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_doctor_knows_the_machine_and_its_runtime(root: ArmRoot, runtime: str) -> None:
    report = machine.edge_cl(root, runtime, "doctor", "--json", "--all", check=False)
    found = {finding["id"]: finding["found"] for finding in report["findings"]}
    assert "Cortex-A72" in found["board"] and "64-bit" in found["os-32bit"]
    assert DISTRIBUTIONS[runtime] in found["runtime"]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_device_learns_sleeps_is_killed_and_knows_it_all(
    root: ArmRoot, runtime: str, broker: Broker
) -> None:
    with Person(broker) as person, fed(root, runtime, broker) as device:
        decision = device.wait_for("decision", timeout_s=SLOW_S)
        person.tell("label", label="drumming", reading_id=decision["reading_id"])
        receipt = device.wait_for("receipt", timeout_s=SLOW_S, label="drumming")
        assert (receipt["status"], receipt["new_class"]) == ("learned", True)
        person.tell("sleep")
        device.wait_for("sleep", timeout_s=SLOW_S)
        wait_until(lambda: {"receipt", "sleep"} <= set(person.heard), "both came over MQTT", timeout_s=SLOW_S)
        device.process.kill()  # the emulator, and with it all of the guest
    with fed(root, runtime, broker, first=40) as device:
        device.wait_for("decision", timeout_s=SLOW_S)
        said = machine.edge_cl(root, runtime, "status", "--state", state(runtime), "--json")
    assert "drumming" in said["class_names"] and said["n_sleeps"] == 1
    assert said["n_labels"] >= 1


def state(runtime: str) -> str:
    return f"/root/state-{runtime}"


def fed(root: ArmRoot, runtime: str, broker: Broker, first: int = 0) -> Device:
    """A device on the Arm with forty windows written to its input, which stays open."""
    if not first:
        shutil.rmtree(root.folder / state(runtime)[1:], ignore_errors=True)
    text = f'[encoder]\nruntime = "{runtime}"\n[sleep]\nsteps = 100\n'
    (root.folder / "root" / "config.toml").write_text(text)
    command = root.command(["python3", "-m", "edge_cl"], machine.python_path(runtime))
    options = ["--mqtt", broker.url, "--config", "/root/config.toml"]
    device = Device(Path("/root/wrist.ecl"), Path(state(runtime)), *options, command=command)
    manifest = Bundle.load(BUNDLE).manifest
    lines = list(recording.lines(manifest, first + 40, seed=3, labelled=False))[first:]
    assert device.process.stdin
    device.process.stdin.write(b"".join(lines))
    device.process.stdin.flush()
    return device


class Person:
    """Somebody at the broker: hears what the device says, tells it something."""

    def __init__(self, broker: Broker) -> None:
        self.heard: list[str] = []
        self._client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
        self._client.on_message = lambda _c, _u, message: self._hear(message)
        self._client.on_connect = lambda client, *_: client.subscribe("edgecl/1/home/edge-cl/+", qos=1)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()

    def _hear(self, message: paho.MQTTMessage) -> None:
        kind = message.topic.rsplit("/", 1)[1]
        online = kind != "status" or json.loads(message.payload)["online"]
        self.heard.append(kind if online else "offline")

    def tell(self, topic: str, **said: str) -> None:
        """Say it to a device that listens."""
        wait_until(lambda: "status" in self.heard, "the device is online", timeout_s=SLOW_S)
        payload = json.dumps(said).encode()
        self._client.publish(f"edgecl/1/home/edge-cl/cmd/{topic}", payload, qos=1).wait_for_publish(10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.disconnect()
        self._client.loop_stop()


@pytest.fixture(autouse=True)
def _no_leftovers() -> Iterator[None]:
    yield
    for mount in ("proc", "sys", "dev"):
        assert not os.path.ismount(FOLDER / mount), "the root's mounts must stay in its own namespace"
