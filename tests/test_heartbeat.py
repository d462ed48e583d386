"""What systemd hears: a real datagram socket in its place, and devices whose parts get stuck."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_cl.heartbeat import Heartbeat
from tests.devices import COMMAND, ENVIRONMENT, jsonl, windows
from tests.worlds import make_bundle


class Manager:
    """A service manager's end of the socket."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "notify")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.settimeout(20)

    def hear(self) -> list[str]:
        """The next datagram's lines."""
        return self._socket.recv(4096).decode().split("\n")

    def nothing(self) -> bool:
        """Whether nothing waits to be heard."""
        return not select.select([self._socket], [], [], 0)[0]

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    made = Manager(tmp_path)
    yield made
    made.close()


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def beats(manager: Manager, clock: Clock, found: list[str], **more: str) -> Heartbeat:
    environment = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "30000000", **more}
    return Heartbeat([lambda: found[0]], lambda: "all is well", environment=environment, clock=clock)


def test_ready_comes_with_the_first_turn_then_a_beat_each_third_of_the_watchdogs_time(
    manager: Manager,
) -> None:
    clock = Clock()
    heartbeat = beats(manager, clock, [""])
    heartbeat.beat()
    assert manager.hear() == ["READY=1", "WATCHDOG=1", "STATUS=all is well"]
    clock.now_s += 9.9
    heartbeat.beat()
    assert manager.nothing()
    clock.now_s += 0.2
    heartbeat.beat()
    assert manager.hear() == ["WATCHDOG=1", "STATUS=all is well"]


def test_readiness_that_systemd_had_no_room_for_is_said_again(tmp_path: Path) -> None:
    """Its queue is full while the whole board starts; a service that is never ready is ended."""
    manager, clock = Manager(tmp_path), Clock()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as others:
        others.setblocking(False)
        others.connect(manager.path)
        with pytest.raises(BlockingIOError):
            while True:
                others.send(b"x")
        heartbeat = beats(manager, clock, [""])
        heartbeat.beat()
        while not manager.nothing():
            assert manager.hear() == ["x"]
    clock.now_s += 10
    heartbeat.beat()
    assert manager.hear()[0] == "READY=1"
    clock.now_s += 10
    heartbeat.beat()
    assert manager.hear()[0] == "WATCHDOG=1"
    manager.close()


def test_what_is_stuck_is_told_and_feeds_no_watchdog(
    manager: Manager, caplog: pytest.LogCaptureFixture
) -> None:
    clock, found = Clock(), ["the sensor is stuck"]
    heartbeat = beats(manager, clock, found)
    for _ in range(3):
        heartbeat.beat()
        clock.now_s += 10
    assert manager.hear() == ["READY=1", "STATUS=the sensor is stuck"]
    assert [manager.hear() for _ in range(2)] == [["STATUS=the sensor is stuck"]] * 2
    assert caplog.text.count("the sensor is stuck") == 1, "once, not at every turn"
    found[0] = ""
    heartbeat.beat()
    assert manager.hear()[0] == "WATCHDOG=1" and heartbeat.alarm == ""


def test_a_watchdog_that_waits_for_another_process_is_not_fed(manager: Manager) -> None:
    heartbeat = beats(manager, Clock(), [""], WATCHDOG_PID=str(os.getpid() + 1))
    heartbeat.beat()
    assert manager.hear() == ["READY=1", "STATUS=all is well"]


def test_nobody_listens_or_nobody_is_there(tmp_path: Path, manager: Manager) -> None:
    for address in ("", str(tmp_path / "gone"), "@nobody-is-here"):
        Heartbeat([], environment={"NOTIFY_SOCKET": address}).beat()
    heartbeat = beats(manager, clock := Clock(), [""])
    for _ in range(
        2000
    ):  # more than a socket's queue takes: the loop must not wait for a manager that is busy
        clock.now_s += 10
        heartbeat.beat()


def test_an_address_without_a_file() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind("")  # the kernel chooses one
        name = manager.getsockname()
        Heartbeat([], environment={"NOTIFY_SOCKET": "@" + name[1:].decode()}).beat()
        assert manager.recv(100).startswith(b"READY=1")


def test_a_device_tells_when_it_is_ready_and_when_it_stops(manager: Manager, tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": "300000"}
    bundle = tmp_path / "world.ecl"
    make_bundle(bundle)
    command = [*COMMAND, "run", str(bundle), "--state", str(tmp_path / "state")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as device:
        assert device.stdin and device.stdout
        assert "READY=1" in manager.hear()
        device.stdin.write(jsonl(windows(1)))
        device.stdin.flush()
        assert "WATCHDOG=1" in manager.hear()  # while nothing more comes from the sensor, too
        device.send_signal(signal.SIGSTOP)
        device.send_signal(signal.SIGCONT)
        device.send_signal(signal.SIGTERM)
        while (said := manager.hear()) != ["STOPPING=1"]:
            assert "WATCHDOG=1" in said
        assert device.wait(20) == 0
